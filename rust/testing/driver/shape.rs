// SPDX-License-Identifier: Apache-2.0
//! How one frame lies in descriptors: all in one, header apart, a chain, or behind a table.

use crate::testing::{Error, Result};

/// Which descriptors one frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Header and data in one descriptor: `VERSION_1` or `ANY_LAYOUT` drivers, DPDK.
    One,
    /// The header in its own descriptor, then the data: Linux.
    Two,
    /// The header, then the data cut in this many less one.
    Chain(u16),
    /// One descriptor that points to a table of this many.
    Indirect(u16),
}

impl Layout {
    /// Reads `one`, `two`, `chain:N` or `indirect:N`, N from 1 to 1024.
    ///
    /// # Errors
    /// `Config` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let count = |number: &str| number.parse().ok().filter(|count| (1..=1024).contains(count));
        match text.split_once(':') {
            None if text == "one" => Some(Self::One),
            None if text == "two" => Some(Self::Two),
            Some(("chain", number)) => count(number).map(Self::Chain),
            Some(("indirect", number)) => count(number).map(Self::Indirect),
            _ => None,
        }
        .ok_or_else(|| {
            Error::Config(format!("layout '{text}' is not known: one, two, chain:N or indirect:N (N from 1 to 1024)"))
        })
    }

    /// The pieces a frame is cut into at most.
    pub fn pieces(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Chain(count) | Self::Indirect(count) => usize::from(count),
        }
    }

    /// The descriptors of the ring that a frame takes at most.
    pub fn ring_descriptors(self) -> usize {
        match self {
            Self::Indirect(_) => 1,
            other => other.pieces(),
        }
    }
}

/// How a slot's bytes are cut: the layout with its sizes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Which descriptors.
    pub layout: Layout,
    /// Bytes of the virtio-net header.
    pub header_size: usize,
    /// Bytes of frame the slot can hold.
    pub room: usize,
    /// Bytes left unused between pieces, so that a device that takes pieces for neighbours fails.
    pub gap: usize,
}

impl Shape {
    /// Bytes of guest memory one slot takes.
    pub fn stride(&self) -> usize {
        let pieces = self.layout.pieces();
        let size = self.header_size + self.room + pieces * self.gap;
        // An odd number of cache lines, or the first lines of all slots fall into the same few
        // sets of the caches.
        (size.div_ceil(64) | 1) * 64
    }

    /// Offset in the slot and size of each piece of `total` bytes, header included.
    pub fn pieces(&self, total: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let data = total.saturating_sub(self.header_size);
        let (first, cuts) = match self.layout.pieces() {
            1 => (total, 0),
            count => (self.header_size.min(total), (count - 1).min(data)),
        };
        let gap = self.gap;
        let base = data.checked_div(cuts).unwrap_or(0);
        let larger = data.checked_rem(cuts).unwrap_or(0);
        std::iter::once((0, first)).chain((0..cuts).map(move |cut| {
            let before = cut * base + cut.min(larger);
            (first + before + (cut + 1) * gap, base + usize::from(cut < larger))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(layout: Layout, gap: usize, total: usize) -> Vec<(usize, usize)> {
        Shape { layout, header_size: 12, room: 2048, gap }.pieces(total).collect()
    }

    #[test]
    fn one_is_all_in_one() {
        assert_eq!(pieces(Layout::One, 64, 76), [(0, 76)]);
    }

    #[test]
    fn two_puts_the_header_apart() {
        assert_eq!(pieces(Layout::Two, 0, 76), [(0, 12), (12, 64)]);
        assert_eq!(pieces(Layout::Two, 64, 76), [(0, 12), (76, 64)]);
    }

    #[test]
    fn a_chain_covers_every_byte_once_and_keeps_its_gaps() {
        assert_eq!(pieces(Layout::Chain(4), 8, 12 + 10), [(0, 12), (20, 4), (32, 3), (43, 3)]);
    }

    #[test]
    fn no_piece_is_empty_when_there_are_more_pieces_than_bytes() {
        assert_eq!(pieces(Layout::Indirect(9), 0, 14), [(0, 12), (12, 1), (13, 1)]);
    }

    #[test]
    fn every_piece_lies_inside_the_stride() {
        for count in [1, 2, 3, 7, 64] {
            let shape = Shape { layout: Layout::Chain(count), header_size: 12, room: 1500, gap: 64 };
            let end = shape.pieces(1512).map(|(at, size)| at + size).max().unwrap();
            assert!(end <= shape.stride());
        }
    }

    #[test]
    fn layouts_are_read_by_name() {
        assert_eq!(Layout::parse("indirect:3").unwrap(), Layout::Indirect(3));
        assert!(Layout::parse("chain:0").is_err());
        assert!(Layout::parse("three").is_err());
    }
}
