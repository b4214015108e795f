//! What a guest's IOMMU lets the device reach: which I/O virtual addresses mean which guest memory (`vhost-user:
//! VHOST_USER_IOTLB_MSG`).
//!
//! ```text
//!   front-end ── UPDATE, INVALIDATE ──▶ session ── writes a new ──▶ Table ◀── reads ── poll threads, on a miss of
//!        ▲                                 ▲                                             their queue's own Tlb
//!        └───────── IOTLB_MISS ────────────┘◀────────── wanted ◀── want() ──────────────── no mapping: Unmapped
//! ```
//!
//! A table never changes. Each change makes another one that shares most of it: mappings lie in order, in chunks, and only
//! the chunks that are touched are made anew, so ten thousand mappings cost a change no more than ten. Neighbours that
//! mean memory in one piece become one mapping.
//!
//! A table names memory by region and offset, never by address: whoever reads it asks the map it belongs to, which checks
//! the bounds. What is taken back is counted in `generation` and listed for a while, so that queues forget exactly that.
//! The session that takes something back waits for every poll thread before it answers; a queue catches up at the start of
//! each burst. A table that was replaced goes when nobody reads it any more, and by the session's hand: a poll thread frees
//! none.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::lock::Lock;

/// Most mappings of one guest, neighbours merged; a table of so many takes 3 MiB.
pub const MAPPINGS_MAX: usize = 1 << 16;
/// Most mappings in a chunk.
const CHUNK: usize = 128;
/// Mappings taken back that are remembered one by one.
const REMEMBERED: usize = 32;
/// Pages that can be wanted at once; for more, queues ask again.
const WANTED: usize = 256;
/// Places that one wanted page may have among them.
const PROBES: usize = 8;
/// Most bytes that are looked at together: no frame and no ring area is longer.
const REACH: u64 = 1 << 20;
/// Every address that a mapping can have.
const ALL: Range<u64> = 0..u64::MAX;
/// Bytes of the smallest page that an IOMMU has.
pub(super) const PAGE: u64 = 4096;

/// What the device may do with memory, or wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access(u8);

impl Access {
    /// Reads.
    pub const READ: Self = Self(1);
    /// Writes.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const BOTH: Self = Self(3);

    /// As in `struct vhost_iotlb_msg`; None for neither or for bits that nobody knows.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (1..=3).contains(&bits).then_some(Self(bits))
    }

    /// The same bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// True if whoever may do this may do `wanted`.
    pub fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// How much a mapping is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A frame or a ring waits for it.
    Now,
    /// A frame that comes next will.
    Ahead,
}

/// A stretch of I/O virtual addresses and the guest memory behind it, all in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) iova: u64,
    /// Bytes, at least one; the end does not wrap.
    pub(super) size: u64,
    /// Which region of the map.
    pub(super) region: usize,
    /// Bytes into it.
    pub(super) into: u64,
    pub(super) access: Access,
}

