//! What a port's session does to the datapath: start and stop vrings, report, announce.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::port::PortRecord;
use super::threads::Passage;
use crate::frame::ethernet::Mac;
use crate::pmd::{Message, OutletSlot, PolledQueue};
use crate::ring::{Receiveq, Ring, Transmitq};
use crate::sys::eventfd::Notifier;
use crate::vhost::{Level, PortLink};

/// One port's way into the datapath.
pub(super) struct Link {
    shared: Arc<Shared>,
    record: Arc<PortRecord>,
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>, record: Arc<PortRecord>) -> Self {
        Self { shared, record }
    }
}

/// The port's id lives as long as its session can use it, and no longer names anybody then.
impl Drop for Link {
    fn drop(&mut self) {
        self.shared.state().free(self.record.id);
    }
}

impl PortLink for Link {
    fn on_node(&self, node: u32) {
        self.record.numa.store(node, Ordering::Relaxed);
    }

    fn wants_any_order(&self) -> bool {
        self.shared.state().wants_zero_copy(self.record.id)
    }

    fn start(&self, vring: usize, ring: Ring) {
        let Ok(vring) = u16::try_from(vring) else { return };
        let (port, counters) = (self.record.id, self.record.counters_of(vring));
        let run = self.shared.next_run();
        if vring % 2 == 0 {
            let slot = Arc::new(OutletSlot::new(Receiveq::new(ring), port, vring, counters, run));
            let mut state = self.shared.state();
            state.receiveqs.insert((port, vring), slot);
            let passage = self.shared.publish(&mut state);
            drop(state);
            passage.wait(&self.shared.events);
        } else {
            let queue = Box::new(PolledQueue::new(Transmitq::new(ring), port, vring, counters, run));
            if let Some(note) = self.shared.seat(queue, &self.record) {
                self.event(Level::Warning, "notice", note);
            }
            if self.shared.state().wants_zero_copy(port) {
                self.shared.ask_for_lanes(port);
            }
        }
    }

    fn stop(&self, vring: usize) -> Option<Ring> {
        let vring = u16::try_from(vring).ok()?;
        let port = self.record.id;
        let mut state = self.shared.state();
        if vring % 2 == 0 {
            let slot = state.receiveqs.remove(&(port, vring))?;
            let passage = self.shared.publish(&mut state);
            drop(state);
            passage.wait(&self.shared.events);
            // Nobody delivers to it any more: the lock is free.
            let queue = slot.queue.lock().take()?;
            queue.into_ring()
        } else {
            let seat = state.places.leave(port, vring)?;
            drop(state);
            let mut queue = seat.take(&self.shared.events)?;
            self.shared.settle_lanes(&seat, &mut queue);
            queue.queue.into_ring()
        }
    }

    fn quiesce(&self) {
        let mut state = self.shared.state();
        let passage = self.shared.publish(&mut state);
        drop(state);
        passage.wait(&self.shared.events);
    }

    fn pass(&self) {
        Passage::begin(self.shared.threads.all(), Message::Pass).wait(&self.shared.events);
    }

    fn look_ahead(&self) {
        let (state, port) = (self.shared.state(), self.record.id);
        let slots: Vec<_> =
            state.receiveqs.range((port, 0)..=(port, u16::MAX)).map(|(_, slot)| Arc::clone(slot)).collect();
        // Not here: who delivers would wait for a thread that may be off its core. With the state locked, the one that is told
        // is not told to end before.
        if let Some(thread) = state.places.thread_of(port, 1).filter(|_| !slots.is_empty()) {
            thread.pmd.post(Message::LookAhead(slots));
        }
    }

    fn set_call(&self, vring: usize, call: Option<File>) {
        let Ok(vring) = u16::try_from(vring) else { return };
        match call.map(Notifier::new).transpose() {
            Ok(call) if vring % 2 == 1 => {
                let seat = self.shared.state().places.seats.get(&(self.record.id, vring)).map(Arc::clone);
                if let Some(seat) = seat {
                    seat.set_call(call);
                }
            }
            Ok(call) => {
                let state = self.shared.state();
                if let Some(slot) = state.receiveqs.get(&(self.record.id, vring)) {
                    slot.set_call(call);
                    // Whoever comes first makes the call. With the state locked, none of these is told to end before.
                    state.places.threads.iter().for_each(|thread| thread.pmd.post(Message::Greet(Arc::clone(slot))));
                }
            }
            Err(error) => self.event(Level::Error, "peer_error", format!("{}: {error}", self.record.name)),
        }
    }

    fn link_changed(&self, up: bool) {
        if self.record.link_up.swap(up, Ordering::AcqRel) != up {
            self.record.link_resets.fetch_add(1, Ordering::Relaxed);
            self.shared.events.poke();
        }
    }

    fn state_changed(&self) {
        self.shared.events.poke();
    }

    fn announce(&self, mac: [u8; 6]) {
        let state = self.shared.state();
        if let Some(thread) = state.places.thread_of(self.record.id, 1) {
            thread.pmd.post(Message::Announce { port: self.record.id, mac: Mac::from_bytes(mac) });
        }
    }

    fn event(&self, level: Level, kind: &'static str, text: String) {
        self.shared.note(&self.record, level, kind, text);
    }

    fn mtu(&self) -> u16 {
        // At most 9702: checked when it was set.
        u16::try_from(self.record.mtu.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
    }
}
