//! A queue that is polled: where frames come from, and what goes with it from thread to thread.

use std::sync::Arc;

use crate::counters::QueueCounters;
use crate::memory::GuestMap;
use crate::pmd::Inlet;
use crate::pmd::stats::PmdStats;
use crate::pmd::wait::Waiting;
use crate::pmd::zero_copy::{Lane, ZeroCopy};
use crate::ring::Obstacle;
use crate::switch::PortId;
use crate::switch::classify::Cache;

/// Empty looks in a row after which a queue is quiet.
const QUIET: u8 = 64;

/// What frames come from, a guest's transmitq or a NIC's receive queue, with what its thread keeps for it.
#[derive(Debug)]
pub struct PolledQueue {
    /// Whose.
    pub port: PortId,
    /// Vring index, odd: queue n of a NIC is 2n+1 as well.
    pub vring: u16,
    /// The rings and their burst.
    pub queue: Inlet,
    /// Written by the thread that has the queue.
    pub counters: Arc<QueueCounters>,
    /// Which start of the vring this is: a report about an earlier one is nothing to it.
    pub run: u64,
    /// Its ring broke: it goes from thread to thread as it is, unpolled, until its session takes it back.
    pub(in crate::pmd) is_stopped: bool,
    /// It made the first call, which is made once and not at every move.
    pub(in crate::pmd) is_greeted: bool,
    /// Looks in a row that found nothing.
    empty_looks: u8,
    /// When the turn began in which the burst that waits was gathered, in TSC cycles.
    pub(super) gathered_at: u64,
    pub(super) cache: Cache,
    /// What is left of the burst that it gathered last.
    pub(super) waiting: Waiting,
    /// Some of that nobody may read until the guest's IOMMU has told where it is.
    pub(super) is_away: bool,
    /// Its lanes to network devices, once it had one.
    pub(super) zero_copy: Option<Box<ZeroCopy>>,
}

impl PolledQueue {
    /// Wraps a queue for a poll thread.
    pub fn new(queue: impl Into<Inlet>, port: PortId, vring: u16, counters: Arc<QueueCounters>, run: u64) -> Self {
        let queue = queue.into();
        let (cache, waiting) = (Cache::default(), Waiting::new());
        let (is_stopped, is_greeted, empty_looks, gathered_at, is_away) = (false, false, 0, 0, false);
        Self {
            port,
            vring,
            queue,
            counters,
            run,
            is_stopped,
            is_greeted,
            empty_looks,
            gathered_at,
            cache,
            waiting,
            is_away,
            zero_copy: None,
        }
    }

    /// Sends frames to a device by this lane from now on. Gives the lane back if the queue is not of this memory, or cannot
    /// leave chains out.
    ///
    /// # Errors
    /// The lane.
    pub(in crate::pmd) fn add_lane(&mut self, lane: Box<Lane>, memory: &Arc<GuestMap>) -> Result<(), Box<Lane>> {
        match &self.queue {
            Inlet::Guest(queue) if queue.memory_to_hold().is_ok_and(|own| Arc::ptr_eq(own, memory)) => {
                let size = queue.size();
                self.zero_copy.get_or_insert_with(|| Box::new(ZeroCopy::new(size))).add(lane);
                Ok(())
            }
            _ => Err(lane),
        }
    }

    /// The memory that its lanes are to be shown; None if it is no guest's.
    ///
    /// # Errors
    /// What is in the way of lanes.
    pub fn memory_to_show(&self) -> Option<Result<Arc<GuestMap>, Obstacle>> {
        match &self.queue {
            Inlet::Guest(queue) => Some(queue.memory_to_hold().cloned()),
            _ => None,
        }
    }

    /// Its lanes, to end them.
    pub fn zero_copy(&mut self) -> Option<&mut ZeroCopy> {
        self.zero_copy.as_deref_mut()
    }

    /// A lane that was taken out is closed: the guest gets back what was on it.
    pub(in crate::pmd) fn close_lane(&mut self, keeper: u16) {
        if let Some(zero_copy) = &mut self.zero_copy {
            zero_copy.all_came_back(keeper);
            self.give_back(true);
        }
    }

