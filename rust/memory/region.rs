//! One region: the mapping of a file that a front-end sent, and while a migration brings its pages the place where
//! they land.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::incoming::Incoming;
use super::landing::Landing;
use super::mapping::Mapping;
use crate::error::{Error, Result};
use crate::sys::file::{self, Backing};

/// A mapped region. The file is mapped from offset 0 (hugetlbfs refuses offsets that are not whole pages), so the
/// region's bytes start `offset` into it.
#[derive(Debug)]
pub(super) struct Region {
    mapping: Mapping,
    offset: usize,
    /// Bytes of a page of the file.
    page: usize,
    /// Device and inode: two descriptors of one file are one memory.
    pub(super) identity: (u64, u64),
    /// Where its pages land, if a migration brings them.
    landing: Option<Landing>,
}

impl Region {
    /// Maps `offset + size` bytes of `file`, after checking that this cannot hang or crash us. With `incoming` none of
    /// its pages is here yet. `subject` is what they are to people.
    pub(super) fn map(
        subject: &str,
        file: File,
        offset: u64,
        size: u64,
        allow_file_memory: bool,
        incoming: Option<&Arc<Incoming>>,
    ) -> Result<Self> {
        let kernel = |what: &str, e| Error::kernel(format!("{subject}: {what}"), e);
        let kind = file::backing(&file).map_err(|e| kernel("cannot tell what its file is (fstatfs)", e))?;
        let meta = file.metadata().map_err(|e| kernel("cannot stat its file", e))?;
        if !meta.is_file() {
            return Err(Error::Peer(format!("{subject}: the descriptor sent is not a file that can be mapped")));
        }
        if kind == Backing::Other && !allow_file_memory {
            return Err(Error::Peer(format!(
                "{subject} is on a file system that may block (not memfd, tmpfs or hugetlbfs); use \
                 memory-backend-memfd or hugepages, or set options:allow-file-memory=true"
            )));
        }
        let end = offset.checked_add(size).filter(|&end| size > 0 && i64::try_from(end).is_ok()).ok_or_else(|| {
            Error::Peer(format!("{subject}: region of {size} bytes at file offset {offset} is not possible"))
        })?;
        if meta.len() < end {
            return Err(Error::Peer(format!(
                "{subject}: its file has {} bytes, the region needs {end}; the VMM shared less memory than it announced",
                meta.len()
            )));
        }
        let page = meta.blksize().max(4096).next_power_of_two();
        let page = if kind == Backing::Hugetlb { page } else { 4096 };
        let length = usize::try_from(end.next_multiple_of(page))
            .map_err(|_| Error::Peer(format!("{subject}: {end} bytes do not fit this address space")))?;
        let inside = |n| {
            usize::try_from(n)
                .map_err(|_| Error::Bug(format!("{subject}: an offset inside a mapping is past the address space")))
        };
        let (offset, size, page) = (inside(offset)?, inside(size)?, inside(page)?);
        let mapping = Mapping::new(subject, file, length)?;
        let place = [offset, size, page];
        let landing = incoming.map(|incoming| Landing::new(subject, incoming, &mapping, place)).transpose()?;
        Ok(Self { mapping, offset, page, identity: (meta.dev(), meta.ino()), landing })
    }

    /// Where its pages land; None if all are here, as in memory that no migration brings.
    pub(super) fn landing(&self) -> Option<&Landing> {
        self.landing.as_ref()
    }

    /// Where the region's first byte is mapped here.
    pub(super) fn host(&self) -> *mut u8 {
        self.mapping.start().wrapping_add(self.offset)
    }

    /// The file that it is of, and the bytes of a page of that.
    pub(super) fn file(&self) -> Option<(&File, usize)> {
        Some((self.mapping.file()?, self.page))
    }

    /// True once a page of it was lost.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        self.mapping.is_broken() || self.landing.as_ref().is_some_and(Landing::is_broken)
    }

    /// True if the file holds no page at all: whoever owns this memory writes somewhere else, which is what QEMU does
    /// without `share=on`.
    pub(super) fn is_untouched(&self) -> bool {
        self.held().is_some_and(|(held, _)| held == 0)
    }

    /// True if the file has every page of its size.
    pub(super) fn is_whole(&self) -> bool {
        self.held().is_some_and(|(held, size)| held >= size)
    }

    /// Bytes of the file that whoever touches all of it allocates. Hugepages are reserved for a file by whoever maps it first.
    pub(super) fn unallocated(&self) -> u64 {
        let is_huge = self.page > 4096;
        self.held().filter(|_| !is_huge).map_or(0, |(held, size)| size.saturating_sub(held))
    }

    /// Bytes that the file holds, and its size.
    fn held(&self) -> Option<(u64, u64)> {
        let meta = self.mapping.file()?.metadata().ok()?;
        Some((meta.blocks() * 512, meta.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::{GuestMap, RegionSpec};
    use crate::sys::file;

    /// Rows: A9, A19.
    #[test]
    fn memory_is_allocated_when_it_is_written_and_a_file_of_two_regions_counts_once() {
        let files = ["low and high", "other"].map(|name| file::anonymous(name, 8 << 12).unwrap());
        let region = |gpa, file: usize, mmap_offset| RegionSpec {
            gpa,
            uva: 0x10_0000_0000 + gpa,
            size: 4 << 12,
            mmap_offset,
            file: files[file].try_clone().unwrap(),
        };
        let map = GuestMap::map(vec![region(0, 0, 0), region(1 << 20, 0, 4 << 12), region(2 << 20, 1, 0)], false);
        let map = map.unwrap();
        assert_eq!(map.unallocated(), 16 << 12);
        for page in 0..8 {
            assert_eq!(map.unallocated(), (16 - page) << 12);
            files[0].write_all_at(&[1], page << 12).unwrap();
        }
        files[1].write_all_at(&vec![1; 8 << 12], 0).unwrap();
        assert_eq!(map.unallocated(), 0);
    }
}
