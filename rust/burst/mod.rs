//! What travels: up to 64 frames that came in together.
//!
//! ```text
//!   Burst ── heads[i]    the first 64 bytes of frame i, copied once: everything that is judged is judged here
//!         ├─ packets[i]  length, and where the bytes after the head are
//!         ├─ offloads[i] of frames that ask for something
//!         ├─ spans       pieces of frames that lie in more than one
//!         └─ large       of frames to be segmented: the first 256 bytes, copied once, and how to cut them
//! ```
//!
//! A frame's bytes stay where its sender put them until a receiver gets them: one copy. Invariant: every span in a
//! burst was translated by the burst's own `GuestMap` or cut from its own `Area`, whose `Arc`s the burst holds, or is of a
//! constant, so it stays mapped as long as the burst lives. Knows no ring, no port, no thread.
#![allow(unsafe_code, reason = "copies a sender's bytes out of its memory")]

mod own;
mod placed;
pub(crate) mod written;

use std::sync::Arc;

use crate::drops::DropReason;
use crate::frame::gso;
use crate::frame::vnet_hdr::{Offload, OffloadSet};
use crate::memory::{Area, GuestMap, Hint, Span, access, copy};

/// Most frames in a burst. 64 measured 6 % better than 32; more does not fit the first-level cache.
pub const MAX_BURST: usize = 64;
/// Bytes of a frame that are copied before it is judged.
pub const HEAD_SIZE: usize = 64;
/// Most pieces in a burst; room for it is taken once.
const MAX_SPANS: usize = 4096;
/// Longest frame: 64 KiB and an Ethernet header with two tags.
pub const MAX_FRAME: u32 = 65_557;

/// The first bytes of a frame; zero past its end.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Head(pub [u8; HEAD_SIZE]);

/// Why a frame goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is dropped.
    Drop(DropReason),
    /// The switch itself was meant, and has read it: it passed.
    Read,
}

/// One frame of a burst.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// The frame's first byte, if all lie in one piece.
    data: *mut u8,
    /// Bytes, without the virtio header.
    pub len: u32,
    /// Index and count of its pieces in `spans`; a count of 0 means that `data` has it all.
    pieces: (u16, u16),
    /// Its place in `large`, if its offload has segmentation; it has pieces then.
    large: u8,
    /// Why it goes no further, if so.
    pub stop: Option<Stop>,
    /// What its receiver must have negotiated to get it as it is.
    pub needs: OffloadSet,
    /// In one piece, not stopped, and asks for nothing: nearly every frame.
    pub is_plain: bool,
}

// SAFETY: as for a span: an address into a mapping that the burst's map keeps and any thread may use.
unsafe impl Send for Packet {}

impl Packet {
    const EMPTY: Self = Self {
        data: std::ptr::null_mut(),
        len: 0,
        pieces: (0, 0),
        large: 0,
        stop: None,
        needs: OffloadSet::NONE,
        is_plain: false,
    };
}

/// What is kept of a frame that asks for segmentation.
#[derive(Debug, Clone, Copy)]
struct Large {
    /// Its first bytes; as many as it has, if fewer.
    head: [u8; gso::HEAD_SIZE],
    head_size: usize,
    plan: gso::Plan,
}

/// Up to 64 frames and what is known of them. About 8 KiB, and 90 KiB that only frames of many pieces and frames to be
/// segmented touch; made once per queue.
#[derive(Debug)]
pub struct Burst {
    heads: Box<[Head; MAX_BURST]>,
    packets: Box<[Packet; MAX_BURST]>,
    /// Of frames that need something; of others it says nothing.
    offloads: Box<[Offload; MAX_BURST]>,
    spans: Vec<Span>,
    large: Vec<Large>,
    len: usize,
    /// Bytes of the longest frame.
    longest: u32,
    memory: Arc<GuestMap>,
    /// Of frames that a NIC brought.
    area: Option<Arc<Area>>,
    /// The region that held the last buffer.
    hint: Hint,
}

impl Burst {
    /// An empty burst whose frames lie in a guest's `memory`.
    pub fn new(memory: Arc<GuestMap>) -> Self {
        Self::holding(memory, None)
    }

    /// An empty burst whose frames lie in `area`.
    pub fn of_area(area: Arc<Area>) -> Self {
        Self::holding(Arc::default(), Some(area))
    }

