//! Chains of a transmitq that are not given back yet, for a device still reads their buffers.
//!
//! ```text
//!   take ─▶ fresh ── commit ──▶ held ── every piece came back ──▶ done ── complete ──▶ free
//!             └── every piece came back before the commit: an ordinary chain ──────────▶ free
//! ```
//!
//! A chain has a slot as long as a piece of it is with a device: whoever hands pieces out counts them here, and says so
//! when one came back. There are at most [`HELD_MAX`] slots and at most half as many as the ring has elements, so the
//! other half of the ring always goes on, however long a device keeps its half.
//!
//! Used elements of a split ring may come in any order, so the used index alone does not say which chains are out. The
//! shadow of the ring's journal does, for whoever comes after a crash: one word a slot, and one a frame of the burst
//! being committed.
//!
//! ```text
//!   word   state:32 (out, coming back)  head:16  taken as number:16      0: free
//!   index of the next available entry = used index + chains that are out
//! ```

use std::sync::atomic::{Ordering, compiler_fence};

use super::journal::{Element, Journal};
use crate::burst::MAX_BURST;

/// Most chains of one ring that are with devices at once.
pub const HELD_MAX: usize = 256;

/// Why no chain of a ring may stay out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Its used descriptors take the place of available ones: what was out could not be found again after a crash.
    Packed,
    /// Its driver negotiated `IN_ORDER`.
    InOrder,
    /// A migration brings its memory.
    Postcopy,
    /// The guest's IOMMU guards its memory, and may take back what a device has.
    Guarded,
}

/// One chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Who has it: chosen by whoever hands it out.
    keeper: u16,
    /// Pieces that are with the keeper.
    pieces: u16,
    /// The head of the chain, once it is committed.
    head: Option<u16>,
}

impl Slot {
    const FREE: Self = Self { keeper: 0, pieces: 0, head: None };
}

/// The chains of one ring that are with devices. Belongs to the thread that has the ring.
#[derive(Debug)]
pub struct Held {
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Frames of the burst under way, and their slots.
    fresh: Vec<(u8, u16)>,
    /// Came back whole, and still to be given back to the guest.
    done: Vec<u16>,
    /// Slots and heads of those that are given back just now.
    batch: Vec<(u16, u16)>,
}

impl Held {
    /// Of a ring of `size` elements.
    pub fn new(size: u32) -> Self {
        let count = HELD_MAX.min(size as usize / 2);
        #[allow(clippy::cast_possible_truncation, reason = "at most HELD_MAX")]
        let free = (0..count as u16).rev().collect();
        let (fresh, done, batch) = (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
        Self { slots: vec![Slot::FREE; count].into(), free, fresh, done, batch }
    }

    /// Chains that may be out at once.
    pub fn limit(&self) -> usize {
        self.slots.len()
    }

    /// Chains that are out, or not given back yet.
    #[inline]
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot for the chain of frame `frame` of the burst, `pieces` of which go to `keeper`; None if as many are out as may
    /// be. A frame has one slot at most.
    #[inline]
    pub fn take(&mut self, frame: u8, pieces: u16, keeper: u16) -> Option<u16> {
        let slot = self.free.pop()?;
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = Slot { keeper, pieces, head: None };
        }
        self.fresh.push((frame, slot));
        Some(slot)
    }

    /// `keeper` gave a piece of a chain back. What it does not have it cannot give.
    #[inline]
    pub fn came_back(&mut self, slot: u16, keeper: u16) {
        let Some(place) = self.slots.get_mut(usize::from(slot)) else { return };
        if place.keeper != keeper || place.pieces == 0 {
            return;
        }
        place.pieces -= 1;
        if place.pieces == 0 && place.head.is_some() {
            self.done.push(slot);
        }
    }

    /// `keeper` has nothing any more.
    pub fn all_came_back(&mut self, keeper: u16) {
        self.come_back(|place| place.keeper == keeper);
    }

    /// Nobody has anything any more.
    pub fn everything_came_back(&mut self) {
        self.come_back(|_| true);
    }

