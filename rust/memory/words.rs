//! Memory of the switch's own that is more than this process's: words in a mapped file, or in no file at all.
#![allow(unsafe_code, reason = "a mapping is seen as atomic words")]

use std::fs::File;
use std::sync::atomic::AtomicU64;

use vm_memory::{FileOffset, MmapRegion};

use crate::error::{Error, Result};
use crate::sys::file;

/// A mapping of whole pages, touched before anybody uses it: no access to it faults in a poll thread.
#[derive(Debug)]
pub struct Words {
    mapping: MmapRegion<()>,
}

impl Words {
    /// `size` bytes, zeroed, that end with the process.
    ///
    /// # Errors
    /// `Kernel` without memory.
    pub fn anonymous(size: usize) -> Result<Self> {
        Self::map(None, size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    /// The first `size` bytes of `file`, which has as many and whose pages are its owner's to keep.
    ///
    /// # Errors
    /// `Kernel` if it cannot be mapped.
    pub fn of_file(file: File, size: usize) -> Result<Self> {
        Self::map(Some(FileOffset::new(file, 0)), size, libc::MAP_SHARED)
    }

    fn map(file: Option<FileOffset>, size: usize, flags: i32) -> Result<Self> {
        let size = size.next_multiple_of(4096);
        let mapping = MmapRegion::build(file, size, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_POPULATE)
            .map_err(|e| {
                let e = std::io::Error::other(e);
                Error::kernel(format!("cannot map {size} bytes of state; check memory and vm.max_map_count"), e)
            })?;
        file::keep_private(mapping.as_ptr(), size);
        Ok(Self { mapping })
    }

    /// Every word.
    #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub fn as_slice(&self) -> &[AtomicU64] {
        let (start, len) = (self.mapping.as_ptr().cast::<AtomicU64>(), self.mapping.size() / 8);
        // SAFETY: whole pages, mapped and writable for as long as `self`; any bits make an atomic word, and whoever
        // else maps the file reaches it as words too, or as plain bytes while nobody writes.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::Ordering;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn words_of_a_file_are_the_files_bytes() {
        let temp = TempFile::new().unwrap();
        temp.as_file().set_len(4096).unwrap();
        let words = Words::of_file(temp.as_file().try_clone().unwrap(), 16).unwrap();
        words.as_slice()[1].store(0x0102_0304_0506_0708, Ordering::Relaxed);
        let mut bytes = Vec::new();
        File::open(temp.as_path()).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[8..16], 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }

    #[test]
    fn words_without_a_file_are_zero_and_fill_whole_pages() {
        let words = Words::anonymous(1).unwrap();
        assert_eq!(words.as_slice().len(), 512);
        assert!(words.as_slice().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }
}
