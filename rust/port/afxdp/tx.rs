//! What a device is to send: groups of frames copied into frames of ours, whole and with their checksums, posted together
//! and kicked once.
//!
//! ```text
//!   frame in one chunk      │ bytes │                                           one descriptor
//!   a longer one            │ bytes │ bytes │ rest │                            as many, all but the last "go on"
//!   one to be segmented     │ headers' │ size │  │ headers' │ size │  …          each a frame by itself
//! ```
//!
//! Every frame is posted whole or not at all, but for one to be cut into more packets than the ring holds: that goes out in
//! parts, and its sender waits in between. A frame of ours that was posted is the kernel's until its address comes back in the
//! completion ring; that, and nothing else, makes it free.
#![allow(unsafe_code, reason = "copies frames into an area that the kernel reads")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::frames::Frames;
use super::latency::Moment;
use super::ring::{Consumer, Producer};
use super::rx::GOES_ON;
use super::xsk::Xsk;
use super::{CHUNK, PIECES_MAX};
use crate::burst::written::{Field, add_to, finish_checksum};
use crate::burst::{Burst, HEAD_SIZE, Head, Packet};
use crate::frame::checksum::Sum;
use crate::frame::gso::{self, Idents, PIECE_HEAD_SIZE};
use crate::memory::{Span, copy};
use crate::ring::Delivery;

/// What became of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is posted.
    Whole,
    /// It is posted in segments.
    InPieces,
    /// It needs more descriptors than there are.
    Never,
    /// There is no room now, for it or for the rest of it.
    Later,
}

impl Sent {
    /// Adds the frame at `position` of a list to what was delivered; false if it was not, and comes first the next time.
    #[inline]
    pub(super) fn note(self, delivery: &mut Delivery, position: usize) -> bool {
        match self {
            Self::Whole => {}
            Self::InPieces => delivery.in_pieces |= 1 << position,
            Self::Never => delivery.too_small |= 1 << position,
            Self::Later => return false,
        }
        delivery.settled = position + 1;
        true
    }
}

/// The tx side of a queue. Belongs to one thread at a time.
#[derive(Debug)]
pub struct TxQueue {
    tx: Producer<2>,
    completion: Consumer<1>,
    frames: Frames,
    idents: Idents,
    /// The frame being written: its chunks.
    spans: Vec<Span>,
    /// Descriptors that the kernel has.
    out: u32,
    /// Tags of descriptors that came back and are no frames of ours, until who posted them has looked.
    returned: Vec<u16>,
    is_stuck: bool,
    /// When the last delivery began, and when the completion ring was looked at last.
    delivered_at: Moment,
    looked_at: Moment,
    /// Pieces that were posted of the frame that the next delivery begins with, or that the last one stopped at.
    begun: u32,
    xsk: Arc<Xsk>,
}

/// Where the tag of a descriptor begins that is no frame of ours: an address has 48 bits, and the kernel gives back what
/// stands above as it is.
const TAG_SHIFT: u32 = 48;

impl TxQueue {
    pub(super) fn new(xsk: Arc<Xsk>, tx: Producer<2>, completion: Consumer<1>, frames: Frames) -> Self {
        let (idents, spans) = (Idents::new(), Vec::with_capacity(PIECES_MAX));
        let (is_stuck, begun, now) = (false, 0, Moment::now());
        let (out, returned, delivered_at, looked_at) = (0, Vec::new(), now, now);
        Self { tx, completion, frames, idents, spans, out, returned, is_stuck, delivered_at, looked_at, begun, xsk }
    }

    /// What both sides know of the socket.
    pub(super) fn xsk(&self) -> &Arc<Xsk> {
        &self.xsk
    }

    /// Keeps the tags of descriptors that come back, `room` of them; without, they are forgotten.
    pub(super) fn keep_tags(&mut self, room: usize) {
        self.returned.reserve(room);
    }

    /// Tags that came back since this was asked.
    #[inline]
    pub(super) fn returned(&mut self) -> impl Iterator<Item = u16> {
        self.returned.drain(..)
    }

    /// Descriptors that the kernel has.
    pub(super) fn out(&self) -> u32 {
        self.out
    }

