//! When an idle poll thread stops polling, and what wakes it.
//!
//! Adaptive: after a spell without frames the thread asks every guest for kicks, looks once more, and sleeps until one
//! comes or control writes. A spell that turned out too short (the thread was woken at once) grows the next one, up to
//! a millisecond; a long sleep shrinks it again. Kicks are awaited edge-triggered and never read, so nobody who clears
//! their `O_NONBLOCK` can make a read hang.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::sys::tsc;

/// Shortest spell without frames before a sleep, µs.
const SPELL_MIN_US: u64 = 50;
/// Longest.
const SPELL_MAX_US: u64 = 1000;
/// A sleep shorter than this was not worth it, µs.
const TOO_SHORT_US: u64 = 100;
/// Longest sleep when some ring has no kick descriptor, or waits for a page that nobody announces, ms.
const BLIND_MS: i32 = 1;

/// The epoll set of one thread and its patience.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoll: Epoll,
    spell_us: u64,
    idle_since: u64,
    /// Rings without a kick descriptor: these are polled by timer.
    blind: usize,
    /// `pmd-sleep-max`: None adaptive, 0 never, else at most so many µs.
    max_us: Option<u64>,
}

impl Sleeper {
    pub(super) fn new(wake: &impl AsRawFd, max_us: Option<u64>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        Ok(Self { epoll, spell_us: SPELL_MIN_US, idle_since: tsc::now(), blind: 0, max_us })
    }

    /// Changes the longest sleep.
    pub(super) fn set_max(&mut self, max_us: Option<u64>) {
        self.max_us = max_us;
    }

    /// Wakes on this queue's kicks, or frames, from now on.
    pub(super) fn watch(&mut self, kick: Option<&dyn AsRawFd>) {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        let watched = kick.is_some_and(|k| self.epoll.ctl(ControlOperation::Add, k.as_raw_fd(), event).is_ok());
        self.blind += usize::from(!watched);
    }

    /// No longer.
    pub(super) fn unwatch(&mut self, kick: Option<&dyn AsRawFd>) {
        let event = EpollEvent::default();
        let watched = kick.is_some_and(|k| self.epoll.ctl(ControlOperation::Delete, k.as_raw_fd(), event).is_ok());
        self.blind -= usize::from(!watched);
    }

    /// Frames moved: the spell begins anew.
    #[inline]
    pub(super) fn busy(&mut self, now: u64) {
        self.idle_since = now;
    }

    /// True once the spell without frames was long enough.
    #[inline]
    pub(super) fn is_time(&self, now: u64) -> bool {
        self.max_us != Some(0) && now.wrapping_sub(self.idle_since) > self.spell_us * tsc::cycles_per_us()
    }

    /// Sleeps until a kick, a message, or the longest sleep is over; `briefly` if there is something that nobody kicks
    /// for. Gives the cycles it took.
    pub(super) fn sleep(&mut self, briefly: bool) -> u64 {
        let before = tsc::now();
        match self.max_us {
            // Shorter than epoll can count: a plain nap.
            Some(us) if us < 1000 => std::thread::sleep(Duration::from_micros(us)),
            Some(us) => self.wait(i32::try_from(us / 1000).unwrap_or(i32::MAX), briefly),
            None => self.wait(-1, briefly),
        }
        let now = tsc::now();
        let slept = now.wrapping_sub(before);
        let slept_us = slept / tsc::cycles_per_us();
        self.spell_us = if slept_us < TOO_SHORT_US {
            (self.spell_us * 2).min(SPELL_MAX_US)
        } else {
            (self.spell_us / 2).max(SPELL_MIN_US)
        };
        self.idle_since = now;
        slept
    }

    fn wait(&self, timeout_ms: i32, briefly: bool) {
        let timeout_ms = match (self.blind + usize::from(briefly), timeout_ms) {
            (0, ms) => ms,
            (_, -1) => BLIND_MS,
            (_, ms) => ms.min(BLIND_MS),
        };
        let mut events = [EpollEvent::default(); 16];
        // Interrupted or woken, the caller looks at everything anyway.
        let _ = self.epoll.wait(timeout_ms, &mut events);
    }
}
