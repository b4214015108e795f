//! What one queue knows of its guest's IOTLB: the mappings that it used last, each found by the page it was used at.
//!
//! A direct-mapped cache in front of `iotlb`'s table, as a processor has in front of its page tables. It belongs to one
//! queue, so nobody is asked and nothing is shared; it is caught up with what was taken back at the start of each burst.
//! A queue of a map that is not guarded has none, and pays nothing for it.

use super::iotlb::{Access, spread};
use super::map::{GuestMap, Hint};

/// Mappings in it: a queue of 256 buffers of a page each meets itself seldom.
const LINES: usize = 1024;

/// The cache. Belongs to the [`GuestMap`] it was made for.
#[derive(Debug)]
pub struct Tlb {
    /// What the queue does with its buffers.
    pub(super) access: Access,
    lines: Box<[Hint]>,
    /// Everything taken back up to this one is forgotten.
    generation: u64,
}

impl Tlb {
    /// For a queue of this memory, which reads or writes its buffers.
    pub fn new(memory: &GuestMap, access: Access) -> Self {
        let lines = if memory.is_guarded() { LINES } else { 0 };
        Self { access, lines: vec![Hint::NONE; lines].into(), generation: memory.generation() }
    }

    /// True if the memory is guarded by the guest's IOMMU.
    #[inline]
    pub fn is_on(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Forgets what was taken back; true if anything was: then hints from before say nothing. To be asked at the start of
    /// each burst, before the first translation.
    #[inline]
    pub fn catch_up(&mut self, memory: &GuestMap) -> bool {
        self.is_on() && self.generation != memory.generation() && self.forget_gone(memory)
    }

    #[cold]
    fn forget_gone(&mut self, memory: &GuestMap) -> bool {
        let generation = memory.generation();
        let lines = &mut self.lines;
        let is_known = memory.each_iova_gone_since(self.generation, |from, size| {
            lines.iter_mut().filter(|line| line.overlaps(from, size)).for_each(|line| *line = Hint::NONE);
        });
        if !is_known {
            self.lines.fill(Hint::NONE);
        }
        self.generation = generation;
        true
    }

    /// Where the mapping is to be found that was used last at `iova`'s page, or one like it.
    #[inline]
    pub(super) fn line(&mut self, iova: u64) -> Option<&mut Hint> {
        self.lines.get_mut(spread(iova) % LINES)
    }
}
