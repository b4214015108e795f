// SPDX-License-Identifier: Apache-2.0
//! Lies in the messages that hand over memory and rings.

use std::fs::File;
use std::os::unix::net::UnixStream;

use super::tamper::{disk_file, pipe};
use super::{Attack, Case, Tamper};
use crate::testing::frontend::{Frontend, region_entries};
use crate::testing::memory::Gpa;
use crate::testing::wire::RegionEntry;
use crate::testing::wire::features::RING_PACKED;
use crate::testing::{Error, Result};

/// The base of a packed ring that nobody used yet.
const FRESH: u32 = 0x8000_8000;

macro_rules! cases {
    ($($($needs:ident:)? $name:literal, $what:literal, $attack:expr;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: $name, what: $what, needs: 0 $(| $needs)?, attack: Attack::Session($attack) }),*];
    };
}

cases! {
    "honest", "no lie at all: the control", |_| Ok(Tamper::default());
    "memory-pipe", "a pipe as memory fd",
        |_| Ok(Tamper { memory_fd: Some(pipe()?), ..Tamper::default() });
    "memory-socket", "a socket as memory fd", |_| {
        let (one, _) = UnixStream::pair().map_err(Error::kernel("cannot make a socket"))?;
        Ok(Tamper { memory_fd: Some(one.into()), ..Tamper::default() })
    };
    "memory-directory", "a directory as memory fd", |_| opened("/");
    "memory-device", "/dev/zero as memory fd", |_| opened("/dev/zero");
    "memory-disk-file", "a file on a disk as memory fd", |frontend| {
        let size = frontend.ram().regions().iter().map(|region| region.size() as u64).sum();
        Ok(Tamper { memory_fd: Some(disk_file(size)?), ..Tamper::default() })
    };
    "memory-short-file", "memory files shorter than their regions claim",
        |frontend| regions(frontend, |entry| RegionEntry { size: entry.size * 16, ..entry });
    "memory-without-fd", "one fd fewer than regions",
        |_| Ok(Tamper { fds_withheld: true, ..Tamper::default() });
    "memory-offset", "a file offset past the end of the file",
        |frontend| regions(frontend, |entry| RegionEntry { file_offset: 1 << 50, ..entry });
    "memory-offset-wraps", "file offset and size that wrap",
        |frontend| regions(frontend, |entry| RegionEntry { file_offset: !4095, ..entry });
    "region-empty", "a region of no bytes",
        |frontend| regions(frontend, |entry| RegionEntry { size: 0, ..entry });
    "region-wraps", "a region whose guest addresses wrap",
        |frontend| regions(frontend, |entry| RegionEntry { gpa: Gpa(!4095), ..entry });
    "region-user-wraps", "a region whose front-end addresses wrap",
        |frontend| regions(frontend, |entry| RegionEntry { user_address: !4095, ..entry });
    "region-overlap", "two regions at one guest address",
        |frontend| regions(frontend, |entry| RegionEntry { gpa: Gpa(0), ..entry });
    "region-user-overlap", "two regions at one front-end address", |frontend| {
        let first = region_entries(frontend.ram()).first().map_or(0, |entry| entry.user_address);
        let mut tamper = Tamper { entries: Some(region_entries(frontend.ram())), ..Tamper::default() };
        for entry in tamper.entries.iter_mut().flatten() {
            entry.user_address = first;
        }
        Ok(tamper)
    };
    "region-huge", "a region of 2^63 bytes",
        |frontend| regions(frontend, |entry| RegionEntry { size: 1 << 63, ..entry });
    "regions-none", "a memory table of no regions",
        |_| Ok(Tamper { entries: Some(Vec::new()), ..Tamper::default() });
    "regions-too-many", "a memory table that claims 2^32 - 1 regions",
        |_| Ok(Tamper { region_count: Some(u32::MAX), ..Tamper::default() });
    "rings-before-memory", "rings described before memory is known",
        |_| Ok(Tamper { rings_first: true, ..Tamper::default() });
    "ring-size-0", "SET_VRING_NUM 0", |_| Ok(Tamper { ring_size: Some(0), ..Tamper::default() });
    "ring-size-odd", "SET_VRING_NUM 100, no power of two",
        |_| Ok(Tamper { ring_size: Some(100), ..Tamper::default() });
    "ring-size-70000", "SET_VRING_NUM 70000",
        |_| Ok(Tamper { ring_size: Some(70_000), ..Tamper::default() });
    "ring-base-70000", "SET_VRING_BASE 70000",
        |_| Ok(Tamper { base: Some(70_000), ..Tamper::default() });
    "ring-index-past-16-bits", "rings numbered 65536",
        |_| Ok(Tamper { vring: Some(65_536), ..Tamper::default() });
    RING_PACKED: "packed-size-0", "packed rings of no descriptors",
        |_| Ok(Tamper { ring_size: Some(0), base: Some(FRESH), ..Tamper::default() });
    RING_PACKED: "packed-size-32769", "packed rings of 32769 descriptors",
        |_| Ok(Tamper { ring_size: Some(32_769), base: Some(FRESH), ..Tamper::default() });
    RING_PACKED: "packed-size-65536", "packed rings of 65536 descriptors",
        |_| Ok(Tamper { ring_size: Some(65_536), base: Some(FRESH), ..Tamper::default() });
    RING_PACKED: "packed-size-huge", "packed rings of 2^32 - 1 descriptors",
        |_| Ok(Tamper { ring_size: Some(u32::MAX), base: Some(FRESH), ..Tamper::default() });
    RING_PACKED: "packed-base-past-ring", "a packed ring that is said to stand past its end",
        |_| Ok(Tamper { base: Some(0xffff_ffff), ..Tamper::default() });
    RING_PACKED: "packed-misaligned", "packed rings that are not aligned", |_| {
        Ok(Tamper { base: Some(FRESH), bend: Some(|mut ring| {
            ring.descriptors += 8;
            ring.available += 1;
            ring.used += 2;
            ring
        }), ..Tamper::default() })
    };
    RING_PACKED: "packed-crosses-end", "packed rings that begin in the last line of the memory and end past it",
        |frontend| {
            let entries = region_entries(frontend.ram());
            let end = entries.first().map_or(0, |entry| entry.user_address + entry.size);
            Ok(Tamper { base: Some(FRESH), all_rings_at: Some(end - 64), ..Tamper::default() })
        };
    RING_PACKED: "packed-areas-in-one", "a packed ring whose event structures lie in its descriptors", |_| {
        Ok(Tamper { base: Some(FRESH), bend: Some(|mut ring| {
            (ring.available, ring.used) = (ring.descriptors, ring.descriptors + 4);
            ring
        }), ..Tamper::default() })
    };
    "ring-index", "rings numbered 77", |_| Ok(Tamper { vring: Some(77), ..Tamper::default() });
    "ring-outside", "ring addresses outside all memory", |_| {
        Ok(Tamper { bend: Some(|mut ring| {
            (ring.descriptors, ring.used, ring.available) = (0x1000, 0x3000, 0x2000);
            ring
        }), ..Tamper::default() })
    };
    "ring-wraps", "ring addresses at the top of the address space", |_| {
        Ok(Tamper { bend: Some(|mut ring| {
            (ring.descriptors, ring.used, ring.available) = (!15, !7, !7);
            ring
        }), ..Tamper::default() })
    };
    "ring-crosses-end", "rings that begin in the last line of the memory and end past it", |frontend| {
        let entries = region_entries(frontend.ram());
        let end = entries.first().map_or(0, |entry| entry.user_address + entry.size);
        Ok(Tamper { all_rings_at: Some(end - 64), ..Tamper::default() })
    };
    "ring-misaligned", "ring addresses that are not aligned", |_| {
        Ok(Tamper { bend: Some(|mut ring| {
            ring.descriptors += 3;
            ring.available += 1;
            ring.used += 2;
            ring
        }), ..Tamper::default() })
    };
    "kick-pipe", "a pipe as kick fd",
        |_| Ok(Tamper { kick_fd: Some(pipe()?), ..Tamper::default() });
    "kick-disk-file", "a file on a disk as kick fd",
        |_| Ok(Tamper { kick_fd: Some(disk_file(4096)?), ..Tamper::default() });
    "call-pipe", "a pipe as call fd",
        |_| Ok(Tamper { call_fd: Some(pipe()?), ..Tamper::default() });
    "call-disk-file", "a file on a disk as call fd",
        |_| Ok(Tamper { call_fd: Some(disk_file(4096)?), ..Tamper::default() });
}

/// This file as memory fd.
fn opened(path: &str) -> Result<Tamper> {
    let file = File::open(path).map_err(Error::kernel(format!("cannot open {path}")))?;
    Ok(Tamper { memory_fd: Some(file.into()), ..Tamper::default() })
}

/// Bends every region of the memory table.
#[expect(clippy::unnecessary_wraps, reason = "a row of the table, whose rows can fail")]
fn regions(frontend: &Frontend, bend: fn(RegionEntry) -> RegionEntry) -> Result<Tamper> {
    let entries = region_entries(frontend.ram()).into_iter().map(bend).collect();
    Ok(Tamper { entries: Some(entries), ..Tamper::default() })
}
