// SPDX-License-Identifier: Apache-2.0
//! Post-copy migration from the front-end's side: the guest's memory is taken away and comes back page by page, as
//! somebody asks for it.
//!
//! ```text
//!   guest's driver ──touch──▶ our userfaultfd ───┐
//!                                                ├──▶ the source: a thread that serves each page as it was told to
//!   back-end ───────touch──▶ its userfaultfd ────┘        now, later, never
//! ```
//! As in QEMU, pages are put into the memory through our own mapping, and whoever waits in the back-end's is woken.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Frontend, FrontendConfig, MemoryMessage, Session, no_session};
use crate::testing::memory::{GuestRam, MissingPages, Userfault};
use crate::testing::wire::{self, Message, RegionEntry, Request};
use crate::testing::{Error, Result};

/// What becomes of a page that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// It comes at once.
    Now,
    /// It comes after so long.
    After(Duration),
    /// It does not come before [`Migration::serve_all`].
    Never,
}

#[derive(Debug)]
struct Orders {
    /// Rung after an order was given: the source sleeps until there is something to do, and takes no core from anybody.
    bell: EventFd,
    is_over: AtomicBool,
    serve_all: AtomicBool,
    /// Faults that the back-end had.
    asked: AtomicU64,
}

impl Orders {
    fn new() -> Result<Self> {
        let bell = EventFd::new(EFD_NONBLOCK).map_err(Error::kernel("cannot make an eventfd"))?;
        let [is_over, serve_all] = [const { AtomicBool::new(false) }; 2];
        Ok(Self { bell, is_over, serve_all, asked: AtomicU64::new(0) })
    }

    fn give(&self, order: &AtomicBool) {
        order.store(true, Ordering::Release);
        // A counter at its limit is heard as well.
        let _ = self.bell.write(1);
    }
}

/// Where the back-end mapped each region: told while the source serves already, as a back-end may touch memory as soon as
/// it has it.
#[derive(Debug, Clone, Default)]
pub(super) struct Bases(Arc<Mutex<Vec<u64>>>);

impl Bases {
    fn known(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, bases: Vec<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bases;
    }
}

/// A source that serves pages until it is dropped; then the memory is ordinary, and what did not come is a hole.
#[derive(Debug)]
pub struct Migration {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Migration {
    /// Pages that the back-end asked for.
    pub fn asked(&self) -> u64 {
        self.orders.asked.load(Ordering::Acquire)
    }

    /// Every page comes now, whether somebody asked for it or not.
    pub fn serve_all(&self) {
        self.orders.give(&self.orders.serve_all);
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        self.orders.give(&self.orders.is_over);
        if let Some(thread) = self.thread.take() {
            // A source that panicked was reported where it did.
            let _ = thread.join();
        }
    }
}

impl Frontend {
    /// Announces a post-copy migration and begins it: the memory is made known, page by page, by the next
    /// [`start`](Self::start). Gives the back-end's userfaultfd.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up.
    pub fn postcopy(&mut self) -> Result<File> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        let reply = session.channel.ask(&Message::new(Request::POSTCOPY_ADVISE))?;
        let file = reply.file.ok_or_else(|| Error::Peer("no userfaultfd came with POSTCOPY_ADVISE".into()))?;
        session.channel.send(&Message::new(Request::POSTCOPY_LISTEN).need_reply(), &[])?;
        match session.channel.reply(Request::POSTCOPY_LISTEN)?.number()? {
            0 => session.listening = true,
            code => return Err(Error::Peer(format!("the back-end refused POSTCOPY_LISTEN ({code})"))),
        }
        Ok(file)
    }

