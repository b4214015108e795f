// SPDX-License-Identifier: Apache-2.0
//! One transmitq: fills it with numbered frames.
//!
//! The light way writes one cache line and one descriptor per frame; the full way builds every
//! byte. Used slots are taken back in batches: looking at single used elements while the device
//! writes their line would slow the device down.

use super::counters::SendCounters;
use crate::testing::driver::{RingFormat, RoundFormat, SlotRing, Slots, Violations, either};
use crate::testing::frames::FramePlan;

/// Used slots that must wait before they are taken back; of a small ring the sixteenth part.
const RECLAIM_BATCH: usize = 32;

/// Sends one stream on one transmitq.
#[derive(Debug)]
pub struct Sender {
    queue: SlotRing,
    stream: Stream,
}

/// All of a sender but its queue: compiled once per ring format.
#[derive(Debug)]
struct Stream {
    plan: FramePlan,
    light: bool,
    /// Frames are to be cut, and have a number in every piece.
    cut: bool,
    next: u64,
    /// Frames sent, and the next number of each flow: of frames to be cut, where a frame has many numbers.
    turn: u64,
    flows: Vec<u64>,
    batch: usize,
    frame: Vec<u8>,
    counters: SendCounters,
}

impl Sender {
    /// A sender over an empty queue. `light` asks for the light way, which the plan and the
    /// queue's layout must allow.
    pub fn new(queue: SlotRing, plan: FramePlan, light: bool) -> Self {
        let light = light && plan.has_lines() && queue.shape().gap == 0;
        let batch = RECLAIM_BATCH.min(queue.slots() / 16).max(1);
        let stream = Stream {
            light,
            cut: plan.is_numbered_by_piece(),
            next: 0,
            turn: 0,
            flows: vec![0; plan.config().flows.into()],
            batch,
            plan,
            frame: Vec::new(),
            counters: SendCounters::default(),
        };
        Self { queue, stream }
    }

    /// The queue.
    pub fn queue(&self) -> &SlotRing {
        &self.queue
    }

    /// The queue, for notification wishes and raw writes.
    pub fn queue_mut(&mut self) -> &mut SlotRing {
        &mut self.queue
    }

    /// The plan of its frames.
    pub fn plan(&self) -> &FramePlan {
        &self.stream.plan
    }

    /// The number of the next frame, which is also how many were sent; of frames to be cut, their pieces.
    #[inline]
    pub fn next(&self) -> u64 {
        self.stream.next
    }

    /// Counters so far.
    pub fn counters(&self) -> SendCounters {
        self.stream.counters
    }

    /// Rules that the device broke.
    pub fn violations(&self) -> Violations {
        self.queue.violations()
    }

    /// Counts a kick that was written.
    pub(super) fn note_kick(&mut self) {
        self.stream.counters.kicks += 1;
    }

    /// Whether no slot is free and the device returned too few to bother.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.queue.free() == 0
    }

    /// Takes slots back and sends up to `most` frames; gives how many, and whether to kick.
    #[inline]
    pub fn pass(&mut self, most: usize) -> (usize, bool) {
        either!(&mut self.queue, queue => self.stream.pass(queue, most))
    }

    /// Takes back every slot the device is done with.
    pub fn take_back(&mut self) {
        self.queue.reclaim();
    }

    /// Begins anew after the ring was reset: frames that the device had are given up.
    pub fn restart(&mut self) {
        let given_up = self.queue.restart();
        self.stream.counters.given_up += given_up as u64;
        self.queue.want_calls(false);
    }

    /// Sends vnet header and frame as they are, outside the numbering; `None` when there is no
    /// room or the frame does not fit a slot, else whether to kick.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Option<bool> {
        let shape = self.queue.shape();
        if bytes.len() > shape.header_size + shape.room {
            return None;
        }
        if self.queue.free() == 0 {
            self.take_back();
        }
        let slot = self.queue.take_free()?;
        self.queue.scatter(slot, bytes);
        self.queue.post(slot, bytes.len());
        self.queue.break_turn();
        Some(self.queue.publish())
    }
}

impl Stream {
    #[inline]
    fn pass<R: RoundFormat>(&mut self, queue: &mut Slots<R>, most: usize) -> (usize, bool) {
        self.counters.tries += 1;
        if self.light
            && let Some(count) = self.turn(queue, most)
        {
            return (count, count > 0 && queue.publish());
        }
        let waiting = queue.used_waiting(self.batch);
        // Fewer than a batch may have come back without being seen: they do not count as held.
        let back = waiting.max(self.batch - 1);
        if 10 * queue.posted().saturating_sub(back) >= 9 * queue.slots() {
            self.counters.full_tries += 1;
        }
        // No more than is sent again at once: a ring that is full then goes round, however fast the device is.
        if waiting >= self.batch && queue.free() < most {
            queue.reclaim_some(most - queue.free());
        }
        let count = most.min(queue.free());
        queue.prefetch_free(count);
        for _ in 0..count {
            self.send_one(queue);
        }
        self.counters.frames += count as u64;
        (count, queue.publish())
    }

    /// Sends again what came back, of a ring that is full of frames of one size; `None` when it is not.
    #[inline]
    fn turn<R: RoundFormat>(&mut self, queue: &mut Slots<R>, most: usize) -> Option<usize> {
        let (plan, mut next) = (&self.plan, self.next);
        let count = queue.turn(most, |window, at, _, _| {
            plan.renew_line(next, window, at);
            next += 1;
            true
        })?;
        // What came back and is less than a block does not count as held.
        let back = count + queue.block() - 1;
        if 10 * queue.slots().saturating_sub(back) >= 9 * queue.slots() {
            self.counters.full_tries += 1;
        }
        self.counters.frames += count as u64;
        self.counters.bytes += (count * plan.size(self.next)) as u64;
        self.next = next;
        Some(count)
    }

    #[inline]
    fn send_one<R: RingFormat>(&mut self, queue: &mut Slots<R>) {
        let Some(slot) = queue.take_free() else { return };
        if self.cut {
            self.send_cut(queue, slot);
            return;
        }
        let header = queue.shape().header_size;
        let size = self.plan.size(self.next);
        if self.light {
            let (window, at) = queue.place(slot);
            self.plan.write_line(self.next, window, at);
        } else {
            self.plan.build(self.next, &mut self.frame);
            queue.scatter(slot, &self.frame);
        }
        queue.post(slot, header + size);
        self.counters.bytes += size as u64;
        self.next += 1;
    }

    /// Sends a frame whose pieces all have numbers, those of its flow.
    #[inline(never)]
    fn send_cut<R: RingFormat>(&mut self, queue: &mut Slots<R>, slot: u16) {
        let flows = self.flows.len() as u64;
        let flow = self.turn % flows;
        let pieces = self.plan.pieces(self.turn);
        let Some(next) = usize::try_from(flow).ok().and_then(|flow| self.flows.get_mut(flow)) else { return };
        self.plan.build_cut(self.turn, *next * flows + flow, &mut self.frame);
        *next += pieces;
        queue.scatter(slot, &self.frame);
        queue.post(slot, self.frame.len());
        self.counters.bytes += self.plan.size(self.turn) as u64;
        self.turn += 1;
        self.next += pieces;
    }
}
