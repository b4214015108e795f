//! How busy a queue or a thread was lately: readings of a counter, differenced at fixed intervals by control.
//!
//! ```text
//!   counter ──roll──▶ [ −1 │ −2 │ … │ −12 ]     5 s each: a minute, as Open vSwitch keeps it
//! ```
//!
//! The packet path only counts; nothing here is on it.

use std::time::Duration;

/// Length of one interval.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Intervals that are kept.
pub const INTERVALS: usize = 12;

/// What a counter grew by in each of the last intervals.
#[derive(Debug, Clone, Default)]
pub struct History {
    last: u64,
    grown: [u64; INTERVALS],
    /// Where the next interval goes.
    at: usize,
    /// How many there were, up to all.
    count: usize,
}

impl History {
    /// A history that begins at `reading`.
    pub fn new(reading: u64) -> Self {
        Self { last: reading, ..Self::default() }
    }

    /// Ends an interval.
    pub fn roll(&mut self, reading: u64) {
        if let Some(place) = self.grown.get_mut(self.at) {
            *place = reading.saturating_sub(self.last);
        }
        self.last = reading;
        self.at = (self.at + 1) % INTERVALS;
        self.count = (self.count + 1).min(INTERVALS);
    }

    /// Growth over the last `intervals`, or as many as there were.
    pub fn sum(&self, intervals: usize) -> u64 {
        let back = (1..=intervals.min(self.count)).map(|n| (self.at + INTERVALS - n) % INTERVALS);
        back.filter_map(|at| self.grown.get(at)).sum()
    }

    /// Growth over the last one.
    pub fn latest(&self) -> u64 {
        self.sum(1)
    }

    /// How many of the last `intervals` there were.
    pub fn known(&self, intervals: usize) -> usize {
        intervals.min(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_over_the_last_intervals_only() {
        let mut history = History::new(100);
        assert_eq!(history.sum(12), 0);
        for reading in [110, 130, 160] {
            history.roll(reading);
        }
        assert_eq!((history.sum(1), history.sum(2), history.sum(12)), (30, 50, 60));
        for _ in 0..INTERVALS {
            history.roll(160);
        }
        assert_eq!(history.sum(12), 0, "a minute later nothing of it counts");
    }
}
