//! Places of a packed ring: it is gone round lap by lap, and the wrap counter changes with each.

use super::{AVAIL, DESC_SIZE, PackedRing, USED, WRAP, WRITE};
use crate::ring::journal::Element;

/// A descriptor's index and the wrap counter of the lap it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Cursor {
    /// As in a base and in an event: the wrap counter above the index.
    pub(super) fn word(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// The cursor `places` further on, at most one lap.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "below the ring size")]
    pub(super) fn after(self, places: u16, size: u16) -> Self {
        let (at, size) = (u32::from(self.index) + u32::from(places), u32::from(size));
        let is_over = at >= size;
        Self { index: (if is_over { at - size } else { at }) as u16, wrap: self.wrap != is_over }
    }
}

/// Where used descriptors go from a cursor on, worked out once for a group: the rest of the lap, and the one after it.
pub(super) struct Laps {
    /// Places to the end of the ring.
    left: u16,
    /// The second half of the descriptor at place 0, as if the ring began there, in either lap.
    start: [*mut u8; 2],
    /// What makes a descriptor used.
    flags: [u64; 2],
}

impl Laps {
    /// Of a group that is all written to, or all only read.
    #[inline]
    pub(super) fn new(ring: &PackedRing, is_written: bool) -> Self {
        let Cursor { index, wrap } = ring.next;
        let (left, size) = (ring.size - index, usize::from(ring.size));
        let start = ring.at(index).wrapping_add(8);
        let flags = |wrap| {
            let made_used = if wrap { AVAIL | USED } else { 0 };
            u64::from(made_used | if is_written { WRITE } else { 0 }) << 48
        };
        let next = start.wrapping_sub(size * DESC_SIZE as usize);
        Self { left, start: [start, next], flags: [flags(wrap), flags(!wrap)] }
    }

    /// Where the word goes that makes an element's descriptor used, and the word. Its place is less than a lap ahead.
    #[inline]
    pub(super) fn used(&self, element: Element) -> (*mut u8, u64) {
        let [here, next] = self.start;
        let [flags, next_flags] = self.flags;
        let (start, flags) = if element.place < self.left { (here, flags) } else { (next, next_flags) };
        let word = u64::from(element.written) | u64::from(element.id) << 32 | flags;
        (start.wrapping_add(usize::from(element.place) * DESC_SIZE as usize), word)
    }
}
