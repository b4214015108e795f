//! The dirty log: which pages of a guest were written to, told to whoever copies it to another host while it runs.
//!
//! ```text
//!   bit:   0 1 2 3 4 5 6 7 │ 8 …           one bit a page of 4 KiB, by guest-physical address
//!   byte:         0        │  1 …          the front-end fetches and clears them, then copies the pages
//! ```
//!
//! A page is marked *after* it was written: marked before, it could be fetched, cleared and copied between the mark and
//! the write, and the write would be lost. Marking is test-and-set over many pages at once, behind one full fence: a
//! bit that is found set after the fence is one that the front-end has yet to fetch, and what it copies then has our
//! write in it. Without the fence the test could come before the write is visible.
//!
//! [`Logging`] is the switch that a session turns while its rings run; [`Marks`] is a queue's list of pages on their way
//! into the log. The log is the front-end's memory and no safer than the guest's: a page of it that goes away turns
//! into zeroes (`sigbus`) and marks it broken.
#![allow(unsafe_code, reason = "the log is shared memory, reached by raw address")]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};

use arc_swap::ArcSwapOption;

use super::region::Region;
use super::{Gpa, GuestMap, Stretch};
use crate::error::{Error, Result};

/// Bits of an address within a page of the log.
const PAGE_SHIFT: u32 = 12;
const PAGE: u64 = 1 << PAGE_SHIFT;

/// A log as a front-end shared it (`vhost-user: SET_LOG_BASE`).
#[derive(Debug)]
pub struct DirtyLog {
    region: Region,
    /// Bytes.
    size: usize,
    /// A bit was set since somebody last asked.
    has_news: AtomicBool,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// `Peer`: a descriptor that is no memory file, a file shorter than announced, a size and offset that wrap.
    pub fn map(file: File, offset: u64, size: u64, allow_file_memory: bool) -> Result<Self> {
        let region = Region::map("dirty log", file, offset, size, allow_file_memory, None)?;
        let size = usize::try_from(size).map_err(|_| Error::Bug("a mapped log is past the address space".into()))?;
        Ok(Self { region, size, has_news: AtomicBool::new(false) })
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// True if every page below guest-physical address `end` has a bit.
    pub fn covers(&self, end: u64) -> bool {
        end.div_ceil(1 << PAGE_SHIFT) <= 8 * self.size as u64
    }

    /// True if a bit was set since the last time.
    pub fn take_news(&self) -> bool {
        self.has_news.swap(false, Ordering::AcqRel)
    }

    /// True once a page of it was lost: what was marked there is.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.region.is_broken()
    }

    /// Sets the bit of one page, unless it is set. Behind a full fence that follows the write; see above.
    #[inline]
    fn mark(&self, page: u64) {
        let (Ok(byte), bit) = (usize::try_from(page >> 3), 1_u8 << (page & 7)) else { return };
        // A log that does not cover the guest's memory is refused before its rings run; an address past it all the same
        // is one that no guest has.
        if byte >= self.size {
            return;
        }
        // SAFETY: a byte of the mapping that `region` keeps; others reach it as part of atomic words, or harm themselves.
        let byte = unsafe { AtomicU8::from_ptr(self.region.host().wrapping_add(byte)) };
        if byte.load(Ordering::Relaxed) & bit == 0 {
            byte.fetch_or(bit, Ordering::AcqRel);
            self.has_news.store(true, Ordering::Release);
        }
    }
}

/// Whether the rings of one session mark what they write, and where. Turned by the session, read by whoever has a ring;
/// after a turn the session waits until every poll thread has passed, and only then says that it is done.
#[derive(Debug, Default)]
pub struct Logging {
    is_on: AtomicBool,
    log: ArcSwapOption<DirtyLog>,
}

