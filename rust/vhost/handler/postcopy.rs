//! Post-copy migration: the guest runs here while its memory still comes from another host.
//!
//! ```text
//!   POSTCOPY_ADVISE ─▶ userfaultfd to the front-end
//!   POSTCOPY_LISTEN ─▶ regions from now on: mapped with no page here, their addresses answered
//!   acknowledgement ─▶ faults are served: the pages of the rings are asked for, each vring starts when it has its own
//!   POSTCOPY_END    ─▶ every page is here: the same memory, an ordinary map; vrings go on where they stood
//! ```
//!
//! A session that ends before `POSTCOPY_END`, with the switch or without it, leaves a note of the guest's memory: the
//! front-end that comes back shares the same files and does not say that pages are missing. Its vrings wait until it says
//! that all came, or until no file has a hole.
//!
//! Invariants: this thread touches no page that is not here, so it always answers; a vring is with the `PortLink` only
//! while its rings are here. The userfaultfd and the fault thread end with the session, whatever the front-end did.

use std::fs::File;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vmm_sys_util::eventfd::EventFd;

use super::Handler;
use crate::error::{Error, Result};
use crate::memory::{Incoming, Progress};
use crate::sys::{cpu, file};
use crate::vhost::Level;
use crate::vhost::status::PostcopyState;

/// How long a page may take before its absence is worth a word.
const OVERDUE: Duration = Duration::from_secs(1);

/// What a session knows of its migration.
#[derive(Default)]
pub(super) struct Postcopy {
    /// Wakes the session's thread.
    waker: Option<EventFd>,
    running: Option<Running>,
    /// What the last one did, once it is over.
    last: Option<Progress>,
    /// The one that brings this memory began in a session before: its pages come, and cannot be asked for.
    is_interrupted: bool,
}

/// One that is on.
struct Running {
    incoming: Arc<Incoming>,
    /// From `POSTCOPY_LISTEN` on.
    thread: Option<JoinHandle<()>>,
    /// The front-end knows our addresses.
    is_acknowledged: bool,
    /// The page that was named as overdue: its host address.
    named: Option<usize>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.incoming.end();
        if let Some(thread) = self.thread.take() {
            // Nothing keeps it: what it may have slept for is there, or zeroes of our own are.
            let _ = thread.join();
        }
    }
}

impl Postcopy {
    /// What a snapshot shows.
    pub(super) fn state(&self) -> Option<PostcopyState> {
        match &self.running {
            Some(running) => Some(PostcopyState { is_on: true, progress: running.incoming.progress() }),
            None => self.last.map(|progress| PostcopyState { is_on: false, progress }),
        }
    }
}

impl Handler {
    /// Wakes the session's thread when pages came.
    pub(in crate::vhost) fn set_waker(&mut self, waker: EventFd) {
        self.postcopy.waker = Some(waker);
    }

    /// True from `POSTCOPY_ADVISE` to `POSTCOPY_END`, in whichever session it was advised.
    pub(in crate::vhost) fn is_migrating_in(&self) -> bool {
        self.postcopy.running.is_some() || self.postcopy.is_interrupted
    }

    /// Notes whose memory is on its way, and finds out whether what is shared now was.
    pub(super) fn note_arrival(&mut self) {
        let Some(memory) = &self.memory else { return };
        let (recovery, socket, files) = (&self.port.recovery, &self.port.socket, memory.files());
        if memory.is_incoming() {
            self.postcopy.is_interrupted = false;
            if let Err(e) = recovery.memory_arrives(socket, files) {
                let text = format!("{}: if the switch dies now, this guest's memory is lost: {e}", self.port.name);
                self.event(Level::Warning, "migration", text);
            }
            return;
        }
        let is_interrupted = recovery.is_memory_arriving(socket, &files) && !memory.is_whole();
        let was_interrupted = std::mem::replace(&mut self.postcopy.is_interrupted, is_interrupted);
        if is_interrupted && !was_interrupted {
            let text = "its memory was on its way when the session before ended; it waits for the rest";
            self.event(Level::Warning, "migration", format!("{}: {text}", self.port.name));
        }
    }

