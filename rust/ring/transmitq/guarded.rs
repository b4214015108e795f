//! A transmitq of a guest with an IOMMU: it waits for mappings, and for those that were taken back under its burst.
//!
//! A driver with lazy invalidation takes everything back at once and has most of it mapped still: a frame that waits for
//! its receiver is looked at again then, by the chain that it came in, and waits until its bytes are mapped where they
//! were. Nothing of a frame is read while it is not.

use super::super::chain::{Direction, NEXT};
use super::super::kind::{Kind, with_layout};
use super::super::layout::Layout;
use super::super::{RingFault, Transmitq};
use super::Gatherer;
use crate::burst::MAX_BURST;
use crate::memory::{Hint, Iova};

/// Frames of a burst whose mappings were taken back after they were gathered; bit i for frame i.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TakenBack {
    /// These mean something else now, or nothing: whoever sent them broke its word.
    pub gone: u64,
    /// Nobody may read these now; their mappings were asked for.
    pub away: u64,
}

impl Transmitq {
    /// Nothing more is gathered before a page or a mapping comes.
    #[cold]
    pub(super) fn park(&mut self, why: RingFault) -> Result<usize, RingFault> {
        if why == RingFault::Unmapped {
            self.misses += 1;
            with_layout!(&mut self.ring.0, ring => self.gatherer.ask_ahead(ring));
        }
        // One that came between the look and this word would be missed for ever: look again after it.
        self.parked = Some(self.gatherer.burst.memory().arrived());
        match with_layout!(&mut self.ring.0, ring => self.gatherer.gather(ring)) {
            Err(fault) if fault.is_wait() => Ok(0),
            gathered => {
                self.parked = None;
                gathered
            }
        }
    }

    /// True if the guest's IOMMU guards its memory.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.gatherer.tlb.is_on()
    }

    /// True if nobody may touch the ring, which is vring `vring` of its port: where it is has no mapping now.
    #[inline]
    pub fn is_shut(&self, vring: u16) -> bool {
        self.is_guarded() && self.gatherer.burst.memory().iotlb().is_some_and(|iotlb| iotlb.is_shut(vring))
    }

    /// How often a frame had to wait for a mapping since the last time this was asked.
    pub fn take_misses(&mut self) -> u64 {
        std::mem::take(&mut self.misses)
    }

    /// Which of these frames of the burst, bit i for frame i, nobody may read now, for the guest's IOMMU has taken them
    /// back. The ring is not shut.
    #[inline]
    pub(crate) fn taken_back(&mut self, frames: u64) -> TakenBack {
        if !self.is_guarded() {
            return TakenBack::default();
        }
        with_layout!(&mut self.ring.0, ring => self.gatherer.taken_back(ring, frames))
    }
}

impl Gatherer {
    /// Before anything is translated: what was taken back since is forgotten.
    #[cold]
    pub(super) fn catch_up(&mut self) {
        let memory = self.burst.memory();
        // Before the look at what is gone: what goes after it is looked for again.
        (self.generation, self.suspects) = (memory.generation(), 0);
        if self.tlb.catch_up(memory) {
            self.burst.set_hint(Hint::NONE);
        }
    }

    /// Asks for the mappings that the next chains lack: they come together. Of each for that of its head, which is all of
    /// it or a table of the rest, and of a chain of two for both.
    #[cold]
    fn ask_ahead<L: Layout>(&mut self, ring: &mut L) {
        let (memory, access) = (self.burst.memory(), Direction::Readable.access());
        let (hint, tlb) = (self.burst.hint(), &mut self.tlb);
        let most = ring.ready(MAX_BURST).unwrap_or(0);
        let mut place = 0;
        while place < most {
            let Ok(Some((chain, first))) = ring.head(place) else { break };
            memory.ask_for(Iova(first.addr), first.len, access, hint, tlb);
            let mut chain = chain;
            if first.flags & NEXT != 0 {
                let Some((whole, second)) = ring.second(place, chain, first) else { break };
                memory.ask_for(Iova(second.addr), second.len, access, hint, tlb);
                chain = whole;
            }
            place += L::places(chain);
        }
    }

    fn taken_back<L: Layout>(&mut self, ring: &L, frames: u64) -> TakenBack {
        let memory = self.burst.memory();
        // Before the look, as above.
        let now = memory.generation();
        if now != self.generation {
            self.suspects |= self.burst.frames_in(|span| memory.is_gone_since(self.generation, span));
            self.generation = now;
        }
        let mut found = TakenBack::default();
        let mut left = self.suspects & frames;
        while left != 0 {
            let (at, bit) = (left.trailing_zeros() as usize, left & left.wrapping_neg());
            left &= !bit;
            match self.is_where_it_was(ring, at) {
                Ok(true) => self.suspects &= !bit,
                Ok(false) => found.gone |= bit,
                Err(_) => found.away |= bit,
            }
        }
        found
    }

    /// True if frame `at` of the burst is mapped, and what it was when it was gathered.
    ///
    /// # Errors
    /// `Absent`, `Unmapped`: it has to be seen.
    #[cold]
    fn is_where_it_was<L: Layout>(&mut self, ring: &L, at: usize) -> Result<bool, RingFault> {
        let place = self.place_of::<L>(at);
        let Ok(Some((chain, first))) = ring.head(place) else { return Ok(false) };
        self.scratch.clear();
        match ring.walk(place, chain, first, Direction::Readable, &mut self.scratch) {
            Ok((chain, _)) => {
                let is_same = self.ahead.get(at).is_some_and(|ahead| ahead.chain == chain);
                Ok(is_same && self.burst.is_in(at, &self.scratch.spans, self.header_size))
            }
            Err(fault) if fault.is_wait() => Err(fault),
            Err(_) => Ok(false),
        }
    }
}
