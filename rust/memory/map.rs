//! The table of one guest's regions, and translation through it.
//!
//! What is translated are addresses as the device sees them: guest-physical ones, or, of a map that is guarded by the
//! guest's IOMMU, those that its IOTLB has a mapping for (`guarded`).
#![allow(unsafe_code, reason = "a Span crosses threads with the map that keeps it alive")]

mod guarded;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use guarded::Located;

use super::incoming::Incoming;
use super::iotlb::{Access, Iotlb};
use super::region::Region;
use super::sigbus;
use super::tlb::Tlb;
use super::window::Exhibit;
use super::{Gpa, Iova, Uva};
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

/// Bytes of guest memory, or of an [`Area`](super::Area), that are mapped here: never empty-by-lie, never across two mappings.
///
/// Valid while the map or the area it came from lives. Only `memory`, `burst`, `ring` and `port::afxdp` look inside.
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

    /// What is left of it after `cut` bytes, which it has.
    #[must_use]
    pub fn after(self, cut: u32) -> Self {
        Self { start: self.start.wrapping_add(cut as usize), len: self.len.saturating_sub(cut) }
    }
}

/// The stretch of addresses that held the last one, a region or a mapping, by value: a loop over many keeps it in registers.
///
/// Belongs to the [`GuestMap`] that filled it in, as the spans it makes do.
#[derive(Debug, Clone, Copy)]
pub struct Hint {
    from: u64,
    size: u64,
    host: *mut u8,
}

/// A region seen from our side, by value: where what lies at a host address is to the guest. To be used no longer than
/// the [`GuestMap`] that it is of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stretch {
    host: u64,
    size: u64,
    gpa: u64,
}

impl Stretch {
    /// The guest-physical address of the byte that is mapped at `host`; None if it is not in this region.
    #[inline]
    pub fn gpa_of(&self, host: *const u8) -> Option<Gpa> {
        let into = (host.addr() as u64).wrapping_sub(self.host);
        (into < self.size).then(|| Gpa(self.gpa.wrapping_add(into)))
    }
}

// SAFETY: as for a span, which it makes.
unsafe impl Send for Hint {}

impl Hint {
    /// No region: the first address is looked up.
    pub const NONE: Self = Self { from: 0, size: 0, host: std::ptr::null_mut() };

    /// True if any of `size` addresses from `from` on is among its own.
    pub(super) fn overlaps(&self, from: u64, size: u64) -> bool {
        from.wrapping_sub(self.from) < self.size || self.from.wrapping_sub(from) < size
    }

    /// `len` bytes at an address, if all are in its region.
    #[inline]
    pub(crate) fn span(&self, at: u64, len: u32) -> Option<Span> {
        let into = at.wrapping_sub(self.from);
        // Two compares decide: `into` below the size, and what is left covers `len`. Neither can wrap.
        if into < self.size && self.size - into >= u64::from(len) {
            #[allow(clippy::cast_possible_truncation, reason = "x86-64: usize holds every u64")]
            Some(Span { start: self.host.wrapping_add(into as usize), len })
        } else {
            None
        }
    }
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
    /// Bytes that a translation may give without a look at which pages are here: all, or none while a migration brings
    /// them.
    reach: u64,
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
    /// The migration that brings its pages.
    incoming: Option<Arc<Incoming>>,
    /// What the guest's IOMMU lets the device reach; None: all of it.
    iotlb: Option<Arc<Iotlb>>,
}

