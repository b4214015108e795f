// SPDX-License-Identifier: Apache-2.0
//! How much an end may send, and when: a rate, a bound on frames on the way, pauses.

use std::time::{Duration, Instant};

use super::settings::RunSettings;

/// Frames on the way that made no progress for so long are taken for lost. A busy machine stands still for a second or
/// two; giving up then would let more frames out than the receiver has buffers.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);
/// Frames a rate may be behind before what was missed is forgotten.
const BEHIND_AT_MOST: u64 = 1024;

/// Governs one end.
#[derive(Debug)]
pub(super) struct Governor {
    not_before: Instant,
    since: Instant,
    sent_before: u64,
    arrived: u64,
    progress_at: Instant,
    written_off: u64,
}

impl Governor {
    pub(super) fn new(now: Instant) -> Self {
        Self { not_before: now, since: now, sent_before: 0, arrived: 0, progress_at: now, written_off: 0 }
    }

    /// Whether the end found its ring full a moment ago.
    #[inline]
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        now < self.not_before
    }

    pub(super) fn rest_until(&mut self, then: Instant) {
        self.not_before = then;
    }

    /// Frames that may be sent now, after `sent` in all, of which `arrived` are there.
    pub(super) fn allowance(&mut self, settings: &RunSettings, sent: u64, arrived: u64, now: Instant) -> u64 {
        let by_rate = settings.rate.map_or(u64::MAX, |rate| self.by_rate(rate, sent, now));
        let by_window = settings.in_flight.map_or(u64::MAX, |window| self.by_window(window, sent, arrived, now));
        by_rate.min(by_window)
    }

    fn by_rate(&mut self, rate: u64, sent: u64, now: Instant) -> u64 {
        let due = u128::from(rate) * now.duration_since(self.since).as_nanos() / 1_000_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let allowed = due.saturating_sub(sent.saturating_sub(self.sent_before));
        // What could not be sent in time is not made up for: the rate is a ceiling.
        if allowed > BEHIND_AT_MOST {
            (self.since, self.sent_before) = (now, sent);
            return BEHIND_AT_MOST;
        }
        allowed
    }

    fn by_window(&mut self, window: u64, sent: u64, arrived: u64, now: Instant) -> u64 {
        if self.arrived != arrived {
            (self.arrived, self.progress_at) = (arrived, now);
        }
        let on_the_way = sent.saturating_sub(arrived.saturating_add(self.written_off));
        if on_the_way >= window && now.duration_since(self.progress_at) > GIVE_UP_AFTER {
            self.written_off += on_the_way;
            self.progress_at = now;
            return window;
        }
        window.saturating_sub(on_the_way)
    }
}

/// The longest time in which an end received nothing.
#[derive(Debug)]
pub(super) struct Silence {
    last: Instant,
    longest: Duration,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, longest: Duration::ZERO }
    }

    /// Notes a look at the queues at `now`, and whether there was anything.
    #[inline]
    pub(super) fn note(&mut self, now: Instant, received: bool) {
        if received {
            self.longest = self.longest.max(now.duration_since(self.last));
            self.last = now;
        }
    }

    /// The longest so far, the one that lasts at `now` included.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        self.longest.max(now.duration_since(self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_silence_is_kept_and_the_last_one_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut silence = Silence::new(start);
        silence.note(at(5), true);
        silence.note(at(20), false);
        silence.note(at(30), true);
        assert_eq!(silence.longest(at(31)), Duration::from_millis(25));
        assert_eq!(silence.longest(at(90)), Duration::from_millis(60));
    }

    fn settings(rate: Option<u64>, in_flight: Option<u64>) -> RunSettings {
        RunSettings { rate, in_flight, ..RunSettings::default() }
    }

    #[test]
    fn a_rate_lets_through_its_share_of_the_time() {
        let start = Instant::now();
        let mut governor = Governor::new(start);
        let settings = settings(Some(1000), None);
        assert_eq!(governor.allowance(&settings, 0, 0, start), 0);
        let later = start + Duration::from_millis(100);
        assert_eq!(governor.allowance(&settings, 0, 0, later), 100);
        assert_eq!(governor.allowance(&settings, 100, 0, later), 0);
    }

    #[test]
    fn a_window_opens_as_frames_arrive_and_after_they_are_given_up() {
        let start = Instant::now();
        let mut governor = Governor::new(start);
        let settings = settings(None, Some(10));
        assert_eq!(governor.allowance(&settings, 10, 0, start), 0);
        assert_eq!(governor.allowance(&settings, 10, 4, start), 4);
        let late = start + GIVE_UP_AFTER + Duration::from_millis(1);
        assert_eq!(governor.allowance(&settings, 14, 4, late), 10);
        assert_eq!(governor.allowance(&settings, 14, 4, late), 10);
    }
}
