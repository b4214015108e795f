//! Frames of our own making: announcements, lessons, what a protocol says.

use std::sync::Arc;

use super::{Aside, Forwarder, settle_by};
use crate::burst::{Burst, HEAD_SIZE, MAX_BURST};
use crate::counters::QueueCounters;
use crate::frame::ethernet::Mac;
use crate::pmd::wait::{Waiting, indices};
use crate::switch::PortId;
use crate::switch::classify::Cache;
use crate::switch::fdb::Key;

impl Forwarder {
    /// Sends a RARP for `mac` into the bridge, as if it came in on `port`.
    pub(in crate::pmd) fn announce(&mut self, port: PortId, mac: Mac) {
        let mut burst = Burst::new(Arc::default());
        burst.push_rarp(mac, 0);
        let (counters, mut cache, mut waiting) = (QueueCounters::default(), Cache::default(), Waiting::new());
        let aside = Aside { waiting: &mut waiting, zero_copy: None, settle_by: Some(settle_by()) };
        self.forward(&mut burst, port, &counters, &mut cache, aside);
    }

    /// Sends a RARP for each of `addresses` out on `port`: who is behind it learns where to find them.
    pub(in crate::pmd) fn teach(&mut self, port: PortId, addresses: &[Key]) {
        let mut burst = Burst::new(Arc::default());
        for address in addresses.iter().take(MAX_BURST) {
            burst.push_rarp(address.mac(), address.vlan());
        }
        self.send_out(port, &burst);
    }

    /// Sends a frame of `len` bytes out on `port`, a link of a bond, whatever the bond does with that.
    pub(in crate::pmd) fn emit(&mut self, port: PortId, head: &[u8; HEAD_SIZE], len: u32) {
        let mut burst = Burst::new(Arc::default());
        burst.push_padded(head, len as usize);
        self.send_out(port, &burst);
    }

    fn send_out(&mut self, port: PortId, burst: &Burst) {
        let (mut waiting, mut list, mut room) = (Waiting::new(), 0, [0; MAX_BURST]);
        for index in 0..burst.len() {
            list |= 1 << index;
        }
        let aside = Aside { waiting: &mut waiting, zero_copy: None, settle_by: Some(settle_by()) };
        let mut source = self.source(burst, port, aside);
        if let Some(view) = source.topology.port(port) {
            source.deliver(view, indices(list, &mut room), None);
        }
    }
}
