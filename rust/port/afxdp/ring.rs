//! The four rings' arithmetic: who may touch which entry when.
//!
//! Indices run freely and are taken modulo the ring's size. One side's index is ours, the other the kernel's: ours is
//! stored with release after the entries, the kernel's loaded with acquire before them, both once for a batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::access;
use crate::ring::RingFault;
use crate::sys::xdp::Ring;

/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// Entries of `N` words that the kernel takes: fill and tx.
#[derive(Debug)]
pub(super) struct Producer<const N: usize> {
    ring: Arc<Ring>,
    next: u32,
    /// What the kernel knows of.
    published: u32,
    /// How far the kernel was when last looked at.
    taken: u32,
}

impl<const N: usize> Producer<N> {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, next: 0, published: 0, taken: 0 }
    }

    /// True if `count` entries can be put.
    #[inline]
    pub(super) fn has_room(&mut self, count: u32) -> bool {
        self.ring.len() - self.next.wrapping_sub(self.taken) >= count || self.look(count)
    }

    fn look(&mut self, count: u32) -> bool {
        let taken = self.ring.consumer().load(Ordering::Acquire);
        let left = self.next.wrapping_sub(taken);
        // An index that ran past ours is no reason to write where the kernel reads.
        if left <= self.ring.len() {
            self.taken = taken;
        }
        self.ring.len() - self.next.wrapping_sub(self.taken) >= count
    }

    /// Writes the next entry; the caller asked for room.
    #[inline]
    pub(super) fn put(&mut self, entry: [u64; N]) {
        let at = (self.next & (self.ring.len() - 1)) as usize * N;
        for (word, value) in self.ring.words().iter().skip(at).zip(entry) {
            word.store(value, Ordering::Relaxed);
        }
        self.next = self.next.wrapping_add(1);
    }

    /// Entries put and not yet published.
    #[inline]
    pub(super) fn unpublished(&self) -> u32 {
        self.next.wrapping_sub(self.published)
    }

    /// Hands what was put to the kernel.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.published = self.next;
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// True if the kernel wants to be woken. A fence stands between what was published and this.
    #[inline]
    pub(super) fn wants_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// Entries of `N` words that the kernel puts: rx and completion.
#[derive(Debug)]
pub(super) struct Consumer<const N: usize> {
    ring: Arc<Ring>,
    next: u32,
}

impl<const N: usize> Consumer<N> {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, next: 0 }
    }

    /// Entries that can be read.
    ///
    /// # Errors
    /// `IndexJump`: there cannot be so many.
    #[inline]
    pub(super) fn ready(&self) -> Result<u32, RingFault> {
        let ready = self.ring.producer().load(Ordering::Acquire).wrapping_sub(self.next);
        if ready > self.ring.len() { Err(RingFault::IndexJump) } else { Ok(ready) }
    }

    /// Asks for the line of the next entry, whether or not there is one: the kernel writes it just before its index.
    #[inline]
    pub(super) fn ask_for_next(&self) {
        if let Some(word) = self.ring.words().get((self.next & (self.ring.len() - 1)) as usize * N) {
            access::prefetch(word.as_ptr().cast());
        }
    }

    /// The entry `ahead` of the next, below [`Self::ready`].
    #[inline]
    pub(super) fn entry(&self, ahead: u32) -> [u64; N] {
        let at = (self.next.wrapping_add(ahead) & (self.ring.len() - 1)) as usize * N;
        let mut entry = [0; N];
        for (value, word) in entry.iter_mut().zip(self.ring.words().iter().skip(at)) {
            *value = word.load(Ordering::Relaxed);
        }
        entry
    }

    /// Gives `count` entries' places back.
    #[inline]
    pub(super) fn release(&mut self, count: u32) {
        self.next = self.next.wrapping_add(count);
        self.ring.consumer().store(self.next, Ordering::Release);
    }

    /// True if there is more than the kernel had put when last looked at.
    pub(super) fn is_full(&self, ready: u32) -> bool {
        ready == self.ring.len()
    }
}
