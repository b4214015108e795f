//! Chains of descriptors: what one is, and where the buffers of one frame are gathered.

use super::RingFault;
use crate::memory::access;
use crate::memory::{Access, GuestMap, Iova, Span};

/// The buffer goes on in another descriptor.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// Bytes of a descriptor, in the ring or in an indirect table.
pub(super) const DESC_SIZE: u32 = 16;
/// Most descriptors for one frame: the ring's, those of indirect tables, and those of all buffers merged.
pub(super) const MAX_CHAIN: usize = 1024;
/// Descriptors that each piece of a segmented frame adds to that.
const PIECE_CHAIN: usize = 64;
/// Most entries of an indirect table.
const MAX_TABLE: u32 = 32_768;

/// What the driver wants back: the head's index (split), or the buffer id and the descriptors it covers (packed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub id: u16,
    /// Descriptors of the ring; 1 in a split ring, where nobody needs it.
    pub count: u16,
}

impl Chain {
    /// One that has to be walked before it is known.
    pub(super) const UNKNOWN: Self = Self { id: 0, count: 0 };
}

/// A descriptor, as read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    /// The next one's index (split), or the buffer id (packed).
    pub link: u16,
}

/// Which side writes the buffers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// A transmitq: we only read.
    Readable,
    /// A receiveq: we only write.
    Writable,
}

impl Direction {
    /// What we do with the buffers.
    pub(super) fn access(self) -> Access {
        match self {
            Self::Readable => Access::READ,
            Self::Writable => Access::WRITE,
        }
    }
}

/// The two words of entry `index` of an indirect table; None past its end.
#[inline]
#[allow(unsafe_code, reason = "indirect tables are guest memory")]
pub(super) fn words_in_table(table: Span, index: u16) -> Option<(u64, u64)> {
    if u32::from(index) >= table.len / DESC_SIZE {
        return None;
    }
    let at = table.start.wrapping_add(usize::from(index) * DESC_SIZE as usize);
    // SAFETY: the first half of an entry inside the table, which the caller's map keeps mapped while it holds the span.
    let addr = unsafe { access::load::<u64>(at) };
    // SAFETY: the second half of the same entry.
    let rest = unsafe { access::load::<u64>(at.wrapping_add(8)) };
    Some((addr, rest))
}

/// Room for one chain, taken once per queue.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The chain's buffers in order, translated; never empty ones.
    pub spans: Vec<Span>,
    /// Descriptors that may still be read, empty ones included: what bounds the time one frame can take.
    budget: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        // A buffer across regions makes two spans; regions are few.
        Self { spans: Vec::with_capacity(2 * MAX_CHAIN), budget: MAX_CHAIN }
    }

    /// Forgets the last frame's buffers.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.budget = MAX_CHAIN;
    }

    /// True if a chain of any length that a frame may have still fits: no other one of its frame was read before.
    pub(super) fn is_fresh(&self) -> bool {
        self.budget >= MAX_CHAIN
    }

    /// Forgets the buffers of one piece of a frame: the next has some descriptors of its own, and what the others left.
    pub(super) fn next_piece(&mut self) {
        self.spans.clear();
        self.budget += PIECE_CHAIN;
    }

    /// Where the indirect table that `desc` points at is, and how many entries it has.
    pub(super) fn table(memory: &GuestMap, desc: Desc, negotiated: bool) -> Result<(Span, u32), RingFault> {
        let count = desc.len / DESC_SIZE;
        if !negotiated
            || desc.flags & NEXT != 0
            || !desc.len.is_multiple_of(DESC_SIZE)
            || count == 0
            || count > MAX_TABLE
        {
            return Err(RingFault::BadIndirect);
        }
        let entries = memory.translate_whole(Iova(desc.addr), desc.len, Access::READ)?;
        Ok((entries, count))
    }

    /// Appends one buffer to a chain of `bytes` bytes; gives the chain's bytes with it.
    ///
    /// # Errors
    /// The wrong direction, too many descriptors or bytes, an address outside memory.
    pub(super) fn append_buffer(
        &mut self,
        memory: &GuestMap,
        desc: Desc,
        direction: Direction,
        bytes: u32,
    ) -> Result<u32, RingFault> {
        if (desc.flags & WRITE != 0) != (direction == Direction::Writable) {
            return Err(RingFault::WrongDirection);
        }
        self.budget = self.budget.checked_sub(1).ok_or(RingFault::LongChain)?;
        let total = bytes.checked_add(desc.len).ok_or(RingFault::LongChain)?;
        let (mut at, mut left) = (desc.addr, desc.len);
        while left > 0 {
            if self.spans.len() >= self.spans.capacity() {
                return Err(RingFault::LongChain);
            }
            let span = memory.translate_prefix(Iova(at), left, direction.access())?;
            self.spans.push(span);
            left -= span.len;
            at = at.checked_add(u64::from(span.len)).ok_or(RingFault::Address)?;
        }
        Ok(total)
    }
}