    /// Copies the packets `list` of `burst` and posts them together, in order. Stops at the first that finds no room.
    /// `list` has at most 64 indices. Of the frame it stopped at, [`Self::take_begun`] pieces may be posted.
    #[inline(never)]
    pub fn deliver(&mut self, burst: &Burst, list: &[u8]) -> Delivery {
        let mut delivery = Delivery::default();
        // Taken, so that it is nobody else's whatever happens here. Only the first of a list can have begun.
        let mut begun = std::mem::take(&mut self.begun);
        self.begin();
        for (position, &index) in list.iter().enumerate() {
            let Some((packet, head)) = burst.frame(index) else { break };
            if !self.send(burst, packet, head, index, std::mem::take(&mut begun)).note(&mut delivery, position) {
                break;
            }
        }
        self.publish();
        delivery
    }

    /// A delivery begins: takes back what was sent.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.delivered_at = Moment::now();
        self.reap(self.delivered_at, false);
    }

    /// Takes back what was sent.
    pub(super) fn look(&mut self) {
        self.reap(Moment::now(), false);
    }

    /// Copies one frame, of which `begun` pieces are posted.
    #[inline]
    pub(super) fn send(&mut self, burst: &Burst, packet: &Packet, head: &Head, index: u8, begun: u32) -> Sent {
        if packet.is_plain && packet.len <= CHUNK {
            self.post_plain(burst, packet, head)
        } else {
            self.post_other(burst, packet, usize::from(index), begun)
        }
    }

    /// Posts a frame of which only the head is copied: `parts` are places and lengths of what follows it, from the start of
    /// the memory that the socket was given, and come back as `tag`, which is not 0. False if there is no room.
    pub(super) fn send_parts(&mut self, head: &Head, parts: &[(u64, u32)], tag: u16) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "64")]
        let head_size = HEAD_SIZE as u32;
        let Some((address, to)) = self.frames.take(&self.xsk.area, head_size, self.delivered_at) else { return false };
        // SAFETY: `to` has as many bytes as a head in an area that `self` keeps, and nobody else writes to a frame that was
        // taken.
        unsafe { copy::copy64(to.start, head.0.as_ptr()) };
        self.tx.put([address, u64::from(head_size) | u64::from(GOES_ON) << 32]);
        let last = parts.len().saturating_sub(1);
        for (i, &(at, len)) in parts.iter().enumerate() {
            let options = if i < last { GOES_ON } else { 0 };
            // The kernel adds what stands above 48 bits to what stands below.
            let tagged = u64::from(tag) << TAG_SHIFT | (at - u64::from(tag));
            self.tx.put([tagged, u64::from(len) | u64::from(options) << 32]);
        }
        true
    }

    /// True if a frame of a head and `parts` parts can be posted, at once or after the kernel was kicked for it.
    #[inline]
    pub(super) fn has_room_for(&mut self, parts: usize) -> bool {
        self.is_room_for(parts) || {
            self.make_room(1);
            self.is_room_for(parts)
        }
    }

    #[inline]
    fn is_room_for(&mut self, parts: usize) -> bool {
        self.frames.free() > 0 && u32::try_from(1 + parts).is_ok_and(|count| self.tx.has_room(count))
    }

    /// The next delivery begins with a frame of which so many pieces are sent already.
    pub fn go_on(&mut self, begun: u32) {
        self.begun = begun;
    }

    /// How many pieces are posted of the frame that the last delivery stopped at; it forgets them.
    pub fn take_begun(&mut self) -> u32 {
        std::mem::take(&mut self.begun)
    }

    /// Has the kernel send what was posted, if it must be told; true if it was.
    #[inline(never)]
    pub fn flush(&mut self) -> bool {
        if self.xsk.binding.need_wakeup {
            // Between the index and the flag, which the kernel sets before it looks at the index for the last time.
            fence(Ordering::SeqCst);
            if !self.tx.wants_wakeup() {
                return false;
            }
        }
        self.kick();
        true
    }

    /// True if the kernel did not take all that was posted when it was told: call [`Self::push`] until it did.
    #[inline]
    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Tells the kernel to take what was posted.
    pub fn push(&mut self) {
        self.is_stuck = !self.xsk.push();
        self.reap(Moment::now(), false);
    }

    /// The same behind a delivery. Where the kernel copies, most of that is sent when this returns.
    fn kick(&mut self) {
        self.is_stuck = !self.xsk.push();
        self.reap(Moment::now(), true);
    }

    /// Takes back every frame that was sent; it is `now`, and `at_once` after the kick for the last delivery.
    #[inline]
    fn reap(&mut self, now: Moment, at_once: bool) {
        // An index that makes no sense gives nothing back: then there is soon no room.
        let ready = self.completion.ready().unwrap_or(0);
        let mut together = (0, 0);
        for ahead in 0..ready {
            let [address] = self.completion.entry(ahead);
            #[allow(clippy::cast_possible_truncation, reason = "the sixteen bits above an address")]
            let tag = (address >> TAG_SHIFT) as u16;
            if tag != 0 {
                if self.returned.len() < self.returned.capacity() {
                    self.returned.push(tag);
                }
                continue;
            }
            let Some(since) = self.frames.give_back(address) else { continue };
            if since != together.0 {
                self.count_latency(together, now, at_once);
                together = (since, 0);
            }
            together.1 += 1;
        }
        if ready > 0 {
            self.out = self.out.saturating_sub(ready);
            self.count_latency(together, now, at_once);
            self.completion.release(ready);
        }
        self.looked_at = now;
    }

    /// Counts frames that were posted together.
    #[inline]
    fn count_latency(&self, (since, count): (u32, u64), now: Moment, at_once: bool) {
        if count > 0 {
            let is_new = at_once && since == self.delivered_at.stamp();
            self.xsk.latency.count(count, since, (!is_new).then_some(self.looked_at), now);
        }
    }

    #[inline]
    pub(super) fn publish(&mut self) {
        let count = self.tx.unpublished();
        if count > 0 {
            self.xsk.posted.add(count.into());
            self.out = self.out.saturating_add(count);
            self.xsk.inflight_max.fetch_max(self.out, Ordering::Relaxed);
            self.tx.publish();
        }
    }

    /// True if `count` frames can be posted, at once or after the kernel was kicked for it.
    #[inline]
    fn has_room(&mut self, count: usize) -> bool {
        self.is_room(count) || self.make_room(count)
    }

    #[inline]
    fn is_room(&mut self, count: usize) -> bool {
        self.frames.free() >= count && u32::try_from(count).is_ok_and(|count| self.tx.has_room(count))
    }

    #[cold]
    fn make_room(&mut self, count: usize) -> bool {
        self.publish();
        self.kick();
        self.is_room(count)
    }

    /// A plain frame into one chunk.
    #[inline]
    fn post_plain(&mut self, burst: &Burst, packet: &Packet, head: &Head) -> Sent {
        if !self.has_room(1) {
            return Sent::Later;
        }
        let Some((address, to)) = self.frames.take(&self.xsk.area, packet.len, self.delivered_at) else {
            return Sent::Later;
        };
        // SAFETY: `to` has the frame's bytes in an area that `self` keeps, and nobody else writes to a frame that was taken.
        unsafe { burst.copy_plain(packet, head, to.start) };
        self.tx.put([address, u64::from(packet.len)]);
        Sent::Whole
    }

    /// Any other frame; `begun` pieces of it are posted.
    #[inline(never)]
    fn post_other(&mut self, burst: &Burst, packet: &Packet, index: usize, begun: u32) -> Sent {
        if packet.needs.has_segmentation() {
            return self.segment(burst, index, begun);
        }
        let chunks = packet.len.div_ceil(CHUNK) as usize;
        if chunks > self.most_chunks() {
            return Sent::Never;
        }
        if !self.has_room(chunks) {
            return Sent::Later;
        }
        self.write(burst, index, &[], 0, packet.len);
        if let Some(partial) = burst.offload(index).checksum() {
            finish_checksum(&self.spans, 0, packet.len, partial);
        }
        self.post();
        Sent::Whole
    }

    /// Most chunks of one frame.
    fn most_chunks(&self) -> usize {
        if self.xsk.binding.multi_buffer { PIECES_MAX.min(self.frames.count()) } else { 1 }
    }

    /// Cuts a frame that its sender left to us to cut: all of its pieces or none, if the ring holds them all.
    #[cold]
    fn segment(&mut self, burst: &Burst, index: usize, begun: u32) -> Sent {
        let Some((plan, head)) = burst.large(index) else { return Sent::Never };
        let chunks = plan.longest().div_ceil(CHUNK) as usize;
        if chunks > self.most_chunks() {
            return Sent::Never;
        }
        let needed = chunks * plan.count() as usize;
        if begun > 0 || needed > self.frames.count() {
            return self.segment_in_parts((burst, index), (plan, head), begun, chunks);
        }
        if !self.has_room(needed) {
            return Sent::Later;
        }
        self.put_pieces((burst, index), (plan, head), 0..plan.count());
        Sent::InPieces
    }

    /// Posts as many pieces as find room now, of `chunks` each; the next turn goes on where this one stopped. Whole packets
    /// can be sent so; fragments cannot, whose one checksum is known with the last of them.
    fn segment_in_parts(
        &mut self,
        frame: (&Burst, usize),
        (plan, head): (&gso::Plan, &[u8]),
        begun: u32,
        chunks: usize,
    ) -> Sent {
        if plan.is_fragmented() {
            return Sent::Never;
        }
        let most = self.frames.count() / chunks;
        // The kernel is kicked once for it: a device that is slow is nothing to wait for here.
        self.has_room(chunks * most.min(plan.count().saturating_sub(begun) as usize));
        let mut next = begun;
        while next < plan.count() {
            if !self.is_room(chunks) {
                self.begun = next;
                return Sent::Later;
            }
            self.put_pieces(frame, (plan, head), next..next + 1);
            next += 1;
        }
        Sent::InPieces
    }

    /// Writes and posts these pieces of a frame; the caller asked for room.
    fn put_pieces(&mut self, (burst, index): (&Burst, usize), (plan, head): (&gso::Plan, &[u8]), which: Range<u32>) {
        let ident = self.idents.next_ident();
        let (mut sum, mut field) = (Sum::default(), None);
        for n in which {
            let mut bytes = [0; PIECE_HEAD_SIZE];
            let piece = plan.piece(n, head, ident, &mut bytes);
            self.write(burst, index, bytes.get(..piece.head_size).unwrap_or_default(), piece.from, piece.len);
            #[allow(clippy::cast_possible_truncation, reason = "places in PIECE_HEAD_SIZE bytes")]
            let [head_end, sum_from] = [piece.head_size, piece.sum_from].map(|at| at as u32);
            add_to(&mut sum, &self.spans, sum_from, head_end + piece.len);
            #[allow(clippy::cast_possible_truncation, reason = "a place in PIECE_HEAD_SIZE bytes")]
            let here = piece.checksum_at.map(|at| Field::at(&self.spans, at as u32));
            field = here.or(field);
            if (!plan.is_fragmented() || n + 1 == plan.count())
                && let Some(field) = field
            {
                // It may be in a piece that was put before, but none is published yet.
                field.store(std::mem::take(&mut sum).finish());
            }
            self.post();
        }
    }

    /// Writes `head` and then `len` bytes of frame `index` from `from` on into free chunks; the caller asked for room. The
    /// head fits one chunk.
    fn write(&mut self, burst: &Burst, index: usize, head: &[u8], from: u32, len: u32) {
        self.spans.clear();
        #[allow(clippy::cast_possible_truncation, reason = "at most PIECE_HEAD_SIZE")]
        let (mut skip, mut at) = (head.len() as u32, 0);
        while at < len || skip > 0 {
            let here = (len - at).min(CHUNK - skip);
            let Some((_, span)) = self.frames.take(&self.xsk.area, skip + here, self.delivered_at) else {
                return;
            };
            if skip > 0 {
                // SAFETY: the head's bytes, which `span` has room for, in an area that `self` keeps.
                unsafe { copy::copy(span.start, head.as_ptr(), head.len()) };
            }
            let to = Span { start: span.start.wrapping_add(skip as usize), len: here };
            // SAFETY: the rest of `span`, cut to what the frame still has.
            unsafe { burst.copy_out(index, from + at, to) };
            self.spans.push(span);
            (skip, at) = (0, at + here);
        }
    }

    /// Puts the descriptors of what was written.
    fn post(&mut self) {
        let base = self.xsk.area.start().addr();
        let last = self.spans.len().saturating_sub(1);
        for (i, span) in self.spans.iter().enumerate() {
            let options = if i < last { GOES_ON } else { 0 };
            let address = (span.start.addr() - base) as u64;
            self.tx.put([address, u64::from(span.len) | u64::from(options) << 32]);
        }
    }
}
