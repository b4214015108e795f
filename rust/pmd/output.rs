//! Sorting a burst by output, and delivering each group.

use std::sync::TryLockError;
use std::sync::mpsc::Sender;

use super::{Fault, FaultCause, PortView, ReceiveSlot, Topology};
use crate::burst::{Burst, MAX_BURST};
use crate::counters::{QueueCounters, Tally};
use crate::drops::DropReason;
use crate::frame::ethernet::{self, Mac};
use crate::switch::PortId;

/// Packets of a burst that go the same way, in order.
#[derive(Debug, Clone, Copy)]
struct List {
    port: PortId,
    len: usize,
    indices: [u8; MAX_BURST],
}

impl List {
    const EMPTY: Self = Self { port: 0, len: 0, indices: [0; MAX_BURST] };

    #[inline]
    fn push(&mut self, index: u8) {
        if let Some(place) = self.indices.get_mut(self.len) {
            *place = index;
            self.len += 1;
        }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        self.indices.get(..self.len).unwrap_or_default()
    }
}

const NO_LIST: u8 = u8::MAX;

/// One burst, sorted: a list per output port, and the frames that go everywhere.
#[derive(Debug)]
pub(super) struct Groups {
    lists: Box<[List; MAX_BURST]>,
    count: usize,
    flood: List,
    /// Which list a port has in this burst.
    list_of: Vec<u8>,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { lists: Box::new([List::EMPTY; MAX_BURST]), count: 0, flood: List::EMPTY, list_of: Vec::new() }
    }

    /// Room for ports up to `count`; called when the topology changes, never per burst.
    pub(super) fn fit(&mut self, count: usize) {
        self.list_of.resize(count, NO_LIST);
    }

    /// Sends packet `index` to `port`. False if there is no such port.
    #[inline]
    pub(super) fn unicast(&mut self, index: u8, port: PortId) -> bool {
        let Some(place) = self.list_of.get_mut(usize::from(port)) else { return false };
        if *place == NO_LIST {
            #[allow(clippy::cast_possible_truncation, reason = "below MAX_BURST")]
            let next = self.count as u8;
            *place = next;
            if let Some(list) = self.lists.get_mut(self.count) {
                (list.port, list.len) = (port, 0);
                self.count += 1;
            }
        }
        if let Some(list) = self.lists.get_mut(usize::from(*place)) {
            list.push(index);
        }
        true
    }

    /// Sends packet `index` to every other port of the bridge.
    #[inline]
    pub(super) fn flood(&mut self, index: u8) {
        self.flood.push(index);
    }

    /// Delivers everything, then forgets it.
    pub(super) fn deliver(&mut self, source: &Source<'_>, members: &[PortId]) {
        if self.flood.len > 0 {
            self.deliver_flood(source, members);
        } else {
            for list in self.lists.iter().take(self.count) {
                source.deliver(list.port, list.as_slice());
            }
        }
        self.forget();
    }

    /// Empties every list.
    #[inline]
    pub(super) fn forget(&mut self) {
        for list in self.lists.iter().take(self.count) {
            if let Some(place) = self.list_of.get_mut(usize::from(list.port)) {
                *place = NO_LIST;
            }
        }
        (self.count, self.flood.len) = (0, 0);
    }

    /// Some frames go everywhere: each port gets those and its own, in the order they came.
    #[cold]
    fn deliver_flood(&self, source: &Source<'_>, members: &[PortId]) {
        let mut receivers = 0;
        for &port in members.iter().filter(|&&port| port != source.port) {
            let own = self.list_of.get(usize::from(port)).and_then(|&place| self.lists.get(usize::from(place)));
            let own = own.map(List::as_slice).unwrap_or_default();
            if source.topology.ports.get(usize::from(port)).is_none_or(|p| !is_up(p.as_ref())) {
                if !own.is_empty() {
                    source.deliver(port, own);
                }
                continue;
            }
            let mut both = List::EMPTY;
            let (mut a, mut b) = (own.iter().peekable(), self.flood.as_slice().iter().peekable());
            while let Some(&next) = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x < y => a.next(),
                (Some(_), None) => a.next(),
                _ => b.next(),
            } {
                both.push(next);
            }
            receivers += 1;
            source.deliver(port, both.as_slice());
        }
        if receivers == 0 {
            source.counters.dropped(DropReason::NoReceiver, self.flood.len as u64);
        }
    }
}

fn is_up(port: Option<&PortView>) -> bool {
    port.is_some_and(|p| p.admin_up && !p.receiveqs.is_empty())
}

