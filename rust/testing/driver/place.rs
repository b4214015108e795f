// SPDX-License-Identifier: Apache-2.0
//! Where a ring is in guest memory.

use crate::testing::Result;
use crate::testing::memory::{Gpa, GuestRam};
use crate::testing::wire::features;

/// Where the three parts of a ring are.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    /// The descriptor table; the descriptor ring, if packed.
    pub descriptors: Gpa,
    /// The available ring; the driver area, if packed.
    pub available: Gpa,
    /// The used ring; the device area, if packed.
    pub used: Gpa,
}

impl RingPlace {
    /// Takes room for a ring of `size` descriptors in `region`, laid out as legacy guests do: the
    /// available ring behind the descriptors, the used ring on its own page; all zeros.
    ///
    /// # Errors
    /// `Config` when the region is too small.
    pub fn alloc(ram: &mut GuestRam, region: usize, size: u16) -> Result<Self> {
        let size = usize::from(size);
        let (table, available) = (16 * size, 6 + 2 * size);
        let used_at = (table + available).next_multiple_of(4096);
        let whole = used_at + 6 + 8 * size;
        let base = ram.alloc(region, whole, 4096)?;
        // Drivers clear their rings; a back-end may take a ring that nobody ever wrote for private memory.
        ram.window(base, whole)?.fill(0);
        Ok(Self { descriptors: base, available: base.plus(table as u64), used: base.plus(used_at as u64) })
    }

    /// The same for a packed ring: each area on lines of its own.
    ///
    /// # Errors
    /// `Config` when the region is too small.
    pub fn alloc_packed(ram: &mut GuestRam, region: usize, size: u16) -> Result<Self> {
        let driver_at = (16 * usize::from(size)).next_multiple_of(128);
        let whole = driver_at + 256;
        let base = ram.alloc(region, whole, 4096)?;
        ram.window(base, whole)?.fill(0);
        let area = |at: usize| base.plus((driver_at + at) as u64);
        Ok(Self { descriptors: base, available: area(0), used: area(128) })
    }

    /// Takes room for a ring of the format agreed on.
    ///
    /// # Errors
    /// `Config` when the region is too small.
    pub fn alloc_agreed(ram: &mut GuestRam, region: usize, size: u16, agreed: u64) -> Result<Self> {
        if agreed & features::RING_PACKED == 0 {
            Self::alloc(ram, region, size)
        } else {
            Self::alloc_packed(ram, region, size)
        }
    }
}
