//! One socket, as its rx side, its tx side and control know it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::latency::{Latencies, Latency};
use crate::counters::Counter;
use crate::memory::Area;
use crate::sys::xdp::{Binding, Ring, Socket};

/// Kicks in a row, at most: each sends 32 descriptors, or 64 where the kernel lets us say so. What is left is for the next
/// round: others wait too.
const KICKS: usize = 4;

/// Where a queue's descriptors are. Every one handed to the kernel is either in flight or completed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Handed to the kernel and not given back.
    pub inflight: u64,
    /// Given back, ever.
    pub completed: u64,
    /// Most that were ever in flight at once.
    pub inflight_max: u64,
    /// Frames that the kernel had no room for.
    pub rx_missed: u64,
    /// From post to completion.
    pub latency: Latencies,
}

/// What the sides of a queue share.
#[derive(Debug)]
pub(super) struct Xsk {
    pub(super) socket: Socket,
    pub(super) binding: Binding,
    pub(super) tx: Arc<Ring>,
    pub(super) completion: Arc<Ring>,
    /// Descriptors handed to the kernel; whoever has the tx side writes it.
    pub(super) posted: Counter,
    pub(super) inflight_max: AtomicU32,
    pub(super) latency: Latency,
    /// Mapped as long as the socket is open: it is after it in the order of drops.
    pub(super) area: Arc<Area>,
}

impl Xsk {
    /// Has the kernel take what is in the tx ring. False if something is left: then try again.
    pub(super) fn push(&self) -> bool {
        for _ in 0..KICKS {
            let before = self.untaken();
            let end = self.socket.kick_tx();
            if self.binding.zero_copy {
                // The driver takes them in its own time, once it knows.
                return end.is_ok();
            }
            match self.untaken() {
                0 => return true,
                left if left == before => return false,
                _ => {}
            }
        }
        false
    }

    /// Descriptors in the tx ring that the kernel did not take yet.
    fn untaken(&self) -> u32 {
        let taken = self.tx.consumer().load(Ordering::Acquire);
        self.tx.producer().load(Ordering::Relaxed).wrapping_sub(taken)
    }

    /// Where its descriptors are now, from the completion ring itself: whether or not anybody looked there meanwhile.
    pub(super) fn gauges(&self) -> Gauges {
        // In this order: what completes in between was posted before.
        let completed = self.completion.producer().load(Ordering::Acquire);
        let posted = self.posted.read();
        #[allow(clippy::cast_possible_truncation, reason = "both count modulo 2^32")]
        let inflight = u64::from((posted as u32).wrapping_sub(completed));
        Gauges {
            inflight,
            completed: posted.saturating_sub(inflight),
            inflight_max: self.inflight_max.load(Ordering::Relaxed).into(),
            rx_missed: self.socket.statistics().map_or(0, |counted| counted.rx_missed),
            latency: self.latency.read(),
        }
    }
}
