//! What happened, kept until control reads it, and a descriptor that says there is something.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, Result};
use crate::vhost::Level;

const KEPT: usize = 4096;

/// One line for the log.
#[derive(Debug, Clone)]
pub struct Event {
    /// How much it matters.
    pub level: Level,
    /// A stable word.
    pub kind: &'static str,
    /// Whose, if a port's.
    pub port: Option<String>,
    /// The message.
    pub text: String,
}

#[derive(Debug)]
pub(super) struct Events {
    ready: EventFd,
    kept: Mutex<VecDeque<Event>>,
}

impl Events {
    pub(super) fn new() -> Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK).map_err(|e| Error::kernel("no eventfd for events", e))?;
        Ok(Self { ready, kept: Mutex::default() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }

    pub(super) fn push(&self, level: Level, kind: &'static str, port: Option<&str>, text: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Event { level, kind, port: port.map(str::to_owned), text });
        drop(kept);
        self.poke();
    }

    /// Says that something is worth a look.
    pub(super) fn poke(&self) {
        // A full counter is readable as well.
        let _ = self.ready.write(1);
    }

    pub(super) fn take(&self) -> Vec<Event> {
        // Cleared before the queue is read, so that nothing put in later is missed. Empty is no error.
        let _ = self.ready.read();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}
