//! When a transmitq is worth another look.
//!
//! A guest that sends fast, and yet slower than its poll thread takes frames, is found with one or two new frames at each
//! look; every look takes the cache lines of its ring away from it, and slows it down further. So after a look that
//! emptied such a ring the thread leaves it alone until some frames more are likely to be there. Never for long, and
//! never below a rate at which frames are few: one frame in flight is not kept waiting.

use crate::burst::MAX_BURST;

/// Frames per µs from which on a queue is left alone for a while: below, a look costs the guest little.
const FAST_PER_US: u64 = 1;
/// Frames that are to come together.
const WORTH_A_LOOK: u64 = MAX_BURST as u64 / 2;
/// The longest time a frame waits for others, in half µs.
const PATIENCE_HALF_US: u64 = 4;

/// The pace of one transmitq; in TSC cycles.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When frames were last taken.
    last: u64,
    /// Until when the queue is left alone.
    rest: u64,
}

impl Pace {
    /// Whether the queue is to be looked at.
    #[inline]
    pub(super) fn is_due(&self, now: u64) -> bool {
        now >= self.rest
    }

    /// Notes that a look at `now` found `count` frames, 1 to 64. `cycles_per_us` is the clock's rate.
    #[inline]
    pub(super) fn took(&mut self, count: usize, now: u64, cycles_per_us: u64) {
        let (count, spent) = (count as u64, now.saturating_sub(self.last));
        self.last = now;
        // A full burst: more is there already.
        if count < MAX_BURST as u64 && spent * FAST_PER_US < count * cycles_per_us {
            self.rest = now + (WORTH_A_LOOK * spent / count).min(PATIENCE_HALF_US * cycles_per_us / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_US: u64 = 2000;

    /// A queue from which `count` frames were taken `gap` cycles after the last look.
    fn after(count: usize, gap: u64) -> Pace {
        let mut pace = Pace::default();
        pace.took(1, 1_000_000, PER_US);
        pace.took(count, 1_000_000 + gap, PER_US);
        pace
    }

    #[test]
    fn a_fast_guest_is_left_alone_until_half_a_burst_is_likely_and_no_longer_than_2_us() {
        // Eight frames in half a µs: half a burst takes two.
        let pace = after(8, 1000);
        assert!(!pace.is_due(1_001_000 + 3999));
        assert!(pace.is_due(1_001_000 + 4000));
        // Three frames in a µs: half a burst would take ten.
        let pace = after(3, 2000);
        assert!(!pace.is_due(1_002_000 + 3999));
        assert!(pace.is_due(1_002_000 + 4000));
    }

    #[test]
    fn a_slow_guest_and_one_that_fills_bursts_are_looked_at_at_once() {
        assert!(after(1, 2000).is_due(1_002_000), "one frame a µs");
        assert!(after(MAX_BURST, 1000).is_due(1_001_000), "a full burst");
    }
}
