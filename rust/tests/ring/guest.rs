// SPDX-License-Identifier: Apache-2.0
//! A guest's memory as both sides see it: the driver through its own mapping, the device through a `GuestMap` of the
//! same files.
//!
//! ```text
//!   0 ┌─────────┬─────────┐ 2 × BUFFERS        4 GiB ┌───────┐
//!     │ buffers │ buffers │   two regions that       │ rings │
//!     └─────────┴─────────┘   touch each other       └───────┘
//! ```

use std::ops::Range;
use std::sync::Arc;

use ovsvhost::memory::{self, GuestMap};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec, Window};

/// Bytes of each of the two buffer regions.
pub const BUFFERS: usize = 512 << 10;
/// Where the rings are.
pub const RINGS: u64 = 1 << 32;
/// What every byte is before anyone writes.
const CANARY: u8 = 0xc5;

/// One guest's memory.
pub struct Guest {
    pub ram: GuestRam,
    pub map: Arc<GuestMap>,
}

impl Guest {
    /// Memory with room for `rings` bytes of rings.
    pub fn new(rings: usize) -> Self {
        let region = |gpa, size, file_offset| RegionSpec { gpa: Gpa(gpa), size, backing: Backing::Memfd, file_offset };
        let rings = rings.next_multiple_of(4096);
        let specs = [region(0, BUFFERS, 0), region(BUFFERS as u64, BUFFERS, 4096), region(RINGS, rings, 8192)];
        let ram = GuestRam::new(&specs).unwrap();
        for region in ram.regions() {
            region.window().fill(CANARY);
        }
        let map = Arc::new(GuestMap::map(announced(&ram), false).unwrap());
        Self { ram, map }
    }

    /// The stretches of `[gpa, gpa + len)` region by region.
    fn windows(&self, gpa: u64, len: usize) -> Vec<Window> {
        let (mut at, mut left, mut windows) = (gpa, len, Vec::new());
        while left > 0 {
            let region = self.ram.regions().iter().find(|r| at >= r.gpa().0 && at - r.gpa().0 < r.size() as u64);
            let region = region.unwrap_or_else(|| panic!("{at:#x} is in no region"));
            let into = (at - region.gpa().0) as usize;
            let n = left.min(region.size() - into);
            windows.push(region.window().part(into, n));
            (at, left) = (at + n as u64, left - n);
        }
        windows
    }

    /// The driver writes.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let mut from = 0;
        for window in self.windows(gpa, bytes.len()) {
            window.write(0, &bytes[from..from + window.size()]);
            from += window.size();
        }
    }

    /// The driver reads.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut at = 0;
        for window in self.windows(gpa, len) {
            window.read(0, &mut bytes[at..at + window.size()]);
            at += window.size();
        }
        bytes
    }

    /// Every byte as it is now.
    pub fn image(&self) -> Image {
        let part = |r: &ovsvhost::testing::memory::Region| (r.gpa().0, self.read(r.gpa().0, r.size()));
        Image { parts: self.ram.regions().iter().map(part).collect() }
    }
}

/// Regions as a front-end announces them.
fn announced(ram: &GuestRam) -> Vec<memory::RegionSpec> {
    let announce = |r: &ovsvhost::testing::memory::Region| memory::RegionSpec {
        gpa: r.gpa().0,
        uva: r.user_address(),
        size: r.size() as u64,
        mmap_offset: r.file_offset(),
        file: r.file().try_clone().unwrap(),
    };
    ram.regions().iter().map(announce).collect()
}

/// A guest's memory at one moment, and what it is expected to become.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    parts: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// What the device is expected to write.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            *self.byte(at) = *byte;
        }
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let (start, part) =
            self.parts.iter().find(|(start, part)| gpa >= *start && gpa - start < part.len() as u64).unwrap();
        let from = (gpa - start) as usize;
        part[from..from + len].to_vec()
    }

    fn byte(&mut self, gpa: u64) -> &mut u8 {
        let part = self.parts.iter_mut().find(|(start, part)| gpa >= *start && gpa - start < part.len() as u64);
        let (start, part) = part.unwrap();
        &mut part[(gpa - *start) as usize]
    }

    /// Addresses at which the two differ, as ranges.
    pub fn differences(&self, other: &Self) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for ((start, ours), (_, theirs)) in self.parts.iter().zip(&other.parts) {
            if ours == theirs {
                continue;
            }
            for (at, _) in (*start..).zip(ours.iter().zip(theirs)).filter(|(_, (a, b))| a != b) {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end += 1,
                    _ => found.push(at..at + 1),
                }
            }
        }
        found
    }

    /// # Panics
    /// When a byte differs from what was expected.
    #[track_caller]
    pub fn assert_is(&self, actual: &Self, whose: &str) {
        let differences = self.differences(actual);
        assert!(differences.is_empty(), "{whose}: unexpected bytes at {:x?}", &differences[..differences.len().min(8)]);
    }
}
