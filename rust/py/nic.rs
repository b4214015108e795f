//! Network devices as Python sees them.

use pyo3::prelude::*;

use crate::datapath;

/// One queue of a NIC port at one moment.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct NicQueue {
    inflight: u64,
    completed: u64,
    inflight_max: u64,
    abandoned: u64,
    rx_missed: u64,
    latency_us: Vec<u64>,
    latency_max_us: u64,
    untimed: u64,
}

impl From<datapath::NicQueue> for NicQueue {
    fn from(queue: datapath::NicQueue) -> Self {
        let datapath::NicQueue { inflight, completed, inflight_max, abandoned, rx_missed, latency } = queue;
        Self {
            inflight,
            completed,
            inflight_max,
            abandoned,
            rx_missed,
            latency_us: latency.buckets.to_vec(),
            latency_max_us: latency.most_us,
            untimed: latency.untimed,
        }
    }
}
