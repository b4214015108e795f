// SPDX-License-Identifier: Apache-2.0
//! The dirty log from the front-end's side, as if its guest were being copied to another host: shared with the back-end,
//! and fetched and cleared every so often by a thread of its own.
//!
//! What is fetched is counted and copied nowhere: this is for what logging costs a switch, and to see that it logs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::testing::memory::{Backing, GuestRam, Region, RegionSpec};
use crate::testing::wire::{Message, Request};
use crate::testing::{Error, Result};

/// Guest memory that one byte of the log stands for: eight pages of 4 KiB.
const PER_BYTE: u64 = 8 << 12;

/// Time between two fetches. QEMU copies what is marked in between, which takes it longer.
const FETCH: Duration = Duration::from_millis(100);

/// A log, for the life of a front-end.
#[derive(Debug)]
pub struct DirtyLog {
    memory: GuestRam,
    fetched: Arc<AtomicU64>,
    /// Dropped at the end.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DirtyLog {
    /// One that holds every page of `ram`.
    ///
    /// # Errors
    /// `Kernel` without memory or a thread.
    pub(super) fn of(ram: &GuestRam) -> Result<Self> {
        let end = ram.regions().iter().map(|region| region.gpa().0 + region.size() as u64).max().unwrap_or(0);
        let size = usize::try_from(end.div_ceil(PER_BYTE)).unwrap_or(usize::MAX);
        let memory = GuestRam::new(&RegionSpec::spread(1, size, &Backing::Memfd))?;
        let window = memory.regions().first().map(|region| region.window().clone());
        let fetched = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&fetched);
        let (alive, ended) = channel();
        let body = move || {
            let Some(window) = window else { return };
            while ended.recv_timeout(FETCH) == Err(RecvTimeoutError::Timeout) {
                let marked = (0..window.size()).step_by(8).map(|at| u64::from(window.take_u64(at).count_ones())).sum();
                count.fetch_add(marked, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("dirty-log".into()).spawn(body);
        let thread = thread.map_err(Error::kernel("cannot start a thread for the dirty log"))?;
        Ok(Self { memory, fetched, alive: Some(alive), thread: Some(thread) })
    }

    /// Pages that are marked or were, each as often as it was fetched.
    pub fn marked(&self) -> u64 {
        let windows = self.memory.regions().iter().map(Region::window);
        let now = windows.flat_map(|window| (0..window.size()).step_by(8).map(|at| window.load_u64(at).count_ones()));
        self.fetched.load(Ordering::Relaxed) + now.map(u64::from).sum::<u64>()
    }

    /// `SET_LOG_BASE`, and the descriptor beside it.
    pub(super) fn message(&self) -> (Message, Vec<RawFd>) {
        let size = self.memory.regions().iter().map(|region| region.size() as u64).sum();
        let fds = self.memory.regions().iter().map(AsRawFd::as_raw_fd).collect();
        (Message::new(Request::SET_LOG_BASE).words(&[size, 0]), fds)
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // It was reported where it panicked.
            let _ = thread.join();
        }
    }
}
