//! Large frames: into one buffer or several that a receiver merges, while the lines for what comes next are on their way.
//!
//! ```text
//!   sender    │ frame n ───────────▶ │ frame n+1 ──▶ │        asked for: what the next buffer is filled from …
//!             ▼      ▼      ▼        ▼
//!   receiver  │ buffer │ buffer │ b. │ buffer │                … and its own lines, to be written
//! ```
//!
//! Such a frame costs what the third-level cache lets through: both guests' rings of jumbo frames are larger than the
//! second. So both sides of the next buffer, the next frame's first included, are asked for a stretch at a time, beside
//! the copy of the same stretch of this one. Buffers are read ahead once, each into a [`Slot`]; what is not a plain buffer
//! in a chain of its own is left to `Writer::place`.

use super::{Slot, Writer};
use crate::burst::{Burst, MAX_BURST};
use crate::frame::vnet_hdr;
use crate::memory::{Iova, Span, access};
use crate::ring::chain::{Chain, WRITE};
use crate::ring::layout::Layout;

/// Bytes that are asked for and copied in turns: fewer wait for each other, more find no room among the lines on their
/// way. 512 and 1024 measured alike at 9000 B, and both a seventh better than the whole buffer at 1518 B.
const STRETCH: u32 = 1024;
#[allow(clippy::cast_possible_truncation, reason = "64")]
const ROOM: u16 = MAX_BURST as u16;

/// Posted buffers, read once, from a place of this round on.
#[derive(Debug)]
pub(super) struct Window {
    /// The buffer at place `p` is in slot `p` modulo their number.
    slots: Box<[Slot; MAX_BURST]>,
    from: u16,
    to: u16,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { slots: Box::new([Slot::other(Chain::UNKNOWN); MAX_BURST]), from: 0, to: 0 }
    }

    /// Forgets what was read: places count from elsewhere, or were taken by another way.
    #[inline]
    pub(super) fn clear(&mut self) {
        (self.from, self.to) = (0, 0);
    }

    #[inline]
    fn get(&self, place: u16) -> Option<Slot> {
        let slot = self.slots.get(usize::from(place % ROOM))?;
        (self.from <= place && place < self.to).then_some(*slot)
    }
}

/// Where the copy goes on after this buffer: what will be written, and which byte of which frame will be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    to: Span,
    frame: usize,
    from: u32,
}

impl Writer {
    /// Writes frame `index` into as many plain buffers from place `taken` on as it takes, and notes them as used. `next` is
    /// the frame after it. Gives how many; None, with nothing done, where the buffers are others or too few.
    pub(super) fn merge<L: Layout>(
        &mut self,
        ring: &mut L,
        burst: &Burst,
        index: usize,
        taken: u16,
        next: Option<u8>,
    ) -> Option<u16> {
        let len = burst.packets().get(index)?.len;
        let (mut room, mut buffers) = (0_u32, 0_u16);
        while room < self.header_size + len {
            let Some(slot) = self.window.get(taken + buffers) else {
                self.look_on(ring, taken)?;
                continue;
            };
            if slot.len < self.header_size {
                return None;
            }
            room = room.checked_add(slot.len)?;
            buffers += 1;
        }
        let header = vnet_hdr::with_buffers(vnet_hdr::encode(burst.offload(index)), buffers);
        let (mut skip, mut from) = (self.header_size, 0);
        for place in taken..taken + buffers {
            let Some(slot) = self.window.get(place) else { break };
            if from == 0 {
                self.write_header(slot.start, header);
            }
            let here = (slot.len - skip).min(len - from);
            let rest = if from + here < len { Some((index, from + here)) } else { next.map(|i| (usize::from(i), 0)) };
            let after = self.window.get(place + 1).zip(rest);
            let after = after.and_then(|(slot, (frame, from))| self.next(burst, slot, frame, from));
            let to = Span { start: slot.start.wrapping_add(skip as usize), len: here };
            // SAFETY: the rest of a buffer that was translated by the ring's memory, cut to what the frame still has.
            unsafe { copy_beside(burst, index, from, to, after) };
            if self.marks.are_wanted() {
                self.marks.note(ring.memory(), slot.start, skip + here);
            }
            ring.put_used(place, slot.chain, skip + here);
            (skip, from) = (0, from + here);
        }
        Some(buffers)
    }

    /// The copy of frame `frame` from byte `from` on, into the buffer of `slot`.
    #[inline]
    pub(super) fn next(&self, burst: &Burst, slot: Slot, frame: usize, from: u32) -> Option<Next> {
        let left = burst.packets().get(frame)?.len.saturating_sub(from) + self.header_size;
        Some(Next { to: Span { start: slot.start, len: slot.len.min(left) }, frame, from })
    }

    /// Reads as many posted buffers as there is room for, from place `taken` on, and asks for their first lines. None if
    /// there are no more to be had.
    fn look_on<L: Layout>(&mut self, ring: &mut L, taken: u16) -> Option<()> {
        let begin = self.window.to.max(taken);
        let ready = ring.ready(usize::from(taken) + MAX_BURST).ok()?.min(taken.checked_add(ROOM)?);
        (self.window.from, self.window.to) = (taken, begin);
        while self.window.to < ready {
            let Ok(Some((chain, desc))) = ring.head(self.window.to) else { break };
            if !L::ends_at(desc) {
                break;
            }
            let mut slot = Slot::other(chain);
            if desc.flags == WRITE
                && let Some(span) = ring.memory().translate(Iova(desc.addr), desc.len, &mut self.hint, &mut self.tlb)
            {
                slot = Slot { start: span.start, len: span.len, chain };
                access::prefetch_write(slot.start);
            }
            *self.window.slots.get_mut(usize::from(self.window.to % ROOM))? = slot;
            self.window.to += 1;
        }
        (self.window.to > begin).then_some(())
    }
}

/// Copies bytes `[from, from + to.len)` of frame `index` to `to`, asking for `next` beside it.
///
/// # Safety
/// As [`Burst::copy_out`].
pub(super) unsafe fn copy_beside(burst: &Burst, index: usize, from: u32, to: Span, next: Option<Next>) {
    let mut at = 0;
    while at < to.len {
        let start = to.start.wrapping_add(at as usize);
        // Stretches end where lines of the receiver do.
        #[allow(clippy::cast_possible_truncation, reason = "below 64")]
        let len = (STRETCH - (start.addr() % 64) as u32).min(to.len - at);
        if let Some(next) = next {
            let left = next.to.len.saturating_sub(at);
            let len = if at + len < to.len { left.min(len) } else { left.min(STRETCH) };
            access::prefetch_write_all(next.to.start.wrapping_add(at as usize), len as usize);
            burst.prefetch(next.frame, next.from + at, len);
        }
        // SAFETY: `len` bytes from `at` on are inside `to`, and inside the frame.
        unsafe { burst.copy_out(index, from + at, Span { start, len }) };
        at += len;
    }
}
