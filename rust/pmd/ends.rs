//! Where frames come in and where they go out: at a guest's rings, or at a network device's.
//!
//! The set is closed, so each is an enum, asked once for a burst or a group and never for a frame. A device's side is a
//! call, so that a guest's keeps the registers to itself.

use std::os::fd::AsRawFd;

use crate::burst::Burst;
use crate::drops::DropReason;
use crate::port::{self, afxdp, packet};
use crate::ring::{Delivery, Receiveq, Ring, RingFault, TakenBack, Transmitq};
use crate::sys::eventfd::Notifier;

/// What a poll thread gathers bursts from.
#[derive(Debug)]
pub enum Inlet {
    /// A guest's transmitq.
    Guest(Transmitq),
    /// A network device's receive queue.
    Nic(afxdp::RxQueue),
    /// The same over AF_PACKET.
    Packet(packet::RxQueue),
}

impl From<Transmitq> for Inlet {
    fn from(queue: Transmitq) -> Self {
        Self::Guest(queue)
    }
}

impl From<port::RxQueue> for Inlet {
    fn from(queue: port::RxQueue) -> Self {
        match queue {
            port::RxQueue::Afxdp(queue) => Self::Nic(queue),
            port::RxQueue::Packet(queue) => Self::Packet(queue),
        }
    }
}

impl Inlet {
    /// [`Transmitq::gather`].
    #[inline]
    pub(super) fn gather(&mut self) -> Result<usize, RingFault> {
        match self {
            Self::Guest(queue) => queue.gather(),
            Self::Nic(queue) => queue.gather(),
            Self::Packet(queue) => queue.gather(),
        }
    }

    /// The burst gathered last.
    #[inline]
    pub(super) fn burst(&self) -> &Burst {
        match self {
            Self::Guest(queue) => queue.burst(),
            Self::Nic(queue) => queue.burst(),
            Self::Packet(queue) => queue.burst(),
        }
    }

    /// The same, to refuse frames of it.
    #[inline]
    pub(super) fn burst_mut(&mut self) -> &mut Burst {
        match self {
            Self::Guest(queue) => queue.burst_mut(),
            Self::Nic(queue) => queue.burst_mut(),
            Self::Packet(queue) => queue.burst_mut(),
        }
    }

    /// Gives the burst's buffers back; true if that took a call.
    #[inline]
    pub(super) fn commit(&mut self) -> bool {
        match self {
            Self::Guest(queue) => queue.commit(),
            Self::Nic(queue) => queue.commit(),
            Self::Packet(queue) => queue.commit(),
        }
    }

    /// What makes every further look pointless ([`Transmitq::check`]). A device that leaves is control's to notice.
    pub(super) fn check(&self) -> Result<(), RingFault> {
        match self {
            Self::Guest(queue) => queue.check(),
            Self::Nic(_) | Self::Packet(_) => Ok(()),
        }
    }

    /// What wakes a sleeping thread, edge-triggered; None: look by timer.
    pub(super) fn kick(&self) -> Option<&dyn AsRawFd> {
        match self {
            Self::Guest(queue) => queue.kick().map(|kick| kick as &dyn AsRawFd),
            Self::Nic(queue) => Some(queue.descriptor()),
            Self::Packet(queue) => Some(queue.descriptor()),
        }
    }

    /// Asks to be woken, before its thread sleeps; true if work came in meanwhile.
    pub(super) fn enable_kicks(&mut self) -> bool {
        match self {
            Self::Guest(queue) => queue.enable_kicks(),
            Self::Nic(queue) => queue.has_arrivals(),
            Self::Packet(queue) => queue.has_arrivals(),
        }
    }

    /// We poll.
    pub(super) fn disable_kicks(&mut self) {
        if let Self::Guest(queue) = self {
            queue.disable_kicks();
        }
    }

    /// True while the next frame waits for a page that is on its way.
    #[inline]
    pub(super) fn is_parked(&self) -> bool {
        match self {
            Self::Guest(queue) => queue.is_parked(),
            Self::Nic(_) | Self::Packet(_) => false,
        }
    }

    /// True if the IOMMU of a guest guards the memory that frames come from.
    #[inline]
    pub(super) fn is_guarded(&self) -> bool {
        match self {
            Self::Guest(queue) => queue.is_guarded(),
            Self::Nic(_) | Self::Packet(_) => false,
        }
    }

    /// True if nobody may touch the ring, vring `vring` of its port ([`Transmitq::is_shut`]).
    #[inline]
    pub(super) fn is_shut(&self, vring: u16) -> bool {
        match self {
            Self::Guest(queue) => queue.is_shut(vring),
            Self::Nic(_) | Self::Packet(_) => false,
        }
    }

    /// [`Transmitq::take_misses`].
    pub(super) fn take_misses(&mut self) -> u64 {
        match self {
            Self::Guest(queue) => queue.take_misses(),
            Self::Nic(_) | Self::Packet(_) => 0,
        }
    }

    /// [`Transmitq::taken_back`].
    pub(super) fn taken_back(&mut self, frames: u64) -> TakenBack {
        match self {
            Self::Guest(queue) => queue.taken_back(frames),
            Self::Nic(_) | Self::Packet(_) => TakenBack::default(),
        }
    }