/// Where a burst comes from, and what its delivery needs to know.
pub(super) struct Source<'a> {
    pub burst: &'a Burst,
    pub port: PortId,
    /// Its bridge: whatever the verdict, no frame leaves it.
    pub bridge: usize,
    /// Index of the transmitq among the port's: chooses the receiveq, so that order per flow holds.
    pub queue: usize,
    pub counters: &'a QueueCounters,
    pub topology: &'a Topology,
    pub faults: &'a Sender<Fault>,
}

impl Source<'_> {
    /// Delivers a list to one port, or drops it by name.
    fn deliver(&self, to: PortId, list: &[u8]) {
        let port = self.topology.ports.get(usize::from(to)).and_then(Option::as_ref);
        let Some((port, slot)) =
            port.and_then(|p| Some((p, p.receiveqs.get(self.queue.checked_rem(p.receiveqs.len())?)?)))
        else {
            return self.counters.dropped(DropReason::NoReceiver, list.len() as u64);
        };
        if port.bridge != self.bridge {
            return self.counters.dropped(DropReason::NoReceiver, list.len() as u64);
        }
        if !port.admin_up {
            return self.counters.dropped(DropReason::AdminDown, list.len() as u64);
        }
        if slot.is_broken() {
            return slot.counters.dropped(DropReason::RingBroken, list.len() as u64);
        }
        let limit = port.mtu + ethernet::HEADER_SIZE;
        if list.iter().any(|&i| self.len_of(i) > limit) {
            return self.deliver_within(port, slot, list, limit);
        }
        self.deliver_to(port, slot, list);
    }

    /// Some frames may be longer than the receiver's MTU, by themselves or in the segments they become: drops those.
    #[cold]
    fn deliver_within(&self, port: &PortView, slot: &ReceiveSlot, list: &[u8], limit: u32) {
        let mut fitting = List::EMPTY;
        for &index in list {
            let tagged = self.burst.heads().get(usize::from(index)).is_some_and(|h| ethernet::parse(&h.0).tagged);
            if self.burst.wire_len(usize::from(index)) <= limit + if tagged { ethernet::TAG_SIZE } else { 0 } {
                fitting.push(index);
            }
        }
        slot.counters.dropped(DropReason::MtuExceeded, (list.len() - fitting.len) as u64);
        self.deliver_to(port, slot, fitting.as_slice());
    }

    #[inline]
    fn len_of(&self, index: u8) -> u32 {
        self.burst.packets().get(usize::from(index)).map_or(0, |p| p.len)
    }

    fn deliver_to(&self, port: &PortView, slot: &ReceiveSlot, list: &[u8]) {
        // Only control ever holds this lock beside us, and only to take a queue that is out of the topology.
        let mut guard = match slot.queue.try_lock() {
            Ok(guard) => guard,
            // A panic over one sender's burst: nothing of it was published, and the receiver is not to blame.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return slot.counters.dropped(DropReason::NoBuffer, list.len() as u64);
            }
        };
        let Some(queue) = guard.as_mut() else {
            return slot.counters.dropped(DropReason::NoBuffer, list.len() as u64);
        };
        let (mut rest, mut retries, mut tally) = (list, 0, Tally::default());
        while !rest.is_empty() {
            let delivery = queue.deliver(self.burst, rest);
            let (settled, left) = rest.split_at(delivery.settled);
            for (position, &index) in settled.iter().enumerate() {
                if delivery.too_small >> position & 1 == 0 {
                    self.count(&mut tally, index);
                }
            }
            if delivery.too_small != 0 {
                slot.counters.dropped(DropReason::BufferTooSmall, u64::from(delivery.too_small.count_ones()));
            }
            rest = left;
            if let Some(fault) = delivery.fault {
                slot.counters.dropped(DropReason::RingBroken, rest.len() as u64);
                if slot.mark_broken() {
                    let cause = FaultCause::Ring(fault);
                    // The receiver of faults lives as long as the datapath.
                    let _ = self.faults.send(Fault { port: slot.port, vring: slot.vring, run: slot.run, cause });
                }
                break;
            }
            if !rest.is_empty() {
                // As OVS: try again only while the guest makes progress, and only so often.
                if settled.is_empty() || retries >= port.retries {
                    slot.counters.dropped(DropReason::NoBuffer, rest.len() as u64);
                    break;
                }
                retries += 1;
            }
        }
        slot.counters.notifications.add(u64::from(queue.flush()));
        slot.counters.add(&tally);
        if retries > 0 {
            slot.counters.retries.add(u64::from(retries));
        }
    }

    #[inline]
    fn count(&self, tally: &mut Tally, index: u8) {
        if let Some((packet, head)) =
            self.burst.packets().get(usize::from(index)).zip(self.burst.heads().get(usize::from(index)))
        {
            let dst = Mac::destination(&head.0);
            tally.count(packet.len, dst.is_group(), dst == Mac::BROADCAST);
        }
    }
}
