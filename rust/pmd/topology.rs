//! What a poll thread knows of the world: made by control, never changed, replaced whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use crate::counters::QueueCounters;
use crate::ring::Receiveq;
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
    /// The enabled receiveqs, in order; empty while the guest is away.
    pub receiveqs: Vec<Arc<ReceiveSlot>>,
}

/// A bridge as the packet path sees it.
#[derive(Debug, Clone)]
pub struct BridgeView {
    /// Who is where.
    pub fdb: Arc<Fdb>,
    /// Ports on it.
    pub members: Vec<PortId>,
    /// Whether link-local protocol frames pass.
    pub forward_bpdu: bool,
}

/// A receiveq where several threads find it: whoever holds the lock delivers. With one poll thread nobody ever waits.
#[derive(Debug)]
pub struct ReceiveSlot {
    /// None once control took the queue back.
    pub queue: Mutex<Option<Receiveq>>,
    /// Whose.
    pub port: PortId,
    /// Vring index, even.
    pub vring: u16,
    /// Written by whoever holds the lock.
    pub counters: Arc<QueueCounters>,
    /// Which start of the vring this is.
    pub run: u64,
    broken: AtomicBool,
    greeted: AtomicBool,
    /// A call descriptor that the next greeting puts in place.
    next_call: Mutex<Option<NewCall>>,
}

/// A front-end's word on whom to call; without a descriptor it wants no calls.
#[derive(Debug)]
struct NewCall(Option<Notifier>);

impl ReceiveSlot {
    /// Makes a queue reachable.
    pub fn new(queue: Receiveq, port: PortId, vring: u16, counters: Arc<QueueCounters>, run: u64) -> Self {
        let (broken, greeted, next_call) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
        Self { queue: Mutex::new(Some(queue)), port, vring, counters, run, broken, greeted, next_call }
    }

    /// Makes the first call, once; a poll thread does, at its desk. False if another thread has the queue: ask again.
    pub(super) fn greet(&self) -> bool {
        if self.greeted.load(Ordering::Acquire) {
            return true;
        }
        let mut guard = match self.queue.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if self.greeted.swap(true, Ordering::AcqRel) {
            return true;
        }
        let next_call = self.next_call.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(queue) = guard.as_mut() {
            match next_call {
                Some(NewCall(call)) => queue.ring_mut().set_call(call),
                None => queue.ring_mut().greet(),
            }
        }
        true
    }

    /// Replaces the call descriptor at the next greeting: send [`super::Message::Greet`] to a poll thread.
    pub fn set_call(&self, call: Option<Notifier>) {
        *self.next_call.lock().unwrap_or_else(PoisonError::into_inner) = Some(NewCall(call));
        self.greeted.store(false, Ordering::Release);
    }

    /// True once its ring was found broken.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Marks it; true for the first who does.
    pub(super) fn mark_broken(&self) -> bool {
        !self.broken.swap(true, Ordering::Relaxed)
    }
}
