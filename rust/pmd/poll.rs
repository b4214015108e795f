//! One queue's turn: gather, classify, output, commit.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::output::{Groups, Source};
use super::{Fault, Topology};
use crate::burst::Burst;
use crate::counters::{QueueCounters, Tally};
use crate::drops::DropReason;
use crate::frame::ethernet::Mac;
use crate::ring::{RingFault, Transmitq};
use crate::switch::PortId;
use crate::switch::classify::{Cache, Output};

/// A transmitq with what its thread keeps for it.
#[derive(Debug)]
pub struct TransmitQueue {
    /// Whose.
    pub port: PortId,
    /// Vring index, odd.
    pub vring: u16,
    /// The ring and its burst.
    pub queue: Transmitq,
    /// Written by the thread that has the queue.
    pub counters: Arc<QueueCounters>,
    /// Which start of the vring this is: a report about an earlier one is nothing to it.
    pub run: u64,
    /// Its ring broke: it goes from thread to thread as it is, unpolled, until its session takes it back.
    pub(super) is_stopped: bool,
    /// It made the first call, which is made once and not at every move.
    pub(super) is_greeted: bool,
    cache: Cache,
}

impl TransmitQueue {
    /// Wraps a queue for a poll thread.
    pub fn new(queue: Transmitq, port: PortId, vring: u16, counters: Arc<QueueCounters>, run: u64) -> Self {
        Self { port, vring, queue, counters, run, is_stopped: false, is_greeted: false, cache: Cache::default() }
    }
}

/// What polling needs beside the queue itself; one per thread.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub topology: Arc<Topology>,
    groups: Groups,
    faults: Sender<Fault>,
    /// Seconds since the datapath started, for ageing.
    pub now_s: u32,
}

impl Forwarder {
    pub(super) fn new(faults: Sender<Fault>) -> Self {
        Self { topology: Arc::default(), groups: Groups::new(), faults, now_s: 0 }
    }

    /// Swaps the topology.
    pub(super) fn adopt(&mut self, topology: Arc<Topology>) {
        self.groups.fit(topology.ports.len());
        self.topology = topology;
    }

    /// Moves up to one burst from `q` to where it goes. Gives the frames taken.
    ///
    /// # Errors
    /// The queue's ring is broken: stop polling it.
    #[inline]
    pub(super) fn poll(&mut self, q: &mut TransmitQueue) -> Result<usize, RingFault> {
        let count = q.queue.gather()?;
        if count > 0 {
            self.forward(q.queue.burst(), q.port, q.vring, &q.counters, &mut q.cache);
            q.counters.notifications.add(u64::from(q.queue.commit()));
        }
        Ok(count)
    }

    fn forward(&mut self, burst: &Burst, port: PortId, vring: u16, counters: &QueueCounters, cache: &mut Cache) {
        let view = self.topology.ports.get(usize::from(port)).and_then(Option::as_ref);
        let bridge = view.and_then(|v| self.topology.bridges.get(v.bridge)).and_then(Option::as_ref);
        let Some((view, bridge)) = view.zip(bridge) else {
            return counters.dropped(DropReason::NoReceiver, burst.len() as u64);
        };
        if !view.admin_up {
            return counters.dropped(DropReason::AdminDown, burst.len() as u64);
        }
        cache.refresh(&bridge.fdb, self.now_s);
        let mut tally = Tally::default();
        for (index, (packet, head)) in (0_u8..).zip(burst.packets().iter().zip(burst.heads())) {
            if let Some(reason) = packet.drop {
                counters.dropped(reason, 1);
                continue;
            }
            let (output, dst) = cache.classify(&bridge.fdb, port, &head.0, bridge.forward_bpdu, self.now_s);
            tally.count(packet.len, dst.is_group(), dst == Mac::BROADCAST);
            match output {
                Output::Port(to) => {
                    if !self.groups.unicast(index, to) {
                        counters.dropped(DropReason::NoReceiver, 1);
                    }
                }
                Output::Flood => self.groups.flood(index),
                Output::Drop(reason) => counters.dropped(reason, 1),
            }
        }
        counters.add(&tally);
        let source = Source {
            burst,
            port,
            bridge: view.bridge,
            queue: usize::from(vring / 2),
            counters,
            topology: &self.topology,
            faults: &self.faults,
        };
        self.groups.deliver(&source, &bridge.members);
    }

    /// Drops what a panic left sorted and not delivered.
    pub(super) fn forget_burst(&mut self) {
        self.groups.forget();
    }

    /// Sends a RARP for `mac` into the bridge, as if it came in on `port`.
    pub(super) fn announce(&mut self, port: PortId, mac: Mac) {
        let mut burst = Burst::new(Arc::default());
        burst.push_own(&crate::burst::rarp(mac));
        self.forward(&burst, port, 1, &QueueCounters::default(), &mut Cache::default());
    }
}