    fn holding(memory: Arc<GuestMap>, area: Option<Arc<Area>>) -> Self {
        Self {
            heads: Box::new([Head([0; HEAD_SIZE]); MAX_BURST]),
            packets: Box::new([Packet::EMPTY; MAX_BURST]),
            offloads: Box::new([Offload::NONE; MAX_BURST]),
            // A large frame in one piece takes a span that `span_room` does not count.
            spans: Vec::with_capacity(MAX_SPANS + MAX_BURST),
            large: Vec::with_capacity(MAX_BURST),
            len: 0,
            longest: 0,
            memory,
            area,
            hint: Hint::NONE,
        }
    }

    /// Frames in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its frames.
    #[inline]
    pub fn packets(&self) -> &[Packet] {
        self.packets.get(..self.len).unwrap_or_default()
    }

    /// The first bytes of each frame, beside [`Self::packets`].
    #[inline]
    pub fn heads(&self) -> &[Head] {
        self.heads.get(..self.len).unwrap_or_default()
    }

    /// Frame `index` and its first bytes.
    #[inline]
    pub fn frame(&self, index: u8) -> Option<(&Packet, &Head)> {
        self.packets().get(usize::from(index)).zip(self.heads().get(usize::from(index)))
    }

    /// What frame `index` asks of its receiver.
    #[inline]
    pub fn offload(&self, index: usize) -> Offload {
        let needed = self.packets().get(index).filter(|packet| !packet.needs.is_empty());
        needed.and_then(|_| self.offloads.get(index)).copied().unwrap_or(Offload::NONE)
    }

    /// Bytes of the longest frame.
    #[inline]
    pub fn longest(&self) -> u32 {
        self.longest
    }

