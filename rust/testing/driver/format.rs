// SPDX-License-Identifier: Apache-2.0
//! What the two ring formats have in common for whoever posts buffers and takes them back.
//!
//! Users are generic over it and compiled once per format: nothing is decided per frame. A buffer is known by a number
//! below the ring's size: with split rings its head descriptor, with packed rings its buffer id.

use super::place::RingPlace;
use super::violations::Violations;
use crate::testing::memory::{Gpa, Window};

/// One piece of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is.
    pub gpa: Gpa,
    /// Its bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// The driver's half of a ring of one format.
pub trait RingFormat {
    /// Whether descriptors stay as they were written, so that a buffer can be offered again without them.
    const KEEPS_DESCRIPTORS: bool;

    /// Descriptors in the ring.
    fn size(&self) -> u16;

    /// Where the ring is.
    fn place(&self) -> RingPlace;

    /// Posts a buffer of one segment, not yet visible.
    fn post_one(&mut self, buffer: u16, segment: Segment);

    /// Posts a buffer of these segments, one or more, not yet visible.
    fn post_chain(&mut self, buffer: u16, segments: impl Iterator<Item = Segment>);

    /// Posts a buffer whose segments stand in a table of `size` bytes, not yet visible.
    fn post_table(&mut self, buffer: u16, table: Gpa, size: u32);

    /// Posts a buffer again whose descriptors stand as they were, not yet visible.
    fn post_again(&mut self, buffer: u16);

    /// Writes entry `index` of an indirect table; `more` tells that another one follows.
    fn write_entry(table: &Window, index: u16, segment: Segment, more: bool);

    /// Makes what was posted visible; `true` when the device wants to be kicked.
    fn publish(&mut self) -> bool;

    /// How many buffers came back and wait to be taken; reads what the device wrote. A format that cannot know without
    /// touching lines the device writes next may say less, while there are fewer than `least`.
    fn used_waiting(&mut self, least: usize, violations: &mut Violations) -> usize;

    /// The buffer that probably comes back `ahead` places after the next: a guess, to prefetch by.
    fn probably_used(&self, ahead: u16) -> u32;

    /// Asks for the lines that tell of the next `count` used buffers.
    fn prefetch_used(&self, count: u16);

    /// Takes the next used buffer of those that wait, and the bytes written into it: `None` for one that the device
    /// used wholly, of a batch. What the device says is not to be trusted.
    fn take_used(&mut self, violations: &mut Violations) -> Option<(u32, Option<u32>)>;

    /// Asks for calls, or asks for none; after asking, look for used buffers once more before sleeping.
    fn want_calls(&mut self, wanted: bool);

    /// Begins anew on cleared ring memory, as after a reset of the ring: nothing is in flight.
    fn restart(&mut self);
}
