//! Which pages of a region are here, and which are wanted: a bit each, set by any thread and waited for by none.
//!
//! A bit that says a page is here stays set: bytes once translated are there as long as their map. It knows page numbers
//! only, no addresses and no migration.

use std::sync::atomic::{AtomicU64, Ordering};

use super::words::Words;
use crate::error::Result;

/// The pages of one region, from 0.
#[derive(Debug)]
pub(super) struct Residency {
    pages: usize,
    here: Words,
    wanted: Words,
    /// A bit for each word of `wanted` that is not zero.
    marks: Words,
    missing: AtomicU64,
}

impl Residency {
    /// Of `pages` pages, none of them here.
    ///
    /// # Errors
    /// `Kernel` without memory.
    pub(super) fn new(pages: usize) -> Result<Self> {
        let bits = |count: usize| Words::anonymous(count.div_ceil(64) * 8);
        Ok(Self {
            pages,
            here: bits(pages)?,
            wanted: bits(pages)?,
            marks: bits(pages.div_ceil(64))?,
            missing: AtomicU64::new(pages as u64),
        })
    }

    /// How many there are.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// How many are not known to be here.
    pub(super) fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }

    /// True if the page is here, and what it holds can be seen.
    pub(super) fn is_here(&self, page: usize) -> bool {
        self.here.as_slice().get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
    }

    pub(super) fn set_here(&self, page: usize) {
        if let Some(word) = self.here.as_slice().get(page / 64)
            && word.fetch_or(1 << (page % 64), Ordering::AcqRel) >> (page % 64) & 1 == 0
        {
            self.missing.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes that somebody waits for the page.
    pub(super) fn want(&self, page: usize) {
        let word = page / 64;
        if let Some((wanted, mark)) = self.wanted.as_slice().get(word).zip(self.marks.as_slice().get(word / 64)) {
            wanted.fetch_or(1 << (page % 64), Ordering::SeqCst);
            mark.fetch_or(1 << (word % 64), Ordering::SeqCst);
        }
    }

    /// Takes what is wanted, page by page.
    pub(super) fn take_wanted(&self, mut f: impl FnMut(usize)) {
        for (mark, word) in taken(self.marks.as_slice()).flat_map(|(at, bits)| ones(bits).map(move |bit| (at, bit))) {
            let at = mark * 64 + word;
            let bits = self.wanted.as_slice().get(at).map_or(0, |word| word.swap(0, Ordering::SeqCst));
            ones(bits).for_each(|bit| f(at * 64 + bit));
        }
    }
}

/// Every word that is not zero, with its place; zero is left.
fn taken(words: &[AtomicU64]) -> impl Iterator<Item = (usize, u64)> {
    let busy = words.iter().enumerate().filter(|(_, word)| word.load(Ordering::SeqCst) != 0);
    busy.map(|(at, word)| (at, word.swap(0, Ordering::SeqCst)))
}

/// The places of the bits that are set.
fn ones(bits: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| bits >> bit & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_taken_once_and_in_order() {
        let residency = Residency::new(70_000).unwrap();
        for page in [69_999, 0, 64, 4_096, 63, 64] {
            residency.want(page);
        }
        let taken = || {
            let mut pages = Vec::new();
            residency.take_wanted(|page| pages.push(page));
            pages
        };
        assert_eq!(taken(), [0, 63, 64, 4_096, 69_999]);
        assert!(taken().is_empty());
    }

    #[test]
    fn a_page_that_came_is_counted_once() {
        let residency = Residency::new(65).unwrap();
        assert_eq!((residency.missing(), residency.is_here(64)), (65, false));
        residency.set_here(64);
        residency.set_here(64);
        assert_eq!((residency.missing(), residency.is_here(64), residency.is_here(63)), (64, true, false));
    }
}
