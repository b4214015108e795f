//! A ring of either layout: the one place that tells them apart, once for a burst and never for a packet.

use std::fs::File;
use std::sync::Arc;

use super::RingFault;
use super::doorbell::Doorbell;
use super::held::Orphan;
use super::journal::Past;
use super::layout::Layout;
use super::packed::PackedRing;
use super::split::SplitRing;
use crate::error::Result;
use crate::memory::GuestMap;
use crate::sys::eventfd::Notifier;

/// A vring that was checked and translated. Owned by one thread at a time.
#[derive(Debug)]
pub struct Ring(pub(super) Kind);

/// Which layout it has.
#[derive(Debug)]
pub(super) enum Kind {
    /// virtio 1.2 §2.7.
    Split(SplitRing),
    /// virtio 1.2 §2.8.
    Packed(PackedRing),
}

/// Calls a function generic over the layout with the ring in `$kind`.
macro_rules! with_layout {
    ($kind:expr, $ring:ident => $call:expr) => {
        match $kind {
            Kind::Split($ring) => $call,
            Kind::Packed($ring) => $call,
        }
    };
}
pub(super) use with_layout;

impl Ring {
    /// Where the ring stands, available = used: the index of a split ring, the descriptor of a packed one with its wrap
    /// counter in bit 15. It is the base to go on at.
    pub fn next_index(&self) -> u16 {
        with_layout!(&self.0, ring => ring.next_index())
    }

    /// Elements.
    pub fn size(&self) -> u32 {
        with_layout!(&self.0, ring => ring.size())
    }

    /// The eventfd that the driver's kicks arrive on; awaited edge-triggered and never read. None: poll by timer.
    pub fn kick(&self) -> Option<&File> {
        self.doorbell().kick()
    }

    /// Replaces the call descriptor (`vhost-user: SET_VRING_CALL`) and calls once: a call to the old one may be lost.
    pub fn set_call(&mut self, call: Option<Notifier>) {
        self.doorbell_mut().set_call(call);
    }

    /// The first call, which needs no reason: one before may be lost. A descriptor that would make it hang is spared.
    pub fn greet(&mut self) {
        self.doorbell_mut().greet();
    }

    pub(super) fn take_up(&mut self, past: Past) -> Result<Option<String>> {
        with_layout!(&mut self.0, ring => ring.take_up(past))
    }

    /// Chains that a process before this one had taken when it died.
    pub(super) fn take_orphans(&mut self) -> Vec<Orphan> {
        match &mut self.0 {
            Kind::Split(ring) => ring.take_orphans(),
            Kind::Packed(_) => Vec::new(),
        }
    }

    pub(super) fn memory(&self) -> &Arc<GuestMap> {
        with_layout!(&self.0, ring => ring.map())
    }

    pub(super) fn features(&self) -> u64 {
        with_layout!(&self.0, ring => ring.features())
    }

    pub(super) fn notify(&mut self, places: u16) -> bool {
        with_layout!(&mut self.0, ring => ring.notify(places))
    }

    pub(super) fn check(&self) -> std::result::Result<(), RingFault> {
        with_layout!(&self.0, ring => ring.check())
    }

    pub(super) fn enable_kicks(&mut self) -> bool {
        with_layout!(&mut self.0, ring => ring.enable_kicks())
    }

    pub(super) fn disable_kicks(&mut self) {
        with_layout!(&mut self.0, ring => ring.disable_kicks());
    }

    fn doorbell(&self) -> &Doorbell {
        with_layout!(&self.0, ring => ring.doorbell())
    }

    fn doorbell_mut(&mut self) -> &mut Doorbell {
        with_layout!(&mut self.0, ring => ring.doorbell_mut())
    }
}
