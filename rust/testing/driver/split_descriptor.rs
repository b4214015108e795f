// SPDX-License-Identifier: Apache-2.0
//! A split ring's descriptors.

use crate::testing::memory::Window;

/// One descriptor as it stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// `DESC_…` flags.
    pub flags: u16,
    /// The descriptor that follows, with `DESC_NEXT`.
    pub next: u16,
}

impl Descriptor {
    /// Writes the descriptor at byte `at` of a table.
    #[inline]
    pub fn store(self, table: &Window, at: usize) {
        table.store_u64(at, self.address);
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        table.store_u64(at + 8, rest);
    }

    /// Reads the descriptor at byte `at` of a table.
    pub fn load(table: &Window, at: usize) -> Self {
        Self {
            address: table.load_u64(at),
            len: table.load_u32(at + 8),
            flags: table.load_u16(at + 12),
            next: table.load_u16(at + 14),
        }
    }
}
