// SPDX-License-Identifier: Apache-2.0
//! How long frames are on their way while many are: in each pass of the sender one frame is watched, from before it is
//! posted until the receiver has its number, or a later one of the same stream.
//!
//! Watching costs the sender a push and the receiver a comparison a pass, the same for every switch. A frame that was lost
//! counts from when it was sent to when the next one arrived, and one that is still on its way at the end for as long as it
//! has been.
//!
//! Sender and receiver are one thread. While the kernel runs another in its place frames that have arrived wait to be seen,
//! which says nothing of the switch: that time is left out of theirs, and told. Only the kernel's own count of such
//! changes makes a pause one of those; a long pass is none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::end::End;
use super::latency::quantile;
use super::report::{Json, ratio};
use crate::testing::sys;

/// Times kept; later ones are left out. Half a minute of passes as short as they get.
const KEPT: usize = 1 << 23;
/// A pass that takes so long may have been interrupted: then the kernel is asked.
const LONG: Duration = Duration::from_micros(3);

/// A frame on its way.
#[derive(Debug)]
struct Watched {
    /// How many had been sent with it.
    number: u64,
    began: Instant,
    /// [`Absence::total`] at that time.
    away: Duration,
}

/// Watches frames on their way from the first end to the second.
#[derive(Debug)]
pub(super) struct Transit {
    on_the_way: VecDeque<Watched>,
    sent: u64,
    absence: Absence,
    /// Nanoseconds.
    times: Vec<u64>,
}

impl Transit {
    /// Begins to watch; frames sent before are not.
    pub(super) fn new(ends: &[End]) -> Self {
        let sent = ends.first().map_or(0, End::sent);
        let absence = Absence::new(Instant::now(), sys::times_preempted());
        Self { on_the_way: VecDeque::with_capacity(4096), sent, absence, times: Vec::with_capacity(KEPT) }
    }

    /// Call after each pass, which began at `began`.
    #[inline]
    pub(super) fn note(&mut self, ends: &[End], began: Instant) {
        let [sender, receiver] = ends else { return };
        // A pause between two passes is over before this one's frame is sent.
        self.absence.look(began, sys::times_preempted);
        let sent = sender.sent();
        if sent > self.sent {
            self.sent = sent;
            self.on_the_way.push_back(Watched { number: sent, began, away: self.absence.total });
        }
        let arrived = receiver.streams().next(0);
        if self.on_the_way.front().is_none_or(|frame| arrived < frame.number) {
            return;
        }
        let now = Instant::now();
        self.absence.look(now, sys::times_preempted);
        while self.on_the_way.front().is_some_and(|frame| frame.number <= arrived)
            && let Some(frame) = self.on_the_way.pop_front()
        {
            self.keep(&frame, now);
        }
    }

    #[inline]
    fn keep(&mut self, frame: &Watched, now: Instant) {
        if self.times.len() < KEPT {
            let away = self.absence.total.saturating_sub(frame.away);
            let time = now.duration_since(frame.began).saturating_sub(away);
            self.times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// What was found by the time of the `end`.
    pub(super) fn report(mut self, end: Instant) -> Json {
        for frame in std::mem::take(&mut self.on_the_way) {
            self.keep(&frame, end);
        }
        self.times.sort_unstable();
        // Of no frame there is no time, and least of all a short one.
        let micros = |share: f64| match self.times.as_slice() {
            [] => Json::Null,
            times => Json::Number(ratio(quantile(times, share), 1000)),
        };
        Json::object([
            ("watched", Json::Count(self.times.len() as u64)),
            ("p50_us", micros(0.5)),
            ("p99_us", micros(0.99)),
            ("p999_us", micros(0.999)),
            ("max_us", micros(1.0)),
            ("left_out_us", Json::Number(self.absence.total.as_secs_f64() * 1e6)),
        ])
    }
}

/// The time in which the kernel ran another thread in this one's place.
#[derive(Debug)]
struct Absence {
    /// The last look.
    looked: Instant,
    /// [`sys::times_preempted`] when it was asked last.
    times: i64,
    total: Duration,
}

impl Absence {
    fn new(now: Instant, times: i64) -> Self {
        Self { looked: now, times, total: Duration::ZERO }
    }

    /// A look at `now`. `ask` tells how often this thread was preempted, and is asked after a pause only.
    #[inline]
    fn look(&mut self, now: Instant, ask: impl FnOnce() -> i64) {
        let pause = now.duration_since(self.looked);
        self.looked = now;
        if pause > LONG {
            self.judge(pause, ask());
        }
    }

    #[cold]
    fn judge(&mut self, pause: Duration, times: i64) {
        if std::mem::replace(&mut self.times, times) != times {
            self.total += pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pause_in_which_another_thread_ran_is_an_absence() {
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        let mut absence = Absence::new(start, 7);
        absence.look(at(1), || panic!("a short pass asks nobody"));
        // A switch that stood still and then delivered much: a long pass, and nobody else ran.
        absence.look(at(101), || 7);
        assert_eq!(absence.total, Duration::ZERO);
        absence.look(at(141), || 8);
        absence.look(at(142), || panic!("a short pass asks nobody"));
        absence.look(at(200), || 8);
        absence.look(at(260), || 10);
        assert_eq!(absence.total, Duration::from_micros(40 + 60));
    }
}
