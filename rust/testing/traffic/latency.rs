// SPDX-License-Identifier: Apache-2.0
//! Latency: one frame there and back at a time.
//!
//! The first end sends, an echoing end (in this process or another) turns the frame round. With an
//! interval the switch has time to fall asleep between frames, so the wake-up shows.

use std::time::{Duration, Instant};

use super::report::{Json, ratio};
use super::runner::Runner;

/// A frame that is not back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// Runs for the set duration or number of frames (default: 10 000 frames).
pub(super) fn measure(runner: &mut Runner) -> Json {
    let duration = runner.settings().duration;
    let interval = runner.settings().interval;
    let fallback = if duration.is_some() { u64::MAX } else { 10_000 };
    let frames = runner.settings().frames.unwrap_or(fallback);
    let warm = Instant::now() + runner.settings().warmup;
    while Instant::now() < warm && !runner.is_stopping() {
        round_trip(runner);
    }
    let start = Instant::now();
    let mut times = Vec::new();
    let (mut sent, mut lost) = (0, 0);
    while sent < frames && !runner.is_stopping() {
        let begin = Instant::now();
        if duration.is_some_and(|duration| begin.duration_since(start) >= duration) {
            break;
        }
        sent += 1;
        match round_trip(runner) {
            Some(time) => times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            None => lost += 1,
        }
        while begin.elapsed() < interval && !runner.is_stopping() {
            runner.step(false);
        }
    }
    times.sort_unstable();
    let micros = |share: f64| Json::Number(ratio(quantile(&times, share), 1000));
    Json::object([
        ("seconds", Json::Number(start.elapsed().as_secs_f64())),
        ("round_trips", Json::Count(times.len() as u64)),
        ("lost", Json::Count(lost)),
        ("min_us", micros(0.0)),
        ("p50_us", micros(0.5)),
        ("p90_us", micros(0.9)),
        ("p99_us", micros(0.99)),
        ("p999_us", micros(0.999)),
        ("max_us", micros(1.0)),
    ])
}

/// Sends one frame from the first end and waits until one is back there.
fn round_trip(runner: &mut Runner) -> Option<Duration> {
    let before = runner.ends().first()?.numbered();
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < LOST_AFTER && !runner.is_stopping() {
        if sent == 0 {
            sent = runner.ends_mut().first_mut()?.send(1, 1, u64::MAX);
        }
        runner.step(false);
        if runner.ends().first()?.numbered() > before {
            return Some(begin.elapsed());
        }
    }
    None
}

/// The smallest value that at least `share` of the sorted `times` do not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a length is a length"
)]
pub(super) fn quantile(times: &[u64], share: f64) -> u64 {
    let rank = (times.len() as f64 * share).ceil() as usize;
    times.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let times: Vec<u64> = (1..=100).collect();
        assert_eq!(quantile(&times, 0.5), 50);
        assert_eq!(quantile(&times, 0.99), 99);
        assert_eq!(quantile(&times, 1.0), 100);
        assert_eq!(quantile(&times, 0.0), 1);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
