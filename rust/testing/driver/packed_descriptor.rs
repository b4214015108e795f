// SPDX-License-Identifier: Apache-2.0
//! A packed ring's descriptors, and the places they are at.

use super::{DESC_AVAILABLE, DESC_USED};
use crate::testing::memory::Window;

/// A place in the ring, and in which round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The descriptor.
    pub index: u16,
    /// The wrap counter: changes with every round, and begins as 1.
    pub wrap: bool,
}

impl Cursor {
    /// The first descriptor of the first round.
    pub const FIRST: Self = Self { index: 0, wrap: true };

    /// `by` descriptors further, at most one round.
    #[inline]
    #[must_use]
    pub fn plus(self, by: u16, size: u16) -> Self {
        let index = self.index + by;
        if index < size { Self { index, ..self } } else { Self { index: index - size, wrap: !self.wrap } }
    }

    /// Index and wrap counter in one word, as event structures and `SET_VRING_BASE` have it.
    pub fn word(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// The flags of a descriptor made available here.
    #[inline]
    pub fn available(self) -> u16 {
        if self.wrap { DESC_AVAILABLE } else { DESC_USED }
    }

    /// The flags of a descriptor used here.
    #[inline]
    pub fn used(self) -> u16 {
        if self.wrap { DESC_AVAILABLE | DESC_USED } else { 0 }
    }
}

/// One descriptor as it stands in the ring or in an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its bytes; in a used one, those written.
    pub len: u32,
    /// The buffer's id.
    pub id: u16,
    /// `DESC_…` flags.
    pub flags: u16,
}

impl PackedDescriptor {
    /// Writes the descriptor at byte `at`, its flags last.
    #[inline]
    pub fn store(self, table: &Window, at: usize) {
        table.store_u64(at, self.address);
        table.store_u64_release(at + 8, self.rest());
    }

    /// Reads the descriptor at byte `at`, its flags first.
    pub fn load(table: &Window, at: usize) -> Self {
        let flags = table.load_u16_acquire(at + 14);
        Self { address: table.load_u64(at), len: table.load_u32(at + 8), id: table.load_u16(at + 12), flags }
    }

    /// The word of length, id and flags.
    #[inline]
    pub(super) fn rest(self) -> u64 {
        u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48
    }
}
