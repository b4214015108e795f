// SPDX-License-Identifier: Apache-2.0
//! What drivers for buffers of any shape have in common, whatever the format of their ring.

use super::format::{RingFormat, Segment};
use super::packed::PackedDriver;
use super::place::RingPlace;
use super::split::{SplitDriver, Used};
use crate::testing::Result;
use crate::testing::memory::GuestRam;

/// A driver for one virtqueue.
pub trait ChainDriver: Sized {
    /// A driver over fresh ring memory at `place`.
    ///
    /// # Errors
    /// `Config` when the ring cannot have this size, or is not in guest memory.
    fn over(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self>;

    /// Posts a buffer of these segments, not yet visible; gives what it is called until it comes back.
    ///
    /// # Errors
    /// `Config` when there are no segments, or too few free descriptors.
    fn add(&mut self, segments: &[Segment]) -> Result<u16>;

    /// Makes the posted buffers visible; `true` when the device wants to be kicked.
    fn publish(&mut self) -> bool;

    /// Takes back the next buffer the device is done with.
    fn poll_used(&mut self) -> Option<Used>;

    /// Asks for calls, or asks for none.
    fn want_calls(&mut self, wanted: bool);

    /// Where the device has come to, as ring memory tells: the used index, or the descriptor with its wrap counter.
    fn device_position(&mut self) -> u16;

    /// The base of a fresh ring, as `SET_VRING_BASE` has it.
    fn first_base() -> u32;
}

impl ChainDriver for SplitDriver {
    fn over(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self> {
        Self::new(ram, place, size, agreed)
    }

    fn add(&mut self, segments: &[Segment]) -> Result<u16> {
        self.add(segments)
    }

    fn publish(&mut self) -> bool {
        self.publish()
    }

    fn poll_used(&mut self) -> Option<Used> {
        self.poll_used()
    }

    fn want_calls(&mut self, wanted: bool) {
        self.ring_mut().want_calls(wanted);
    }

    fn device_position(&mut self) -> u16 {
        self.ring().used_index()
    }

    fn first_base() -> u32 {
        0
    }
}

impl ChainDriver for PackedDriver {
    fn over(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self> {
        let mut driver = Self::new(ram, place, size, agreed)?;
        driver.ring_mut().want_calls(false);
        Ok(driver)
    }

    fn add(&mut self, segments: &[Segment]) -> Result<u16> {
        self.add(segments)
    }

    fn publish(&mut self) -> bool {
        self.publish()
    }

    fn poll_used(&mut self) -> Option<Used> {
        self.poll_used()
    }

    fn want_calls(&mut self, wanted: bool) {
        self.ring_mut().want_calls(wanted);
    }

    fn device_position(&mut self) -> u16 {
        self.ring_mut().device_cursor().word()
    }

    fn first_base() -> u32 {
        0x8000_8000
    }
}
