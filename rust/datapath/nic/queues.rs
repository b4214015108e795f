//! What a NIC's queues counted: of the hold on the device there is now, and of those before it.

use std::collections::BTreeMap;

use crate::port::afxdp::{Gauges, Latencies};

/// One queue of a NIC port at one moment, as [`Gauges`]; cumulative over every hold on its device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NicQueue {
    /// Descriptors that the kernel has.
    pub inflight: u64,
    /// Descriptors that it gave back.
    pub completed: u64,
    /// Most that it had at once.
    pub inflight_max: u64,
    /// In flight when a hold ended: sent or not, nobody says.
    pub abandoned: u64,
    /// Frames that the kernel had no room for.
    pub rx_missed: u64,
    /// From post to completion.
    pub latency: Latencies,
}

impl NicQueue {
    fn add(&mut self, now: &Gauges) {
        self.inflight += now.inflight;
        self.completed += now.completed;
        self.inflight_max = self.inflight_max.max(now.inflight_max);
        self.rx_missed += now.rx_missed;
        self.latency.add(&now.latency);
    }
}

/// Of holds that ended, by queue.
#[derive(Debug, Default)]
pub(super) struct Ended(Vec<NicQueue>);

impl Ended {
    /// A hold ended like this.
    pub(super) fn add(&mut self, gauges: &[Gauges]) {
        self.0 = self.with(gauges);
        for queue in &mut self.0 {
            queue.abandoned += std::mem::take(&mut queue.inflight);
        }
    }

    /// These, and what the hold there is now counted.
    pub(super) fn with(&self, gauges: &[Gauges]) -> Vec<NicQueue> {
        let mut all = self.0.clone();
        all.resize(all.len().max(gauges.len()), NicQueue::default());
        all.iter_mut().zip(gauges).for_each(|(queue, now)| queue.add(now));
        all
    }
}

/// Adds them to Interface `statistics`: sums, and by queue.
pub(super) fn add_statistics(queues: &[NicQueue], all: &mut BTreeMap<String, u64>) {
    for (number, queue) in queues.iter().enumerate() {
        for (name, n) in [
            ("tx_inflight", queue.inflight),
            ("tx_completed", queue.completed),
            ("tx_abandoned", queue.abandoned),
            ("rx_missed_errors", queue.rx_missed),
        ] {
            *all.entry(name.to_owned()).or_default() += n;
            let (side, name) = name.split_at(2);
            all.insert(format!("{side}_q{number}{name}"), n);
        }
        all.insert(format!("tx_q{number}_inflight_max"), queue.inflight_max);
        let whole = all.entry("tx_inflight_max".to_owned()).or_default();
        *whole = (*whole).max(queue.inflight_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(inflight: u64, completed: u64) -> Gauges {
        Gauges { inflight, completed, inflight_max: inflight + 1, ..Gauges::default() }
    }

    #[test]
    fn what_a_hold_left_in_flight_is_abandoned_and_the_rest_goes_on() {
        let mut ended = Ended::default();
        ended.add(&[gauges(3, 10), gauges(0, 5)]);
        ended.add(&[gauges(1, 100)]);
        let now = ended.with(&[gauges(2, 1000)]);
        let found: Vec<_> = now.iter().map(|q| (q.inflight, q.completed, q.abandoned, q.inflight_max)).collect();
        assert_eq!(found, [(2, 1110, 4, 4), (0, 5, 0, 1)]);
        let mut all = BTreeMap::new();
        add_statistics(&now, &mut all);
        assert_eq!((all["tx_completed"], all["tx_q1_completed"], all["tx_inflight_max"]), (1115, 5, 4));
    }
}
