//! What addresses mean at one moment: mappings in order, and what was taken back of late. Pure, and never changed once it is
//! where others read it: a copy is, which shares all chunks but those that are touched.

use std::sync::Arc;

use super::Access;

/// Most mappings in a chunk.
pub(super) const CHUNK: usize = 128;
/// Mappings taken back that are remembered one by one.
pub(super) const REMEMBERED: usize = 32;

/// A stretch of I/O virtual addresses and the guest memory behind it, all in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::memory) struct Mapping {
    pub(in crate::memory) iova: u64,
    /// Bytes, at least one; the end does not wrap.
    pub(in crate::memory) size: u64,
    /// Which region of the map.
    pub(in crate::memory) region: usize,
    /// Bytes into it.
    pub(in crate::memory) into: u64,
    pub(in crate::memory) access: Access,
}

impl Mapping {
    pub(super) fn end(&self) -> u64 {
        self.iova + self.size
    }

    /// The part of it in `[from, to)`, which it has.
    fn part(&self, from: u64, to: u64) -> Self {
        Self { iova: from, size: to - from, into: self.into + (from - self.iova), ..*self }
    }

    /// True if all that `other` says is said by this one too.
    fn says(&self, other: &Self) -> bool {
        self.iova <= other.iova
            && other.end() <= self.end()
            && self.access.allows(other.access)
            && (self.region, self.into + (other.iova - self.iova)) == (other.region, other.into)
    }

    /// True if `next` goes on where this one ends, in every respect.
    fn goes_on_in(&self, next: &Self) -> bool {
        (self.end(), self.region, self.into + self.size, self.access)
            == (next.iova, next.region, next.into, next.access)
    }
}

/// A mapping that was taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) generation: u64,
    pub(super) mapping: Mapping,
}

/// Mappings that lie in order, at least one.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// Where the first begins: which chunk has an address is known without a look into any.
    from: u64,
    pub(super) mappings: Arc<[Mapping]>,
}

impl Chunk {
    fn of(mappings: &[Mapping]) -> Option<Self> {
        Some(Self { from: mappings.first()?.iova, mappings: mappings.into() })
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// Sorted; no two mappings overlap.
    pub(super) chunks: Vec<Chunk>,
    pub(super) count: usize,
    /// The last that were taken back, oldest first.
    pub(super) gone: Vec<Gone>,
    /// All that were taken back after this generation are among `gone`.
    pub(super) complete_since: u64,
}

impl Table {
    pub(super) fn find(&self, iova: u64) -> Option<&Mapping> {
        let at = self.chunks_up_to(iova).checked_sub(1)?;
        let chunk = &self.chunks.get(at)?.mappings;
        let mapping = chunk.get(chunk.partition_point(|mapping| mapping.iova <= iova).checked_sub(1)?)?;
        (iova - mapping.iova < mapping.size).then_some(mapping)
    }

    /// How many chunks begin at `iova` or before.
    fn chunks_up_to(&self, iova: u64) -> usize {
        self.chunks.partition_point(|chunk| chunk.from <= iova)
    }

    /// Puts `new`, in order and all inside `[from, to)`, in the place of all that was there. Gives what nobody says any
    /// more.
    pub(super) fn replace(&mut self, from: u64, to: u64, new: &[Mapping]) -> Vec<Mapping> {
        let first = self.chunks_up_to(from).saturating_sub(1);
        // A mapping that begins at `to` may be the end of one that begins before.
        let mut last = self.chunks_up_to(to).max(first);
        let (mut all, mut gone, mut before) = (Vec::new(), Vec::new(), 0);
        for mapping in self.chunks.get(first..last).unwrap_or_default().iter().flat_map(|chunk| chunk.mappings.iter()) {
            before += 1;
            let (start, end) = (mapping.iova.max(from), mapping.end().min(to));
            if start >= end {
                all.push(*mapping);
                continue;
            }
            if mapping.iova < start {
                all.push(mapping.part(mapping.iova, start));
            }
            if end < mapping.end() {
                all.push(mapping.part(end, mapping.end()));
            }
            let lost = mapping.part(start, end);
            if !new.iter().any(|new| new.says(&lost)) {
                gone.push(lost);
            }
        }
        all.extend_from_slice(new);
        all.sort_unstable_by_key(|mapping| mapping.iova);
        all.dedup_by(|next, mapping| {
            let is_one = mapping.goes_on_in(next);
            if is_one {
                mapping.size += next.size;
            }
            is_one
        });
        // A chunk that is nearly empty goes into its neighbour.
        if all.len() < CHUNK / 2
            && let Some(next) = self.chunks.get(last)
        {
            before += next.mappings.len();
            all.extend_from_slice(&next.mappings);
            last += 1;
        }
        self.count = self.count + all.len() - before;
        let size = all.len().div_ceil(all.len().div_ceil(CHUNK).max(1)).max(1);
        self.chunks.splice(first..last, all.chunks(size).filter_map(Chunk::of));
        gone
    }

    /// Of no mappings; whatever there was up to this generation is gone.
    pub(super) fn empty_since(generation: u64) -> Self {
        Self { complete_since: generation, ..Self::default() }
    }

    pub(super) fn remember(&mut self, generation: u64, gone: Vec<Mapping>) {
        if gone.len() > REMEMBERED {
            self.gone.clear();
            self.complete_since = generation;
            return;
        }
        let surplus = (self.gone.len() + gone.len()).saturating_sub(REMEMBERED);
        if let Some(oldest) = self.gone.drain(..surplus).next_back() {
            self.complete_since = oldest.generation;
        }
        self.gone.extend(gone.into_iter().map(|mapping| Gone { generation, mapping }));
    }
}
