// SPDX-License-Identifier: Apache-2.0
//! When to look at the socket, and when to try again.

use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(1);
const RETRY_AFTER: Duration = Duration::from_millis(5);
const RETRY_AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// How an end stands with its back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Nobody is there, or the last session ended.
    Down,
    /// Rings are handed over and enabled.
    Up,
}

impl LinkState {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

/// The clock of one end's link.
#[derive(Debug)]
pub(super) struct LinkClock {
    next: Instant,
}

impl LinkClock {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() }
    }

    /// Whether it is time to look; if so, the next look is due a little later.
    pub(super) fn is_due(&mut self, now: Instant, state: LinkState) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now
            + match state {
                LinkState::Up => LOOK_EVERY,
                LinkState::Down => RETRY_AFTER,
            };
        true
    }

    /// After a refusal the next try waits longer, or a refusing back-end would be flooded.
    pub(super) fn refused(&mut self, now: Instant) {
        self.next = now + RETRY_AFTER_REFUSAL;
    }
}
