//! What a guest's transmitq needs to have frames sent from where the guest put them: lanes to network devices, and which
//! of its chains are out on them.
//!
//! ```text
//!   Source::steer ── is there a lane to this port? ──▶ Lane::deliver ── takes slots ──▶ Held
//!   every turn:   tend ── completions ──▶ Held ── done ──▶ Transmitq::give_back
//! ```
//!
//! It travels with its queue from thread to thread. Control opens and closes lanes, for both take long; here they are put
//! in and taken out.

use std::sync::Arc;

use super::PortView;
use crate::counters::QueueCounters;
use crate::port::afxdp;
use crate::ring::Held;
use crate::switch::PortId;

/// A lane to one network device.
#[derive(Debug)]
pub struct Lane {
    /// Whose device.
    pub nic: PortId,
    /// Its name among all lanes of this queue that there ever were: a chain knows by it who has it.
    pub keeper: u16,
    /// The socket.
    pub queue: afxdp::Lane,
    /// The device's, of this lane.
    pub counters: Arc<QueueCounters>,
}

/// The lanes of one transmitq and its chains that are out.
#[derive(Debug)]
#[allow(clippy::vec_box, reason = "lanes come and go in messages, which are small")]
pub struct ZeroCopy {
    lanes: Vec<Box<Lane>>,
    pub(super) held: Held,
    /// Chains of the burst under way may stay out.
    pub(super) may_hold: bool,
}

impl ZeroCopy {
    /// No lane yet, of a ring of `size` elements.
    pub(super) fn new(size: u32) -> Self {
        Self { lanes: Vec::new(), held: Held::new(size), may_hold: false }
    }

    /// Another way.
    pub(super) fn add(&mut self, lane: Box<Lane>) {
        self.lanes.push(lane);
    }

    /// Takes a lane out; what it has of the guest's stays out until [`Self::all_came_back`].
    pub(super) fn remove(&mut self, keeper: u16) -> Option<Box<Lane>> {
        let at = self.lanes.iter().position(|lane| lane.keeper == keeper)?;
        Some(self.lanes.remove(at))
    }

    /// Takes every lane out, likewise.
    pub fn remove_all(&mut self) -> Vec<Box<Lane>> {
        std::mem::take(&mut self.lanes)
    }

    /// A lane that was taken out is closed: nobody reads any more what it had.
    pub(super) fn all_came_back(&mut self, keeper: u16) {
        self.held.all_came_back(keeper);
    }

    /// Every lane was taken out and is closed.
    pub(super) fn everything_came_back(&mut self) {
        self.held.everything_came_back();
    }

    /// The lane to a port and the chains that are out, if there is a lane.
    #[inline]
    pub(super) fn lane_to(&mut self, port: &PortView) -> Option<(&mut Lane, Option<&mut Held>)> {
        let nic = port.receiveqs.first()?.port;
        let lane = self.lanes.iter_mut().find(|lane| lane.nic == nic)?;
        Some((&mut **lane, self.may_hold.then_some(&mut self.held)))
    }

    /// Looks what came back. True if the guest is to get buffers.
    #[inline]
    pub(super) fn tend(&mut self) -> bool {
        for lane in &mut self.lanes {
            lane.queue.tend(&mut self.held, lane.keeper);
        }
        self.held.has_done()
    }

    /// True while something is with a device: nobody wakes us when it comes back.
    pub(super) fn is_busy(&self) -> bool {
        self.held.count() > 0 || self.lanes.iter().any(|lane| lane.queue.is_busy())
    }
}
