// SPDX-License-Identifier: Apache-2.0
//! A ring that goes round: all its slots in flight, in turn, each posted again where it came back.
//!
//! ```text
//!   the device's          came back, posted again        the device's
//!  ──────────────────┬────────────────────────────────┬──────────────────▶
//!   … 60  61  62  63 │  0   1   2   3   …  30  31      │ 32  33  …
//!                    └ next          one block         ┘
//! ```
//! A sender whose ring is full and a receiver are always there, and devices use buffers in the order they got them. So
//! no list of free slots is kept and no state of a slot is touched: what comes back is compared with the slot whose
//! turn it is. As soon as one does not compare, the long way takes over, which knows what is posted, and what a device
//! that breaks rules did.
//!
//! Slots come back in whole blocks: looking at single elements while the device writes their line slows the device down.
//!
//! Invariant: while [`Round::posts`] is at least the number of slots and none is free, the slots in flight are in turn,
//! [`Round::next`] was posted first of them, and the descriptors of all of them say [`Round::total`] bytes.
#![expect(clippy::cast_possible_truncation, reason = "slots and blocks are bounded by the size of a ring")]

use super::format::{RingFormat, Segment};
use super::packed_ring::PackedRing;
use super::slots::Slots;
use super::split_ring::{SplitRing, describe};
use super::violations::Violations;
use super::{DESC_AVAILABLE, DESC_USED, DESC_WRITE, Layout};
use crate::testing::memory::Window;

/// Slots that come back together at most.
const BLOCK: usize = 32;

/// A ring whose buffers, of one descriptor each, are taken back and posted again in one go.
pub trait RoundFormat: RingFormat {
    /// Whether [`is_back`](Self::is_back) and [`post_again_here`](Self::post_again_here) may be used: each buffer has
    /// an element of its own when it comes back, and the device broke no rule so far.
    fn can_go_round(&self) -> bool;

    /// Whether the next `count` buffers probably came back; reads no more than it must of what the device writes.
    fn have_come(&mut self, count: u16, violations: &mut Violations) -> bool;

    /// The bytes written into `buffer`, of one descriptor, if it came back `ahead` places after the next; among those
    /// that [have come](Self::have_come).
    fn is_back(&self, ahead: u16, buffer: u16) -> Option<u32>;

    /// Takes the next used buffer, which [`is_back`](Self::is_back) found, and posts it again at once, not yet visible;
    /// every buffer of the ring is in flight. `rewrite`: also what stands as it was.
    fn post_again_here(&mut self, buffer: u16, segment: Segment, rewrite: bool);

    /// Asks for the lines that [`is_back`](Self::is_back) and [`post_again_here`](Self::post_again_here) touch for the
    /// `count` buffers from `ahead` places after the next on.
    fn prefetch_again(&self, ahead: u16, count: u16, rewrite: bool);
}

/// How long slots were posted in turn, with the same number of bytes.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The slot after the last one posted.
    next: u16,
    /// The bytes it was posted with.
    total: u32,
    /// Posts in turn, up to that one.
    posts: usize,
}

impl Round {
    /// `slot`, of `slots`, is posted with `total` bytes.
    #[inline]
    pub(super) fn note(&mut self, slot: u16, total: u32, slots: usize) {
        let in_turn = slot == self.next && total == self.total;
        self.posts = if in_turn { self.posts + 1 } else { 1 };
        self.total = total;
        self.next = if usize::from(slot) + 1 == slots { 0 } else { slot + 1 };
    }
}

impl<R: RoundFormat> Slots<R> {
    /// The slots that [`turn`](Self::turn) takes at a time: of a small ring the sixteenth part.
    #[inline]
    pub fn block(&self) -> usize {
        BLOCK.min(self.slots() / 16).max(1)
    }

    /// Says that the content of the last slot posted is not that of the others: it is to be posted the long way.
    pub fn break_turn(&mut self) {
        self.round.posts = 0;
    }

    #[inline]
    fn goes_round(&self) -> bool {
        self.free() == 0
            && self.round.posts >= self.slots()
            && self.areas.len() == 1
            && self.shape.layout == Layout::One
            && self.ring.can_go_round()
    }

    /// Takes whole blocks of slots that came back, `most` slots at most, and posts each again with the bytes it had
    /// before, not yet published; gives their number. `each` is called before that, with the slot's place, its turn in
    /// the block and the bytes the device says it wrote; it refuses a slot by `false`.
    ///
    /// `None` when slots have to be taken one by one: not all are in flight or not in turn, the next one is another one
    /// than expected or was refused, or `most` is less than a block.
    #[inline]
    pub fn turn(&mut self, most: usize, mut each: impl FnMut(&Window, usize, usize, u32) -> bool) -> Option<usize> {
        let block = self.block();
        if most < block || !self.goes_round() {
            return None;
        }
        if !self.ring.have_come(block as u16, &mut self.violations) {
            return Some(0);
        }
        let mut came = self.look_over(0, block);
        let mut done = 0;
        loop {
            // The lines of the next block are on their way while this one is worked on.
            let more = done + 2 * block <= most && self.ring.have_come(2 * block as u16, &mut self.violations);
            let next = if more { self.look_over(block, block) } else { [MISSING; BLOCK] };
            let taken = self.take_block(&came[..block], &mut each);
            done += taken;
            if taken < block {
                return (done > 0).then_some(done);
            }
            if !more {
                return Some(done);
            }
            came = next;
        }
    }

