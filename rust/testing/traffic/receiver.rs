// SPDX-License-Identifier: Apache-2.0
//! One receiveq: takes frames, judges them, gives the buffers back.

use super::counters::{ReceiveCounters, Streams};
use crate::testing::driver::{RingFormat, RoundFormat, SlotRing, Slots, Violations, either};
use crate::testing::frames::{Arrival, Inspector, Reassembly, Verdict, inspect_number};
use crate::testing::{Error, Result};

/// Passes that leave less than a block to grow to one.
const PATIENCE: u8 = 8;

/// How closely received frames are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Every byte.
    Full,
    /// Stream and sequence, from the first cache line (UDP over IPv4).
    Sequence,
    /// Used elements are counted, and of one frame in a block the number is looked at: none may be behind the one before.
    Count,
}

impl Check {
    /// Reads `full`, `sequence` or `count`.
    ///
    /// # Errors
    /// `Config` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "full" => Ok(Self::Full),
            "sequence" => Ok(Self::Sequence),
            "count" => Ok(Self::Count),
            other => Err(Error::Config(format!("check '{other}' is not known: full, sequence or count"))),
        }
    }
}

/// Receives on one receiveq.
#[derive(Debug)]
pub struct Receiver {
    queue: SlotRing,
    judge: Judge,
}

/// All of a receiver but its queue: compiled once per ring format.
#[derive(Debug)]
struct Judge {
    inspector: Inspector,
    check: Check,
    mergeable: bool,
    frame: Vec<u8>,
    datagram: Reassembly,
    /// Passes that may yet find less than a block and leave it.
    patience: u8,
    /// Stream and number of the last frame that was looked at among those counted.
    last: Option<(u16, u64)>,
    counters: ReceiveCounters,
}

impl Receiver {
    /// A receiver that posts all buffers of `queue`, not yet published.
    pub fn new(mut queue: SlotRing, inspector: Inspector, check: Check, mergeable: bool) -> Self {
        post_all(&mut queue);
        let counters = ReceiveCounters::default();
        let (frame, datagram) = (Vec::new(), Reassembly::default());
        let judge = Judge { inspector, check, mergeable, frame, datagram, patience: PATIENCE, last: None, counters };
        Self { queue, judge }
    }

    /// The queue.
    pub fn queue(&self) -> &SlotRing {
        &self.queue
    }

    /// The queue, for notification wishes and raw writes.
    pub fn queue_mut(&mut self) -> &mut SlotRing {
        &mut self.queue
    }

    /// Counters so far.
    pub fn counters(&self) -> ReceiveCounters {
        self.judge.counters
    }

    /// Numbers that arrived, be they right or not. Without a look at every byte each frame that is one of ours has one.
    #[inline]
    pub fn numbered(&self) -> u64 {
        let counters = &self.judge.counters;
        match self.judge.check {
            Check::Full => counters.numbers + counters.corrupt_total(),
            Check::Sequence | Check::Count => counters.frames - counters.foreign,
        }
    }

    /// Rules that the device broke.
    pub fn violations(&self) -> Violations {
        self.queue.violations()
    }

    /// Counts a kick that was written.
    pub(super) fn note_kick(&mut self) {
        self.judge.counters.kicks += 1;
    }

    /// Begins anew after the ring was reset, with all buffers posted.
    pub fn restart(&mut self) {
        self.queue.restart();
        self.queue.want_calls(false);
        post_all(&mut self.queue);
        self.queue.publish();
    }

    /// Takes up to about `most` frames; gives how many, and whether to kick.
    #[inline]
    pub fn pass(&mut self, most: usize, streams: &mut Streams) -> (usize, bool) {
        either!(&mut self.queue, queue => self.judge.pass(queue, most, streams))
    }

    /// Takes one frame whole, for `each` to look at, whatever the check is; gives `false` when there
    /// is none. The frame is accounted for as in [`pass`](Self::pass).
    pub fn take_frame(&mut self, streams: &mut Streams, each: impl FnOnce(&[u8])) -> (bool, bool) {
        let judge = &mut self.judge;
        either!(&mut self.queue, queue => {
            let waiting = queue.used_waiting(1);
            if waiting == 0 {
                return (false, false);
            }
            let check = std::mem::replace(&mut judge.check, Check::Full);
            judge.take_one(queue, waiting, streams);
            judge.check = check;
            each(&judge.frame);
            (true, queue.publish())
        })
    }
}

/// Posts every free slot whole.
fn post_all(queue: &mut SlotRing) {
    let total = queue.shape().header_size + queue.shape().room;
    while let Some(slot) = queue.take_free() {
        queue.post(slot, total);
    }
}

impl Judge {
    #[inline]
    fn pass<R: RoundFormat>(&mut self, queue: &mut Slots<R>, most: usize, streams: &mut Streams) -> (usize, bool) {
        if self.check == Check::Count
            && let Some(count) = self.turn(queue, most)
        {
            if count > 0 {
                self.patience = PATIENCE;
                return (count, queue.publish());
            }
            if self.patience > 0 {
                self.patience -= 1;
                return (0, false);
            }
        }
        let mut count = 0;
        let mut left = queue.used_waiting(1);
        if self.check != Check::Count {
            queue.prefetch_used(left.min(most));
        }
        while left > 0 && count < most {
            left -= self.take_one(queue, left, streams);
            count += 1;
        }
        (count, count > 0 && queue.publish())
    }