    fn come_back(&mut self, of: impl Fn(&Slot) -> bool) {
        for (slot, place) in (0_u16..).zip(&mut self.slots) {
            if place.pieces > 0 && of(place) {
                place.pieces = 0;
                if place.head.is_some() {
                    self.done.push(slot);
                }
            }
        }
    }

    /// True if chains came back that the guest has not got yet.
    #[inline]
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// True if a chain of the burst under way is with a device.
    #[inline]
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// The burst is committed: chain by chain, gives the slot of those that stay out. `head` says which chain a frame came
    /// in. What came back meanwhile is free: its chain is like any other.
    pub(super) fn commit(&mut self, head: impl Fn(u8) -> Option<u16>) -> [Option<u16>; MAX_BURST] {
        let mut stays = [None; MAX_BURST];
        for (frame, slot) in self.fresh.drain(..) {
            let Some(place) = self.slots.get_mut(usize::from(slot)) else { continue };
            place.head = head(frame).filter(|_| place.pieces > 0);
            match stays.get_mut(usize::from(frame)) {
                Some(stay) if place.head.is_some() => *stay = Some(slot),
                _ => {
                    *place = Slot::FREE;
                    self.free.push(slot);
                }
            }
        }
        stays
    }

    /// Takes the chains that came back whole: slot and head of each. They are to be given back at once.
    pub(super) fn take_done(&mut self) -> &[(u16, u16)] {
        self.batch.clear();
        for slot in self.done.drain(..) {
            let Some(place) = self.slots.get_mut(usize::from(slot)) else { continue };
            if let Some(head) = std::mem::replace(place, Slot::FREE).head {
                self.free.push(slot);
                self.batch.push((slot, head));
            }
        }
        &self.batch
    }
}

/// A chain that was out when the process died that had taken it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orphan {
    /// Where the journal says so.
    pub(super) word: usize,
    /// Its first descriptor.
    pub(super) head: u16,
}

/// States of a word.
const OUT: u32 = 1;
const COMING_BACK: u32 = 2;
/// Words of the shadow: of every slot, and of every frame of one burst.
const WORDS: usize = HELD_MAX + MAX_BURST;
const FREE: Element = Element { written: 0, id: 0, place: 0 };

/// Writes down that the chain at `head` is out, taken as number `number`.
#[inline]
pub(super) fn note_out(journal: &Journal, word: usize, head: u16, number: u16) {
    // A journal that ends with the process may have no room; nobody reads it then.
    journal.put(word, Element { written: OUT, id: head, place: number });
    // One after the other: found in part, they are the first.
    compiler_fence(Ordering::SeqCst);
}

/// Writes down that a chain is back as soon as the used index says so.
#[inline]
pub(super) fn note_coming_back(journal: &Journal, word: usize) {
    if let Some(element) = journal.element(word) {
        journal.put(word, Element { written: COMING_BACK, ..element });
    }
}

/// Writes down that a chain is back, after the used index said so.
#[inline]
pub(super) fn note_back(journal: &Journal, word: usize) {
    compiler_fence(Ordering::SeqCst);
    journal.put(word, FREE);
}

/// What is out by the journal of a process that died, oldest first. `is_committed`: the used index has what it was last
/// said to become.
pub(super) fn left_behind(journal: &Journal, is_committed: bool) -> Vec<Orphan> {
    let found = (0..WORDS).filter_map(|word| journal.element(word).map(|element| (word, element)));
    let is_out = |element: &Element| element.written == OUT || element.written == COMING_BACK && !is_committed;
    let mut out: Vec<(usize, Element)> = found.filter(|(_, element)| is_out(element)).collect();
    // Numbers run on past 65535: they are ordered as seen from the one that most others come after.
    let first = out
        .iter()
        .map(|(_, element)| element.place)
        .max_by_key(|first| out.iter().filter(|(_, other)| other.place.wrapping_sub(*first) < 0x8000).count());
    out.sort_by_key(|(_, element)| element.place.wrapping_sub(first.unwrap_or(0)));
    out.into_iter().map(|(word, element)| Orphan { word, head: element.id }).collect()
}