    /// A vring starts in memory that no migration brings: whatever was on its way is here, or is another's.
    pub(super) fn forget_arrival(&self) {
        if self.postcopy.running.is_none() {
            self.port.recovery.memory_arrived(&self.port.socket);
        }
    }

    /// True while vrings wait for memory that a session before this one was bringing.
    pub(super) fn is_interrupted(&self) -> bool {
        self.postcopy.is_interrupted
    }

    /// All pages are here, whichever session saw them come.
    fn memory_arrived(&mut self) {
        self.port.recovery.memory_arrived(&self.port.socket);
        if std::mem::take(&mut self.postcopy.is_interrupted) {
            let text = "the rest of the guest's memory is here";
            self.event(Level::Info, "migration", format!("{}: {text}", self.port.name));
        }
    }

    /// What brings the pages of regions that are announced now.
    pub(super) fn incoming(&self) -> Option<&Arc<Incoming>> {
        self.postcopy.running.as_ref().filter(|running| running.thread.is_some()).map(|running| &running.incoming)
    }

    pub(super) fn advise(&mut self) -> Result<File> {
        if self.protocol & VhostUserProtocolFeatures::PAGEFAULT.bits() == 0 {
            let text = "a post-copy migration is not offered here; set other_config:vhost-postcopy-support=true and \
                        restart the switch (dpdkvhostuser ports have none)";
            return Err(Error::Peer(text.into()));
        }
        if self.postcopy.running.is_some() {
            return Err(Error::Peer("a post-copy migration was announced while another is on".into()));
        }
        let incoming = Arc::new(Incoming::new()?);
        let theirs = file::duplicate(incoming.fd())
            .map_err(|e| Error::kernel("cannot duplicate a userfaultfd; raise RLIMIT_NOFILE (ulimit -n)", e))?;
        self.postcopy.running = Some(Running { incoming, thread: None, is_acknowledged: false, named: None });
        self.event(Level::Info, "migration", format!("{}: a post-copy migration is announced", self.port.name));
        Ok(theirs)
    }

    pub(super) fn listen(&mut self) -> Result<()> {
        let name = self.port.name.clone();
        let waker = self.postcopy.waker.as_ref().map(EventFd::try_clone).transpose();
        let waker = waker.map_err(|e| Error::kernel("cannot duplicate an eventfd; raise RLIMIT_NOFILE", e))?;
        let is_mapped = self.memory.is_some();
        let Some(running) = self.postcopy.running.as_mut().filter(|running| running.thread.is_none()) else {
            return Err(Error::Peer("POSTCOPY_LISTEN without a POSTCOPY_ADVISE before it".into()));
        };
        if is_mapped {
            let text = "memory was shared before POSTCOPY_LISTEN: what is missing of it cannot be told any more";
            return Err(Error::Peer(text.into()));
        }
        let incoming = Arc::clone(&running.incoming);
        let came = move || {
            if let Some(waker) = &waker {
                // A full counter wakes as well.
                let _ = waker.write(1);
            }
        };
        let body = move || {
            // It is woken for every page: on a poll thread's core it would keep other guests waiting each time. Where it
            // cannot go elsewhere it does what it must.
            let _ = cpu::leave_polled();
            incoming.serve(came);
        };
        let thread = std::thread::Builder::new().name(thread_name(&name)).spawn(body);
        running.thread = Some(thread.map_err(|e| Error::kernel(format!("{name}: no thread for page faults"), e))?);
        self.event(Level::Info, "migration", format!("{name}: the guest's memory comes by post-copy"));
        Ok(())
    }

