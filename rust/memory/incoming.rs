//! Memory that a post-copy migration brings page by page while the guest runs (`vhost-user: POSTCOPY_ADVISE`).
//!
//! ```text
//!   poll thread ── a bit is clear: want() ──▶ wanted ──▶ the port's fault thread: serve()
//!        ▲                                                   │ touches, and sleeps until the source sent the page
//!        └──────────── bit set, `arrived` counts up ◀────────┘
//! ```
//!
//! Every region has a bit for each page, all clear at first. A translation gives bytes only of pages whose bits are set;
//! so nobody but the fault thread ever touches a missing page, and nobody but that thread sleeps for one. A bit that is
//! set stays set: bytes once translated are there as long as their map.
//!
//! Beside what is wanted, the fault thread looks for pages that came by themselves and sets their bits: first around
//! what was wanted, then everywhere. It does not ask for what nobody wants: the source sends the rest in its own order,
//! and goes on after each page asked for.
//!
//! When the front-end says that all pages are here, the mappings become ordinary ones. When it goes before that, the
//! mappings are replaced by zeroes of our own before the fault thread is woken: had it touched the file, the guest would
//! find a page of zeroes where its own was still to come.
#![allow(unsafe_code, reason = "touches guest memory to bring it here")]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::access;
use super::region::Region;
use super::words::Words;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::sys::userfault::{self, Userfault};
use crate::sys::{socket, tsc};

/// Most bytes of a translation that anybody touches, from its first: no frame and no ring area is longer. It bounds how
/// many bits a poll thread looks at.
const REACH: u64 = 1 << 20;
/// Small pages that are looked for together: 2 MiB.
const BLOCK: usize = 512;
/// Blocks looked at before the thread rests, and how long; and how long after all were looked at.
const BLOCKS_AT_ONCE: usize = 16;
const REST: Duration = Duration::from_millis(1);
const LONG_REST: Duration = Duration::from_millis(50);

/// What a migration has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Pages that are not known to be here.
    pub missing: u64,
    /// Pages that were asked of the source, and came.
    pub faults: u64,
    /// µs that the fault thread slept for them.
    pub stalled_us: u64,
}

/// One session's incoming memory: the userfaultfd, the regions, and what is wanted.
#[derive(Debug)]
pub struct Incoming {
    userfault: Userfault,
    bell: EventFd,
    is_rung: AtomicBool,
    /// Those that were announced; a map keeps each.
    regions: Lock<Vec<Weak<Region>>>,
    is_over: AtomicBool,
    /// Pages that came. Who waits for one looks again when it has moved.
    arrived: AtomicU64,
    faults: AtomicU64,
    stalled: AtomicU64,
    /// The host address that the fault thread touches, 0 if none, and since when, in TSC cycles.
    touching: AtomicUsize,
    since: AtomicU64,
}

impl Incoming {
    /// # Errors
    /// `Kernel`: this process may not use userfaultfd; the text says what to set.
    pub fn new() -> Result<Self> {
        let userfault = Userfault::open().map_err(|e| {
            let cure = match e.kind() {
                std::io::ErrorKind::Unsupported => "the kernel has none for shared memory; use Linux 4.11 or later",
                _ if e.raw_os_error() == Some(libc::ENOSYS) => "the kernel was built without CONFIG_USERFAULTFD",
                _ => {
                    "set sysctl vm.unprivileged_userfaultfd=1, let this user open /dev/userfaultfd, or give this \
                     process CAP_SYS_PTRACE"
                }
            };
            Error::kernel(format!("post-copy needs userfaultfd: {cure}"), e)
        })?;
        let bell = EventFd::new(EFD_NONBLOCK)
            .map_err(|e| Error::kernel("no eventfd for post-copy; raise RLIMIT_NOFILE (ulimit -n)", e))?;
        Ok(Self {
            userfault,
            bell,
            is_rung: AtomicBool::new(false),
            regions: Lock::default(),
            is_over: AtomicBool::new(false),
            arrived: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            touching: AtomicUsize::new(0),
            since: AtomicU64::new(0),
        })
    }

    /// What the front-end reads the faults from.
    pub fn fd(&self) -> RawFd {
        self.userfault.as_raw_fd()
    }

    /// How many pages came so far.
    #[inline]
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Makes the missing pages of these bytes, whole pages of a mapping, wait for the front-end. Nobody touched them.
    pub(super) fn register(&self, start: usize, size: usize) -> Result<()> {
        self.userfault.register(start, size).map_err(|e| {
            let what = "guest memory: userfaultfd does not take it; post-copy needs shared memory on memfd, tmpfs or \
                        hugetlbfs";
            Error::kernel(what, e)
        })
    }

    pub(super) fn add(&self, region: &Arc<Region>) {
        self.regions.lock().push(Arc::downgrade(region));
    }

