//! How often one session may have every poll thread pass.
//!
//! A pass costs each of them a look into its mailbox and an answer, whoever asked for it. A guest with strict invalidation
//! asks once a frame, some thousands of times a second; a hostile one as often as its front-end lets it. Past the limit its
//! own session rests, and with it its front-end, which waits for the answer: nobody else does.

use std::time::{Duration, Instant};

/// Between two passes, in the long run: ten thousand a second.
const INTERVAL: Duration = Duration::from_micros(100);
/// How many may come at once before that.
const AT_ONCE: u32 = 64;

/// When passes may be asked for.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last one would have been due, had each kept its distance.
    due: Option<Instant>,
}

impl Pace {
    /// Counts one more; gives how long to rest before it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let due = self.due.map_or(now, |due| now.max(due + INTERVAL));
        self.due = Some(due);
        due.saturating_duration_since(now + INTERVAL * AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: C8, C13.
    #[test]
    fn who_asks_without_end_is_held_to_the_pace_and_who_asks_seldom_never_rests() {
        let begin = Instant::now();
        let (mut pace, mut now) = (Pace::default(), begin);
        for _ in 0..20_000 {
            now += pace.take(now);
        }
        let least = INTERVAL * (20_000 - AT_ONCE - 1);
        assert!(now - begin >= least, "{:?}", now - begin);
        assert!(now - begin <= least + INTERVAL);
        for _ in 0..1000 {
            now += 2 * INTERVAL;
            let rest = pace.take(now);
            now += rest;
        }
        // What it was ahead is made good by now.
        for _ in 0..AT_ONCE {
            assert_eq!(pace.take(now), Duration::ZERO);
        }
        now += 10 * AT_ONCE * INTERVAL;
        for _ in 0..AT_ONCE {
            assert_eq!(pace.take(now), Duration::ZERO);
        }
    }
}
