// SPDX-License-Identifier: Apache-2.0
//! Guest RAM: regions of shared memory, laid out at guest physical addresses.
//!
//! ```text
//!  guest physical   0 ┌──────────┐      0x1_0000_0000 ┌──────────┐
//!                     │ region 0 │                    │ region 1 │   …
//!                     └──────────┘                    └──────────┘
//!                       fd, offset                      fd, offset
//! ```
//!
//! Invariants: a region's mapping lives as long as any [`Window`] on it; an allocation never
//! crosses a region; addresses handed out are guest physical ([`Gpa`]), and the address the
//! back-end is told for rings is the front-end's own mapping, as QEMU does.

mod backing;
mod missing;
mod window;

use std::os::fd::{AsRawFd, RawFd};

pub use backing::Backing;
pub use missing::{MissingPages, Userfault};
pub use window::Window;

use super::{Error, Result};
use window::Mapping;

/// A guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further up.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// What one region of guest RAM is to be.
#[derive(Clone, Debug)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Bytes; rounded up to the page size of the backing.
    pub size: usize,
    /// What memory it is made of.
    pub backing: Backing,
    /// Bytes of the file before the region begins (`mmap_offset` on the wire).
    pub file_offset: u64,
}

impl RegionSpec {
    /// `count` regions of `size` bytes each, 4 GiB apart, the first at address 0.
    pub fn spread(count: usize, size: usize, backing: &Backing) -> Vec<Self> {
        (0..count as u64)
            .map(|index| Self { gpa: Gpa(index << 32), size, backing: backing.clone(), file_offset: 0 })
            .collect()
    }
}

/// One region of guest RAM, mapped.
#[derive(Debug)]
pub struct Region {
    gpa: Gpa,
    file_offset: u64,
    file: std::fs::File,
    page_size: usize,
    whole: Window,
    taken: usize,
}

impl Region {
    /// Where the guest sees the region.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Bytes in the region.
    pub fn size(&self) -> usize {
        self.whole.size()
    }

    /// Bytes of the file before the region begins.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// The front-end's own address of the region's first byte.
    pub fn user_address(&self) -> u64 {
        self.whole.user_address()
    }

    /// The whole region as a window.
    pub fn window(&self) -> &Window {
        &self.whole
    }

    /// Bytes of a page of it.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The file that backs the region.
    pub fn file(&self) -> &std::fs::File {
        &self.file
    }
}

impl AsRawFd for Region {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Guest RAM: a few regions and a bump allocator over each.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<Region>,
}

impl GuestRam {
    /// Makes and maps the regions.
    ///
    /// # Errors
    /// `Config` when a region is empty or there is none; `Kernel` when the backing cannot be had
    /// (for hugetlbfs: no free pages).
    pub fn new(specs: &[RegionSpec]) -> Result<Self> {
        if specs.is_empty() {
            return Err(Error::Config("guest memory needs a region or more".into()));
        }
        let mut ram = Self { regions: Vec::with_capacity(specs.len()) };
        for spec in specs {
            ram.add(spec)?;
        }
        Ok(ram)
    }

    /// Makes and maps one region more, behind the others.
    ///
    /// # Errors
    /// `Config` when it is empty; `Kernel` when the backing cannot be had.
    pub fn add(&mut self, spec: &RegionSpec) -> Result<()> {
        let page = spec.backing.page_size();
        let size = spec.size.next_multiple_of(page);
        if size == 0 {
            return Err(Error::Config("a memory region of no bytes".into()));
        }
        let file = spec.backing.open(spec.file_offset + size as u64)?;
        let mapping = Mapping::new(&file, spec.file_offset, size, spec.backing.is_private())?;
        let (gpa, file_offset, whole) = (spec.gpa, spec.file_offset, Window::whole(mapping));
        self.regions.push(Region { gpa, file_offset, file, page_size: page, whole, taken: 0 });
        Ok(())
    }

    /// Takes the last region away; windows on it stay valid.
    pub fn remove_last(&mut self) {
        self.regions.pop();
    }

    /// The regions, in the order they were asked for.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes `size` bytes aligned to `align` (a power of two) out of region `region`.
    ///
    /// # Errors
    /// `Config` when the region is too small; the text says by how much memory to raise it.
    pub fn alloc(&mut self, region: usize, size: usize, align: usize) -> Result<Gpa> {
        let Some(place) = self.regions.get_mut(region) else {
            return Err(Error::Config(format!("there is no memory region {region}")));
        };
        let start = place.taken.next_multiple_of(align);
        let end = start.saturating_add(size);
        if end > place.size() {
            return Err(Error::Config(format!(
                "memory region {region} of {} bytes is too small for {end}: raise memory-size",
                place.size()
            )));
        }
        place.taken = end;
        Ok(place.gpa.plus(start as u64))
    }

    /// Raw access to `size` bytes at `gpa`, which must lie within one region.
    ///
    /// # Errors
    /// `Config` when the range is not in one region.
    pub fn window(&self, gpa: Gpa, size: usize) -> Result<Window> {
        let (region, offset) = self.find(gpa, size)?;
        Ok(region.whole.part(offset, size))
    }

    /// The front-end's own address of `gpa`, as `SET_VRING_ADDR` wants it.
    ///
    /// # Errors
    /// `Config` when `gpa` is in no region.
    pub fn user_address(&self, gpa: Gpa) -> Result<u64> {
        let (region, offset) = self.find(gpa, 1)?;
        Ok(region.user_address() + offset as u64)
    }

    fn find(&self, gpa: Gpa, size: usize) -> Result<(&Region, usize)> {
        self.regions
            .iter()
            .find_map(|region| {
                let offset = usize::try_from(gpa.0.checked_sub(region.gpa.0)?).ok()?;
                (offset.checked_add(size)? <= region.size()).then_some((region, offset))
            })
            .ok_or_else(|| Error::Config(format!("{size} bytes at {:#x} are not in one region", gpa.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::new(&RegionSpec::spread(2, 8192, &Backing::Memfd)).unwrap()
    }

    #[test]
    fn allocations_do_not_overlap_and_are_aligned() {
        let mut ram = ram();
        let first = ram.alloc(0, 100, 64).unwrap();
        let second = ram.alloc(0, 100, 64).unwrap();
        assert_eq!((first, second), (Gpa(0), Gpa(128)));
    }

    #[test]
    fn an_allocation_past_the_region_is_refused() {
        let mut ram = ram();
        assert!(ram.alloc(0, 8193, 1).is_err());
        assert!(ram.alloc(2, 1, 1).is_err());
    }

    #[test]
    fn a_window_sees_what_another_mapping_of_the_file_wrote() {
        let ram = ram();
        let region = &ram.regions()[1];
        let other = Mapping::new(region.file(), 0, 8192, false).unwrap();
        Window::whole(other).write(4096, b"seen");
        let mut bytes = [0; 4];
        ram.window(Gpa((1 << 32) + 4096), 4).unwrap().read(0, &mut bytes);
        assert_eq!(&bytes, b"seen");
    }

    #[test]
    fn private_memory_is_not_shared_with_the_file() {
        let specs = RegionSpec::spread(1, 4096, &Backing::Private);
        let ram = GuestRam::new(&specs).unwrap();
        ram.regions()[0].window().write(0, b"mine");
        let other = Window::whole(Mapping::new(ram.regions()[0].file(), 0, 4096, false).unwrap());
        let mut bytes = [1; 4];
        other.read(0, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }

    #[test]
    fn a_range_across_two_regions_is_refused() {
        assert!(ram().window(Gpa(8190), 4).is_err());
    }
}