    /// The first call to a guest.
    pub(super) fn greet(&mut self) {
        if let Self::Guest(queue) = self {
            queue.ring_mut().greet();
        }
    }

    /// Replaces a guest's call descriptor.
    pub(super) fn set_call(&mut self, call: Option<Notifier>) {
        if let Self::Guest(queue) = self {
            queue.ring_mut().set_call(call);
        }
    }

    /// A guest's ring, every burst settled.
    pub fn into_ring(self) -> Option<Ring> {
        match self {
            Self::Guest(queue) => Some(queue.into_ring()),
            Self::Nic(_) | Self::Packet(_) => None,
        }
    }
}

/// What a group of frames is delivered to.
#[derive(Debug)]
pub enum Outlet {
    /// A guest's receiveq.
    Guest(Receiveq),
    /// A network device's transmit queue.
    Nic(afxdp::TxQueue),
    /// The same over AF_PACKET.
    Packet(packet::TxQueue),
}

impl From<Receiveq> for Outlet {
    fn from(queue: Receiveq) -> Self {
        Self::Guest(queue)
    }
}

impl From<port::TxQueue> for Outlet {
    fn from(queue: port::TxQueue) -> Self {
        match queue {
            port::TxQueue::Afxdp(queue) => Self::Nic(queue),
            port::TxQueue::Packet(queue) => Self::Packet(queue),
        }
    }
}

impl Outlet {
    /// [`Receiveq::deliver`].
    #[inline]
    pub(super) fn deliver(&mut self, burst: &Burst, list: &[u8]) -> Delivery {
        match self {
            Self::Guest(queue) => queue.deliver(burst, list),
            Self::Nic(queue) => queue.deliver(burst, list),
            Self::Packet(queue) => queue.deliver(burst, list),
        }
    }

    /// The next delivery begins with a frame of which a device got so many pieces already.
    #[cold]
    pub(super) fn go_on(&mut self, begun: u32) {
        if let Self::Nic(queue) = self {
            queue.go_on(begun);
        }
    }

    /// How many pieces a device got of the frame that the last delivery stopped at. A guest gets all of a frame or none.
    #[cold]
    pub(super) fn take_begun(&mut self) -> u32 {
        match self {
            Self::Guest(_) | Self::Packet(_) => 0,
            Self::Nic(queue) => queue.take_begun(),
        }
    }

    /// Why it refused a frame for good.
    #[cold]
    pub(super) fn refusal(&self) -> DropReason {
        match self {
            Self::Guest(_) => DropReason::BufferTooSmall,
            Self::Nic(_) | Self::Packet(_) => DropReason::DeviceRefused,
        }
    }

    /// Tells the receiver of everything delivered since the last flush, if it wants to be told; true if it was.
    #[inline]
    pub(super) fn flush(&mut self) -> bool {
        match self {
            Self::Guest(queue) => queue.flush(),
            Self::Nic(queue) => queue.flush(),
            // Delivered is sent.
            Self::Packet(_) => false,
        }
    }

    /// True if the IOMMU of a guest guards the memory that frames go to.
    #[inline]
    pub(super) fn is_guarded(&self) -> bool {
        match self {
            Self::Guest(queue) => queue.is_guarded(),
            Self::Nic(_) | Self::Packet(_) => false,
        }
    }

    /// True if nobody may touch the ring, vring `vring` of its port ([`Receiveq::is_shut`]).
    #[inline]
    pub(super) fn is_shut(&self, vring: u16) -> bool {
        match self {
            Self::Guest(queue) => queue.is_shut(vring),
            Self::Nic(_) | Self::Packet(_) => false,
        }
    }

    /// [`Receiveq::arrived`].
    pub(super) fn arrived(&self) -> u64 {
        match self {
            Self::Guest(queue) => queue.arrived(),
            Self::Nic(_) | Self::Packet(_) => 0,
        }
    }

    /// [`Receiveq::look_ahead`].
    pub(super) fn look_ahead(&mut self, vring: u16) {
        if let Self::Guest(queue) = self {
            queue.look_ahead(vring);
        }
    }

    /// True if a device did not take all that it was told of: it must be told again.
    #[inline]
    pub(super) fn is_stuck(&self) -> bool {
        match self {
            Self::Guest(_) | Self::Packet(_) => false,
            Self::Nic(queue) => queue.is_stuck(),
        }
    }

    /// Tells a device again.
    pub(super) fn push(&mut self) {
        if let Self::Nic(queue) = self {
            queue.push();
        }
    }

    /// A guest's ring, to call it for the first time or in another way.
    pub(super) fn ring_mut(&mut self) -> Option<&mut Ring> {
        match self {
            Self::Guest(queue) => Some(queue.ring_mut()),
            Self::Nic(_) | Self::Packet(_) => None,
        }
    }

    /// A guest's ring.
    pub fn into_ring(self) -> Option<Ring> {
        match self {
            Self::Guest(queue) => Some(queue.into_ring()),
            Self::Nic(_) | Self::Packet(_) => None,
        }
    }
}