    /// Gives the guest every buffer that was out, for who stopped the queue and closed its lanes. Its next start calls.
    pub fn settle_lanes(&mut self) {
        if let Some(zero_copy) = &mut self.zero_copy {
            zero_copy.everything_came_back();
            self.give_back(false);
        }
    }

    /// Gives the guest the buffers that came back.
    #[cold]
    fn give_back(&mut self, calls: bool) {
        if let (Inlet::Guest(queue), Some(zero_copy)) = (&mut self.queue, self.zero_copy.as_deref_mut()) {
            self.counters.called(queue.give_back(&mut zero_copy.held, calls));
        }
    }

    /// True while a device has something of it.
    pub(in crate::pmd) fn is_out(&self) -> bool {
        self.zero_copy.as_ref().is_some_and(|zero_copy| zero_copy.is_busy())
    }

    /// Gives the burst's buffers back, but for those that are out.
    #[inline]
    pub(super) fn commit(&mut self) {
        let called = match (&mut self.zero_copy, &mut self.queue) {
            (Some(zero_copy), Inlet::Guest(queue)) => queue.commit_all_but(&mut zero_copy.held),
            (_, queue) => queue.commit(),
        };
        self.counters.called(called);
    }

    /// Takes back what devices have read.
    #[inline]
    pub(super) fn tend(&mut self) {
        if let Some(zero_copy) = &mut self.zero_copy {
            let is_due = zero_copy.tend();
            zero_copy.may_hold = matches!(&self.queue, Inlet::Guest(queue) if queue.may_hold());
            if is_due {
                self.give_back(true);
            }
        }
    }

    /// True if the queue may be passed over in a round that leaves quiet ones alone.
    #[inline]
    pub(in crate::pmd) fn is_quiet(&self) -> bool {
        self.empty_looks >= QUIET
    }

    /// Notes what a look found. One whose burst waits is not quiet.
    #[inline]
    pub(in crate::pmd) fn looked(&mut self, count: usize) {
        self.empty_looks = if count > 0 || self.is_waiting() { 0 } else { self.empty_looks.saturating_add(1) };
    }

    /// Counts how long the burst was here that was gathered in the turn from `began` to `now`, unless it waits: then that is
    /// counted when it is settled.
    #[inline]
    pub(in crate::pmd) fn gathered(&mut self, began: u64, now: u64, stats: &PmdStats) {
        if self.is_waiting() {
            self.gathered_at = began;
        } else {
            stats.cycles_per_burst.count(now.wrapping_sub(began));
        }
    }

    /// True while a burst waits for its receivers: nothing more is gathered before it is settled.
    #[inline]
    pub(in crate::pmd) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True while a burst waits, and not for memory alone: its receiver moves at any moment.
    pub(in crate::pmd) fn is_restless(&self) -> bool {
        self.is_waiting() && !self.is_away && !self.is_shut() && !self.waiting.is_for_memory()
    }

    /// True while its next frame waits for a page or a mapping: nothing is to be done before that comes.
    pub(in crate::pmd) fn is_parked(&self) -> bool {
        self.queue.is_parked()
    }

    /// True while nobody may touch its ring, which the guest's IOMMU has no mapping for.
    #[inline]
    pub(in crate::pmd) fn is_shut(&self) -> bool {
        self.queue.is_shut(self.vring)
    }

    /// Lets go of a burst that waits and gives nothing back: its ring may not be touched. Nothing of it is lost: the ring's
    /// next start finds the frames where they were, those that somebody has got by now among them.
    #[cold]
    pub(super) fn give_up(&mut self) {
        while self.waiting.pop().is_some() {}
    }

    /// Counts what the guest's IOMMU had to do with the `count` frames gathered.
    #[cold]
    pub(super) fn count_translations(&mut self, count: usize) {
        self.counters.iotlb_hits.add(count as u64);
        self.counters.iotlb_misses.add(self.queue.take_misses());
    }
}