/// Why a translation gives no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No region holds them.
    Outside,
    /// A migration has not brought them yet. They were asked for: try again when [`GuestMap::arrived`] has moved.
    Absent,
    /// The guest's IOMMU has not told what the address means. It was asked: likewise.
    Unmapped,
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
        Self::map_incoming(specs, allow_file_memory, None)
    }

    /// As [`Self::map`]; with `incoming` the pages come one by one.
    ///
    /// # Errors
    /// As [`Self::map`]; `Kernel` for memory that userfaultfd does not take.
    pub fn map_incoming(
        specs: Vec<RegionSpec>,
        allow_file_memory: bool,
        incoming: Option<&Arc<Incoming>>,
    ) -> Result<Self> {
        let mut entries = Vec::with_capacity(specs.len());
        for spec in specs {
            entries.push(entry(spec, allow_file_memory, incoming)?);
        }
        Self::from_entries(entries, incoming.cloned())
    }

    /// The same memory with every page here: the migration is over.
    #[must_use]
    pub fn arrived_whole(&self) -> Self {
        let whole = |e: &Entry| Entry { reach: e.size, ..e.clone() };
        let losses = AtomicUsize::new(self.losses.load(Ordering::Relaxed));
        Self { entries: self.entries.iter().map(whole).collect(), losses, incoming: None, iotlb: self.iotlb.clone() }
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
            entries.push(entry(spec, allow_file_memory, self.incoming.as_ref())?);
        }
        Self::from_entries(entries, self.incoming.clone())
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
        Self::from_entries(entries, self.incoming.clone())
    }

    fn from_entries(mut entries: Vec<Entry>, incoming: Option<Arc<Incoming>>) -> Result<Self> {
        entries.sort_by_key(|e| e.gpa);
        for pair in entries.windows(2) {
            if let [a, b] = pair
                && a.gpa + a.size > b.gpa
            {
                return Err(Error::Peer(format!("guest memory: regions at {:#x} and {:#x} overlap", a.gpa, b.gpa)));
            }
        }
        // What an IOTLB says is said of the regions as they were: a new table begins without one.
        Ok(Self { entries: entries.into(), losses: AtomicUsize::new(0), incoming, iotlb: None })
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

    /// `len` bytes at an address that the device was given, if they lie in one piece and are at hand. `hint` is where the
    /// last answer of this map was, `tlb` what the queue that asks knows of a guarded one.
    #[inline]
    pub fn translate(&self, at: Iova, len: u32, hint: &mut Hint, tlb: &mut Tlb) -> Option<Span> {
        if let Some(span) = hint.span(at.0, len) {
            return Some(span);
        }
        // By value: the address of a hint that is handed out keeps it from the registers.
        let (span, found) = self.look_up(at, len, tlb)?;
        *hint = found;
        Some(span)
    }

    #[cold]
    #[inline(never)]
    fn look_up(&self, at: Iova, len: u32, tlb: &mut Tlb) -> Option<(Span, Hint)> {
        if let Some(iotlb) = &self.iotlb {
            return self.look_up_guarded(iotlb, at, len, tlb);
        }
        let e = self.region_at(Gpa(at.0))?;
        let span = e.span(at.0, len, e.size)?;
        e.is_here(span).then(|| (span, e.hint()))
    }

    /// `len` bytes at an address that the device was given, for this access, or why they cannot be had.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn translate_whole(&self, at: Iova, len: u32, access: Access) -> std::result::Result<Span, Unreachable> {
        if let Some(iotlb) = &self.iotlb {
            return self.guarded_whole(iotlb, at, len, access);
        }
        let span = self.translate_prefix(at, len, access)?;
        if span.len == len { Ok(span) } else { Err(Unreachable::Outside) }
    }

    /// As many of `len` bytes as lie in one piece from the first on: for buffers across regions or mappings.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn translate_prefix(&self, at: Iova, len: u32, access: Access) -> std::result::Result<Span, Unreachable> {
        if let Some(iotlb) = &self.iotlb {
            return self.guarded_prefix(iotlb, at, len, access);
        }
        let (e, span) = self.prefix(Gpa(at.0), len).ok_or(Unreachable::Outside)?;
        if e.is_here(span) { Ok(span) } else { Err(Unreachable::Absent) }
    }

    fn prefix(&self, gpa: Gpa, len: u32) -> Option<(&Entry, Span)> {
        let e = self.region_at(gpa)?;
        let left = e.size.checked_sub(gpa.0.checked_sub(e.gpa)?).filter(|&left| left > 0)?;
        Some((e, e.span(gpa.0, u32::try_from(left).map_or(len, |left| left.min(len)), e.size)?))
    }

    /// The last region that begins at `gpa` or before.
    fn region_at(&self, gpa: Gpa) -> Option<&Entry> {
        self.entries.get(self.entries.partition_point(|e| e.gpa <= gpa.0).checked_sub(1)?)
    }

    /// Device and inode of every file.
    pub fn files(&self) -> BTreeSet<(u64, u64)> {
        self.entries.iter().map(|e| e.region.identity).collect()
    }

    /// True if no file has a hole: whoever was to put pages there has done so.
    pub fn is_whole(&self) -> bool {
        self.entries.iter().all(|e| e.region.is_whole())
    }

    /// Bytes that whoever touches all of this memory allocates: a guest's size costs nothing until it is used. Hugepages are
    /// none of them: they are reserved when they are mapped.
    pub fn unallocated(&self) -> u64 {
        let files: BTreeMap<_, _> = self.entries.iter().map(|e| (e.region.identity, e.region.unallocated())).collect();
        files.values().sum()
    }

    /// True while a migration brings its pages.
    pub fn is_incoming(&self) -> bool {
        self.incoming.is_some()
    }

    /// How often something came that was not at hand: a page of a migration, a mapping of the guest's IOMMU.
    pub fn arrived(&self) -> u64 {
        let pages = self.incoming.as_ref().map_or(0, |incoming| incoming.arrived());
        pages.wrapping_add(self.iotlb.as_ref().map_or(0, |iotlb| iotlb.updates()))
    }

    /// False if `len` bytes at the front-end's address `uva` are mapped and not all here; they are asked for then.
    pub fn is_here_at(&self, uva: Uva, len: u32) -> bool {
        self.at_uva(uva, len).is_none_or(|(e, span)| e.is_here(span))
    }

    /// Where the pages of a region land that a migration brings; 0 if it is not mapped.
    pub fn base_of(&self, gpa: u64, uva: u64, size: u64) -> u64 {
        let found = self.entries.iter().find(|e| (e.gpa, e.uva, e.size) == (gpa, uva, size));
        found.and_then(|e| e.region.landing()).map_or(0, |landing| landing.base() as u64)
    }

    /// Tells the migration that memory that is not in `map` is nobody's any more.
    pub fn replaced_by(&self, map: Option<&Self>) {
        if let Some(incoming) = &self.incoming {
            let kept: Vec<_> = map.iter().flat_map(|map| &map.entries).map(|e| Arc::clone(&e.region)).collect();
            incoming.keep_only(&kept);
        }
    }

    /// `len` bytes at the front-end's own address `uva`: where rings are.
    pub fn translate_uva(&self, uva: Uva, len: u32) -> Option<Span> {
        self.at_uva(uva, len).map(|(_, span)| span)
    }

    fn at_uva(&self, uva: Uva, len: u32) -> Option<(&Entry, Span)> {
        self.entries.iter().find_map(|e| {
            let into = uva.0.checked_sub(e.uva)?;
            Some((e, e.span(e.gpa + into.min(e.size), len, e.size)?))
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

    /// Every region, as a network device is to be shown it.
    pub(super) fn exhibits(&self) -> Vec<Exhibit<'_>> {
        let all = self.entries.iter().filter_map(|e| {
            let (file, page) = e.region.file()?;
            Some(Exhibit { file, offset: e.mmap_offset, size: e.size, page: page as u64, host: e.host.addr() })
        });
        all.collect()
    }

    /// The region that is mapped at `host`.
    pub fn stretch_of(&self, host: *const u8) -> Option<Stretch> {
        let entry = self.entries.iter().find(|e| e.gpa_of(host).is_some())?;
        Some(Stretch { host: entry.host.addr() as u64, size: entry.size, gpa: entry.gpa })
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
    /// True if nothing of the span is still to come.
    fn is_here(&self, span: Span) -> bool {
        self.reach == self.size || self.region.landing().is_none_or(|l| l.has(span.start.addr(), span.len))
    }

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

    /// What is translated without a look at which pages are here.
    fn hint(&self) -> Hint {
        Hint { from: self.gpa, size: self.reach, host: self.host }
    }

    /// `len` bytes at `gpa`, if they lie in the first `size` of the region.
    fn span(&self, gpa: u64, len: u32, size: u64) -> Option<Span> {
        Hint { size, ..self.hint() }.span(gpa, len)
    }
}

fn entry(spec: RegionSpec, allow_file_memory: bool, incoming: Option<&Arc<Incoming>>) -> Result<Entry> {
    let RegionSpec { gpa, uva, size, mmap_offset, file } = spec;
    if gpa.checked_add(size).is_none() || uva.checked_add(size).is_none() {
        return Err(Error::Peer(format!("guest memory: region at {gpa:#x} with {size:#x} bytes wraps around")));
    }
    let region = Arc::new(Region::map("guest memory", file, mmap_offset, size, allow_file_memory, incoming)?);
    let reach = if let Some(incoming) = incoming {
        incoming.add(&region);
        0
    } else {
        size
    };
    Ok(Entry { gpa, uva, size, reach, host: region.host(), mmap_offset, times: 1, region })
}