    /// The guest's memory that the frames lie in; an empty map if they are a NIC's.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMap> {
        &self.memory
    }

    /// The area that the frames lie in, if they are a NIC's.
    #[inline]
    pub fn area(&self) -> Option<&Arc<Area>> {
        self.area.as_ref()
    }

    /// Forgets every frame.
    #[inline]
    pub fn clear(&mut self) {
        (self.len, self.longest) = (0, 0);
        self.spans.clear();
        self.large.clear();
    }

    /// The region that held the last buffer of this burst's memory.
    #[inline]
    pub(crate) fn hint(&self) -> Hint {
        self.hint
    }

    /// Remembers the region that held the last buffer. `hint` comes from this burst's memory.
    #[inline]
    pub(crate) fn set_hint(&mut self, hint: Hint) {
        self.hint = hint;
    }

    /// Room for pieces that is left.
    #[inline]
    pub(crate) fn span_room(&self) -> usize {
        MAX_SPANS.saturating_sub(self.spans.len())
    }

    /// Adds frames that lie in one piece each and ask for nothing, and copies their heads; up to the first None. Gives how
    /// many. They were translated by this burst's memory.
    #[inline]
    pub(crate) fn push_plain(&mut self, frames: impl Iterator<Item = Option<Span>>) -> usize {
        let (from, mut count, mut longest) = (self.len, 0, self.longest);
        let room = self.heads.iter_mut().zip(self.packets.iter_mut()).skip(from);
        for (frame, (head, packet)) in frames.zip(room) {
            let Some(data) = frame else { break };
            if data.len as usize >= HEAD_SIZE {
                // SAFETY: `data` has 64 bytes in a mapping that `self.memory` or `self.area` keeps; the head is ours.
                unsafe { copy::copy64(head.0.as_mut_ptr(), data.start) };
            } else {
                head.0 = [0; HEAD_SIZE];
                // SAFETY: `data` has `len` bytes in a mapping that `self.memory` or `self.area` keeps; the head has more.
                unsafe { copy::copy(head.0.as_mut_ptr(), data.start, data.len as usize) };
            }
            *packet = Packet { data: data.start, len: data.len, is_plain: true, ..Packet::EMPTY };
            longest = longest.max(data.len);
            count += 1;
        }
        (self.len, self.longest) = (from + count, longest);
        count
    }

    /// Adds a frame that lies in one piece and copies its head. `data` was translated by this burst's memory.
    pub(crate) fn push(&mut self, data: Span, drop: Option<DropReason>, offload: Offload) {
        let needs = offload.needs();
        if needs.has_segmentation() {
            return self.push_large(&[data], data.len, offload);
        }
        let Some((head, packet)) = self.heads.get_mut(self.len).zip(self.packets.get_mut(self.len)) else { return };
        head.0 = [0; HEAD_SIZE];
        snapshot(&[data], &mut head.0);
        let stop = drop.map(Stop::Drop);
        *packet = Packet { data: data.start, len: data.len, stop, needs, ..Packet::EMPTY };
        self.count(data.len, offload);
    }

    /// Another frame is in its place.
    fn count(&mut self, len: u32, offload: Offload) {
        if let Some(place) = self.offloads.get_mut(self.len) {
            *place = offload;
        }
        (self.len, self.longest) = (self.len + 1, self.longest.max(len));
    }

    /// Adds a frame of several pieces and copies its head. The pieces were translated by this burst's memory. The caller
    /// left room ([`Self::span_room`]).
    pub(crate) fn push_pieces(&mut self, pieces: &[Span], len: u32, drop: Option<DropReason>, offload: Offload) {
        if offload.needs().has_segmentation() {
            return self.push_large(pieces, len, offload);
        }
        let mut head = [0; HEAD_SIZE];
        snapshot(pieces, &mut head);
        self.add(pieces, head, offload, Packet { len, stop: drop.map(Stop::Drop), ..Packet::EMPTY });
    }

    /// Adds a frame to be segmented: its headers are copied once, judged, and used for every receiver from then on.
    #[cold]
    fn push_large(&mut self, pieces: &[Span], len: u32, offload: Offload) {
        let mut head = [0; gso::HEAD_SIZE];
        let head_size = snapshot(pieces, &mut head);
        let plan = offload.gso().zip(head.get(..head_size));
        let plan = plan.and_then(|(request, head)| gso::Plan::new(head, len, request));
        let first = head.first_chunk().copied().unwrap_or([0; HEAD_SIZE]);
        let Some((plan, large)) = plan.zip(u8::try_from(self.large.len()).ok()) else {
            let stop = Some(Stop::Drop(DropReason::BadOffload));
            return self.add(pieces, first, Offload::NONE, Packet { len, stop, ..Packet::EMPTY });
        };
        self.large.push(Large { head, head_size, plan });
        let offload = offload.with_headers(plan.header_len(), plan.is_v6());
        self.add(pieces, first, offload, Packet { len, large, ..Packet::EMPTY });
    }

    /// The rest of [`Self::push_pieces`].
    fn add(&mut self, pieces: &[Span], bytes: [u8; HEAD_SIZE], offload: Offload, of: Packet) {
        let Some((head, packet)) = self.heads.get_mut(self.len).zip(self.packets.get_mut(self.len)) else { return };
        let (Ok(from), Ok(count)) = (u16::try_from(self.spans.len()), u16::try_from(pieces.len())) else { return };
        if pieces.len() > self.spans.capacity() - self.spans.len() {
            return;
        }
        head.0 = bytes;
        self.spans.extend_from_slice(pieces);
        *packet = Packet { pieces: (from, count), needs: offload.needs(), ..of };
        self.count(of.len, offload);
    }

    /// Says that frame `index` goes no further, unless that was said before.
    pub fn stop(&mut self, index: usize, stop: Stop) {
        if let Some(packet) = self.packets.get_mut(index) {
            packet.stop.get_or_insert(stop);
            packet.is_plain = false;
        }
    }

    /// How frame `index` is cut for a receiver that does not do it, and the first bytes that this was judged by.
    pub(crate) fn large(&self, index: usize) -> Option<(&gso::Plan, &[u8])> {
        let packet = self.packets().get(index).filter(|packet| packet.needs.has_segmentation())?;
        let large = self.large.get(usize::from(packet.large))?;
        Some((&large.plan, large.head.get(..large.head_size)?))
    }

    /// Bytes of the longest frame that frame `index` becomes on a wire: what a receiver's MTU is about. Segments if it
    /// is to be segmented, whoever does it.
    pub fn wire_len(&self, index: usize) -> u32 {
        let whole = self.packets().get(index).map_or(0, |packet| packet.len);
        self.large(index).map_or(whole, |(plan, _)| plan.longest())
    }

    /// Where the bytes of a frame past its head are, piece by piece, none of them empty. They may change at any time: nothing
    /// that was judged is among them.
    #[inline]
    pub(crate) fn tail(&self, packet: &Packet) -> impl Iterator<Item = Span> {
        let (first, count) = (usize::from(packet.pieces.0), usize::from(packet.pieces.1));
        let pieces = self.spans.get(first..first + count).unwrap_or_default();
        let one = (count == 0).then_some(Span { start: packet.data, len: packet.len });
        #[allow(clippy::cast_possible_truncation, reason = "64")]
        let mut skip = HEAD_SIZE as u32;
        one.into_iter().chain(pieces.iter().copied()).filter_map(move |piece| {
            let here = skip.min(piece.len);
            skip -= here;
            let rest = Span { start: piece.start.wrapping_add(here as usize), len: piece.len - here };
            (rest.len > 0).then_some(rest)
        })
    }

    /// Copies a plain frame of this burst: `head` and `packet` are its own.
    ///
    /// # Safety
    /// `to` has `packet.len` writable bytes in a live mapping.
    #[inline]
    #[allow(clippy::unused_self, reason = "keeps the packet's memory mapped")]
    pub(crate) unsafe fn copy_plain(&self, packet: &Packet, head: &Head, to: *mut u8) {
        debug_assert!(packet.is_plain);
        let len = packet.len as usize;
        if len < HEAD_SIZE {
            // SAFETY: `len` bytes are inside the head and inside `to`.
            return unsafe { copy_some(to, head.0.as_ptr(), len) };
        }
        // SAFETY: the head has 64 bytes, `to` no fewer.
        unsafe { copy::copy64(to, head.0.as_ptr()) };
        if len > HEAD_SIZE {
            let (to, from) = (to.wrapping_add(HEAD_SIZE), packet.data.wrapping_add(HEAD_SIZE));
            // SAFETY: both have the bytes past the head, `data` kept mapped by `self.memory` or `self.area`.
            unsafe { copy_some(to, from, len - HEAD_SIZE) };
        }
    }

    /// Asks for the lines of bytes `[from, from + len)` of frame `index`, as far as it has them in one piece.
    #[inline]
    pub(crate) fn prefetch(&self, index: usize, from: u32, len: u32) {
        let Some(packet) = self.packets().get(index).filter(|packet| packet.pieces.1 == 0) else { return };
        let len = len.min(packet.len.saturating_sub(from));
        for line in (0..len).step_by(64) {
            access::prefetch(packet.data.wrapping_add((from + line) as usize));
        }
    }

    /// Copies bytes `[from, from + to.len)` of frame `index` to `to`: the head from the snapshot, the rest from the
    /// sender. The caller asks for no more than the frame has.
    ///
    /// # Safety
    /// `to` has its `len` writable bytes in a live mapping.
    #[inline]
    pub(crate) unsafe fn copy_out(&self, index: usize, from: u32, to: Span) {
        let Some((head, packet)) = self.heads.get(index).zip(self.packets.get(index)) else { return };
        debug_assert!(from + to.len <= packet.len);
        if from as usize >= HEAD_SIZE && packet.pieces.1 == 0 {
            // SAFETY: `to` has its bytes, and `data` as many from `from` on, kept mapped by `self.memory` or `self.area`.
            return unsafe { copy::copy(to.start, packet.data.wrapping_add(from as usize), to.len as usize) };
        }
        let head = self.large(index).map_or(&head.0[..], |(_, head)| head);
        // SAFETY: passed on.
        unsafe { self.copy_out_pieces(packet, head, from, to) };
    }

    /// The rest of [`Self::copy_out`].
    unsafe fn copy_out_pieces(&self, packet: &Packet, head: &[u8], from: u32, to: Span) {
        let (mut skip, mut dst, mut left) = (from as usize, to.start, to.len as usize);
        if skip < head.len() {
            let n = left.min(head.len() - skip);
            // SAFETY: `n` bytes are inside the head and inside `to`.
            unsafe { copy::copy(dst, head.as_ptr().wrapping_add(skip), n) };
            (skip, dst, left) = (skip + n, dst.wrapping_add(n), left - n);
        }
        let (first, count) = (usize::from(packet.pieces.0), usize::from(packet.pieces.1));
        let one = [Span { start: packet.data, len: packet.len }];
        let pieces = if count == 0 { &one[..] } else { self.spans.get(first..first + count).unwrap_or_default() };
        for piece in pieces {
            if left == 0 {
                return;
            }
            let size = piece.len as usize;
            if skip >= size {
                skip -= size;
                continue;
            }
            let n = left.min(size - skip);
            // SAFETY: `n` bytes from `skip` are inside this piece, kept mapped by `self.memory` or `self.area`, and inside `to`.
            unsafe { copy::copy(dst, piece.start.wrapping_add(skip), n) };
            (skip, dst, left) = (0, dst.wrapping_add(n), left - n);
        }
    }
}

/// [`copy::copy`] apart from the loop over frames, whose registers it would take.
///
/// # Safety
/// The same.
#[inline(never)]
unsafe fn copy_some(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: passed on.
    unsafe { copy::copy(to, from, len) };
}

/// Copies the first bytes of a frame that lies in `pieces`; gives how many there are.
fn snapshot(pieces: &[Span], to: &mut [u8]) -> usize {
    let mut at = 0;
    for piece in pieces {
        let n = (piece.len as usize).min(to.len() - at);
        // SAFETY: `piece` has `n` bytes in a mapping that the burst's memory keeps; `to` has room for them.
        unsafe { copy::copy(to.as_mut_ptr().wrapping_add(at), piece.start, n) };
        at += n;
    }
    at
}
