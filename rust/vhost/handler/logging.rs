//! What a session knows of its guest's way to another host: the dirty log, and when its rings mark what they write.
//!
//! ```text
//!   SET_LOG_BASE ──▶ log ─┐
//!   SET_FEATURES, LOG_ALL ┴─▶ Logging::turn ─▶ every poll thread has passed ─▶ the answer
//! ```
//!
//! Rings that run go on running, at the index where they are: only the switch they all look at is turned. While the
//! front-end wants a log and there is none that holds all its memory, no ring runs: what it would receive meanwhile
//! could be lost at the destination, and nobody would know. QEMU sends a ring's start before the log when a device
//! starts in mid-migration.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{VhostUserLog, VhostUserVringAddr};

use super::{Handler, Level};
use crate::error::{Error, Result};
use crate::memory::{DirtyLog, Gpa, Logging, Uva};
use crate::ring::feature;
use crate::sys::{eventfd::Notifier, socket};
use crate::vhost::features::LOG_ALL;
use crate::vhost::vring::{log_address, name};

/// The log and who looks at it.
#[derive(Default)]
pub(super) struct Migration {
    /// What the session's rings look at.
    pub(super) logging: Arc<Logging>,
    log: Option<Arc<DirtyLog>>,
    /// Told when there is something new in the log.
    news: Option<(File, Notifier)>,
}

impl Handler {
    /// True while the front-end wants every write marked.
    pub(super) fn wants_log(&self) -> bool {
        let agreed = self.protocol & VhostUserProtocolFeatures::LOG_SHMFD.bits() != 0;
        agreed && self.features.is_some_and(|features| features & LOG_ALL != 0)
    }

    /// True while writes are marked.
    pub(super) fn is_logging(&self) -> bool {
        self.migration.logging.is_on()
    }

    /// Takes a log, which replaces the one before even if it cannot be used: the front-end looks at that no more.
    pub(super) fn take_log(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let before = self.migration.log.take();
        let mapped = if self.protocol & VhostUserProtocolFeatures::LOG_SHMFD.bits() == 0 {
            Err(Error::Peer("a dirty log without LOG_SHMFD, which was not agreed on".into()))
        } else {
            DirtyLog::map(file, log.mmap_offset, log.mmap_size, self.port.allow_file_memory)
        };
        let refusal = match mapped {
            Ok(log) => {
                self.migration.log = Some(Arc::new(log));
                None
            }
            Err(e) => Some(e),
        };
        self.reconcile();
        // Nobody looks at the one before any more.
        if before.is_some_and(|log| log.is_broken()) {
            // What it stopped may run again; also what a poll thread has not told us of yet.
            self.stop_all();
            self.vrings.iter_mut().for_each(|vring| vring.fault = None);
            self.reconcile();
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Turns marking on or off as it is wanted now. When this returns, every ring does so.
    pub(super) fn turn_logging(&mut self) {
        let was_on = self.is_logging();
        let log = self.migration.log.as_ref().filter(|_| self.wants_log());
        if !self.migration.logging.turn(log) {
            return;
        }
        if self.vrings.iter().any(|vring| vring.live) {
            self.link().quiesce();
        }
        let text = match (was_on, self.is_logging()) {
            (false, true) => "its guest is on its way: what is written to it is marked in its dirty log",
            (true, false) => "what is written to its guest is not marked any more",
            _ => "its dirty log was replaced",
        };
        self.event(Level::Info, "migration", format!("{}: {text}", self.port.name));
    }

    /// Why no ring may run now, for the log's sake.
    pub(super) fn log_obstacle(&self) -> Option<String> {
        if !self.wants_log() {
            return None;
        }
        let Some(log) = &self.migration.log else {
            return Some("the front-end to share its dirty log (LOG_ALL is on, and no SET_LOG_BASE yet)".into());
        };
        let end = self.memory.as_ref().map_or(0, |memory| memory.end());
        (!log.covers(end)).then(|| {
            let covered = (log.size() as u64).saturating_mul(8 << 12);
            format!(
                "a larger dirty log: the one that the front-end shared ends at guest-physical address {covered:#x}, the \
                 guest's memory at {end:#x}"
            )
        })
    }

    /// Why one may not, though others may.
    pub(super) fn log_obstacle_of(&self, at: usize) -> Option<String> {
        let log = self.migration.log.as_ref().filter(|_| self.wants_log())?;
        // Where the used ring of a guest with an IOMMU is, the memory table says; it lies inside the log as that does.
        let vring = self.vrings.get(at).filter(|_| !self.is_guarded())?;
        let Gpa(used) = log_address(vring.addr.as_ref()?)?;
        let is_packed = self.features.is_some_and(|features| features & feature::RING_PACKED != 0);
        let size = if is_packed { 4 } else { 6 + 8 * u64::from(vring.size) };
        let is_inside = used.checked_add(size).is_some_and(|end| log.covers(end));
        (!is_inside).then(|| {
            format!("{} to be set up with its used ring inside the dirty log ({used:#x} is past its end)", name(at))
        })
    }

    /// True if a vring at this address marks its used ring in other pages than at that one.
    pub(super) fn marks_elsewhere(&self, before: &VhostUserVringAddr, after: &VhostUserVringAddr) -> bool {
        if self.is_guarded() {
            return false;
        }
        let place = |addr: &VhostUserVringAddr| {
            let told = log_address(addr);
            told.or_else(|| self.memory.as_ref().and_then(|memory| memory.gpa_at(Uva(addr.used))))
        };
        place(before) != place(after)
    }

    /// Takes the descriptor by which the front-end wants to hear of news in the log.
    pub(super) fn take_log_fd(&mut self, file: File) -> Result<()> {
        let ours = crate::vhost::vring::duplicate(&file)?;
        let notifier = Notifier::new(file).map_err(|_| {
            Error::Peer("the dirty log's descriptor is not an eventfd; the front-end must send one".into())
        })?;
        self.migration.news = Some((ours, notifier));
        Ok(())
    }

    /// True while the front-end waits for news of the log.
    pub(in crate::vhost) fn has_log_fd(&self) -> bool {
        self.migration.news.is_some() && self.is_logging()
    }

    /// Tells it, if there is any.
    pub(in crate::vhost) fn tell_log_news(&self) {
        if let (Some((file, notifier)), Some(log)) = (&self.migration.news, &self.migration.log)
            // A peer can make the call block by filling the counter: one that is full already tells.
            && socket::wait_for(file, libc::POLLOUT, Duration::ZERO).is_ok_and(|is_ready| is_ready)
            && log.take_news()
        {
            notifier.notify();
        }
    }
}
