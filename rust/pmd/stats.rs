//! What a poll thread counts of itself: plain numbers with one writer, since its start.
//!
//! Whoever wants "since the last clear" keeps a [`Readings`] and subtracts: nobody ever writes another's counter.

use crate::counters::Counter;

/// Buckets of a histogram: a value of n bits counts in bucket n, the last takes all above.
pub const BUCKETS: usize = 32;

/// How often a value was in which power of two. One increment a value.
#[derive(Debug, Default)]
pub struct Histogram([Counter; BUCKETS]);

impl Histogram {
    #[inline]
    pub(super) fn count(&self, value: u64) {
        let bits = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(bucket) = self.0.get(bits.min(BUCKETS - 1)) {
            bucket.add(1);
        }
    }

    /// Bucket n holds values below 2^n that are not below 2^(n-1).
    pub fn read(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.0.get(bucket).map_or(0, Counter::read))
    }
}

/// What a thread counts.
#[derive(Debug, Default)]
pub struct PmdStats {
    /// Frames taken from guests.
    pub packets: Counter,
    /// Bursts they came in.
    pub bursts: Counter,
    /// TSC cycles of rounds that moved a frame.
    pub busy_cycles: Counter,
    /// TSC cycles of the others, sleep excluded.
    pub idle_cycles: Counter,
    /// TSC cycles asleep.
    pub sleep_cycles: Counter,
    /// Rounds that moved a frame.
    pub busy_rounds: Counter,
    /// The others.
    pub idle_rounds: Counter,
    /// Times it slept.
    pub sleeps: Counter,
    /// TSC cycles of each round that moved a frame.
    pub cycles_per_round: Histogram,
    /// Frames of each burst.
    pub packets_per_burst: Histogram,
    /// TSC cycles a frame, of each burst.
    pub cycles_per_packet: Histogram,
    /// TSC cycles that its frames waited here, of each burst: from its queue's turn until its buffers were given back, turns
    /// in which it waited for a receiver included.
    pub cycles_per_burst: Histogram,
}

/// All of it at one moment, or between two.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// As in [`PmdStats`], like the rest.
    pub packets: u64,
    /// Bursts they came in.
    pub bursts: u64,
    /// Of rounds that moved a frame.
    pub busy_cycles: u64,
    /// Of the others.
    pub idle_cycles: u64,
    /// Asleep.
    pub sleep_cycles: u64,
    /// That moved a frame.
    pub busy_rounds: u64,
    /// The others.
    pub idle_rounds: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Histogram.
    pub cycles_per_round: [u64; BUCKETS],
    /// Histogram.
    pub packets_per_burst: [u64; BUCKETS],
    /// Histogram.
    pub cycles_per_packet: [u64; BUCKETS],
    /// Histogram.
    pub cycles_per_burst: [u64; BUCKETS],
}

impl PmdStats {
    /// Counts one queue's burst: `packets` is not 0.
    #[inline]
    pub(super) fn burst(&self, packets: usize, cycles: u64) {
        self.bursts.add(1);
        self.packets.add(packets as u64);
        self.packets_per_burst.count(packets as u64);
        // In 32 bits: a burst of more cycles than that was not the queue's doing, and the division costs less.
        let (cycles, packets) = (u32::try_from(cycles).unwrap_or(u32::MAX), u32::try_from(packets).unwrap_or(u32::MAX));
        self.cycles_per_packet.count(u64::from(cycles.checked_div(packets).unwrap_or(cycles)));
    }

    /// Everything now.
    pub fn read(&self) -> Readings {
        Readings {
            packets: self.packets.read(),
            bursts: self.bursts.read(),
            busy_cycles: self.busy_cycles.read(),
            idle_cycles: self.idle_cycles.read(),
            sleep_cycles: self.sleep_cycles.read(),
            busy_rounds: self.busy_rounds.read(),
            idle_rounds: self.idle_rounds.read(),
            sleeps: self.sleeps.read(),
            cycles_per_round: self.cycles_per_round.read(),
            packets_per_burst: self.packets_per_burst.read(),
            cycles_per_packet: self.cycles_per_packet.read(),
            cycles_per_burst: self.cycles_per_burst.read(),
        }
    }
}

impl Readings {
    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &[u64; BUCKETS], then: &[u64; BUCKETS]| {
            let mut left = *now;
            left.iter_mut().zip(then).for_each(|(n, t)| *n = n.saturating_sub(*t));
            left
        };
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bursts: self.bursts.saturating_sub(before.bursts),
            busy_cycles: self.busy_cycles.saturating_sub(before.busy_cycles),
            idle_cycles: self.idle_cycles.saturating_sub(before.idle_cycles),
            sleep_cycles: self.sleep_cycles.saturating_sub(before.sleep_cycles),
            busy_rounds: self.busy_rounds.saturating_sub(before.busy_rounds),
            idle_rounds: self.idle_rounds.saturating_sub(before.idle_rounds),
            sleeps: self.sleeps.saturating_sub(before.sleeps),
            cycles_per_round: less(&self.cycles_per_round, &before.cycles_per_round),
            packets_per_burst: less(&self.packets_per_burst, &before.packets_per_burst),
            cycles_per_packet: less(&self.cycles_per_packet, &before.cycles_per_packet),
            cycles_per_burst: less(&self.cycles_per_burst, &before.cycles_per_burst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_in_the_bucket_of_their_highest_bit() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 64, u64::MAX] {
            histogram.count(value);
        }
        let buckets = histogram.read();
        assert_eq!((buckets[0], buckets[1], buckets[2], buckets[3]), (1, 1, 2, 1));
        assert_eq!((buckets[7], buckets[BUCKETS - 1]), (1, 1));
    }

    #[test]
    fn readings_since_a_clear_leave_the_counters_alone() {
        let stats = PmdStats::default();
        stats.burst(4, 400);
        let cleared = stats.read();
        stats.burst(2, 100);
        let since = stats.read().since(&cleared);
        assert_eq!((since.packets, since.bursts, since.packets_per_burst[2]), (2, 1, 1));
        assert_eq!(since.cycles_per_packet[6], 1, "50 cycles a frame");
        assert_eq!(stats.packets.read(), 6);
    }
}