    /// Says that every page is there.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up.
    pub fn end_postcopy(&mut self) -> Result<()> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        session.channel.send(&Message::new(Request::POSTCOPY_END).need_reply(), &[])?;
        match session.channel.reply(Request::POSTCOPY_END)?.number()? {
            0 => session.listening = false,
            code => return Err(Error::Peer(format!("the back-end refused POSTCOPY_END ({code})"))),
        }
        Ok(())
    }

    /// Serves what was taken out of this front-end's memory (`GuestRam::take_away`), as `policy` says of each page, by
    /// region and place in it. It may begin before [`start`](Self::start): some back-ends touch rings as they learn of them.
    ///
    /// # Errors
    /// `Kernel` without a thread or an eventfd.
    pub fn serve(
        &self,
        mut pages: MissingPages,
        backend: File,
        mut policy: impl FnMut(usize, usize) -> Serve + Send + 'static,
    ) -> Result<Migration> {
        let told = self.session.as_ref().ok_or_else(no_session)?.bases.clone();
        let orders = Arc::new(Orders::new()?);
        let (ours, theirs) = (Arc::clone(&orders), Userfault::from(backend));
        let body = move || {
            let mut late: Vec<(Option<Instant>, usize, usize)> = Vec::new();
            loop {
                // Before the orders: one that is given from now on is heard in the wait.
                let _ = ours.bell.read();
                // Read first: an order that came before the end is carried out.
                let is_over = ours.is_over.load(Ordering::Acquire);
                if ours.serve_all.swap(false, Ordering::AcqRel) {
                    pages.place_all(&theirs, &told.known());
                    late.clear();
                }
                if is_over {
                    return;
                }
                let next = late.iter().filter_map(|&(due, ..)| due).min();
                let time = next.map(|due| due.saturating_duration_since(Instant::now()));
                Userfault::wait_any(&[pages.userfault(), &theirs], &ours.bell, time);
                let bases = told.known();
                let own = pages.userfault().fault().and_then(|address| pages.find_own(address));
                let other = theirs.fault().and_then(|address| pages.find(&bases, address));
                ours.asked.fetch_add(u64::from(other.is_some()), Ordering::AcqRel);
                for (region, page) in own.into_iter().chain(other) {
                    match policy(region, page) {
                        Serve::Now => pages.place(&theirs, &bases, region, page),
                        Serve::After(wait) => late.push((Some(Instant::now() + wait), region, page)),
                        Serve::Never => late.push((None, region, page)),
                    }
                }
                // The last that was asked for comes first.
                let now = Instant::now();
                late.reverse();
                late.retain(|&(due, region, page)| {
                    let is_due = due.is_some_and(|due| due <= now);
                    if is_due {
                        pages.place(&theirs, &bases, region, page);
                    }
                    !is_due
                });
                late.reverse();
            }
        };
        let thread = std::thread::Builder::new().name("source".into()).spawn(body);
        let thread = thread.map_err(Error::kernel("cannot start the source of a migration"))?;
        Ok(Migration { orders, thread: Some(thread) })
    }
}

/// Makes memory known while the back-end listens, and notes where it is mapped there.
pub(super) fn set_memory(
    config: &FrontendConfig,
    ram: &GuestRam,
    session: &Session,
    entries: &[RegionEntry],
) -> Result<()> {
    let fds: Vec<_> = ram.regions().iter().map(AsRawFd::as_raw_fd).collect();
    let mut bases = Vec::new();
    let mut note = |payload: &[u8], entry: &RegionEntry| {
        let word =
            |at: usize| payload.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let [gpa, base] = [word(0), word(16)];
        match base.filter(|_| gpa == Some(entry.gpa.0)) {
            Some(base) => {
                bases.push(base);
                Ok(())
            }
            None => Err(Error::Peer(format!("the back-end did not say where it mapped {:#x}", entry.gpa.0))),
        }
    };
    let request = match config.memory_message {
        MemoryMessage::Table => {
            let message = wire::mem_table(entries);
            session.channel.send(&message.need_reply(), &fds)?;
            let reply = session.channel.reply(Request::SET_MEM_TABLE)?;
            for (entry, region) in entries.iter().zip(reply.payload.get(8..).unwrap_or_default().chunks(32)) {
                note(region, entry)?;
            }
            Request::SET_MEM_TABLE
        }
        MemoryMessage::Regions => {
            for (entry, fd) in entries.iter().zip(&fds) {
                let message = wire::mem_region(Request::ADD_MEM_REG, *entry);
                session.channel.send(&message.need_reply(), &[*fd])?;
                let reply = session.channel.reply(Request::ADD_MEM_REG)?;
                note(reply.payload.get(8..).unwrap_or_default(), entry)?;
            }
            Request::ADD_MEM_REG
        }
    };
    if bases.len() != entries.len() {
        return Err(Error::Peer(format!("the back-end answered {} regions of {}", bases.len(), entries.len())));
    }
    session.bases.tell(bases);
    // As QEMU: it asks for an answer and waits for none.
    session.channel.send(&Message::number(request, 0).need_reply(), &[])
}
