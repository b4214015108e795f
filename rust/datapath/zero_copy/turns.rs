//! Whose lane a device's thread opens next, and when none: to pin a guest's memory takes it long, and a guest may start its
//! queues as often as it likes.
//!
//! ```text
//!   a ─▶ b ─▶ c ─▶ a …   one lane a turn, however many a guest wants; between two turns all else that the thread has to do
//!   credit of each       a quarter of the thread's time, however often it asks
//! ```
//!
//! So nobody waits longer than for one lane of each other guest, and with some guests that ask for ever the thread still
//! rests. A guest that starts its queues now and then, in firmware, a boot loader and a driver, spends nothing that matters.

use std::collections::BTreeMap;

use super::Wish;
use crate::pmd::Credit;
use crate::switch::PortId;

/// The guests beside one device. Times are in TSC cycles.
#[derive(Debug, Default)]
pub(in crate::datapath) struct Turns {
    /// Who had the last turn.
    last: Option<PortId>,
    /// Of those whose lanes took time of late.
    credits: BTreeMap<PortId, Credit>,
}

impl Turns {
    /// Puts whoever is next first.
    pub(super) fn order(&self, wishes: &mut [Wish]) {
        wishes.sort_by_key(|wish| (self.is_behind(wish.guest.id), wish.guest.id, wish.vring));
    }

    /// True of whom others come before.
    fn is_behind(&self, guest: PortId) -> bool {
        self.last.is_some_and(|last| guest <= last)
    }

    /// False if the lanes of this guest had their share of the thread's time.
    pub(super) fn is_due(&self, guest: PortId, now: u64) -> bool {
        self.credits.get(&guest).is_none_or(|credit| !credit.is_spent(now))
    }

    /// Takes note that a lane of this guest was asked for, from `since` until `now`, whatever came of it.
    pub(super) fn had(&mut self, guest: PortId, since: u64, now: u64) {
        self.last = Some(guest);
        self.credits.retain(|_, credit| !credit.is_full(now));
        self.credits.entry(guest).or_insert_with(Credit::of_lanes).spend(since, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tsc;

    /// µs of a made-up clock, which begins long after the machine did.
    fn at(us: u64) -> u64 {
        (3_600_000_000 + us) * tsc::cycles_per_us()
    }

    /// What guests had of a device's thread.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    struct Had {
        /// µs, together.
        time: u64,
        /// Lanes.
        lanes: u64,
        /// µs between two turns, at most.
        gap: u64,
        last: u64,
    }

    /// Guests 1, 2, … that want one lane after the other, which take as many µs each, for a minute.
    fn a_minute_of<const N: usize>(costs: [u64; N]) -> [Had; N] {
        let (mut turns, mut had, mut now) = (Turns::default(), [Had::default(); N], 0);
        while now < 60_000_000 {
            let mut guests: Vec<PortId> = (1..).take(N).collect();
            guests.sort_by_key(|guest| (turns.is_behind(*guest), *guest));
            let Some(guest) = guests.into_iter().find(|guest| turns.is_due(*guest, at(now))) else {
                now += 1000;
                continue;
            };
            let (had, since) = (&mut had[usize::from(guest) - 1], now);
            now += costs[usize::from(guest) - 1];
            turns.had(guest, at(since), at(now));
            *had = Had {
                time: had.time + now - since,
                lanes: had.lanes + 1,
                gap: had.gap.max(since - had.last),
                last: since,
            };
        }
        had
    }

    /// Rows: A19, C8.
    #[test]
    fn a_guest_that_always_wants_lanes_has_a_quarter_of_the_threads_time() {
        for cost in [500, 20_000, 300_000, 4_000_000] {
            let [had] = a_minute_of([cost]);
            assert!((14_000_000..=16_200_000 + cost).contains(&had.time), "{cost} µs a lane: {had:?}");
        }
    }

    /// Rows: A19, C8.
    #[test]
    fn guests_take_turns_so_none_waits_for_more_than_a_lane_of_each_other() {
        let [_, honest, _] = a_minute_of([250_000, 200, 250_000]);
        assert!(honest.gap <= 2 * 250_000 + 2000, "{honest:?}");
        let several = a_minute_of([40_000; 3]);
        assert!(several.iter().all(|had| had.lanes.abs_diff(several[0].lanes) <= 1), "{several:?}");
    }

    /// Rows: A19, L6.
    #[test]
    fn a_guest_that_starts_its_queue_seven_times_a_second_never_waits() {
        let (mut turns, mut now) = (Turns::default(), 0);
        for start in 0..1000 {
            assert!(turns.is_due(1, at(now)), "start {start}");
            turns.had(1, at(now), at(now + 35_000));
            now += 140_000;
        }
        assert!(turns.is_due(2, at(now)));
        turns.had(2, at(now + 3_000_000), at(now + 3_001_000));
        assert_eq!(turns.credits.len(), 1, "who rested is forgotten");
    }
}