    /// Posts again the slots of a block, up to the first that did not come back in turn or is refused; gives their number.
    #[inline]
    fn take_block(&mut self, came: &[u32], each: &mut impl FnMut(&Window, usize, usize, u32) -> bool) -> usize {
        let (slots, stride) = (self.slots(), self.shape.stride());
        let area = &self.areas[0];
        let mut slot = usize::from(self.round.next);
        let mut taken = 0;
        for (turn, &len) in came.iter().enumerate() {
            let at = slot * stride;
            if len == MISSING || !each(&area.window, at, turn, len) {
                break;
            }
            let gpa = area.gpa.plus(at as u64);
            let segment = Segment { gpa, len: self.round.total, writable: self.writable };
            self.ring.post_again_here(slot as u16, segment, self.rewrite);
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
            taken += 1;
        }
        self.round.next = slot as u16;
        taken
    }

    /// The bytes written into each slot of the block that begins `ahead` places after the next, as far as it came back in
    /// turn; asks for the lines that are touched next.
    #[inline]
    fn look_over(&self, ahead: usize, block: usize) -> [u32; BLOCK] {
        let (slots, stride) = (self.slots(), self.shape.stride());
        let window = &self.areas[0].window;
        self.ring.prefetch_again(ahead as u16, block as u16, self.rewrite);
        let mut came = [MISSING; BLOCK];
        let mut slot = usize::from(self.round.next) + ahead;
        for (turn, place) in came.iter_mut().enumerate().take(block) {
            slot = if slot >= slots { slot - slots } else { slot };
            let Some(len) = self.ring.is_back((ahead + turn) as u16, slot as u16) else { break };
            // No buffer is that large.
            *place = len.min(MISSING - 1);
            if !self.writable {
                window.prefetch_for_write(slot * stride);
            } else if turn == 0 {
                window.prefetch(slot * stride);
            }
            slot += 1;
        }
        came
    }
}

/// In the place of a length: the slot did not come back, or another one did.
const MISSING: u32 = u32::MAX;

impl RoundFormat for SplitRing {
    #[inline]
    fn can_go_round(&self) -> bool {
        self.order.is_none() && !self.broken
    }

    #[inline]
    fn have_come(&mut self, count: u16, violations: &mut Violations) -> bool {
        self.seen_used.wrapping_sub(self.last_used) >= count
            || self.used_waiting(usize::from(count), violations) >= usize::from(count)
    }

    #[inline]
    fn is_back(&self, ahead: u16, buffer: u16) -> Option<u32> {
        let (id, len) = self.peek_used(ahead);
        (id == u32::from(buffer)).then_some(len)
    }

    #[inline]
    fn post_again_here(&mut self, buffer: u16, segment: Segment, rewrite: bool) {
        self.last_used = self.last_used.wrapping_add(1);
        if rewrite {
            self.write_descriptor(buffer, describe(segment, 0, false));
        }
        self.put_available(buffer);
    }

    #[inline]
    fn prefetch_again(&self, ahead: u16, count: u16, rewrite: bool) {
        let first = self.last_used.wrapping_add(ahead);
        // Eight used elements a line, four descriptors.
        for place in (0..count).step_by(8) {
            self.used().prefetch(4 + 8 * usize::from(first.wrapping_add(place) & self.mask));
        }
        for place in (0..if rewrite { count } else { 0 }).step_by(4) {
            // Mostly the next buffers are those whose number is that of the place.
            self.descriptors.prefetch_for_write(16 * usize::from(first.wrapping_add(place) & self.mask));
        }
    }
}

impl RoundFormat for PackedRing {
    #[inline]
    fn can_go_round(&self) -> bool {
        // What was found by looking ahead is taken the long way.
        self.order.is_none() && !self.broken && self.waiting == 0 && self.stride == 1
    }

    #[inline]
    fn have_come(&mut self, count: u16, _: &mut Violations) -> bool {
        count <= self.in_flight && self.is_used(self.taken.plus(count - 1, self.size))
    }

    #[inline]
    fn is_back(&self, ahead: u16, buffer: u16) -> Option<u32> {
        let place = self.taken.plus(ahead, self.size);
        let word = self.descriptors.load_u64_acquire(16 * usize::from(place.index) + 8);
        // One load sees the flags and all that was written before them.
        let mark = u64::from(DESC_AVAILABLE | DESC_USED) << 48 | 0xffff << 32;
        let wanted = u64::from(place.used()) << 48 | u64::from(buffer) << 32;
        (word & mark == wanted).then_some((word & 0xffff_ffff) as u32)
    }

    #[inline]
    fn post_again_here(&mut self, buffer: u16, segment: Segment, _: bool) {
        // All buffers are in flight, so the next place to post at is the one it came back at. It stays in flight.
        self.taken = self.taken.plus(1, self.size);
        self.seen = self.taken;
        self.push(segment.gpa.0, segment.len, buffer, if segment.writable { DESC_WRITE } else { 0 });
    }

    #[inline]
    fn prefetch_again(&self, ahead: u16, count: u16, _: bool) {
        for place in (ahead..ahead + count).step_by(4) {
            self.descriptors.prefetch_for_write(16 * usize::from(self.taken.plus(place, self.size).index));
        }
    }
}
