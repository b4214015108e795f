//! Guest memory as a network device is shown it: one range without gaps, a pool of ours first.
//!
//! ```text
//!   0                 pool's size
//!   ┌─────────────────┬───────────────┬──────────┬──────────────┐
//!   │ pool: an `Area` │ region        │ region   │ region       │   window: a range of addresses, for registration only
//!   └─────────────────┴───────────────┴──────────┴──────────────┘
//!     places: where in the window what is mapped at a host address lies
//! ```
//!
//! The kernel pins the pages behind the range when it is registered and needs the addresses no longer, so the range goes
//! at once and nobody here ever reads through it: a page that is taken away later cannot fault us there. What is pinned
//! stays the device's until its socket is gone, whatever becomes of the file: see `docs/decisions/0023-…`.
#![allow(unsafe_code, reason = "maps files at addresses that it reserved")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{Area, GuestMap};
use crate::error::{Error, Result};

/// A guest's region to be shown: whole pages of a file that hold it.
#[derive(Debug)]
pub(super) struct Exhibit<'a> {
    pub(super) file: &'a File,
    /// Bytes into the file where the region starts.
    pub(super) offset: u64,
    /// The region's bytes.
    pub(super) size: u64,
    /// Bytes of a page of the file.
    pub(super) page: u64,
    /// Where the region's first byte is mapped for everybody.
    pub(super) host: usize,
}

impl Exhibit<'_> {
    /// Its first page's place in the file, and the bytes of all its pages.
    fn pages(&self) -> Option<(u64, u64)> {
        let first = self.offset / self.page * self.page;
        let end = self.offset.checked_add(self.size)?.checked_next_multiple_of(self.page)?;
        Some((first, end - first))
    }
}

/// Where in a window the bytes of one region are.
#[derive(Debug, Clone, Copy)]
struct Spot {
    host: usize,
    size: usize,
    at: u64,
}

/// Where in a window guest memory is. To be asked about memory of the map that the window was made of.
#[derive(Debug)]
pub struct Places {
    /// Few; by host address.
    spots: Box<[Spot]>,
    /// Which had the last answer.
    hint: usize,
}

impl Places {
    /// How far into the window what is mapped at `host` lies, and how many bytes from there on lie behind one another there
    /// too, at most `len`; None if it is no guest memory.
    #[inline]
    pub fn of(&mut self, host: *const u8, len: u32) -> Option<(u64, u32)> {
        let spot = self.spots.get(self.hint).filter(|spot| spot.has(host.addr()));
        let spot = match spot {
            Some(spot) => spot,
            None => self.find(host.addr())?,
        };
        let into = host.addr() - spot.host;
        #[allow(clippy::cast_possible_truncation, reason = "at most `len`")]
        let here = (spot.size - into).min(len as usize) as u32;
        Some((spot.at + into as u64, here))
    }

    #[cold]
    fn find(&mut self, host: usize) -> Option<&Spot> {
        self.hint = self.spots.iter().position(|spot| spot.has(host))?;
        self.spots.get(self.hint)
    }
}

impl Spot {
    #[inline]
    fn has(&self, host: usize) -> bool {
        host.wrapping_sub(self.host) < self.size
    }
}

/// A range of addresses: a pool and a guest's memory, mapped once more. Let go of it when the kernel has seen it.
#[derive(Debug)]
pub struct Window {
    reserved: Range,
    start: *mut u8,
    size: usize,
    places: Places,
}

impl Window {
    /// Maps `pool`, which is [`Area::shared`], and behind it all of `memory`.
    ///
    /// # Errors
    /// `Config` without memory; `Kernel` without address space.
    pub fn new(pool: &Area, memory: &GuestMap) -> Result<Self> {
        let mut exhibits = memory.exhibits();
        let pool_file = pool.file().ok_or_else(|| Error::Bug("a window's pool is in no file".into()))?;
        if exhibits.is_empty() {
            return Err(Error::Config("the guest shares no memory".into()));
        }
        // Largest pages first: then each region begins where its pages may.
        exhibits.sort_by_key(|exhibit| std::cmp::Reverse(exhibit.page));
        let align = exhibits.first().map_or(4096, |first| first.page);
        let too_large = || Error::Peer("guest memory: its regions do not fit this address space".into());
        let (mut size, mut parts) = (pool.size() as u64, Vec::with_capacity(exhibits.len()));
        for exhibit in &exhibits {
            let (first, bytes) = exhibit.pages().ok_or_else(too_large)?;
            parts.push((exhibit, first, size, bytes));
            size = size.checked_add(bytes).ok_or_else(too_large)?;
        }
        let whole = |n: u64| usize::try_from(n).map_err(|_| too_large());
        let failed = |e| Error::kernel(format!("cannot map {size} bytes to show to a network device"), e);
        // With room to begin the regions at a page of theirs: the pool lies before them.
        let reserved = Range::reserve(whole(size.checked_add(2 * align).ok_or_else(too_large)?)?).map_err(failed)?;
        let regions = (reserved.start.addr() + pool.size()).next_multiple_of(whole(align)?);
        let start = reserved.start.wrapping_add(regions - pool.size() - reserved.start.addr());
        reserved.put(start, pool.size(), pool_file, 0).map_err(failed)?;
        let mut spots = Vec::with_capacity(parts.len());
        for (exhibit, first, at, bytes) in parts {
            let to = start.wrapping_add(whole(at)?);
            reserved.put(to, whole(bytes)?, exhibit.file, first).map_err(failed)?;
            let at = at + exhibit.offset - first;
            spots.push(Spot { host: exhibit.host, size: whole(exhibit.size)?, at });
        }
        spots.sort_by_key(|spot| spot.host);
        let places = Places { spots: spots.into(), hint: 0 };
        Ok(Self { reserved, start, size: whole(size)?, places })
    }