    pub(super) fn end_postcopy(&mut self) -> Result<()> {
        let Some(running) = self.postcopy.running.take() else {
            if !self.postcopy.is_interrupted {
                return Err(Error::Peer("POSTCOPY_END without a post-copy migration".into()));
            }
            self.memory_arrived();
            self.reconcile();
            return Ok(());
        };
        let was_listening = running.thread.is_some();
        let progress = running.incoming.progress();
        drop(running);
        if let Some(memory) = self.memory.take_if(|memory| memory.is_incoming()) {
            self.stop_all();
            self.memory = Some(Arc::new(memory.arrived_whole()));
        }
        self.memory_arrived();
        if was_listening {
            self.postcopy.last = Some(progress);
            self.event(
                Level::Info,
                "migration",
                format!(
                    "{}: the guest's memory is here; {} pages were waited for, {} ms in all",
                    self.port.name,
                    progress.faults,
                    progress.stalled_us / 1000
                ),
            );
        }
        self.reconcile();
        Ok(())
    }

    /// The session ends: nobody is left to serve faults.
    pub(super) fn abandon_postcopy(&mut self) {
        if let Some(running) = self.postcopy.running.take() {
            self.postcopy.last = Some(running.incoming.progress());
            drop(running);
            self.memory = None;
        }
    }

    /// A new table is nothing to be touched before the front-end can serve its faults.
    pub(super) fn ask_for_acknowledgement(&mut self) {
        if let Some(running) = &mut self.postcopy.running {
            running.is_acknowledged = false;
        }
    }

    /// The front-end has our addresses.
    pub(super) fn serve_faults(&mut self) {
        if let Some(running) = &mut self.postcopy.running {
            running.is_acknowledged = true;
        }
        self.reconcile();
    }

    /// Where regions are mapped here, for a front-end that has to know.
    pub(super) fn bases(&self, regions: &[VhostUserMemoryRegion]) -> Option<Vec<u64>> {
        self.incoming()?;
        let memory = self.memory.as_ref()?;
        Some(regions.iter().map(|r| memory.base_of(r.guest_phys_addr, r.user_addr, r.memory_size)).collect())
    }

    /// False while pages of a vring's rings are on their way; they are asked for then.
    pub(super) fn is_ring_here(&self, at: usize) -> bool {
        if self.postcopy.is_interrupted {
            return false;
        }
        let Some(memory) = self.memory.as_ref().filter(|memory| memory.is_incoming()) else { return true };
        if !self.postcopy.running.as_ref().is_some_and(|running| running.is_acknowledged) {
            return false;
        }
        let config = self.vrings.get(at).and_then(|vring| vring.config(self.features.unwrap_or(0)));
        config.is_none_or(|config| config.is_here(memory))
    }

    /// Starts what waited for pages that came, and names a page that does not come.
    pub(in crate::vhost) fn look_at_arrivals(&mut self) {
        if self.postcopy.is_interrupted && self.memory.as_ref().is_some_and(|memory| memory.is_whole()) {
            // Its end may have been told while nobody listened.
            self.memory_arrived();
            self.reconcile();
        }
        if self.postcopy.running.is_none() {
            return;
        }
        self.reconcile();
        let overdue = self.overdue_address();
        let text = self.overdue_page();
        let Some(running) = &mut self.postcopy.running else { return };
        if let (Some(address), Some(text)) = (overdue, text)
            && running.named.replace(address) != Some(address)
        {
            self.event(Level::Warning, "migration", format!("{}: {text}", self.port.name));
        }
    }

    fn overdue_address(&self) -> Option<usize> {
        let (address, waited) = self.postcopy.running.as_ref()?.incoming.waits_for()?;
        (waited >= OVERDUE).then_some(address)
    }

    /// What to say of a page that was asked for long ago.
    pub(super) fn overdue_page(&self) -> Option<String> {
        let address = self.overdue_address()?;
        let place = self.memory.as_ref().and_then(|memory| memory.gpa_of(address as *const u8, &mut 0));
        let place = place.map_or_else(|| "it was asked for".to_owned(), |gpa| format!("at {:#x} was asked for", gpa.0));
        Some(format!(
            "a page of the guest's memory {place} and does not come: look at the source of the migration and the network \
             between; this port waits, others go on"
        ))
    }
}

/// `fault-<port>`, cut to the 15 bytes that the kernel keeps.
fn thread_name(port: &str) -> String {
    let mut name = format!("fault-{}", port.replace('\0', "?"));
    while name.len() > 15 {
        name.pop();
    }
    name
}
