//! Where a ring writes down how far it is, so that whoever comes after a crash can go on from there.
//!
//! ```text
//!   cell    one word, a cache line of its own:  old:16  new:16  count:16        old == new: nothing is under way
//!   shadow  one word a used element:            written:32  id:16  place:16
//! ```
//!
//! A commit of a packed ring is many stores into the guest's descriptors, and a process can die between any two of them.
//! So the elements go into the shadow first, then the cell says what they are for, then they go into the ring, the
//! first one last, then the cell says that it is done. Found half done, they are written again: they say the same.
//! A split ring's commit is the one store of its used index; its cell is for whoever compares the two.
//!
//! The ring knows that the memory outlives it, not what it is: a file when the switch is to survive, else its own.
#![allow(unsafe_code, reason = "the memory is another's, shared with nobody who runs at the same time")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use crate::error::{Error, Result};
use crate::memory::Words;

/// A place in a ring: its index; in a packed one the wrap counter in bit 15 (`vhost-user: SET_VRING_BASE`).
pub type Cursor = u16;

/// What a ring is told of its life before.
#[derive(Debug)]
pub struct Past {
    /// Where it wrote, and writes on.
    pub journal: Journal,
    /// The journal says where it stood; else there is nothing in it.
    pub is_known: bool,
}

/// What the cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    /// Before the last commit.
    pub old: Cursor,
    /// After it.
    pub new: Cursor,
    /// Elements of the shadow that it is made of; 0 when the ring's layout needs none.
    pub count: u16,
}

impl Intent {
    const fn to_word(self) -> u64 {
        self.old as u64 | (self.new as u64) << 16 | (self.count as u64) << 32
    }

    #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    const fn from_word(word: u64) -> Self {
        Self { old: word as u16, new: (word >> 16) as u16, count: (word >> 32) as u16 }
    }
}

/// A used element on its way into the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Bytes written into the buffer.
    pub written: u32,
    /// Buffer id, or head of a chain.
    pub id: u16,
    /// Descriptors from the start of the commit to the buffer's first.
    pub place: u16,
}

impl Element {
    const fn to_word(self) -> u64 {
        self.written as u64 | (self.id as u64) << 32 | (self.place as u64) << 48
    }

    #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    const fn from_word(word: u64) -> Self {
        Self { written: word as u32, id: (word >> 32) as u16, place: (word >> 48) as u16 }
    }
}

/// The cell and the shadow of one vring. One writer: who has the ring.
#[derive(Debug)]
pub struct Journal {
    cell: NonNull<AtomicU64>,
    shadow: NonNull<AtomicU64>,
    room: usize,
    /// Keeps the memory.
    words: Arc<Words>,
}

// SAFETY: the pointers are into memory that `words` keeps and every thread may use; all accesses are atomic.
unsafe impl Send for Journal {}

impl Journal {
    /// The cell is word `cell` of `words`, the shadow all words from `shadow` on. None if they are not that many.
    pub fn new(words: Arc<Words>, cell: usize, shadow: usize) -> Option<Self> {
        let all = words.as_slice();
        let (cell, shadow) = (NonNull::from(all.get(cell)?), all.get(shadow..)?);
        let (room, shadow) = (shadow.len(), NonNull::from(shadow.first()?));
        Some(Self { cell, shadow, room, words })
    }

    /// A journal that ends with the process, with room for `elements`.
    ///
    /// # Errors
    /// `Kernel` without memory.
    pub fn private(elements: usize) -> Result<Self> {
        // A line between them.
        let words = Arc::new(Words::anonymous(8 * (elements + 16))?);
        Self::new(words, 0, 16).ok_or_else(|| Error::Bug("a journal's memory is smaller than asked for".into()))
    }

    /// The same place for the ring's next life. The one before must not write any more.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { cell: self.cell, shadow: self.shadow, room: self.room, words: Arc::clone(&self.words) }
    }

    /// Elements that one commit may have: at least as many as asked for.
    #[inline]
    pub fn room(&self) -> usize {
        self.room
    }

    /// What was under way, or where the ring stands.
    pub fn intent(&self) -> Intent {
        Intent::from_word(self.cell().load(Ordering::Acquire))
    }

    /// Says what the next stores into the ring will do. They have to be followed by [`Self::settle`].
    #[inline]
    pub fn intend(&self, old: Cursor, new: Cursor, count: u16) {
        self.cell().store(Intent { old, new, count }.to_word(), Ordering::Release);
        // Nothing of the commit may come before it, whatever the compiler thinks of stores into other memory. It costs
        // no instruction: a process that dies leaves its stores in program order.
        compiler_fence(Ordering::SeqCst);
    }

    /// Says that the ring stands at `cursor` and nothing is under way.
    #[inline]
    pub fn settle(&self, cursor: Cursor) {
        compiler_fence(Ordering::SeqCst);
        self.cell().store(Intent { old: cursor, new: cursor, count: 0 }.to_word(), Ordering::Release);
    }

    /// Puts an element into the shadow; false if there is no room for it.
    #[inline]
    pub fn put(&self, at: usize, element: Element) -> bool {
        let word = self.word(at);
        if let Some(word) = word {
            word.store(element.to_word(), Ordering::Relaxed);
        }
        word.is_some()
    }

    /// Puts elements into the shadow from its begin on, as many as there is room for; gives how many.
    #[inline]
    pub fn put_all(&self, elements: impl Iterator<Item = Element>) -> usize {
        let mut count = 0;
        for (word, element) in self.shadow().iter().zip(elements) {
            word.store(element.to_word(), Ordering::Relaxed);
            count += 1;
        }
        count
    }

    /// An element of the shadow.
    #[inline]
    pub fn element(&self, at: usize) -> Option<Element> {
        self.word(at).map(|word| Element::from_word(word.load(Ordering::Relaxed)))
    }

    /// The first `count` elements of the shadow, or as many as there are.
    #[inline]
    pub fn elements(&self, count: usize) -> impl Iterator<Item = Element> {
        let shadow = self.shadow();
        shadow.get(..count).unwrap_or(shadow).iter().map(|word| Element::from_word(word.load(Ordering::Relaxed)))
    }

    #[inline]
    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.shadow().get(at)
    }

    #[inline]
    fn shadow(&self) -> &[AtomicU64] {
        // SAFETY: the `room` words from `shadow`, which `words` keeps.
        unsafe { std::slice::from_raw_parts(self.shadow.as_ptr(), self.room) }
    }

    #[inline]
    fn cell(&self) -> &AtomicU64 {
        // SAFETY: `words` keeps it.
        unsafe { self.cell.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_down_reads_the_same(old: u16, new: u16, count: u16, written: u32, id: u16, place: u16) {
            let journal = Journal::private(2).unwrap();
            journal.settle(old);
            prop_assert_eq!(journal.intent(), Intent { old, new: old, count: 0 });
            journal.intend(old, new, count);
            prop_assert_eq!(journal.again().intent(), Intent { old, new, count });
            let element = Element { written, id, place };
            prop_assert!(journal.put(1, element) && !journal.put(journal.room(), element));
            prop_assert_eq!((journal.element(1), journal.element(journal.room())), (Some(element), None));
        }
    }
}