    /// Its first byte, page-aligned.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes, whole pages.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Unmaps it. What the kernel was shown it keeps; this is where things are in that.
    pub fn close(self) -> Places {
        drop(self.reserved);
        self.places
    }
}

/// Addresses that are ours, with whatever is mapped there.
#[derive(Debug)]
struct Range {
    start: *mut u8,
    size: usize,
}

impl Range {
    fn reserve(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new addresses of the kernel's choice, which nobody can touch.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), size })
    }

    /// Maps `size` bytes of `file` from `offset` on at `to`; refuses what is not inside.
    fn put(&self, to: *mut u8, size: usize, file: &File, offset: u64) -> io::Result<()> {
        let into = to.addr().wrapping_sub(self.start.addr());
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        if into > self.size || self.size - into < size {
            return Err(io::Error::other("a part of a window lies outside it"));
        }
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: all of it is inside the addresses that `self` reserved and that nobody reads or writes through.
        let put = unsafe { libc::mmap(to.cast(), size, access, flags | libc::MAP_NORESERVE, file.as_raw_fd(), offset) };
        if put == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the addresses reserved in `reserve`, of which nobody has a reference.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "a test's numbers are small")]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::{Access, Hint, Iova, RegionSpec, Tlb};
    use super::*;
    use crate::sys::file;

    fn region(gpa: u64, size: u64, mmap_offset: u64, fill: u8) -> RegionSpec {
        let file = file::anonymous("guest", (size + mmap_offset) as usize).unwrap();
        file.write_all_at(&vec![fill; size as usize], mmap_offset).unwrap();
        RegionSpec { gpa, uva: 0x10_0000_0000 + gpa, size, mmap_offset, file }
    }

    #[test]
    fn what_lies_at_a_host_address_lies_in_the_window_where_its_place_says() {
        let regions =
            vec![region(0, 0x3000, 0, 1), region(0x10_0000, 0x5000, 0x2000, 2), region(0x80_0000, 0x1000, 0, 3)];
        let map = GuestMap::map(regions, false).unwrap();
        let pool = Area::shared(0x2000).unwrap();
        // SAFETY: the area's own bytes.
        unsafe { pool.start().write(9) };
        let window = Window::new(&pool, &map).unwrap();
        assert_eq!(window.size(), 0x2000 + 0x3000 + 0x5000 + 0x1000);
        // SAFETY: the window's first byte, mapped and the pool's.
        assert_eq!(unsafe { window.start().read() }, 9);
        let start = window.start();
        let (mut hint, mut tlb) = (Hint::NONE, Tlb::new(&map, Access::READ));
        let Window { mut places, reserved, .. } = window;
        for (gpa, fill) in [(0, 1), (0x2fff, 1), (0x10_0000, 2), (0x10_4abc, 2), (0x80_0fff, 3), (0x10, 1)] {
            let span = map.translate(Iova(gpa), 1, &mut hint, &mut tlb).unwrap();
            let (at, here) = places.of(span.start, 1).unwrap();
            // SAFETY: inside the window, which is mapped still.
            assert_eq!((unsafe { start.wrapping_add(at as usize).read() }, here), (fill, 1), "{gpa:#x}");
        }
        // No further than the region goes.
        for (gpa, here) in [(0x10_0f00, 0x1000), (0x10_4f00, 0x100)] {
            let span = map.translate(Iova(gpa), 0x100, &mut hint, &mut tlb).unwrap();
            assert_eq!(places.of(span.start, 0x1000).unwrap().1, here, "{gpa:#x}");
        }
        assert!(places.of(pool.start(), 1).is_none());
        drop(reserved);
    }

    #[test]
    fn no_memory_makes_no_window() {
        let pool = Area::shared(0x1000).unwrap();
        assert!(Window::new(&pool, &GuestMap::default()).is_err());
    }
}