impl Logging {
    /// Turns it on with this log, or off. True if anything is different.
    pub fn turn(&self, log: Option<&Arc<DirtyLog>>) -> bool {
        let before = self.log.swap(log.cloned());
        self.is_on.store(log.is_some(), Ordering::Release);
        before.as_ref().map(Arc::as_ptr) != log.map(Arc::as_ptr)
    }

    /// One load.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// True if it is on and marks were lost with a page of the log.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.is_on() && self.has_broken_log()
    }

    #[cold]
    fn has_broken_log(&self) -> bool {
        self.log.load().as_ref().is_some_and(|log| log.is_broken())
    }

    /// Marks the pages of stretches that were written: where, how many bytes.
    pub fn mark<const N: usize>(&self, stretches: [(Gpa, u64); N]) {
        fence(Ordering::SeqCst);
        if let Some(log) = self.log.load().as_ref() {
            for (gpa, len) in stretches {
                pages(gpa.0, len).for_each(|page| log.mark(page));
            }
        }
    }
}

/// The pages of `[gpa, gpa + len)`.
#[inline]
fn pages(gpa: u64, len: u64) -> std::ops::Range<u64> {
    let end = gpa.saturating_add(len);
    gpa >> PAGE_SHIFT..end.div_ceil(1 << PAGE_SHIFT)
}

/// Pages noted before they are marked: those of a group of 64 frames, most in buffers of a page or less.
const NOTED_MAX: usize = 128;

/// A page that no address is in.
const NO_PAGE: u64 = u64::MAX;

/// The pages that a queue wrote to and did not mark yet. Each group ends with [`Marks::settle`].
#[derive(Debug)]
pub struct Marks {
    logging: Arc<Logging>,
    /// Region of the guest that was last written to; of no bytes at the beginning of a group.
    stretch: Stretch,
    /// The page that was noted last.
    last: u64,
    count: usize,
    pages: Box<[u64; NOTED_MAX]>,
}

impl Marks {
    /// An empty list.
    pub fn new(logging: Arc<Logging>) -> Self {
        Self { logging, stretch: Stretch::default(), last: NO_PAGE, count: 0, pages: Box::new([0; NOTED_MAX]) }
    }

    /// True while what is written must be noted. One load.
    #[inline]
    pub fn are_wanted(&self) -> bool {
        self.logging.is_on()
    }

    /// Notes that `len` bytes of `memory` at host address `start` were written.
    #[inline]
    pub fn note(&mut self, memory: &GuestMap, start: *const u8, len: u32) {
        // Most of what is written lies in one page, and in the region of what was written before.
        if let Some(Gpa(gpa)) = self.stretch.gpa_of(start)
            && u64::from(len.wrapping_sub(1)) + gpa % PAGE < PAGE
        {
            let page = gpa >> PAGE_SHIFT;
            if page == self.last {
                return;
            }
            if let Some(place) = self.pages.get_mut(self.count) {
                (*place, self.last) = (page, page);
                self.count += 1;
                return;
            }
        }
        self.note_with_care(memory, start, len);
    }

    #[inline(never)]
    fn note_with_care(&mut self, memory: &GuestMap, start: *const u8, len: u32) {
        let Some(stretch) = memory.stretch_of(start) else { return };
        let Some(Gpa(gpa)) = stretch.gpa_of(start) else { return };
        for page in pages(gpa, u64::from(len)) {
            if self.count == NOTED_MAX {
                self.settle();
            }
            if let Some(place) = self.pages.get_mut(self.count) {
                (*place, self.last) = (page, page);
                self.count += 1;
            }
        }
        self.stretch = stretch;
    }

    /// Marks what was noted.
    #[inline]
    pub fn settle(&mut self) {
        (self.last, self.stretch) = (NO_PAGE, Stretch::default());
        let count = std::mem::take(&mut self.count);
        if count == 0 {
            return;
        }
        fence(Ordering::SeqCst);
        if let Some(log) = self.logging.log.load().as_ref() {
            self.pages.iter().take(count).for_each(|&page| log.mark(page));
        }
    }
}

#[cfg(test)]
mod tests;