impl Mapping {
    fn end(&self) -> u64 {
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
struct Gone {
    generation: u64,
    mapping: Mapping,
}

/// Mappings that lie in order, at least one.
#[derive(Debug, Clone)]
struct Chunk {
    /// Where the first begins: which chunk has an address is known without a look into any.
    from: u64,
    mappings: Arc<[Mapping]>,
}

impl Chunk {
    fn of(mappings: &[Mapping]) -> Option<Self> {
        Some(Self { from: mappings.first()?.iova, mappings: mappings.into() })
    }
}

#[derive(Debug, Clone, Default)]
struct Table {
    /// Sorted; no two mappings overlap.
    chunks: Vec<Chunk>,
    count: usize,
    /// The last that were taken back, oldest first.
    gone: Vec<Gone>,
    /// All that were taken back after this generation are among `gone`.
    complete_since: u64,
}

impl Table {
    fn find(&self, iova: u64) -> Option<&Mapping> {
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
    fn replace(&mut self, from: u64, to: u64, new: &[Mapping]) -> Vec<Mapping> {
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
    fn empty_since(generation: u64) -> Self {
        Self { complete_since: generation, ..Self::default() }
    }

    fn remember(&mut self, generation: u64, gone: Vec<Mapping>) {
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

/// One guest's mappings. Written by its session, read by any thread.
#[derive(Debug)]
pub struct Iotlb {
    table: ArcSwap<Table>,
    /// Tables that were replaced, until nobody reads them any more. The session's.
    replaced: Lock<Vec<Arc<Table>>>,
    /// Counts up whenever something is taken back.
    generation: AtomicU64,
    /// Counts up whenever something is mapped. Who waits for a mapping looks again when it has moved.
    updates: AtomicU64,
    /// Pages that somebody wants [`Need::Now`], and ahead of need: address, and access in the bits below; 0 is a free place.
    wanted: [Box<[AtomicU64]>; 2],
    is_rung: AtomicBool,
    bell: EventFd,
    /// Bit i: nobody touches vring i, for the mapping of its own areas was taken back.
    shut: [AtomicU64; 4],
}

impl Iotlb {
    /// Without any mapping. `bell` is written to when pages are wanted.
    pub fn new(bell: EventFd) -> Self {
        Self {
            table: ArcSwap::default(),
            replaced: Lock::default(),
            generation: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            wanted: [(); 2].map(|()| (0..WANTED).map(|_| AtomicU64::new(0)).collect()),
            is_rung: AtomicBool::new(false),
            bell,
            shut: Default::default(),
        }
    }

    /// True if a vring is not to be touched. One load.
    #[inline]
    pub fn is_shut(&self, vring: u16) -> bool {
        self.shut.get(usize::from(vring / 64)).is_some_and(|word| word.load(Ordering::Acquire) >> (vring % 64) & 1 != 0)
    }

    /// Has a vring left alone from now on, by who passes after this, or used again. The session's.
    pub fn shut(&self, vring: u16, is_shut: bool) {
        let Some(word) = self.shut.get(usize::from(vring / 64)) else { return };
        let bit = 1 << (vring % 64);
        if is_shut {
            word.fetch_or(bit, Ordering::AcqRel)
        } else {
            word.fetch_and(!bit, Ordering::AcqRel)
        };
    }

    /// How many mappings there are, neighbours merged.
    pub fn count(&self) -> usize {
        self.table.load().count
    }

    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn updates(&self) -> u64 {
        self.updates.load(Ordering::Acquire)
    }

    /// Everybody who waits looks again, and says once more what is wanted.
    pub fn look_again(&self) {
        self.updates.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts mappings, in order, in the place of all that was in `[from, to)`. Gives the addresses among which something was
    /// taken back, if anything was: it is gone when every poll thread has passed. The session's.
    pub(super) fn replace(&self, from: u64, to: u64, new: &[Mapping]) -> Result<Option<Range<u64>>> {
        let mut table = Table::clone(&self.table.load());
        let (gone, mut range) = (table.replace(from, to, new), from..to);
        let is_less = !gone.is_empty();
        let generation = self.generation() + u64::from(is_less);
        if is_less {
            table.remember(generation, gone);
        }
        if table.count > MAPPINGS_MAX {
            if !new.is_empty() {
                return Err(Error::Peer(format!(
                    "a mapping past the {MAPPINGS_MAX} that are kept: the guest's driver maps memory in smaller pieces \
                     than a network device needs; give it huge pages, or iommu=pt"
                )));
            }
            // Holes made more of them. An invalidation is not refused: all of it goes, and is asked for again.
            (table, range) = (Table::empty_since(generation), ALL);
        }
        self.put(table, generation);
        if !new.is_empty() {
            self.look_again();
        }
        Ok(is_less.then_some(range))
    }

    /// Forgets every mapping, and what is wanted. No ring of it may be in use. The session's.
    pub fn forget(&self) {
        let generation = self.generation() + 1;
        self.put(Table::empty_since(generation), generation);
        self.take_wanted(|_, _, _| {});
    }

    fn put(&self, table: Table, generation: u64) {
        let before = self.table.swap(Arc::new(table));
        // Who sees the number finds the table.
        self.generation.store(generation, Ordering::Release);
        let mut replaced = self.replaced.lock();
        replaced.push(before);
        // Whoever reads one counts for it since it was replaced, and nobody finds it any more.
        replaced.retain(|table| Arc::strong_count(table) > 1);
    }

    /// The mapping of one address, if it allows that.
    pub(super) fn find(&self, iova: u64, access: Access) -> Option<Mapping> {
        self.table.load().find(iova).copied().filter(|mapping| mapping.access.allows(access))
    }

    /// Calls `f` with what was taken back after `generation`; false, with no call, if nobody can tell any more.
    pub(super) fn each_gone_since(&self, generation: u64, mut f: impl FnMut(&Mapping)) -> bool {
        let table = self.table.load();
        let is_known = generation >= table.complete_since;
        if is_known {
            table.gone.iter().filter(|gone| gone.generation > generation).for_each(|gone| f(&gone.mapping));
        }
        is_known
    }

    /// True if a page has a mapping for this access.
    pub fn maps(&self, page: u64, access: Access) -> bool {
        self.find(page, access).is_some()
    }

    /// True if every page of `len` bytes at `iova` has a mapping for this access; those that have none are asked for.
    pub(super) fn has_all(&self, iova: u64, len: u32, access: Access, need: Need) -> bool {
        let (mut at, mut is_all) = (iova, true);
        let end = iova.saturating_add(u64::from(len).clamp(1, REACH));
        while at < end {
            at = if let Some(mapping) = self.find(at, access) {
                mapping.end()
            } else {
                is_all = false;
                self.want(at, access, need);
                (at & !(PAGE - 1)).saturating_add(PAGE)
            };
        }
        is_all
    }

    /// Asks for the mapping of the page that `iova` is in. From any thread; takes no lock.
    #[cold]
    pub(super) fn want(&self, iova: u64, access: Access, need: Need) {
        let [now, ahead] = &self.wanted;
        let places = if need == Need::Now { now } else { ahead };
        let wanted = iova & !(PAGE - 1) | u64::from(access.bits());
        for probe in 0..PROBES {
            let Some(place) = places.get((spread(iova) + probe) % WANTED) else { break };
            let is_ours = place.compare_exchange(0, wanted, Ordering::SeqCst, Ordering::SeqCst);
            if is_ours.is_ok() || is_ours == Err(wanted) {
                break;
            }
        }
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // A full counter wakes as well.
            let _ = self.bell.write(1);
        }
    }

    /// Takes what is wanted, page and access; first what is now. The session's. Who found no place asks again with the
    /// next [`Self::look_again`].
    pub fn take_wanted(&self, mut f: impl FnMut(u64, Access, Need)) {
        if !self.is_rung.swap(false, Ordering::SeqCst) {
            return;
        }
        for (places, need) in self.wanted.iter().zip([Need::Now, Need::Ahead]) {
            for place in places {
                if place.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let wanted = place.swap(0, Ordering::SeqCst);
                let [bits, ..] = wanted.to_le_bytes();
                if let Some(access) = Access::from_bits(bits) {
                    f(wanted & !(PAGE - 1), access, need);
                }
            }
        }
    }
}

/// The page of an address, spread over 16 bits.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "16 bits")]
fn spread(iova: u64) -> usize {
    ((iova / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

#[cfg(test)]
mod tests;
