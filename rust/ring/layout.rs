//! What a transmitq and a receiveq ask of a ring, however it is laid out.
//!
//! Everything that walks packets is generic over it and compiled once for each layout: no packet meets a branch between
//! them. A *place* counts from the cursor in the ring's own unit: entries of the available ring in a split one,
//! descriptors in a packed one. [`Layout::places`] says how many of them a chain takes.

use std::sync::Arc;

use super::RingFault;
use super::chain::{Chain, Desc, Direction, Scratch};
use super::doorbell::Doorbell;
use super::log::RingLog;
use crate::memory::{GuestMap, Logging, Span};

/// One ring, device side.
pub(super) trait Layout {
    /// The memory its addresses were translated by.
    fn memory(&self) -> &GuestMap;

    /// Virtio features acknowledged.
    fn features(&self) -> u64;

    /// Whether what is written is marked in a dirty log, and in which.
    fn logging(&self) -> &Arc<Logging>;

    /// Where the used ring, or the device event area, is mapped here.
    fn used_area(&self) -> *const u8;

    /// The same of the descriptors.
    fn desc_area(&self) -> *const u8;

    /// Marks there from now on what is written into the ring.
    fn set_log(&mut self, log: RingLog);

    /// Marks everything in the ring that is ours to write.
    fn mark_own_areas(&self);

    /// Its kick and call descriptors.
    fn doorbell(&self) -> &Doorbell;

    /// The same, to replace or use them.
    fn doorbell_mut(&mut self) -> &mut Doorbell;

    /// What makes every further use of this ring pointless, if anything.
    #[inline]
    fn check(&self) -> Result<(), RingFault> {
        self.doorbell().check()?;
        if self.memory().is_broken() {
            return Err(RingFault::MemoryLost);
        }
        if self.logging().is_broken() { Err(RingFault::LogLost) } else { Ok(()) }
    }

    /// What lies behind a fault: memory that was taken away reads as zeroes, and those as nonsense.
    #[cold]
    fn cause_of(&self, fault: RingFault) -> RingFault {
        self.check().err().unwrap_or(fault)
    }

    /// The most chains that the driver may have made available, 0 if there is none. Looks at guest memory again only if
    /// fewer than `want` are known.
    ///
    /// # Errors
    /// `IndexJump`.
    fn ready(&mut self, want: usize) -> Result<u16, RingFault>;

    /// The chain at `place`, by its first descriptor; None if there is none yet. Ask for no more of them than
    /// [`Self::ready`] said. Where [`Self::ends_at`] is false for the descriptor, the chain is not known in full.
    fn head(&self, place: u16) -> Result<Option<(Chain, Desc)>, RingFault>;

    /// Asks for the line that the chain at `place` begins in; of as many places as [`Self::ready`] said.
    fn ask_for(&self, place: u16);

    /// True if the first descriptor tells where the next chain begins.
    fn ends_at(first: Desc) -> bool;

    /// The second descriptor of a chain, if it is its last and its buffer is readable.
    fn second(&self, place: u16, chain: Chain, first: Desc) -> Option<(Chain, Desc)>;

    /// Entry `index` of an indirect table; None past its end.
    fn in_table(table: Span, index: u16) -> Option<Desc>;

    /// True if an indirect table of these two is a chain of both, readable.
    fn is_pair(first: Desc, second: Desc) -> bool;

    /// Appends every buffer of the chain at `place` to `scratch`; gives the chain in full and the bytes added. `chain` and
    /// `first` are what [`Self::head`] said.
    ///
    /// # Errors
    /// What is wrong with the chain; `scratch` then holds part of it.
    fn walk(
        &self,
        place: u16,
        chain: Chain,
        first: Desc,
        direction: Direction,
        scratch: &mut Scratch,
    ) -> Result<(Chain, u32), RingFault>;

    /// Places that a chain takes.
    fn places(chain: Chain) -> u16;

    /// Notes that the chain at `place` is used, `written` bytes of it. Called in order of places; the driver sees it after
    /// [`Self::publish`], and not at all if that stops before it.
    fn put_used(&mut self, place: u16, chain: Chain, written: u32);

    /// Notes that these chains are used, the first at place 0, each read and not written. Gives their places.
    fn put_all_used(&mut self, chains: impl Iterator<Item = Chain>) -> u16;

    /// Forgets what was noted from `place` on, for a frame that is given up. What is not published has to be forgotten.
    fn forget(&mut self, place: u16);

    /// Gives the chains of the next `places` places back, and moves the cursor past them: everything written before is
    /// visible once the driver sees them.
    fn publish(&mut self, places: u16);

    /// Tells the driver that `places` places were published, if it wants to know; true if it did. The one full fence of a
    /// commit is here: it orders what was published before our reading of the driver's wish.
    fn notify(&mut self, places: u16) -> bool;

    /// Asks the driver for kicks from the next chain on. True if one came in meanwhile: then do not sleep.
    fn enable_kicks(&mut self) -> bool;

    /// Tells the driver that we look by ourselves.
    fn disable_kicks(&mut self);
}
