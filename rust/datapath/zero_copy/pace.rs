//! How often a transmitq that starts again and again is given lanes.
//!
//! To open a lane takes the thread of its device as long as it takes to pin a guest's memory, and a guest may start its
//! queues as often as it likes. So the starts of a queue are counted, not those of a session; what control does is not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Key;
use crate::switch::PortId;

/// Starts that get a lane at once: firmware, a boot loader and drivers start a queue a few times within seconds.
pub(super) const STARTS: u32 = 8;
/// How long until one more does.
const EVERY: Duration = Duration::from_secs(10);

/// The queues that started of late.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<Key, Pace>);

#[derive(Debug)]
struct Pace {
    /// The start that was admitted last.
    run: u64,
    /// When as many starts are free again as at first.
    free_at: Instant,
}

impl Paces {
    /// True if start `run` of a queue may have a lane now. Asked again about the same start, it may.
    pub(super) fn admit(&mut self, key: Key, run: u64, now: Instant) -> bool {
        self.0.retain(|_, pace| pace.free_at > now);
        let before = self.0.get(&key);
        if before.is_some_and(|pace| pace.run == run) {
            return true;
        }
        let free_at = before.map_or(now, |pace| pace.free_at) + EVERY;
        let is_admitted = free_at <= now + EVERY * STARTS;
        if is_admitted {
            self.0.insert(key, Pace { run, free_at });
        }
        is_admitted
    }

    /// Forgets ports that want no lanes.
    pub(super) fn keep_only(&mut self, wants: impl Fn(PortId) -> bool) {
        self.0.retain(|key, _| wants(key.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: A19.
    #[test]
    fn a_queue_has_a_lane_for_a_few_starts_and_then_for_one_in_ten_seconds() {
        let (mut paces, begun, key) = (Paces::default(), Instant::now(), (1, 1, 9));
        let mut admitted = 0;
        // It starts every 50 ms for two minutes.
        for run in 0..2400 {
            let now = begun + Duration::from_millis(50) * run;
            if paces.admit(key, run.into(), now) {
                admitted += 1;
                assert!(paces.admit(key, run.into(), now), "the same start");
            }
        }
        assert!((STARTS + 11..=STARTS + 12).contains(&admitted), "{admitted} lanes in two minutes");
        let end = begun + Duration::from_secs(120);
        assert!(
            paces.admit((1, 3, 9), 7000, end) && paces.admit((2, 1, 9), 7001, end),
            "other queues are no part of it"
        );
        paces.keep_only(|port| port != 1);
        assert!(paces.admit(key, 8000, end), "control asked anew");
    }
}
