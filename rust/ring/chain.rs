//! Walking descriptor chains of any layout: the slow, equally correct way next to the fast shapes.

use super::RingFault;
use super::feature;
use super::split::{Desc, INDIRECT, NEXT, SplitRing, WRITE};
use crate::memory::{Gpa, GuestMap, Span};

/// Most descriptors for one frame: the ring's, those of indirect tables, and those of all buffers merged.
pub(super) const MAX_CHAIN: usize = 1024;

/// Which side writes the buffers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// A transmitq: we only read.
    Readable,
    /// A receiveq: we only write.
    Writable,
}

/// Room for one chain, taken once per queue.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The chain's buffers in order, translated; never empty ones.
    pub spans: Vec<Span>,
    /// Descriptors read so far, empty ones included: what bounds the time one frame can take.
    descs: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        // A buffer across regions makes two spans; regions are few.
        Self { spans: Vec::with_capacity(2 * MAX_CHAIN), descs: 0 }
    }

    /// Forgets the last frame's buffers.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.descs = 0;
    }

    /// Appends every buffer of the chain that starts at `head`; gives the bytes added.
    ///
    /// # Errors
    /// What is wrong with the chain; `spans` then holds part of it.
    pub(super) fn append_chain(
        &mut self,
        ring: &SplitRing,
        memory: &GuestMap,
        head: u16,
        direction: Direction,
    ) -> Result<u32, RingFault> {
        let (mut desc, mut steps, mut bytes) = (ring.desc(head)?, 0_u32, 0_u32);
        loop {
            if desc.flags & INDIRECT != 0 {
                return self.append_indirect(ring, memory, desc, direction, bytes);
            }
            bytes = self.append_buffer(memory, desc, direction, bytes)?;
            if desc.flags & NEXT == 0 {
                return Ok(bytes);
            }
            steps += 1;
            if steps >= ring.size() {
                return Err(RingFault::ChainLoop);
            }
            desc = ring.desc(desc.next)?;
        }
    }

    fn append_indirect(
        &mut self,
        ring: &SplitRing,
        memory: &GuestMap,
        table: Desc,
        direction: Direction,
        mut bytes: u32,
    ) -> Result<u32, RingFault> {
        let count = table.len / 16;
        if ring.features & feature::INDIRECT_DESC == 0
            || table.flags & NEXT != 0
            || !table.len.is_multiple_of(16)
            || count == 0
            || count > 32_768
        {
            return Err(RingFault::BadIndirect);
        }
        let entries = memory.translate(Gpa(table.addr), table.len, &mut 0).ok_or(RingFault::Address)?;
        let (mut index, mut steps) = (0_u16, 0_u32);
        loop {
            let desc = Desc::in_table(entries, index).ok_or(RingFault::IndexRange)?;
            if desc.flags & INDIRECT != 0 {
                return Err(RingFault::BadIndirect);
            }
            bytes = self.append_buffer(memory, desc, direction, bytes)?;
            if desc.flags & NEXT == 0 {
                return Ok(bytes);
            }
            steps += 1;
            if steps >= count {
                return Err(RingFault::ChainLoop);
            }
            index = desc.next;
        }
    }

    fn append_buffer(
        &mut self,
        memory: &GuestMap,
        desc: Desc,
        direction: Direction,
        bytes: u32,
    ) -> Result<u32, RingFault> {
        if (desc.flags & WRITE != 0) != (direction == Direction::Writable) {
            return Err(RingFault::WrongDirection);
        }
        self.descs += 1;
        if self.descs > MAX_CHAIN {
            return Err(RingFault::LongChain);
        }
        let total = bytes.checked_add(desc.len).ok_or(RingFault::LongChain)?;
        let (mut at, mut left) = (desc.addr, desc.len);
        while left > 0 {
            if self.spans.len() >= self.spans.capacity() {
                return Err(RingFault::LongChain);
            }
            let span = memory.translate_prefix(Gpa(at), left).ok_or(RingFault::Address)?;
            self.spans.push(span);
            left -= span.len;
            at = at.checked_add(u64::from(span.len)).ok_or(RingFault::Address)?;
        }
        Ok(total)
    }
}