    /// Not for a poll thread.
    fn live_regions(&self) -> Vec<Arc<Region>> {
        let mut regions = self.regions.lock();
        regions.retain(|region| region.strong_count() > 0);
        regions.iter().filter_map(Weak::upgrade).collect()
    }

    /// What was done so far.
    pub fn progress(&self) -> Progress {
        let missing = self.live_regions().iter().filter_map(|region| region.residency()).map(Residency::missing).sum();
        Progress {
            missing,
            faults: self.faults.load(Ordering::Relaxed),
            stalled_us: self.stalled.load(Ordering::Relaxed) / tsc::cycles_per_us(),
        }
    }

    /// The host address of the page that is waited for now, and how long already. None if none is.
    pub fn waits_for(&self) -> Option<(usize, Duration)> {
        let since = self.since.load(Ordering::Acquire);
        match self.touching.load(Ordering::Acquire) {
            0 => None,
            address => Some((address, Duration::from_micros(tsc::now().saturating_sub(since) / tsc::cycles_per_us()))),
        }
    }

    /// The body of the port's fault thread: brings what is wanted until it is over. `came` is called after pages came.
    pub fn serve(&self, came: impl Fn()) {
        let mut cursor = (0, 0);
        while !self.is_over.load(Ordering::Acquire) {
            self.is_rung.store(false, Ordering::SeqCst);
            let regions = self.live_regions();
            if regions.iter().fold(false, |any, region| self.bring_wanted(region) | any) {
                came();
                continue;
            }
            let rest = if self.look_around(&regions, &mut cursor) { LONG_REST } else { REST };
            // A failed wait is a short one.
            let _ = socket::wait_for(&self.bell, libc::POLLIN, rest);
            let _ = self.bell.read();
        }
    }

    /// Touches every wanted page of a region; true if there was one.
    fn bring_wanted(&self, region: &Region) -> bool {
        let Some(residency) = region.residency() else { return false };
        let mut any = false;
        residency.take_wanted(|page| {
            any = true;
            self.bring(residency, page);
            if residency.is_small() {
                self.look_at(residency, page / BLOCK);
            }
        });
        any
    }

    /// Touches one page, which may take as long as the source does.
    fn bring(&self, residency: &Residency, page: usize) {
        if residency.is_here(page) || self.is_over.load(Ordering::Acquire) {
            return;
        }
        let (began, sleeps) = (tsc::now(), userfault::sleeps_of_this_thread());
        self.since.store(began, Ordering::Release);
        self.touching.store(residency.address(page), Ordering::Release);
        residency.touch(page);
        self.touching.store(0, Ordering::Release);
        if self.is_over.load(Ordering::Acquire) || residency.is_gone.load(Ordering::Acquire) {
            return;
        }
        if userfault::sleeps_of_this_thread() != sleeps {
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.stalled.fetch_add(tsc::now().saturating_sub(began), Ordering::Relaxed);
        }
        residency.set_here(page);
        self.arrived.fetch_add(1, Ordering::AcqRel);
    }

    /// Looks at some blocks from the cursor on, and moves it; true once the last was looked at.
    fn look_around(&self, regions: &[Arc<Region>], cursor: &mut (usize, usize)) -> bool {
        for _ in 0..BLOCKS_AT_ONCE {
            let Some(region) = regions.get(cursor.0) else {
                *cursor = (0, 0);
                return true;
            };
            match region.residency().filter(|r| r.is_small() && cursor.1 * BLOCK < r.pages && r.missing() > 0) {
                Some(residency) => {
                    self.look_at(residency, cursor.1);
                    cursor.1 += 1;
                }
                None => *cursor = (cursor.0 + 1, 0),
            }
        }
        false
    }

    /// Sets the bits of the small pages in a block that came by themselves.
    fn look_at(&self, residency: &Residency, block: usize) {
        let first = block * BLOCK;
        let count = residency.pages.saturating_sub(first).min(BLOCK);
        if (first..first + count).all(|page| residency.is_here(page)) {
            return;
        }
        let mut at_hand = [0; BLOCK];
        let Some(at_hand) = at_hand.get_mut(..count) else { return };
        if userfault::pages_at_hand(residency.address(first), at_hand).is_err() {
            return;
        }
        for (page, at_hand) in (first..).zip(at_hand) {
            if *at_hand & 1 != 0 && !residency.is_here(page) {
                self.bring(residency, page);
            }
        }
    }

