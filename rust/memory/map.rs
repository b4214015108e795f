//! The table of one guest's regions, and translation through it.
#![allow(unsafe_code, reason = "a Span crosses threads with the map that keeps it alive")]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::region::Region;
use super::sigbus;
use super::{Gpa, Uva};
use crate::error::{Error, Result};
use crate::sys::numa;

/// A region as a front-end announces it (`vhost-user: Memory region description`).
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// The front-end's own address of its first byte.
    pub uva: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes into the file where the region starts.
    pub mmap_offset: u64,
    /// The memory.
    pub file: File,
}

/// Bytes of guest memory that are mapped here: never empty-by-lie, never across two mappings.
///
/// Valid while the [`GuestMap`] it came from lives. Only `memory` and `ring` look inside.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub(crate) start: *mut u8,
    pub(crate) len: u32,
}

// SAFETY: a span is an address into a shared mapping that any thread may use; its holder keeps the map alive.
unsafe impl Send for Span {}

impl Span {
    /// No bytes at all.
    pub const EMPTY: Self = Self { start: std::ptr::null_mut(), len: 0 };
}

/// Which byte of which file, whoever maps it and where: what tells guest memory from other guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Device of the file (`stat(2)`).
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Bytes into it.
    pub offset: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    gpa: u64,
    uva: u64,
    size: u64,
    host: *mut u8,
    mmap_offset: u64,
    /// How often it was announced.
    times: u32,
    region: Arc<Region>,
}

/// One guest's memory. Immutable: a change of the table makes a new map that shares what stays.
#[derive(Debug, Default)]
pub struct GuestMap {
    /// Sorted by gpa; no two overlap.
    entries: Box<[Entry]>,
    /// `sigbus::losses` when all regions were last found whole.
    losses: AtomicUsize,
}

