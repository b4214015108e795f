//! Where a packed ring goes on. Nothing in guest memory says it, so the journal must, and the descriptors must agree.
//!
//! ```text
//!   journal        descriptor at `old`     what happened                        what is done
//!   old == new     –                       between two commits                  go on at new
//!   old != new     available               died before the driver saw any       write them all again; go on at new
//!   old != new     anything else           it was the last one written          go on at new
//! ```
//!
//! A ring that the guest or its driver set up anew meanwhile has no used descriptor: it begins where the base says. One in
//! use, of which nobody knows where it stands, is refused: any guess would give the guest buffers it does not expect.

use super::{AVAIL, Cursor, DESC_SIZE, PackedRing, USED, WRAP};
use crate::error::{Error, Result};
use crate::memory::access;
use crate::ring::journal::{Intent, Past};

/// Where a driver and a device begin.
const FIRST: Cursor = Cursor { index: 0, wrap: true };

impl PackedRing {
    /// Writes down from now on, in another's memory, where the ring stands, and goes on where that knows it stood. Says
    /// why it does not, if it does not.
    ///
    /// # Errors
    /// `Peer`: it is in use, and neither journal nor base says where it stands.
    pub(in crate::ring) fn take_up(&mut self, past: Past) -> Result<Option<String>> {
        let Past { journal, is_known } = past;
        if journal.room() < usize::from(self.size) {
            return Err(Error::Bug(format!("a journal of {} for a packed ring of {}", journal.room(), self.size)));
        }
        let base = self.next;
        self.journal = journal;
        let note = if is_known { self.go_on().err() } else { None };
        if !is_known || note.is_some() {
            self.next = base;
            self.begin()?;
        }
        self.journal.settle(self.next.word());
        Ok(note)
    }

    /// Goes on where the journal says, after finishing what was under way.
    ///
    /// # Errors
    /// Why the journal is nothing to this ring.
    fn go_on(&mut self) -> std::result::Result<(), String> {
        let Intent { old, new, count } = self.journal.intent();
        let (Some(old), Some(new)) = (self.cursor(old), self.cursor(new)) else {
            return Err("the place written down is past the end of its ring".into());
        };
        if old != FIRST && self.is_unused() {
            return Err(format!("its ring was not used since it was set up: it does not go on at {}", new.index));
        }
        if self.is_used_from(new) {
            return Err(format!("its ring was used past {}, where it stood", new.index));
        }
        self.next = old;
        if old != new && self.available(0).is_some() {
            if !self.is_whole(count) {
                return Err("what was under way is not written down in full".into());
            }
            self.write_used(usize::from(count));
        }
        self.next = new;
        Ok(())
    }

    /// Starts at the base, as it stands in `next`.
    fn begin(&mut self) -> Result<()> {
        // QEMU says 0 in lap 0 when it does not know.
        if self.next.word() == 0 && self.is_unused() {
            self.next = FIRST;
        }
        if self.is_used_from(self.next) {
            return Err(Error::Peer(
                "its packed ring is in use, and where it stands was lost with the switch before; restart the guest's \
                 network driver or reboot the guest"
                    .into(),
            ));
        }
        Ok(())
    }

    /// True if the first `count` elements of the journal make a commit: there are some, and they lie within the ring.
    fn is_whole(&self, count: u16) -> bool {
        let inside = |n| self.journal.element(n).is_some_and(|e| e.place < self.size && e.id < self.size);
        let first = self.journal.element(0).is_some_and(|e| e.place == 0);
        count > 0 && first && (0..usize::from(count)).all(inside)
    }

    fn cursor(&self, word: u16) -> Option<Cursor> {
        let cursor = Cursor { index: word & !WRAP, wrap: word & WRAP != 0 };
        (cursor.index < self.size).then_some(cursor)
    }

    /// Both halves of a descriptor.
    fn words(&self, index: u16) -> (u64, u64) {
        debug_assert_eq!(DESC_SIZE, 16);
        let at = self.at(index);
        // SAFETY: the first half of a descriptor of the ring, which `memory` keeps mapped.
        let addr = unsafe { access::load::<u64>(at) };
        // SAFETY: the second half of the same.
        let rest = unsafe { access::load::<u64>(at.wrapping_add(8)) };
        (addr, rest)
    }

    /// True if every descriptor is empty, or available in the first lap.
    fn is_unused(&self) -> bool {
        (0..self.size).map(|index| self.words(index)).all(|words| is_empty(words) || flags(words.1) == AVAIL)
    }

    /// True if a descriptor from `cursor` to the ring's end is used in the cursor's lap, which then is not where the ring
    /// stands.
    fn is_used_from(&self, cursor: Cursor) -> bool {
        let is_used = if cursor.wrap { AVAIL | USED } else { 0 };
        (cursor.index..self.size)
            .map(|index| self.words(index))
            .any(|words| !is_empty(words) && flags(words.1) == is_used)
    }
}

/// True for a descriptor that was never made available. Drivers may number them beforehand.
fn is_empty((addr, rest): (u64, u64)) -> bool {
    addr == 0 && rest >> 48 == 0
}

/// Of a descriptor's second half, the flags that tell whose it is.
#[allow(clippy::cast_possible_truncation, reason = "takes the flags out")]
fn flags(rest: u64) -> u16 {
    (rest >> 48) as u16 & (AVAIL | USED)
}
