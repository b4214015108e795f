//! Memory of our own that frames lie in, on huge pages where the kernel has some to give.
//!
//! What guest memory is to a guest's frames, an area is to those that a NIC brought: a [`Span`] cut from it is valid as
//! long as the area lives.

use std::fs::File;

use vm_memory::{FileOffset, MmapRegion};

use super::Span;
use crate::error::{Error, Result};
use crate::sys::file;

/// Zeroed memory, mapped at once, page-aligned.
#[derive(Debug)]
pub struct Area {
    mapping: MmapRegion<()>,
}

impl Area {
    /// Maps `size` bytes.
    ///
    /// # Errors
    /// `Kernel` without address space.
    pub fn new(size: usize) -> Result<Self> {
        let failed = |e| Error::kernel(format!("cannot map {size} bytes for frames"), std::io::Error::other(e));
        let mapping = MmapRegion::new(size).map_err(failed)?;
        file::keep_private(mapping.as_ptr(), size);
        file::prefer_huge_pages(mapping.as_ptr(), size);
        Ok(Self { mapping })
    }

    /// As [`Self::new`], of a file of its own: so that it can be mapped once more, in a [`Window`](super::Window).
    ///
    /// # Errors
    /// `Kernel` without memory.
    pub fn shared(size: usize) -> Result<Self> {
        let failed = |e| Error::kernel(format!("cannot map {size} bytes for frames"), e);
        let file = file::anonymous("frames", size).map_err(failed)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), size);
        let mapping = mapping.map_err(|e| failed(std::io::Error::other(e)))?;
        file::keep_private(mapping.as_ptr(), size);
        Ok(Self { mapping })
    }

    /// Its file, if it has one.
    pub(super) fn file(&self) -> Option<&File> {
        self.mapping.file_offset().map(FileOffset::file)
    }

    /// Its first byte.
    #[inline]
    pub fn start(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.mapping.size()
    }

    /// `len` bytes from `offset` on; None if they are not all inside.
    #[inline]
    pub fn span(&self, offset: u64, len: u32) -> Option<Span> {
        let from = usize::try_from(offset).ok()?;
        let is_inside = from <= self.size() && self.size() - from >= len as usize;
        is_inside.then(|| Span { start: self.start().wrapping_add(from), len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_inside_its_area_or_there_is_none() {
        let area = Area::new(8192).unwrap();
        for (offset, len) in [(0, 8192), (8191, 1), (8192, 0), (100, 200)] {
            let span = area.span(offset, len).unwrap();
            assert_eq!((span.start as u64 - area.start() as u64, span.len), (offset, len));
        }
        for (offset, len) in [(0, 8193), (8192, 1), (8193, 0), (u64::MAX, 1), (u64::MAX - 1, 4)] {
            assert!(area.span(offset, len).is_none(), "{offset} {len}");
        }
    }
}
