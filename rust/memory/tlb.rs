//! What one queue knows of its guest's IOTLB: the mappings that it used last, each found by the page it was used at.
//!
//! A direct-mapped cache in front of `iotlb`'s table, as a processor has in front of its page tables. It belongs to one
//! queue, so nobody is asked and nothing is shared; it is caught up with what was taken back at the start of each burst.
//! A queue of a map that is not guarded has none, and pays nothing for it.

use super::iotlb::{Access, PAGE};
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
        self.lines.get_mut(line_of(iova))
    }
}

/// Which line is an address's. Pages that lie side by side have each their own, as many as there are lines; so have pages a
/// power of two apart, as pools of buffers on huge pages begin.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "ten bits")]
fn line_of(iova: u64) -> usize {
    let page = iova / PAGE;
    ((page ^ (page / LINES as u64)) % LINES as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn as_many_pages_as_there_are_lines_do_not_meet_side_by_side_or_a_power_of_two_apart() {
        for distance in (0..=10).map(|power| PAGE << power) {
            let lines: BTreeSet<_> = (0..LINES as u64).map(|number| line_of((1 << 45) + number * distance)).collect();
            assert_eq!(lines.len(), LINES, "{distance:#x} bytes apart");
        }
    }
}