    /// Somebody wants pages.
    #[cold]
    fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // A full counter wakes as well.
            let _ = self.bell.write(1);
        }
    }

    /// All pages are here (`vhost-user: POSTCOPY_END`): from now on the memory is like any other. `serve` returns.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        for region in self.live_regions() {
            if let Some(residency) = region.residency() {
                // A range that is not registered any more is what was wanted.
                let _ = self.userfault.unregister(residency.start, residency.size());
            }
        }
        self.ring();
    }

    /// Nobody will serve faults any more, and nobody uses the memory. `serve` returns, and leaves no page of zeroes in
    /// the guest's files. Nothing happens after [`Self::end`].
    pub fn abandon(&self) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        for region in self.live_regions() {
            self.abandon_region(&region);
        }
        self.ring();
    }

    /// Abandons those regions that are not among `kept`.
    pub(super) fn keep_only(&self, kept: &[Arc<Region>]) {
        for region in self.live_regions() {
            if !kept.iter().any(|other| Arc::ptr_eq(other, &region)) {
                self.abandon_region(&region);
            }
        }
    }

    fn abandon_region(&self, region: &Region) {
        let Some(residency) = region.residency() else { return };
        residency.is_gone.store(true, Ordering::Release);
        region.blank();
        // Only who sleeps already needs it: whoever comes now finds our own zeroes.
        let _ = self.userfault.wake(residency.start, residency.size());
    }
}

/// Which pages of one region are here.
#[derive(Debug)]
pub(super) struct Residency {
    /// Host address of its first page.
    start: usize,
    pages: usize,
    /// Bytes of a page, as a power of two.
    shift: u32,
    /// A bit a page.
    here: Words,
    wanted: Words,
    /// A bit for each word of `wanted` that is not zero.
    marks: Words,
    missing: AtomicU64,
    /// The region was taken out of the table.
    is_gone: AtomicBool,
    incoming: Arc<Incoming>,
}

impl Residency {
    /// Of the pages of `page_size` bytes that `size` bytes at `start` lie in. None of them is here.
    pub(super) fn new(incoming: &Arc<Incoming>, start: usize, size: usize, page_size: usize) -> Result<Self> {
        let first = start & !(page_size - 1);
        let pages = (start + size - first).div_ceil(page_size);
        incoming.register(first, pages * page_size)?;
        let bits = |count: usize| Words::anonymous(count.div_ceil(64) * 8);
        Ok(Self {
            start: first,
            pages,
            shift: page_size.trailing_zeros(),
            here: bits(pages)?,
            wanted: bits(pages)?,
            marks: bits(pages.div_ceil(64))?,
            missing: AtomicU64::new(pages as u64),
            is_gone: AtomicBool::new(false),
            incoming: Arc::clone(incoming),
        })
    }

    /// True if every page of `size` bytes at the host address `start` is here. Those that are not are asked for.
    pub(super) fn has(&self, start: usize, size: u32) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "x86-64: usize holds every u64")]
        let size = u64::from(size).clamp(1, REACH) as usize;
        let into = start - self.start;
        let mut is_all = true;
        for page in into >> self.shift..=(into + size - 1) >> self.shift {
            if !self.is_here(page) {
                is_all = false;
                self.want(page);
            }
        }
        if !is_all {
            self.incoming.ring();
        }
        is_all
    }

    fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }

    fn is_small(&self) -> bool {
        self.shift == 12
    }

    fn size(&self) -> usize {
        self.pages << self.shift
    }

    fn address(&self, page: usize) -> usize {
        self.start + (page << self.shift)
    }

    fn is_here(&self, page: usize) -> bool {
        self.here.as_slice().get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) >> (page % 64) & 1 != 0)
    }

    fn set_here(&self, page: usize) {
        if let Some(word) = self.here.as_slice().get(page / 64)
            && word.fetch_or(1 << (page % 64), Ordering::AcqRel) >> (page % 64) & 1 == 0
        {
            self.missing.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn want(&self, page: usize) {
        let word = page / 64;
        if let Some((wanted, mark)) = self.wanted.as_slice().get(word).zip(self.marks.as_slice().get(word / 64)) {
            wanted.fetch_or(1 << (page % 64), Ordering::SeqCst);
            mark.fetch_or(1 << (word % 64), Ordering::SeqCst);
        }
    }

    /// Takes what is wanted, page by page.
    fn take_wanted(&self, mut f: impl FnMut(usize)) {
        for (mark, word) in taken(self.marks.as_slice()).flat_map(|(at, bits)| ones(bits).map(move |bit| (at, bit))) {
            let at = mark * 64 + word;
            let bits = self.wanted.as_slice().get(at).map_or(0, |word| word.swap(0, Ordering::SeqCst));
            ones(bits).for_each(|bit| f(at * 64 + bit));
        }
    }

    fn touch(&self, page: usize) {
        // SAFETY: a byte of a page of the region's mapping; whoever calls holds the region, and with it the mapping.
        let _ = unsafe { access::load::<u8>(self.address(page) as *const u8) };
    }
}

/// Every word that is not zero, with its place; zero is left.
fn taken(words: &[AtomicU64]) -> impl Iterator<Item = (usize, u64)> {
    let busy = words.iter().enumerate().filter(|(_, word)| word.load(Ordering::SeqCst) != 0);
    busy.map(|(at, word)| (at, word.swap(0, Ordering::SeqCst)))
}

/// The places of the bits that are set.
fn ones(bits: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| bits >> bit & 1 != 0)
}
