//! One mapping of a memory file that a stranger sent: kept out of forks and dumps, and guarded against its pages being
//! taken away.
//!
//! A file may be mapped twice: see `landing`.
#![allow(unsafe_code, reason = "a mapping is replaced under its address")]

use std::fs::File;

use vm_memory::{FileOffset, MmapRegion};

use super::sigbus;
use crate::error::{Error, Result};
use crate::sys::file;

/// A file's first bytes, readable and writable here for as long as this lives.
#[derive(Debug)]
pub(super) struct Mapping {
    // Dropped in this order: out of the SIGBUS table first, then unmapped.
    guard: sigbus::Guard,
    region: MmapRegion<()>,
}

impl Mapping {
    /// Maps `size` bytes, whole pages of `file`. `subject` is what they are to people.
    ///
    /// # Errors
    /// `Peer` if they cannot be mapped, `Kernel` if they cannot be guarded.
    pub(super) fn new(subject: &str, file: File, size: usize) -> Result<Self> {
        Self::of(subject, FileOffset::new(file, 0), size)
    }

    /// The same bytes of the same file once more, at another address.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn again(&self, subject: &str) -> Result<Self> {
        let file = self.region.file_offset().ok_or_else(|| Error::Bug(format!("{subject} is mapped from no file")))?;
        Self::of(subject, file.clone(), self.size())
    }

    fn of(subject: &str, file: FileOffset, size: usize) -> Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(file), size, libc::PROT_READ | libc::PROT_WRITE, flags).map_err(|e| {
            Error::Peer(format!("{subject}: cannot map {size} bytes: {e}; check hugepages and vm.max_map_count"))
        })?;
        file::keep_private(region.as_ptr(), size);
        let guard = sigbus::Guard::register(region.as_ptr() as usize, size)
            .map_err(|e| Error::kernel(format!("{subject}: cannot guard its mapping"), e))?;
        Ok(Self { guard, region })
    }

    /// Where its first byte is.
    pub(super) fn start(&self) -> *mut u8 {
        self.region.as_ptr()
    }

    /// Bytes.
    pub(super) fn size(&self) -> usize {
        self.region.size()
    }

    /// What is mapped.
    pub(super) fn file(&self) -> Option<&File> {
        self.region.file_offset().map(FileOffset::file)
    }

    /// True once a page of it was lost.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        self.guard.is_broken()
    }

    /// Takes the file away from under its addresses: they hold zeroes from now on.
    pub(super) fn blank(&self) {
        // SAFETY: the whole mapping, which lives as long as `self`. A refusal leaves the file there.
        let _ = unsafe { sigbus::blank(self.start() as usize, self.size()) };
    }
}