    /// Counts frames that came in one buffer each, of a ring that goes round, and posts the buffers again; `None` when it
    /// does not go round.
    #[inline]
    fn turn<R: RoundFormat>(&mut self, queue: &mut Slots<R>, most: usize) -> Option<usize> {
        let (header, room) = (queue.shape().header_size, queue.shape().room);
        let mut bytes = 0;
        let count = queue.turn(most, |window, at, turn, len| {
            // What fills its buffer may go on in another one.
            let size = (len as usize).wrapping_sub(header);
            if size >= room {
                return false;
            }
            bytes += size as u64;
            if turn == 0
                && let Some(found) = inspect_number(window, at + header)
            {
                let behind = self.last.is_some_and(|last| last.0 == found.0 && found.1 <= last.1);
                self.counters.behind += u64::from(behind);
                self.last = Some(found);
            }
            true
        })?;
        self.counters.frames += count as u64;
        self.counters.bytes += bytes;
        Some(count)
    }

    /// Takes one frame and reposts its buffers; gives the used elements it took of those waiting.
    #[inline]
    fn take_one<R: RingFormat>(&mut self, queue: &mut Slots<R>, waiting: usize, streams: &mut Streams) -> usize {
        self.frame.clear();
        let Some((slot, len)) = queue.take_used() else { return waiting };
        let shape = *queue.shape();
        if len < shape.header_size {
            queue.violations_mut().length_too_small += 1;
            repost(queue, slot);
            return 1;
        }
        // What does not fill its buffer ends there: whoever only counts need not touch the frame to know that.
        let whole = self.check == Check::Count && len < shape.header_size + shape.room;
        let buffers = if self.mergeable && !whole { buffers_of(queue, slot, waiting) } else { 1 };
        self.counters.frames += 1;
        self.counters.bytes += (len - shape.header_size) as u64;
        match self.check {
            Check::Full => queue.gather(slot, len, &mut self.frame),
            Check::Sequence => {
                let (window, at) = queue.place(slot);
                let noted = inspect_number(window, at + shape.header_size)
                    .is_some_and(|(stream, sequence)| streams.note(stream, sequence));
                self.counters.foreign += u64::from(!noted);
            }
            Check::Count => {}
        }
        repost(queue, slot);
        if buffers > 1 {
            self.take_rest(queue, buffers - 1);
        }
        if self.check == Check::Full {
            self.judge(streams);
        }
        buffers
    }

    #[cold]
    fn take_rest<R: RingFormat>(&mut self, queue: &mut Slots<R>, buffers: usize) {
        self.counters.merged += 1;
        for _ in 0..buffers {
            let Some((slot, len)) = queue.take_used() else { return };
            self.counters.bytes += len as u64;
            if self.check == Check::Full {
                queue.gather(slot, len, &mut self.frame);
            }
            repost(queue, slot);
        }
    }

    fn judge(&mut self, streams: &mut Streams) {
        // Fragments for others are not put together.
        let arrival = if self.inspector.is_meant(&self.frame) {
            self.datagram.take(self.inspector.header_size, &self.frame)
        } else {
            Arrival::Whole
        };
        let verdict = match arrival {
            Arrival::Whole => self.inspector.inspect(&self.frame),
            Arrival::Datagram => self.inspector.inspect(self.datagram.datagram()),
            Arrival::Wrong(kind) => Verdict::Corrupt(kind),
            Arrival::Part => {
                self.counters.fragments += 1;
                return;
            }
        };
        match verdict {
            Verdict::Numbered { stream, sequence } if streams.note(stream, sequence) => self.counters.numbers += 1,
            Verdict::Pieces { stream, first, step, count } => {
                self.counters.whole += 1;
                for piece in 0..count {
                    let noted = streams.note(stream, first.wrapping_add(piece.wrapping_mul(step)));
                    self.counters.numbers += u64::from(noted);
                }
            }
            Verdict::Corrupt(kind) => self.counters.note_corrupt(kind),
            Verdict::Numbered { .. } | Verdict::Foreign => self.counters.foreign += 1,
        }
    }
}

/// The buffers of the frame that begins in `slot`, at most those that wait.
#[inline]
fn buffers_of<R: RingFormat>(queue: &mut Slots<R>, slot: u16, waiting: usize) -> usize {
    let (window, at) = queue.place(slot);
    let mut field = [0; 2];
    window.read(at + 10, &mut field);
    let buffers = usize::from(u16::from_le_bytes(field));
    if buffers == 0 || buffers > waiting {
        queue.violations_mut().wrong_num_buffers += 1;
    }
    buffers.clamp(1, waiting)
}

#[inline]
fn repost<R: RingFormat>(queue: &mut Slots<R>, slot: u16) {
    let total = queue.shape().header_size + queue.shape().room;
    queue.post(slot, total);
}
