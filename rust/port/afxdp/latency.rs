//! How long the kernel and the device have what was posted: from a delivery until the frame was found in the completion ring.
//!
//! ```text
//!   posted ───────── looked, not there ─────────── looked, there
//!      └──────────── at least ─┘                       │
//!      └──────────── at most: what is counted ─────────┘
//! ```
//!
//! Nobody is told when a frame completes, it is found when somebody looks. What is found right behind the kick that it was
//! posted with counts: the kernel sent it in that call, and nobody could have known sooner. Otherwise, where the two bounds
//! are too far apart to tell, since nothing was sent meanwhile, the frame counts as untimed. The clock is read once a delivery
//! and once a look, and frames that were posted together count together.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::counters::Counter;
use crate::sys::tsc;

/// Buckets of the histogram: a time of n bits in µs counts in bucket n, the last takes all above.
pub const LATENCY_BUCKETS: usize = 24;

/// TSC cycles of a tick, as a power of two: some hundred nanoseconds, so that 32 bits last for half an hour.
const TICK_SHIFT: u32 = 10;
/// A time below this counts whenever it was looked before, µs.
const SURE_US: u64 = 32;

/// A moment, in ticks; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u32);

impl Moment {
    /// Reads the clock.
    #[inline]
    pub(super) fn now() -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "counts modulo 2^32")]
        Self(((tsc::now() >> TICK_SHIFT) as u32).max(1))
    }

    /// As it is kept beside a frame: 0 is none.
    #[inline]
    pub(super) fn stamp(self) -> u32 {
        self.0
    }

    fn us_since(self, stamp: u32) -> u64 {
        (u64::from(self.0.wrapping_sub(stamp)) << TICK_SHIFT) / tsc::cycles_per_us()
    }
}

/// What one queue counts; written by whoever has its tx side.
#[derive(Debug)]
pub(super) struct Latency {
    buckets: [Counter; LATENCY_BUCKETS],
    untimed: Counter,
    most_us: AtomicU64,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            untimed: Counter::default(),
            most_us: AtomicU64::new(0),
        }
    }

    /// Counts `count` frames that were posted at `stamp` and found at `now`. `looked` is when it was looked before that; None
    /// if that was the first time that one could.
    pub(super) fn count(&self, count: u64, stamp: u32, looked: Option<Moment>, now: Moment) {
        let took_us = now.us_since(stamp);
        // At most one bucket too long, or it says little.
        if took_us >= SURE_US && looked.is_some_and(|looked| 2 * now.us_since(looked.stamp()) > took_us) {
            return self.untimed.add(count);
        }
        let bits = (u64::BITS - took_us.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(bits.min(LATENCY_BUCKETS - 1)) {
            bucket.add(count);
        }
        if took_us > self.most_us.load(Ordering::Relaxed) {
            self.most_us.store(took_us, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Latencies {
        let buckets = std::array::from_fn(|bucket| self.buckets.get(bucket).map_or(0, Counter::read));
        Latencies { buckets, untimed: self.untimed.read(), most_us: self.most_us.load(Ordering::Relaxed) }
    }
}

/// Times from post to completion at one moment, or summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Bucket n has the frames that took below 2^n µs and not below 2^(n-1).
    pub buckets: [u64; LATENCY_BUCKETS],
    /// Frames of which nobody can tell.
    pub untimed: u64,
    /// The longest of those that are counted, µs.
    pub most_us: u64,
}

impl Latencies {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(all, more)| *all += more);
        self.untimed += other.untimed;
        self.most_us = self.most_us.max(other.most_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_us(us: u64) -> Moment {
        Moment(1 + u32::try_from((us * tsc::cycles_per_us()).div_ceil(1 << TICK_SHIFT)).unwrap())
    }

    #[test]
    fn a_time_counts_in_the_bucket_of_its_highest_bit() {
        let latency = Latency::new();
        let (posted, looked) = (1, Some(after_us(0)));
        for (us, count) in [(0, 1), (5, 10), (20, 100)] {
            latency.count(count, posted, looked, after_us(us));
        }
        let found = latency.read();
        assert_eq!((found.buckets[0], found.buckets[3], found.buckets[5]), (1, 10, 100));
        assert_eq!((found.untimed, found.buckets.iter().sum::<u64>()), (0, 111));
        assert!((20..22).contains(&found.most_us), "{} µs", found.most_us);
    }

    #[test]
    fn a_frame_that_nobody_looked_for_is_untimed() {
        let latency = Latency::new();
        latency.count(1, 1, Some(after_us(400)), after_us(1000));
        assert_eq!((latency.read().untimed, latency.read().most_us), (1, 0), "it took 400 to 1000 µs");
        latency.count(1, 1, Some(after_us(600)), after_us(1000));
        assert_eq!((latency.read().untimed, latency.read().buckets[10]), (1, 1), "it took 600 to 1000 µs");
        latency.count(1, 1, None, after_us(1000));
        assert_eq!((latency.read().untimed, latency.read().buckets[10]), (1, 2), "the kick took as long");
    }

    #[test]
    fn sums_keep_the_longest() {
        let mut sum = Latencies { untimed: 1, most_us: 9, ..Latencies::default() };
        sum.add(&Latencies { buckets: [2; LATENCY_BUCKETS], untimed: 3, most_us: 4 });
        assert_eq!((sum.buckets[7], sum.untimed, sum.most_us), (2, 4, 9));
    }
}
