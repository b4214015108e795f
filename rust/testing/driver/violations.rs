// SPDX-License-Identifier: Apache-2.0
//! What a device did to a ring that the specification forbids.

/// Counts per rule that the device broke; all zero for an honest device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    /// The used index moved further than there were buffers in flight.
    pub used_index_jumped: u64,
    /// A used element named a head that the driver never made.
    pub unknown_head: u64,
    /// A used element named a buffer that was not in flight: returned twice, or never posted.
    pub head_not_posted: u64,
    /// More bytes were reported written than the buffer holds.
    pub length_too_large: u64,
    /// Fewer bytes than a header were reported written.
    pub length_too_small: u64,
    /// `num_buffers` was 0, or named more buffers than were used together.
    pub wrong_num_buffers: u64,
}

impl Violations {
    /// Name and count of every rule.
    pub fn entries(&self) -> [(&'static str, u64); 6] {
        [
            ("used_index_jumped", self.used_index_jumped),
            ("unknown_head", self.unknown_head),
            ("head_not_posted", self.head_not_posted),
            ("length_too_large", self.length_too_large),
            ("length_too_small", self.length_too_small),
            ("wrong_num_buffers", self.wrong_num_buffers),
        ]
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.entries().iter().map(|(_, count)| count).sum()
    }
}
