//! Memory that a post-copy migration brings page by page while the guest runs (`vhost-user: POSTCOPY_ADVISE`).
//!
//! ```text
//!   poll thread ── a bit is clear: want() ──▶ wanted ──▶ the port's fault thread: serve()
//!        ▲                                                   │ touches, and sleeps until the source sent the page
//!        └──────────── bit set, `arrived` counts up ◀────────┘
//! ```
//!
//! Every region has a bit for each page, all clear at first. A translation gives bytes only of pages whose bits are set;
//! so nobody but the fault thread ever touches a missing page, and nobody but that thread sleeps for one.
//!
//! Beside what is wanted, the fault thread looks for pages that came by themselves and sets their bits: first around
//! what was wanted, then everywhere. It does not ask for what nobody wants: the source sends the rest in its own order,
//! and goes on after each page asked for. Where it may not look, a page's bit is set when it was wanted, and not before.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::landing::{BLOCK, Landing};
use super::region::Region;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::sys::userfault::{self, Userfault};
use crate::sys::{socket, tsc};

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
    /// Wanted pages that came, however they came. Who waits for one looks again when it has moved; thousands that nobody
    /// waits for do not make anybody look.
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

    /// How many wanted pages came so far.
    #[inline]
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Makes the missing pages of these bytes, whole pages of a mapping, wait for the front-end. Nobody touched them.
    pub(super) fn register(&self, subject: &str, start: usize, size: usize) -> Result<()> {
        self.userfault.register(start, size).map_err(|e| {
            let cure = "userfaultfd does not take it; post-copy needs shared memory on memfd, tmpfs or hugetlbfs";
            Error::kernel(format!("{subject}: {cure}"), e)
        })
    }

    /// Lets whoever waits for a page in these bytes look again.
    pub(super) fn wake(&self, start: usize, size: usize) {
        // Nothing is left to be woken where nothing is registered.
        let _ = self.userfault.wake(start, size);
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
        let missing = |region: &Arc<Region>| region.landing().map(|landing| landing.residency().missing());
        Progress {
            missing: self.live_regions().iter().filter_map(missing).sum(),
            faults: self.faults.load(Ordering::Relaxed),
            stalled_us: self.stalled.load(Ordering::Relaxed) / tsc::cycles_per_us(),
        }
    }

    /// The host address of the page that is waited for now, as poll threads have it, and how long already. None if none
    /// is.
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
        let Some(landing) = region.landing() else { return false };
        let mut any = false;
        landing.residency().take_wanted(|page| {
            any = true;
            self.bring(landing, page);
            // One that had come by itself before its turn too: whoever wanted it may not have seen that.
            self.arrived.fetch_add(1, Ordering::AcqRel);
            self.look_at(landing, page / BLOCK);
        });
        any
    }

    /// Touches one page, which may take as long as the source does.
    fn bring(&self, landing: &Landing, page: usize) {
        if landing.residency().is_here(page) || self.is_over.load(Ordering::Acquire) {
            return;
        }
        let (began, sleeps) = (tsc::now(), userfault::sleeps_of_this_thread());
        self.since.store(began, Ordering::Release);
        self.touching.store(landing.seen_at(page), Ordering::Release);
        let came = landing.touch(page);
        self.touching.store(0, Ordering::Release);
        if !came {
            return;
        }
        if userfault::sleeps_of_this_thread() != sleeps {
            self.faults.fetch_add(1, Ordering::Relaxed);
            self.stalled.fetch_add(tsc::now().saturating_sub(began), Ordering::Relaxed);
        }
        landing.let_in(page);
    }

    /// Looks at some blocks from the cursor on, and moves it; true once the last was looked at.
    fn look_around(&self, regions: &[Arc<Region>], cursor: &mut (usize, usize)) -> bool {
        for _ in 0..BLOCKS_AT_ONCE {
            let Some(region) = regions.get(cursor.0) else {
                *cursor = (0, 0);
                return true;
            };
            let is_within = |landing: &&Landing| {
                let residency = landing.residency();
                landing.may_look() && cursor.1 * BLOCK < residency.pages() && residency.missing() > 0
            };
            match region.landing().filter(is_within) {
                Some(landing) => {
                    self.look_at(landing, cursor.1);
                    cursor.1 += 1;
                }
                None => *cursor = (cursor.0 + 1, 0),
            }
        }
        false
    }

    /// Lets in the pages of a block that came by themselves.
    fn look_at(&self, landing: &Landing, block: usize) {
        if landing.may_look() {
            landing.at_hand(block).for_each(|page| self.bring(landing, page));
        }
    }

    /// Somebody wants pages.
    #[cold]
    pub(super) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // A full counter wakes as well.
            let _ = self.bell.write(1);
        }
    }

    /// Nobody will serve faults any more, because all pages are here (`vhost-user: POSTCOPY_END`) or because the
    /// front-end went. `serve` returns. No page comes of it in the guest's files.
    pub fn end(&self) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        for region in self.live_regions() {
            close(&region);
        }
        self.ring();
    }

    /// No page comes any more of those regions that are not among `kept`.
    pub(super) fn keep_only(&self, kept: &[Arc<Region>]) {
        for region in self.live_regions() {
            if !kept.iter().any(|other| Arc::ptr_eq(other, &region)) {
                close(&region);
            }
        }
    }
}

fn close(region: &Region) {
    if let Some(landing) = region.landing() {
        landing.close();
    }
}