// SAFETY: the raw pointers are into mappings owned by the `Arc<Region>` beside them; mappings may be used by any thread.
unsafe impl Send for GuestMap {}
// SAFETY: as above; nothing in a map changes after it is made.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// Maps every region.
    ///
    /// # Errors
    /// `Peer`: a descriptor that is no memory file, a file shorter than announced, regions that wrap or overlap.
    pub fn map(specs: Vec<RegionSpec>, allow_file_memory: bool) -> Result<Self> {
        let mut entries = Vec::with_capacity(specs.len());
        for spec in specs {
            entries.push(entry(spec, allow_file_memory)?);
        }
        Self::from_entries(entries)
    }

    /// This map and one region more (`vhost-user: ADD_MEM_REG`).
    ///
    /// One that is there already counts once more: QEMU 7.2 announces each region, and later takes it away, for every
    /// queue pair of a device.
    pub fn with_region(&self, spec: RegionSpec, allow_file_memory: bool) -> Result<Self> {
        let mut entries = self.entries.to_vec();
        if let Some(known) = entries.iter_mut().find(|e| e.is(&spec)) {
            known.times = known.times.saturating_add(1);
        } else {
            entries.push(entry(spec, allow_file_memory)?);
        }
        Self::from_entries(entries)
    }

    /// This map without the region at these addresses (`vhost-user: REM_MEM_REG`), once it was removed as often as added.
    pub fn without_region(&self, gpa: u64, uva: u64, size: u64) -> Result<Self> {
        let mut entries = self.entries.to_vec();
        let Some(at) = entries.iter().position(|e| (e.gpa, e.uva, e.size) == (gpa, uva, size)) else {
            return Err(Error::Peer(format!("guest memory: no region at {gpa:#x} with {size:#x} bytes to remove")));
        };
        match entries.get_mut(at) {
            Some(e) if e.times > 1 => e.times -= 1,
            _ => drop(entries.remove(at)),
        }
        Self::from_entries(entries)
    }

    fn from_entries(mut entries: Vec<Entry>) -> Result<Self> {
        entries.sort_by_key(|e| e.gpa);
        for pair in entries.windows(2) {
            if let [a, b] = pair
                && a.gpa + a.size > b.gpa
            {
                return Err(Error::Peer(format!("guest memory: regions at {:#x} and {:#x} overlap", a.gpa, b.gpa)));
            }
        }
        Ok(Self { entries: entries.into(), losses: AtomicUsize::new(0) })
    }

    /// True if `specs` describes exactly what is mapped, same files included: then nothing needs remapping.
    pub fn same_table(&self, specs: &[RegionSpec]) -> bool {
        specs.len() == self.entries.len() && specs.iter().all(|spec| self.holds(spec))
    }

    /// True if this very region is mapped, of the same file.
    pub fn holds(&self, spec: &RegionSpec) -> bool {
        self.entries.iter().any(|e| e.is(spec))
    }

    /// How many regions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without any region.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True once a page of any region was lost to a truncated or punched file.
    #[inline]
    pub fn is_broken(&self) -> bool {
        // A glance for each burst; a walk over the regions only after somebody, somewhere, lost a page.
        self.losses.load(Ordering::Relaxed) != sigbus::losses() && self.look_for_losses()
    }

    #[cold]
    fn look_for_losses(&self) -> bool {
        let losses = sigbus::losses();
        let broken = self.entries.iter().any(|e| e.region.is_broken());
        if !broken {
            self.losses.store(losses, Ordering::Relaxed);
        }
        broken
    }

    /// `len` bytes at `gpa`, if one region holds them all. `hint` is the region that held the last answer.
    #[inline]
    pub fn translate(&self, gpa: Gpa, len: u32, hint: &mut usize) -> Option<Span> {
        if let Some(e) = self.entries.get(*hint)
            && let Some(span) = e.span(gpa.0, len)
        {
            return Some(span);
        }
        self.translate_cold(gpa, len, hint)
    }

    #[cold]
    fn translate_cold(&self, gpa: Gpa, len: u32, hint: &mut usize) -> Option<Span> {
        let at = self.entries.partition_point(|e| e.gpa <= gpa.0).checked_sub(1)?;
        let span = self.entries.get(at)?.span(gpa.0, len)?;
        *hint = at;
        Some(span)
    }

    /// As many of `len` bytes at `gpa` as the region that holds the first one has: for buffers across regions.
    pub fn translate_prefix(&self, gpa: Gpa, len: u32) -> Option<Span> {
        let e = self.entries.get(self.entries.partition_point(|e| e.gpa <= gpa.0).checked_sub(1)?)?;
        let left = e.size.checked_sub(gpa.0.checked_sub(e.gpa)?).filter(|&left| left > 0)?;
        e.span(gpa.0, u32::try_from(left).map_or(len, |left| left.min(len)))
    }

    /// `len` bytes at the front-end's own address `uva`: where rings are.
    pub fn translate_uva(&self, uva: Uva, len: u32) -> Option<Span> {
        self.entries.iter().find_map(|e| {
            let into = uva.0.checked_sub(e.uva)?;
            e.span(e.gpa + into.min(e.size), len)
        })
    }

    /// The guest-physical address of the byte that is mapped at `host`. `hint` is the region that held the last answer.
    #[inline]
    pub fn gpa_of(&self, host: *const u8, hint: &mut usize) -> Option<Gpa> {
        if let Some(gpa) = self.entries.get(*hint).and_then(|e| e.gpa_of(host)) {
            return Some(gpa);
        }
        let (at, gpa) = self.entries.iter().enumerate().find_map(|(at, e)| Some((at, e.gpa_of(host)?)))?;
        *hint = at;
        Some(gpa)
    }

    /// The guest-physical address of the byte at the front-end's own address `uva`; None if it is not mapped.
    pub fn gpa_at(&self, uva: Uva) -> Option<Gpa> {
        self.entries.iter().find_map(|e| {
            let into = uva.0.checked_sub(e.uva).filter(|&into| into < e.size)?;
            Some(Gpa(e.gpa + into))
        })
    }

    /// The first guest-physical address past all memory, 0 without any.
    pub fn end(&self) -> u64 {
        self.entries.last().map_or(0, |e| e.gpa + e.size)
    }

    /// The byte behind the front-end's address `uva`; None if it is not mapped.
    pub fn place_of(&self, uva: Uva) -> Option<Place> {
        self.entries.iter().find_map(|e| {
            let into = uva.0.checked_sub(e.uva).filter(|&into| into < e.size)?;
            let (device, inode) = e.region.identity;
            Some(Place { device, inode, offset: e.mmap_offset + into })
        })
    }

    /// NUMA node of the page at the front-end's address `uva`; None if it is not mapped or the kernel cannot tell.
    pub fn numa_node_at(&self, uva: Uva) -> Option<u32> {
        self.translate_uva(uva, 1).and_then(|span| numa::node_of(span.start as usize))
    }

    /// True if the file behind the front-end's address `uva` holds no page: that memory is private to the VMM.
    pub fn is_private_at(&self, uva: Uva) -> bool {
        self.entries.iter().any(|e| uva.0 >= e.uva && uva.0 - e.uva < e.size && e.region.is_untouched())
    }
}

impl Entry {
    fn is(&self, spec: &RegionSpec) -> bool {
        use std::os::unix::fs::MetadataExt;
        (self.gpa, self.uva, self.size, self.mmap_offset) == (spec.gpa, spec.uva, spec.size, spec.mmap_offset)
            && spec.file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == self.region.identity)
    }

    #[inline]
    fn gpa_of(&self, host: *const u8) -> Option<Gpa> {
        let into = (host.addr() as u64).wrapping_sub(self.host.addr() as u64);
        (into < self.size).then(|| Gpa(self.gpa + into))
    }

    #[inline]
    fn span(&self, gpa: u64, len: u32) -> Option<Span> {
        let into = gpa.wrapping_sub(self.gpa);
        // Two compares decide: `into` below the size, and what is left covers `len`. Neither can wrap.
        if into < self.size && self.size - into >= u64::from(len) {
            #[allow(clippy::cast_possible_truncation, reason = "x86-64: usize holds every u64")]
            Some(Span { start: self.host.wrapping_add(into as usize), len })
        } else {
            None
        }
    }
}

fn entry(spec: RegionSpec, allow_file_memory: bool) -> Result<Entry> {
    let RegionSpec { gpa, uva, size, mmap_offset, file } = spec;
    if gpa.checked_add(size).is_none() || uva.checked_add(size).is_none() {
        return Err(Error::Peer(format!("guest memory: region at {gpa:#x} with {size:#x} bytes wraps around")));
    }
    let region = Arc::new(Region::map("guest memory", file, mmap_offset, size, allow_file_memory)?);
    Ok(Entry { gpa, uva, size, host: region.host(), mmap_offset, times: 1, region })
}
