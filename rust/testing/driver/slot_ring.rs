// SPDX-License-Identifier: Apache-2.0
//! Fixed buffers over a ring of either format.
//!
//! It is looked into once per pass: what is done per frame is done on [`Slots`] of the one format or the other.
#![expect(clippy::cast_possible_truncation, reason = "pieces are bounded when a layout is read")]

use super::packed_ring::PackedRing;
use super::place::RingPlace;
use super::slots::{SlotRingConfig, Slots};
use super::split_ring::SplitRing;
use super::violations::Violations;
use super::{Layout, RingFormat, Shape};
use crate::testing::Result;
use crate::testing::memory::GuestRam;
use crate::testing::wire::features;

/// A ring of fixed buffers, of either format.
#[derive(Debug)]
pub enum SlotRing {
    /// Over a split ring.
    Split(Slots<SplitRing>),
    /// Over a packed ring.
    Packed(Slots<PackedRing>),
}

/// The same to be done with either.
macro_rules! either {
    ($queue:expr, $slots:ident => $what:expr) => {
        match $queue {
            SlotRing::Split($slots) => $what,
            SlotRing::Packed($slots) => $what,
        }
    };
}
pub(crate) use either;

impl SlotRing {
    /// Takes guest memory for as many slots as the ring has room for, spread over all regions.
    ///
    /// # Errors
    /// `Config` when memory is too small, the ring cannot have its size, or a frame needs more descriptors than the
    /// ring has.
    pub fn new(ram: &mut GuestRam, config: SlotRingConfig) -> Result<Self> {
        let SlotRingConfig { place, size, agreed, shape, .. } = config;
        if agreed & features::RING_PACKED == 0 {
            let ring = SplitRing::new(ram, place, size, agreed)?;
            return Ok(Self::Split(Slots::new(ram, &config, ring)?));
        }
        // A chain may have fewer pieces than its layout says, when there are fewer bytes than pieces.
        let stride = match shape.layout {
            Layout::Chain(_) => 0,
            _ => shape.layout.ring_descriptors() as u16,
        };
        let ring = PackedRing::new(ram, place, size, agreed, stride)?;
        Ok(Self::Packed(Slots::new(ram, &config, ring)?))
    }

    /// The split ring underneath, if it is one.
    pub fn split(&self) -> Option<&SplitRing> {
        match self {
            Self::Split(slots) => Some(&slots.ring),
            Self::Packed(_) => None,
        }
    }

    /// The packed ring underneath, if it is one.
    pub fn packed(&mut self) -> Option<&mut PackedRing> {
        match self {
            Self::Split(_) => None,
            Self::Packed(slots) => Some(&mut slots.ring),
        }
    }

    /// Where the ring is.
    pub fn place(&self) -> RingPlace {
        either!(self, slots => slots.ring.place())
    }

    /// How frames lie in the slots.
    pub fn shape(&self) -> &Shape {
        either!(self, slots => slots.shape())
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        either!(self, slots => slots.slots())
    }

    /// Slots that are the driver's.
    pub fn free(&self) -> usize {
        either!(self, slots => slots.free())
    }

    /// Slots that are the device's.
    pub fn posted(&self) -> usize {
        either!(self, slots => slots.posted())
    }

    /// Rules that the device broke so far.
    pub fn violations(&self) -> Violations {
        either!(self, slots => slots.violations())
    }

    /// Takes a free slot.
    pub fn take_free(&mut self) -> Option<u16> {
        either!(self, slots => slots.take_free())
    }

    /// Gives a slot back to the driver's side.
    pub fn put_free(&mut self, slot: u16) {
        either!(self, slots => slots.put_free(slot));
    }

    /// Hands the device a slot with `total` bytes, header included; visible after [`publish`](Self::publish).
    pub fn post(&mut self, slot: u16, total: usize) {
        either!(self, slots => slots.post(slot, total));
    }

    /// Says that the content of the last slot posted is not that of the others.
    pub fn break_turn(&mut self) {
        either!(self, slots => slots.break_turn());
    }

    /// Makes posted slots visible; `true` when the device wants to be kicked.
    pub fn publish(&mut self) -> bool {
        either!(self, slots => slots.publish())
    }

    /// How many slots came back and wait to be taken.
    pub fn used_waiting(&mut self) -> usize {
        either!(self, slots => slots.used_waiting(1))
    }

    /// Takes the next slot that came back: the slot and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, usize)> {
        either!(self, slots => slots.take_used())
    }

    /// Takes back all slots the device is done with; gives their number.
    pub fn reclaim(&mut self) -> usize {
        either!(self, slots => slots.reclaim())
    }

    /// Writes header and frame into the slot's pieces.
    pub fn scatter(&self, slot: u16, bytes: &[u8]) {
        either!(self, slots => slots.scatter(slot, bytes));
    }

    /// Appends the first `len` bytes the device wrote into the slot.
    pub fn gather(&self, slot: u16, len: usize, bytes: &mut Vec<u8>) {
        either!(self, slots => slots.gather(slot, len, bytes));
    }

    /// Asks for calls, or asks for none; after asking, look for used slots once more before sleeping.
    pub fn want_calls(&mut self, wanted: bool) {
        either!(self, slots => slots.ring.want_calls(wanted));
    }

    /// Begins anew on cleared ring memory, as a driver does that reset its queue; gives how many slots the device had.
    pub fn restart(&mut self) -> usize {
        either!(self, slots => slots.restart())
    }

    /// The base to resume at (`SET_VRING_BASE`) after the back-end died without a word, as QEMU has it: what the used
    /// ring says; 0, "unknown", for a packed ring.
    pub fn base_of_qemu(&self) -> u32 {
        self.split().map_or(0, |ring| ring.used_index().into())
    }

    /// The base of a ring that nobody used yet, for available and used index: a packed one begins in round 1.
    pub fn first_base(&self) -> u32 {
        self.split().map_or(0x8000_8000, |_| 0)
    }
}