/// Frees every word but those.
pub(super) fn forget(journal: &Journal, but: &[Orphan]) {
    for word in (0..WORDS).filter(|word| but.iter().all(|orphan| orphan.word != *word)) {
        if journal.element(word).is_some_and(|element| element != FREE) {
            journal.put(word, FREE);
        }
    }
    for orphan in but {
        if let Some(element) = journal.element(orphan.word) {
            journal.put(orphan.word, Element { written: OUT, ..element });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chain_is_done_once_and_only_when_every_piece_came_back() {
        let mut held = Held::new(64);
        let slot = held.take(3, 2, 7).unwrap();
        held.came_back(slot, 7);
        assert_eq!(held.commit(|frame| Some(u16::from(frame) + 10))[3], Some(slot));
        assert!(!held.has_done());
        held.came_back(slot, 8);
        assert!(!held.has_done(), "another's word counts for nothing");
        held.came_back(slot, 7);
        held.came_back(slot, 7);
        assert_eq!(held.take_done(), [(slot, 13)]);
        assert_eq!((held.count(), held.has_done()), (0, false));
        held.came_back(slot, 7);
        held.all_came_back(7);
        assert!(!held.has_done());
    }

    #[test]
    fn what_comes_back_before_the_commit_is_like_any_other() {
        let mut held = Held::new(64);
        let slot = held.take(0, 1, 1).unwrap();
        held.came_back(slot, 1);
        assert_eq!(held.commit(|_| Some(5)), [None; MAX_BURST]);
        assert_eq!((held.count(), held.has_done()), (0, false));
    }

    #[test]
    fn half_of_the_ring_and_256_at_most_may_be_out() {
        for (size, limit) in [(1, 0), (2, 1), (64, 32), (256, 128), (512, 256), (1024, 256), (32_768, 256)] {
            let mut held = Held::new(size);
            assert_eq!(held.limit(), limit);
            let taken = (0..limit).filter(|_| held.take(0, 1, 0).is_some()).count();
            assert_eq!((taken, held.take(0, 1, 0)), (limit, None), "{size}");
        }
    }

    proptest! {
        /// Against a plain list of what is out.
        #[test]
        fn every_chain_comes_out_once(steps in proptest::collection::vec((0_u8..5, 0_u16..4, 0_u16..3), 1..400)) {
            let mut held = Held::new(32);
            let mut out: Vec<(u16, u16, u16, u16)> = Vec::new();
            let (mut next, mut given) = (0, Vec::new());
            for (step, a, keeper) in steps {
                match step {
                    0 | 1 => {
                        let Some(slot) = held.take(5, 1 + a, keeper) else {
                            prop_assert_eq!(out.len(), held.limit());
                            continue;
                        };
                        let head = next;
                        next += 1;
                        let stays = held.commit(|_| Some(head));
                        prop_assert_eq!(stays[5], Some(slot));
                        out.push((slot, keeper, 1 + a, head));
                    }
                    2 | 3 => {
                        if let Some(at) = out.len().checked_sub(1).map(|last| usize::from(a).min(last)) {
                            let (slot, keeper, pieces, _) = &mut out[at];
                            held.came_back(*slot, *keeper);
                            *pieces -= 1;
                            if *pieces == 0 {
                                given.push(out.remove(at).3);
                            }
                        }
                    }
                    _ => {
                        held.all_came_back(keeper);
                        out.retain(|o| {
                            if o.1 == keeper {
                                given.push(o.3);
                            }
                            o.1 != keeper
                        });
                    }
                }
                let mut done: Vec<u16> = held.take_done().iter().map(|(_, head)| *head).collect();
                given.sort_unstable();
                done.sort_unstable();
                prop_assert_eq!(&done, &given);
                given.clear();
                prop_assert_eq!(held.count(), out.len());
            }
        }
    }
}
