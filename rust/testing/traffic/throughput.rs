// SPDX-License-Identifier: Apache-2.0
//! Throughput: as many frames as fit, or as were asked for, in a window of time.
//!
//! What limited them can be told from three shares: how often the ring of the sender was full, how long this process had
//! nothing to do, and how long it waited for its processor.

use std::time::{Duration, Instant};

use super::end::End;
use super::governor::Silence;
use super::report::{Json, Snapshot, ratio};
use super::runner::Runner;
use super::settings::{Mode, RunSettings};
use super::transit::Transit;

/// Warms up, and runs for the set duration or number of frames, else until it is told to stop.
pub(super) fn measure(runner: &mut Runner) -> Json {
    let warm = Instant::now() + runner.settings().warmup;
    while Instant::now() < warm && !runner.is_stopping() {
        runner.step(true);
    }
    runner.event("measuring", &[]);
    let before: Vec<Snapshot> = runner.ends().iter().map(Snapshot::of).collect();
    let clock_before = scheduler_clock();
    let start = Instant::now();
    runner.silences.fill_with(|| Silence::new(start));
    let end = runner.settings().duration.map(|duration| start + duration);
    let mut idle = Duration::ZERO;
    let mut before_step = start;
    let mut transit = (runner.settings().mode == Mode::Transit).then(|| Transit::new(runner.ends()));
    while !runner.is_stopping() && !runner.frames_done() {
        let was_idle = runner.idle;
        let now = runner.step(true);
        if let Some(transit) = &mut transit {
            transit.note(runner.ends(), now);
        }
        if was_idle {
            idle += now.duration_since(before_step);
        }
        before_step = now;
        if runner.idle {
            yield_the_rings(runner.settings());
        }
        if end.is_some_and(|end| now >= end) {
            break;
        }
    }
    let finish = Instant::now();
    let seconds = finish.duration_since(start).as_secs_f64();
    let clock = scheduler_clock();
    let ends: Vec<Json> = runner
        .ends()
        .iter()
        .zip(before.iter().zip(&runner.silences))
        .map(|(end, (before, silence))| window(end, before, silence.longest(finish), seconds))
        .collect();
    let (ran, waited) = (clock.0 - clock_before.0, clock.1 - clock_before.1);
    Json::object([
        ("seconds", Json::Number(seconds)),
        ("idle_share", Json::Number(idle.as_secs_f64() / seconds)),
        ("wait_share", Json::Number(ratio(waited, ran + waited))),
        ("ends", Json::List(ends)),
        ("transit", transit.map_or(Json::Null, |transit| transit.report(finish))),
    ])
}

/// Waits a quarter of a microsecond, where traffic is as much as fits: whoever looks at a ring without a pause takes its
/// lines from the device all the time. Much less than the time in which a ring would run empty.
#[inline]
fn yield_the_rings(settings: &RunSettings) {
    if settings.rate.is_none() && settings.in_flight.is_none() {
        (0..4).for_each(|_| std::hint::spin_loop());
    }
}

fn window(end: &End, before: &Snapshot, silence: Duration, seconds: f64) -> Json {
    let after = Snapshot::of(end);
    let sent = after.sent.frames - before.sent.frames;
    let received = after.received.frames - before.received.frames;
    let per_second = |count: u64| Json::Number(ratio(count, 1) / seconds);
    let tries = after.sent.tries - before.sent.tries;
    let full = after.sent.full_tries - before.sent.full_tries;
    Json::object([
        ("name", Json::text(end.name())),
        ("sent", Json::Count(sent)),
        ("sent_pps", per_second(sent)),
        ("received", Json::Count(received)),
        ("received_pps", per_second(received)),
        ("received_bits_per_second", per_second(8 * (after.received.bytes - before.received.bytes))),
        ("ring_full_share", Json::Number(ratio(full, tries))),
        ("longest_silence_s", Json::Number(silence.as_secs_f64())),
    ])
}

/// Nanoseconds this thread ran, and waited for a processor.
fn scheduler_clock() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
