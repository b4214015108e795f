//! What a poll thread knows of the world: made by control, never changed, replaced whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Bonding, Credit, Outlet};
use crate::counters::QueueCounters;
use crate::frame::flow::FlowKey;
use crate::lock::Lock;
use crate::switch::PortId;
use crate::switch::fdb::Fdb;
use crate::sys::eventfd::Notifier;

/// Every port and bridge, by index.
#[derive(Debug, Default)]
pub struct Topology {
    /// By port id; None where there is no such port.
    pub ports: Vec<Option<PortView>>,
    /// By bridge index.
    pub bridges: Vec<Option<BridgeView>>,
    /// The same in every topology of a datapath, so that a flow keeps its receiveq.
    pub flow_key: FlowKey,
}

impl Topology {
    /// A port, if there is one of that number.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortView> {
        self.ports.get(usize::from(id)).and_then(Option::as_ref)
    }

    /// The bond that a port is a link of.
    pub(super) fn bond_of(&self, port: &PortView) -> Option<&PortView> {
        match &port.bonding {
            Bonding::Member(membership) => self.port(membership.bond),
            Bonding::None | Bonding::Shares(_) => None,
        }
    }
}

/// How the receiveq of a port with several is chosen (`other_config:tx-steering`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Steering {
    /// By the frame's flow: both directions of it, all its fragments, one queue.
    #[default]
    Hash,
    /// By the poll thread that delivers: threads keep out of each other's way.
    Thread,
}

/// A port as the packet path sees it.
#[derive(Debug, Clone)]
pub struct PortView {
    /// Index of its bridge.
    pub bridge: usize,
    /// Longest IP packet it takes, bytes.
    pub mtu: u32,
    /// `admin_state`.
    pub admin_up: bool,
    /// Further attempts with progress when the guest is short of buffers (`tx-retries-max`).
    pub retries: u32,
    /// How long frames wait for buffers before they are dropped, µs; 0 = not at all (`backpressure-us`).
    pub backpressure_us: u32,
    /// How one of several receiveqs is chosen.
    pub steering: Steering,
    /// Counters of its first receiveq, which take what is dropped before a receiveq is chosen. They outlive its sessions.
    pub counters: Arc<QueueCounters>,
    /// How long others may still wait for its memory. It outlives its sessions too.
    pub credit: Arc<Credit>,
    /// The enabled receiveqs, in order; empty while the guest is away.
    pub receiveqs: Vec<Arc<OutletSlot>>,
    /// Whether it is a link of a bond. A bond is a port itself, with the queues of its links.
    pub bonding: Bonding,
}

impl PortView {
    /// A port of which nothing is said but what it cannot be without.
    pub fn new(bridge: usize, counters: Arc<QueueCounters>, receiveqs: Vec<Arc<OutletSlot>>) -> Self {
        Self {
            bridge,
            mtu: 1500,
            admin_up: true,
            retries: 8,
            backpressure_us: 0,
            steering: Steering::default(),
            counters,
            credit: Arc::new(Credit::of_receiver()),
            receiveqs,
            bonding: Bonding::None,
        }
    }
}

/// A bridge as the packet path sees it.
#[derive(Debug, Clone)]
pub struct BridgeView {
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// Ports on it; of a bond itself and not its links.
    pub members: Vec<PortId>,
    /// Whether link-local protocol frames pass.
    pub forward_bpdu: bool,
}

/// A guest's receiveq or a NIC's transmit queue, where several threads find it: whoever holds the lock delivers. With one
/// poll thread nobody ever waits.
#[derive(Debug)]
pub struct OutletSlot {
    /// None once control took the queue back. A panic over one sender's burst leaves it as good as before: nothing of
    /// the burst was published, and the receiver is not to blame.
    pub queue: Lock<Option<Outlet>>,
    /// Whose.
    pub port: PortId,
    /// Vring index, even: queue n of a NIC is 2n as well.
    pub vring: u16,
    /// Written by whoever holds the lock; what is [`lost`](QueueCounters::lost) or waits, by anyone.
    pub counters: Arc<QueueCounters>,
    /// Which start of the vring this is.
    pub run: u64,
    broken: AtomicBool,
    /// Frames waited for its buffers as long as they may, and it took nothing since.
    silent: AtomicBool,
    /// Frames waited in vain for its guest's IOMMU: one more than the mappings that had come by then.
    vain: AtomicU64,
    greeted: AtomicBool,
    /// A call descriptor that the next greeting puts in place.
    next_call: Lock<Option<NewCall>>,
}

/// A front-end's word on whom to call; without a descriptor it wants no calls.
#[derive(Debug)]
struct NewCall(Option<Notifier>);

impl OutletSlot {
    /// Makes a queue reachable.
    pub fn new(queue: impl Into<Outlet>, port: PortId, vring: u16, counters: Arc<QueueCounters>, run: u64) -> Self {
        let [broken, silent, greeted] = [const { AtomicBool::new(false) }; 3];
        let vain = AtomicU64::new(0);
        let (queue, next_call) = (Lock::new(Some(queue.into())), Lock::default());
        Self { queue, port, vring, counters, run, broken, silent, vain, greeted, next_call }
    }

    /// Makes the first call, once; a poll thread does, at its desk. False if another thread has the queue: ask again.
    pub(super) fn greet(&self) -> bool {
        if self.greeted.load(Ordering::Acquire) {
            return true;
        }
        let Some(mut guard) = self.queue.try_lock() else { return false };
        if self.greeted.swap(true, Ordering::AcqRel) {
            return true;
        }
        let next_call = self.next_call.lock().take();
        if let Some(ring) = guard.as_mut().and_then(Outlet::ring_mut) {
            match next_call {
                Some(NewCall(call)) => ring.set_call(call),
                None => ring.greet(),
            }
        }
        true
    }

    /// Replaces the call descriptor at the next greeting: send [`super::Message::Greet`] to a poll thread.
    pub fn set_call(&self, call: Option<Notifier>) {
        *self.next_call.lock() = Some(NewCall(call));
        self.greeted.store(false, Ordering::Release);
    }

    /// Asks for the mappings that the next buffers lack; a poll thread does. False if another thread has the queue: ask
    /// again.
    pub(super) fn look_ahead(&self) -> bool {
        let Some(mut guard) = self.queue.try_lock() else { return false };
        if let Some(queue) = guard.as_mut() {
            queue.look_ahead(self.vring);
        }
        true
    }

    /// True once its ring was found broken.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// True while nobody waits for its buffers any more.
    #[inline]
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Notes that it takes frames again, or does not.
    #[inline]
    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// True while nobody waits for its guest's IOMMU, of which `arrived` mappings have come.
    pub(super) fn is_given_up(&self, arrived: u64) -> bool {
        self.vain.load(Ordering::Relaxed) == arrived.wrapping_add(1)
    }

    /// Notes that a frame waited for that in vain: nobody does again before another mapping has come.
    pub(super) fn give_up(&self, arrived: u64) {
        self.vain.store(arrived.wrapping_add(1), Ordering::Relaxed);
    }

    /// Marks it; true for the first who does.
    pub(super) fn mark_broken(&self) -> bool {
        !self.broken.swap(true, Ordering::Relaxed)
    }
}
