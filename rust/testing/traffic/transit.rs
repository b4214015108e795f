// SPDX-License-Identifier: Apache-2.0
//! How long frames are on their way while many are: in each pass of the sender one frame is watched, from before it is
//! posted until the receiver has its number, or a later one of the same stream.
//!
//! Watching costs the sender a push and the receiver a comparison a pass, the same for every switch. A frame that was lost
//! counts from when it was sent to when the next one arrived, and one that is still on its way at the end for as long as it
//! has been.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::end::End;
use super::latency::quantile;
use super::report::{Json, ratio};

/// Times kept; later ones are left out. Half a minute of passes as short as they get.
const KEPT: usize = 1 << 23;

/// Watches frames on their way from the first end to the second.
#[derive(Debug)]
pub(super) struct Transit {
    /// Frames watched: how many had been sent with it, and when.
    on_the_way: VecDeque<(u64, Instant)>,
    sent: u64,
    /// Nanoseconds.
    times: Vec<u64>,
}

impl Transit {
    /// Begins to watch; frames sent before are not.
    pub(super) fn new(ends: &[End]) -> Self {
        let sent = ends.first().map_or(0, End::sent);
        Self { on_the_way: VecDeque::with_capacity(4096), sent, times: Vec::with_capacity(KEPT) }
    }

    /// Call after each pass, which began at `began`.
    #[inline]
    pub(super) fn note(&mut self, ends: &[End], began: Instant) {
        let [sender, receiver] = ends else { return };
        let sent = sender.sent();
        if sent > self.sent {
            self.sent = sent;
            self.on_the_way.push_back((sent, began));
        }
        let arrived = receiver.streams().next(0);
        if self.on_the_way.front().is_none_or(|&(number, _)| arrived < number) {
            return;
        }
        let now = Instant::now();
        while let Some(&(number, began)) = self.on_the_way.front()
            && number <= arrived
        {
            self.on_the_way.pop_front();
            self.keep(now.duration_since(began));
        }
    }

    #[inline]
    fn keep(&mut self, time: Duration) {
        if self.times.len() < KEPT {
            self.times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// What was found by the time of the `end`.
    pub(super) fn report(mut self, end: Instant) -> Json {
        for (_, began) in std::mem::take(&mut self.on_the_way) {
            self.keep(end.duration_since(began));
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
        ])
    }
}
