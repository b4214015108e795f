//! What is left of a burst that could not be delivered at once.
//!
//! ```text
//!   burst ─▶ group A ✓ delivered
//!         ─▶ group B … its receiveq is with another thread, or its guest is short of buffers
//!         ─▶ group C ✓ delivered                      ▼
//!                                     Waiting: group B, until it is delivered or dropped by name
//! ```
//!
//! The frames stay in their sender's buffers, so nothing is copied to wait. While a burst waits its transmitq is not
//! polled: that keeps the order of every flow, and lets the sender's ring fill, which is the only back-pressure a guest
//! understands. One burst a queue at most, and room for its groups is taken once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Credit, OutletSlot};
use crate::burst::MAX_BURST;
use crate::counters::QueueCounters;
use crate::drops::DropReason;

/// Groups a burst can leave behind: as many as it has frames. Only a flood to more receivers that are all busy finds no
/// room here.
const MAX_GROUPS: usize = MAX_BURST;

/// Frames of the burst that go to one receiveq.
#[derive(Debug)]
pub(super) struct Group {
    /// Where they go. It may be out of the topology by now.
    pub slot: Arc<OutletSlot>,
    /// Counters of the port it belongs to: these outlive its sessions, and tell the port from another with its number.
    pub port: Arc<QueueCounters>,
    /// Bit i: frame i of the burst.
    pub frames: u64,
    /// When the guest first had no buffer for them, in TSC cycles; 0 if it was never asked.
    pub since: u64,
    /// How many pieces of the first one are with its receiver, a device, already.
    pub begun: u32,
    /// What the guest's buffers lack, and how much of that kind had come when they were last asked for in vain.
    pub lacks: Option<(DropReason, u64)>,
}

/// What is left of a list, for one receiver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'l> {
    pub list: &'l [u8],
    /// As in [`Group`], like the next.
    pub since: u64,
    pub begun: u32,
    pub lacks: Option<(DropReason, u64)>,
}

impl<'l> Left<'l> {
    /// All of a list that is new, or that waited in a group.
    pub(super) fn all(list: &'l [u8], group: Option<&Group>) -> Self {
        let (since, begun, lacks) = group.map_or((0, 0, None), |group| (group.since, group.begun, group.lacks));
        Self { list, since, begun, lacks }
    }

    /// The group that waits for this receiver.
    pub(super) fn of(self, slot: Arc<OutletSlot>, port: Arc<QueueCounters>) -> Group {
        Group { slot, port, frames: mask(self.list), since: self.since, begun: self.begun, lacks: self.lacks }
    }
}

/// The groups of one burst that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    groups: VecDeque<Group>,
    /// How long this transmitq may still wait for receivers' memory.
    pub credit: Credit,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { groups: VecDeque::with_capacity(MAX_GROUPS), credit: Credit::of_sender() }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.groups.len() >= MAX_GROUPS
    }

    /// Adds a group; the caller asked whether there is room.
    pub(super) fn push(&mut self, group: Group) {
        self.groups.push_back(group);
    }

    /// All their frames.
    #[cold]
    pub(super) fn frames(&self) -> u64 {
        self.groups.iter().fold(0, |frames, group| frames | group.frames)
    }

    /// True if all wait for memory: a thread that has nothing else to do may sleep for a moment.
    pub(super) fn is_for_memory(&self) -> bool {
        self.groups.iter().all(|group| group.lacks.is_some())
    }

    /// From now on they wait as if they had begun now: nobody could look at them.
    #[cold]
    pub(super) fn begin_anew(&mut self) {
        self.groups.iter_mut().for_each(|group| group.since = 0);
    }

    /// The one that waits longest.
    pub(super) fn pop(&mut self) -> Option<Group> {
        self.groups.pop_front()
    }
}

/// The indices whose bits are set, in order.
pub(super) fn indices(frames: u64, into: &mut [u8; MAX_BURST]) -> &[u8] {
    let (mut left, mut len) = (frames, 0);
    while left != 0 {
        if let Some(place) = into.get_mut(len) {
            #[allow(clippy::cast_possible_truncation, reason = "below 64")]
            let index = left.trailing_zeros() as u8;
            *place = index;
        }
        (left, len) = (left & (left - 1), len + 1);
    }
    into.get(..len).unwrap_or_default()
}

/// The other way round.
fn mask(list: &[u8]) -> u64 {
    list.iter().fold(0, |mask, &index| mask | 1_u64.wrapping_shl(u32::from(index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mask_gives_back_its_list(frames: u64) {
            let mut into = [0; MAX_BURST];
            let list = indices(frames, &mut into);
            prop_assert!(list.is_sorted());
            prop_assert_eq!(list.len(), frames.count_ones() as usize);
            prop_assert_eq!(mask(list), frames);
        }
    }
}
