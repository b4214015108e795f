//! Delivering a group to one port: its MTU, the receiveq, the lock, the guest's buffers.
//!
//! ```text
//!   deliver ── MTU ──▶ steer ─┬─ one receiveq ──────────────┬─▶ deliver_to ── try_lock ── Receiveq::deliver
//!                             ├─ several: by flow (spread) ─┤         │ another thread has it, or no buffers
//!                             └─ several: by thread ────────┘         ▼
//!                                                                  Waiting, with the transmitq ── resume ─▶ again
//! ```
//!
//! A frame that gets here is counted at this port: as delivered, or as dropped for one reason. Delivered counts what the
//! guest gets: one segmented for it is as many frames as it became. One that a device takes in parts waits like the rest, and
//! counts as they go.

use std::ops::Range;
use std::sync::mpsc::Sender;
use std::sync::{Arc, MutexGuard};

use super::output::List;
use super::patience::{Patience, reason_of};
use super::poll::Stuck;
use super::wait::{Group, Left, Waiting};
use super::zero_copy::ZeroCopy;
use super::{Bonding, Fault, FaultCause, LINKS_MAX, Outlet, OutletSlot, PortView, Shares, Steering, Topology};
use crate::burst::{Burst, MAX_BURST};
use crate::counters::{Share, Tally};
use crate::drops::DropReason;
use crate::frame::ethernet::{self, Mac};
use crate::frame::flow::FlowKey;
use crate::ring::Delivery;
use crate::switch::PortId;
use crate::sys::tsc;

/// Most receiveqs of a port: a virtio-net device has 128 pairs here.
const MAX_QUEUES: usize = 128;
/// How long a group that finds no room to wait asks for a ring that another thread has, µs. A thread has one for as long
/// as a group takes to copy.
const ASK_US: u64 = 100;
/// Room to sort the frames for one port by receiveq; empty between two ports.
#[derive(Debug)]
pub(super) struct Spread {
    /// Flow numbers of this burst, as far as they are known.
    hashes: [u32; MAX_BURST],
    known: u64,
    /// By receiveq, the frames it gets.
    frames: Box<[u64; MAX_QUEUES]>,
}

impl Spread {
    pub(super) fn new() -> Self {
        Self { hashes: [0; MAX_BURST], known: 0, frames: Box::new([0; MAX_QUEUES]) }
    }

    /// Another burst: nothing is known of it.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.known = 0;
    }

    /// Forgets what a panic left.
    pub(super) fn forget(&mut self) {
        *self = Self::new();
    }

    /// The flow number of frame `index`, made once however many ports the frame goes to.
    #[inline]
    fn hash(&mut self, key: FlowKey, burst: &Burst, index: u8) -> u32 {
        let Some((hash, head)) = self.hashes.get_mut(usize::from(index)).zip(burst.heads().get(usize::from(index)))
        else {
            return 0;
        };
        if self.known >> index & 1 == 0 {
            *hash = key.hash(&head.0);
            self.known |= 1 << index;
        }
        *hash
    }
}

/// What nothing can be delivered for now: the ring may not be touched, or what the group waits for has not come since it
/// was asked for.
#[inline]
fn lacking(queue: &Outlet, slot: &OutletSlot, group: Option<&Group>, arrived: u64) -> Option<DropReason> {
    if queue.is_shut(slot.vring) {
        slot.counters.iotlb_misses.add(u64::from(group.is_none()));
        return Some(DropReason::IotlbWait);
    }
    group.and_then(|group| group.lacks).filter(|&(_, seen)| seen == arrived).map(|(reason, _)| reason)
}

/// Where a burst comes from, and what its delivery needs to know.
pub(super) struct Source<'a> {
    pub burst: &'a Burst,
    pub port: PortId,
    /// Which of the poll threads this is.
    pub thread: usize,
    pub topology: &'a Topology,
    pub faults: &'a Sender<Fault>,
    pub spread: &'a mut Spread,
    /// Devices that did not take all that was delivered.
    pub stuck: &'a mut Stuck,
    /// Where a group goes that cannot be delivered now.
    pub waiting: &'a mut Waiting,
    /// The sender's own ways to network devices.
    pub zero_copy: Option<&'a mut ZeroCopy>,
    /// The burst must be settled by then (TSC cycles): nothing waits for buffers, and a lock is asked for until then.
    pub settle_by: Option<u64>,
}

