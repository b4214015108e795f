//! What happened, kept until control reads it, and a descriptor that says there is something.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::vhost::Level;

const KEPT: usize = 4096;

/// Lines a port may have at once: a front-end that starts and stops its 256 vrings gets all of them.
const AT_ONCE: u32 = 1024;

/// How soon a port may have one line more.
const REFILL: Duration = Duration::from_millis(100);

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
    kept: Lock<VecDeque<Event>>,
}

impl Events {
    pub(super) fn new() -> Result<Self> {
        let ready = EventFd::new(EFD_NONBLOCK).map_err(|e| Error::kernel("no eventfd for events", e))?;
        Ok(Self { ready, kept: Lock::default() })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }

    pub(super) fn push(&self, level: Level, kind: &'static str, port: Option<&str>, text: String) {
        let mut kept = self.kept.lock();
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
        self.kept.lock().drain(..).collect()
    }
}

/// What one port may put into the log. Its front-end decides how often queues start and sessions begin, its device how
/// often it comes and goes.
#[derive(Debug)]
pub(super) struct Allowance {
    ledger: Lock<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    left: u32,
    /// Up to when lines were refilled.
    since: Instant,
    left_out: u64,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { ledger: Lock::new(Ledger { left: AT_ONCE, since: now, left_out: 0 }) }
    }

    /// Takes one line. None if there is none to be had; else how many were left out since the last one.
    pub(super) fn take(&self, now: Instant) -> Option<u64> {
        let mut ledger = self.ledger.lock();
        let steps = now.saturating_duration_since(ledger.since).as_millis() / REFILL.as_millis();
        if let Ok(steps) = u32::try_from(steps) {
            ledger.left = ledger.left.saturating_add(steps).min(AT_ONCE);
            ledger.since += REFILL * steps;
        } else {
            (ledger.left, ledger.since) = (AT_ONCE, now);
        }
        if ledger.left == 0 {
            ledger.left_out += 1;
            return None;
        }
        ledger.left -= 1;
        Some(std::mem::take(&mut ledger.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_says_too_much_is_heard_now_and_then_and_told_what_was_left_out() {
        let now = Instant::now();
        let allowance = Allowance::new(now);
        for _ in 0..AT_ONCE {
            assert_eq!(allowance.take(now), Some(0));
        }
        for _ in 0..500 {
            assert_eq!(allowance.take(now), None);
        }
        let later = now + REFILL;
        assert_eq!(allowance.take(later), Some(500));
        assert_eq!(allowance.take(later), None);
        // Patience fills it up again, and no further.
        let much_later = now + Duration::from_secs(1 << 40);
        for left_out in std::iter::once(1).chain(std::iter::repeat_n(0, AT_ONCE as usize - 1)) {
            assert_eq!(allowance.take(much_later), Some(left_out));
        }
        assert_eq!(allowance.take(much_later), None);
    }
}
