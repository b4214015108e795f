//! Where the pages of a region land that a migration brings: a second mapping of its file, which nobody but the port's
//! fault thread touches.
//!
//! ```text
//!   poll threads ──▶ region's mapping ──┐
//!                                       ├──▶ the file's pages ◀── the front-end puts them there
//!   fault thread ──▶ landing ───────────┘
//!                    └ userfaultfd: a touch of a missing page sleeps until the front-end put it there
//! ```
//!
//! Only the landing is under userfaultfd, and only its address is told to the front-end. So a page that is taken out of
//! the file again after it came is to poll threads what a hole in a file always is, a page of zeroes, and puts none of
//! them to sleep. The other way round, a touch through the region's mapping of a page that did not come yet would make
//! one of zeroes where the guest's own is still to be put: which pages came is what the bits of [`Residency`] say.
//!
//! When the migration is over, the landing is replaced by zeroes of our own before its sleeper is woken: had that
//! touched the file, the guest would find a page of zeroes where its own was still to come.
#![allow(unsafe_code, reason = "touches guest memory to bring it here")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::access;
use super::incoming::Incoming;
use super::mapping::Mapping;
use super::residency::Residency;
use crate::error::Result;
use crate::sys::userfault;

/// Most bytes of a translation that anybody touches, from its first: no frame and no ring area is longer. It bounds how
/// many bits a poll thread looks at.
const REACH: u64 = 1 << 20;
/// Small pages that are looked for together: 2 MiB.
pub(super) const BLOCK: usize = 512;

/// The pages of one region as they come.
#[derive(Debug)]
pub(super) struct Landing {
    mapping: Mapping,
    /// Host address of the region's first byte in this mapping: what the front-end is told.
    base: usize,
    /// Bytes into either mapping of the first page of the region.
    into: usize,
    /// Host address of that page in the mapping of the poll threads.
    seen: usize,
    /// Bytes of a page, as a power of two.
    shift: u32,
    residency: Residency,
    /// The kernel tells which pages came by themselves.
    may_look: bool,
    is_over: AtomicBool,
    incoming: Arc<Incoming>,
}

impl Landing {
    /// Of the pages of `page_size` bytes that hold `size` bytes from `offset` on. None of them is here. `seen` is the
    /// mapping that poll threads use.
    ///
    /// # Errors
    /// `Kernel` for memory that userfaultfd does not take; as [`Mapping::new`].
    pub(super) fn new(
        subject: &str,
        incoming: &Arc<Incoming>,
        seen: &Mapping,
        [offset, size, page_size]: [usize; 3],
    ) -> Result<Self> {
        let mapping = seen.again(subject)?;
        let into = offset & !(page_size - 1);
        let pages = (offset + size - into).div_ceil(page_size);
        let start = mapping.start() as usize;
        incoming.register(subject, start + into, pages * page_size)?;
        Ok(Self {
            base: start + offset,
            into,
            seen: seen.start() as usize + into,
            shift: page_size.trailing_zeros(),
            residency: Residency::new(pages)?,
            // Of huge pages it tells only those that were touched here.
            may_look: page_size == 1 << userfault::SMALL_PAGE
                && mapping.file().is_some_and(userfault::tells_pages_at_hand),
            mapping,
            is_over: AtomicBool::new(false),
            incoming: Arc::clone(incoming),
        })
    }

    /// The address of the region's first byte that the front-end has to know.
    pub(super) fn base(&self) -> usize {
        self.base
    }

    /// True if every page of `size` bytes at the poll threads' address `start` is here. Those that are not are asked for.
    pub(super) fn has(&self, start: usize, size: u32) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "x86-64: usize holds every u64")]
        let size = u64::from(size).clamp(1, REACH) as usize;
        let into = start - self.seen;
        let mut is_all = true;
        for page in into >> self.shift..=(into + size - 1) >> self.shift {
            if !self.residency.is_here(page) {
                is_all = false;
                self.residency.want(page);
            }
        }
        if !is_all {
            self.incoming.ring();
        }
        is_all
    }

    /// Which pages are here.
    pub(super) fn residency(&self) -> &Residency {
        &self.residency
    }

    /// True if pages that came by themselves can be looked for.
    pub(super) fn may_look(&self) -> bool {
        self.may_look
    }

    /// True once a page of the file was lost.
    pub(super) fn is_broken(&self) -> bool {
        self.mapping.is_broken()
    }

    /// The poll threads' address of a page.
    pub(super) fn seen_at(&self, page: usize) -> usize {
        self.seen + (page << self.shift)
    }

    /// Touches a page, and sleeps until it is there. False if nothing is known of it, because the migration ended or the
    /// region went meanwhile.
    pub(super) fn touch(&self, page: usize) -> bool {
        let at = self.mapping.start().wrapping_add(self.into + (page << self.shift));
        // SAFETY: a byte of a page of the mapping, which lives as long as `self`; no touch of it is anything to others.
        let _ = unsafe { access::load::<u8>(at) };
        !self.is_over.load(Ordering::Acquire)
    }

    /// Makes a page that is there known to the poll threads: mapped for them, so that none of them faults even for that,
    /// and its bit set.
    pub(super) fn let_in(&self, page: usize) {
        // SAFETY: a byte of a page of the region's mapping; whoever calls holds the region, and with it the mapping.
        let _ = unsafe { access::load::<u8>(self.seen_at(page) as *const u8) };
        self.residency.set_here(page);
    }

    /// The pages of a block that came and are not let in yet.
    pub(super) fn at_hand(&self, block: usize) -> impl Iterator<Item = usize> {
        let first = block * BLOCK;
        let count = self.residency.pages().saturating_sub(first).min(BLOCK);
        let mut at_hand = [0; BLOCK];
        let is_news = (first..first + count).any(|page| !self.residency.is_here(page));
        let start = self.mapping.start() as usize + self.into + (first << self.shift);
        // What the kernel does not say stays zero.
        if is_news && let Some(asked) = at_hand.get_mut(..count) {
            let _ = userfault::pages_at_hand(start, asked);
        }
        let came = move |&(_, at_hand): &(usize, u8)| at_hand & 1 != 0;
        (first..).zip(at_hand).filter(came).map(|(page, _)| page).filter(move |&page| !self.residency.is_here(page))
    }

    /// Nobody will put pages there any more: the sleeper goes on, and leaves no page of zeroes in the guest's file.
    pub(super) fn close(&self) {
        self.is_over.store(true, Ordering::Release);
        self.mapping.blank();
        // Only who sleeps already needs it: whoever comes now finds our own zeroes.
        let start = self.mapping.start() as usize + self.into;
        self.incoming.wake(start, self.residency.pages() << self.shift);
    }
}