impl Source<'_> {
    /// Delivers a list to one port, or drops it by name. `share` is what it counts for, if that is known.
    #[inline]
    pub(super) fn deliver(&mut self, port: &PortView, list: &[u8], share: Option<&Share>) {
        if !port.admin_up {
            return port.counters.lost(DropReason::ReceiverAdminDown, list.len() as u64);
        }
        let limit = port.mtu + ethernet::HEADER_SIZE;
        if self.burst.longest() > limit && list.iter().any(|&i| self.len_of(i) > limit) {
            return self.deliver_within(port, list, limit);
        }
        self.steer(port, list, share, None);
    }

    /// Some frames may be longer than the receiver's MTU, by themselves or in the segments they become: drops those.
    #[cold]
    fn deliver_within(&mut self, port: &PortView, list: &[u8], limit: u32) {
        let mut fitting = List::EMPTY;
        for &index in list {
            let tagged = self.burst.heads().get(usize::from(index)).is_some_and(|h| ethernet::parse(&h.0).tagged);
            if self.burst.wire_len(usize::from(index)) <= limit + if tagged { ethernet::TAG_SIZE } else { 0 } {
                fitting.push(index);
            }
        }
        let fitting = fitting.as_slice();
        port.counters.lost(DropReason::MtuExceeded, (list.len() - fitting.len()) as u64);
        self.steer(port, fitting, None, None);
    }

    #[inline]
    fn len_of(&self, index: u8) -> u32 {
        self.burst.packets().get(usize::from(index)).map_or(0, |p| p.len)
    }

    /// Chooses the receiveq. A `group` has begun: the first of its frames goes on at another queue of its device.
    #[inline]
    fn steer(&mut self, port: &PortView, list: &[u8], share: Option<&Share>, group: Option<&Group>) {
        if self.zero_copy.is_some() {
            match &port.bonding {
                // Each of its links has a lane of its own.
                Bonding::Shares(shares) if !port.receiveqs.is_empty() => return self.share(shares, list, share),
                _ if self.deliver_by_lane(port, list, share, group) => return,
                _ => {}
            }
        }
        match (port.receiveqs.as_slice(), port.steering) {
            ([], _) => port.counters.lost(DropReason::LinkDown, list.len() as u64),
            ([only], _) => self.deliver_to(port, only, list, share, group),
            (several, Steering::Thread) => {
                if let Some(slot) = self.thread.checked_rem(several.len()).and_then(|queue| several.get(queue)) {
                    self.deliver_to(port, slot, list, share, group);
                }
            }
            (several, Steering::Hash) => match &port.bonding {
                Bonding::Shares(shares) => self.share(shares, list, share),
                _ => self.deliver_by_flow(port, several, list),
            },
        }
    }

    /// Every bucket has its link. What a list counts for, its parts count for each by itself.
    fn share(&mut self, shares: &Shares, list: &[u8], share: Option<&Share>) {
        let mut frames = [0_u64; LINKS_MAX];
        for &index in list {
            if let Some((packet, head)) = self.burst.frame(index)
                && let Some(frames) = frames.get_mut(shares.take(self.topology.flow_key, head, packet.len))
            {
                *frames |= 1_u64.wrapping_shl(u32::from(index));
            }
        }
        let mut room = [0; MAX_BURST];
        for (&link, frames) in shares.links.iter().zip(frames).filter(|(_, frames)| *frames != 0) {
            if let Some(port) = self.topology.port(link) {
                let part = super::wait::indices(frames, &mut room);
                let counted = share.map(|_| {
                    let mut counted = Share::NONE;
                    for &index in part {
                        counted.count(self.len_of(index));
                    }
                    counted
                });
                self.steer(port, part, counted.as_ref(), None);
            }
        }
    }

    /// By the sender's own way to this port, if it has one. Frames that go to nobody else need not be copied.
    #[cold]
    fn deliver_by_lane(&mut self, port: &PortView, list: &[u8], share: Option<&Share>, group: Option<&Group>) -> bool {
        let Some(zero_copy) = self.zero_copy.take() else { return false };
        let found = zero_copy.lane_to(port);
        let is_found = found.is_some();
        if let Some((lane, held)) = found {
            let mut held = held.filter(|_| share.is_some());
            let (mut rest, mut retries, mut tally) = (list, 0, Tally::default());
            let mut begun = group.map_or(0, |group| group.begun);
            while !rest.is_empty() {
                lane.queue.go_on(begun);
                let delivery = lane.queue.deliver(self.burst, rest, held.as_deref_mut(), lane.keeper);
                let (settled, left) = rest.split_at(delivery.settled);
                self.count(&mut tally, settled, &delivery, &mut begun);
                lane.counters.lost(DropReason::DeviceRefused, delivery.too_small.count_ones().into());
                rest = left;
                let sent = if rest.is_empty() { 0 } else { lane.queue.take_begun() };
                if sent > begun {
                    // The rest of a frame in more pieces than the ring holds: the device has taken some for it.
                    self.count_begun(&mut tally, rest, begun..sent);
                    begun = sent;
                } else if settled.is_empty() || retries >= port.retries {
                    break;
                } else {
                    retries += u32::from(!rest.is_empty());
                }
            }
            if !tally.is_empty() {
                lane.counters.called(lane.queue.flush());
                lane.counters.add(&tally);
            }
            lane.counters.retries.add(retries.into());
            lane.counters.lost(DropReason::NoBuffer, rest.len() as u64);
        }
        self.zero_copy = Some(zero_copy);
        is_found
    }

    /// Every flow has its receiveq; its frames stay in order.
    fn deliver_by_flow(&mut self, port: &PortView, slots: &[Arc<OutletSlot>], list: &[u8]) {
        let (mut touched, queues) = (0_u128, slots.len().min(MAX_QUEUES) as u64);
        for &index in list {
            let hash = self.spread.hash(self.topology.flow_key, self.burst, index);
            #[allow(clippy::cast_possible_truncation, reason = "below the number of queues")]
            let queue = ((u64::from(hash) * queues) >> 32) as usize;
            if let Some(frames) = self.spread.frames.get_mut(queue) {
                *frames |= 1_u64.wrapping_shl(u32::from(index));
                touched |= 1_u128 << queue;
            }
        }
        let mut room = [0; MAX_BURST];
        while touched != 0 {
            let queue = touched.trailing_zeros() as usize;
            touched &= touched - 1;
            if let (Some(frames), Some(slot)) = (self.spread.frames.get_mut(queue), slots.get(queue)) {
                let list = super::wait::indices(std::mem::take(frames), &mut room);
                self.deliver_to(port, slot, list, None, None);
            }
        }
    }

    /// Tries a group again that waited. Where its receiveq was taken from the guest meanwhile, its frames go to those
    /// that are left; where it was a bond's link that went, they go to the bond.
    pub(super) fn resume(&mut self, group: &Group, list: &[u8]) {
        let port = self.topology.port(group.slot.port).filter(|view| Arc::ptr_eq(&view.counters, &group.port));
        self.pay(group, port);
        match port {
            None => group.port.lost(DropReason::LinkDown, list.len() as u64),
            Some(port) if !port.admin_up => port.counters.lost(DropReason::ReceiverAdminDown, list.len() as u64),
            Some(port) if port.receiveqs.iter().any(|slot| Arc::ptr_eq(slot, &group.slot)) => {
                self.deliver_to(port, &group.slot, list, None, Some(group));
            }
            Some(port) => {
                let port = self.topology.bond_of(port).unwrap_or(port);
                self.steer(port, list, None, (group.begun > 0).then_some(group));
            }
        }
    }

    /// The time that a group waited for memory is paid for: by the port that it waits for, and by the transmitq it waits with.
    fn pay(&self, group: &Group, port: Option<&PortView>) {
        if group.lacks.is_some() && group.since != 0 {
            let now = tsc::now();
            self.waiting.credit.spend(group.since, now);
            if let Some(port) = port {
                port.credit.spend(group.since, now);
            }
        }
    }

    /// One list into one receiveq; `group` is what it waited in, if it did.
    fn deliver_to(
        &mut self,
        port: &PortView,
        slot: &Arc<OutletSlot>,
        list: &[u8],
        share: Option<&Share>,
        group: Option<&Group>,
    ) {
        if slot.is_broken() {
            return slot.counters.lost(DropReason::RingBroken, list.len() as u64);
        }
        let taken = slot.queue.try_lock().or_else(|| self.contend(port, slot, Left::all(list, group)));
        let Some(mut guard) = taken else { return };
        let Some(queue) = guard.as_mut() else {
            return slot.counters.lost(DropReason::LinkDown, list.len() as u64);
        };
        // Before the look: what comes after it is looked for again.
        let arrived = queue.arrived();
        if let Some(reason) = lacking(queue, slot, group, arrived) {
            drop(guard);
            let left = Left { lacks: Some((reason, arrived)), ..Left::all(list, group) };
            return self.hold_back(Patience::until_there(reason), port, slot, left);
        }
        let mut begun = group.map_or(0, |group| group.begun);
        if begun > 0 {
            queue.go_on(begun);
        }
        let (mut rest, mut retries, mut tally, mut absent) = (list, 0, Tally::default(), None);
        // What it counts for if all of it was delivered at once, as it is.
        let mut whole = None;
        while !rest.is_empty() {
            let delivery = queue.deliver(self.burst, rest);
            let (settled, left) = rest.split_at(delivery.settled);
            if settled.len() == list.len() && (delivery.too_small | delivery.in_pieces) == 0 {
                whole = share;
            }
            if whole.is_none() {
                self.count(&mut tally, settled, &delivery, &mut begun);
            }
            if delivery.too_small != 0 {
                slot.counters.lost(queue.refusal(), u64::from(delivery.too_small.count_ones()));
            }
            rest = left;
            if let Some(fault) = delivery.fault {
                if fault.is_wait() {
                    absent = Some(reason_of(fault));
                    break;
                }
                slot.counters.lost(DropReason::RingBroken, rest.len() as u64);
                rest = &[];
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
                    break;
                }
                retries += 1;
            }
        }
        let sent = if rest.is_empty() { 0 } else { queue.take_begun() };
        if sent > begun {
            self.count_begun(&mut tally, rest, begun..sent);
        }
        if whole.is_some() || !tally.is_empty() {
            slot.counters.called(queue.flush());
            match whole {
                Some(share) => slot.counters.add_share(share),
                None => slot.counters.add(&tally),
            }
            if queue.is_stuck() {
                self.stuck.add(slot);
            }
        }
        if queue.is_guarded() {
            slot.counters.iotlb_hits.add((list.len() - rest.len()) as u64);
            slot.counters.iotlb_misses.add(u64::from(absent.is_some() && group.is_none()));
        }
        if retries > 0 {
            slot.counters.retries.add(u64::from(retries));
        }
        if (rest.len() < list.len() || sent > begun) && slot.is_silent() {
            slot.set_silent(false);
        }
        drop(guard);
        if group.is_some_and(|group| group.lacks.is_some()) && rest.len() < list.len() {
            let through = (list.len() - rest.len()) as u64;
            self.waiting.credit.earn(through);
            port.credit.earn(through);
        }
        if !rest.is_empty() {
            let lacks = absent.map(|reason| (reason, arrived));
            let patience = match (absent, sent) {
                (Some(reason), _) => Patience::until_there(reason),
                (None, 1..) => Patience::for_the_rest(),
                (None, 0) => Patience::for_buffers(port),
            };
            // Whoever moves on is waited for anew.
            let since = group.map_or(0, |group| if sent > begun { tsc::now() } else { group.since });
            self.hold_back(patience, port, slot, Left { list: rest, since, begun: sent, lacks });
        }
    }

    /// Another thread has the ring: the group waits with its transmitq, and the thread goes on with other queues. Gives
    /// the ring if waiting is out of the question and it came free in time.
    #[cold]
    fn contend<'s>(
        &mut self,
        port: &PortView,
        slot: &'s Arc<OutletSlot>,
        left: Left<'_>,
    ) -> Option<MutexGuard<'s, Option<Outlet>>> {
        slot.counters.contentions.add_shared(1);
        let until = match self.settle_by {
            None if !self.waiting.is_full() => {
                self.wait(port, slot, left);
                return None;
            }
            None => tsc::now() + ASK_US * tsc::cycles_per_us(),
            Some(until) => until,
        };
        while tsc::now() < until {
            std::hint::spin_loop();
            if let Some(guard) = slot.queue.try_lock() {
                return Some(guard);
            }
        }
        slot.counters.lost(DropReason::Contended, left.list.len() as u64);
        None
    }

    /// The guest has no buffers for these, or they are still on their way here. They wait as long as `patience` says from
    /// the first refusal on, unless nothing moved since others waited that long in vain: nobody waits twice for a guest that
    /// took no frame, or whose IOMMU told nothing. Nor for memory once either side's [`Credit`](super::Credit) is spent.
    #[cold]
    fn hold_back(&mut self, patience: Patience, port: &PortView, slot: &Arc<OutletSlot>, left: Left<'_>) {
        let (count, since) = (left.list.len() as u64, left.since);
        let mappings = left.lacks.filter(|&(reason, _)| reason == DropReason::IotlbWait).map(|(_, arrived)| arrived);
        let may_wait = patience.us > 0 && self.settle_by.is_none() && !self.waiting.is_full();
        if !may_wait {
            return slot.counters.lost(patience.at_once, count);
        }
        let now = tsc::now();
        if since != 0 && now.wrapping_sub(since) > u64::from(patience.us) * tsc::cycles_per_us() {
            match mappings {
                Some(arrived) => slot.give_up(arrived),
                None => slot.set_silent(true),
            }
        }
        let is_given_up = mappings.map_or_else(|| slot.is_silent(), |arrived| slot.is_given_up(arrived));
        let is_spent = || self.waiting.credit.is_spent(now) || port.credit.is_spent(now);
        if is_given_up || (left.lacks.is_some() && is_spent()) {
            return slot.counters.lost(patience.in_the_end, count);
        }
        if since == 0 {
            slot.counters.waits.add_shared(1);
        }
        self.wait(port, slot, Left { since: if since == 0 { now } else { since }, ..left });
    }

    /// Leaves a group with the transmitq.
    fn wait(&mut self, port: &PortView, slot: &Arc<OutletSlot>, left: Left<'_>) {
        self.waiting.push(left.of(Arc::clone(slot), Arc::clone(&port.counters)));
    }

    /// Counts the frames of a list that were settled, but for those that were lost. Of the first, the pieces that had `begun`
    /// were counted before.
    fn count(&self, tally: &mut Tally, settled: &[u8], delivery: &Delivery, begun: &mut u32) {
        for (position, &index) in settled.iter().enumerate() {
            let begun = std::mem::take(begun);
            if delivery.in_pieces >> position & 1 != 0 {
                self.count_pieces(tally, index, begun, None);
            } else if delivery.too_small >> position & 1 == 0
                && let Some((packet, head)) = self.burst.frame(index)
            {
                let dst = Mac::destination(&head.0);
                tally.count(packet.len, dst.is_group(), dst == Mac::BROADCAST);
            }
        }
    }

    /// Counts pieces of the first of a list, whose rest is still to be sent.
    #[cold]
    fn count_begun(&self, tally: &mut Tally, list: &[u8], pieces: Range<u32>) {
        if let Some(&index) = list.first() {
            self.count_pieces(tally, index, pieces.start, Some(pieces.end));
        }
    }

    /// Counts what the receiver got of a frame that was segmented for it: the pieces from `begun` to `end`, or to the last.
    #[cold]
    fn count_pieces(&self, tally: &mut Tally, index: u8, begun: u32, end: Option<u32>) {
        if let Some((_, head)) = self.burst.frame(index)
            && let Some((plan, _)) = self.burst.large(usize::from(index))
        {
            let dst = Mac::destination(&head.0);
            let (group, broadcast) = (dst.is_group(), dst == Mac::BROADCAST);
            let longest = end.unwrap_or(plan.count() - 1).saturating_sub(begun);
            tally.count_many(u64::from(longest), plan.longest(), group, broadcast);
            if end.is_none() {
                tally.count(plan.last(), group, broadcast);
            }
        }
    }
}
