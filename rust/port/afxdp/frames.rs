//! Frames to send: which are free, which the kernel has.

use super::CHUNK;
use crate::memory::{Area, Span};

/// The tx part of an area. Every frame is free, being written, or posted; a posted one comes back once.
#[derive(Debug)]
pub(super) struct Frames {
    /// Address of the first, bytes into the area.
    first: u64,
    /// Last given back, first taken: those are in the cache still.
    free: Vec<u32>,
    is_out: Box<[bool]>,
}

impl Frames {
    /// `count` frames from `first` on, all free.
    pub(super) fn new(first: u64, count: u32) -> Self {
        Self { first, free: (0..count).rev().collect(), is_out: vec![false; count as usize].into() }
    }

    /// How many can be taken.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.is_out.len()
    }

    /// Takes a frame for `len` bytes, at most a chunk.
    #[inline]
    pub(super) fn take(&mut self, area: &Area, len: u32) -> Option<(u64, Span)> {
        let number = *self.free.last()?;
        let address = self.first + u64::from(number) * u64::from(CHUNK);
        let span = area.span(address, len)?;
        *self.is_out.get_mut(number as usize)? = true;
        self.free.pop();
        Some((address, span))
    }

    /// A frame came back. False if it was not out, or is none of these.
    #[inline]
    pub(super) fn give_back(&mut self, address: u64) -> bool {
        let Some(into) = address.checked_sub(self.first) else { return false };
        let Ok(number) = u32::try_from(into / u64::from(CHUNK)) else { return false };
        let Some(is_out) = self.is_out.get_mut(number as usize) else { return false };
        let was_out = std::mem::take(is_out);
        if was_out {
            self.free.push(number);
        }
        was_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_once_and_from_its_own_part_only() {
        let area = Area::new(8 * CHUNK as usize).unwrap();
        let mut frames = Frames::new(4 * u64::from(CHUNK), 4);
        let taken: Vec<u64> = (0..4).map(|_| frames.take(&area, 60).unwrap().0).collect();
        assert!(frames.take(&area, 60).is_none());
        assert_eq!(frames.free(), 0);
        for strange in [0, 3 * u64::from(CHUNK), 8 * u64::from(CHUNK), u64::MAX] {
            assert!(!frames.give_back(strange), "{strange:#x}");
        }
        for address in &taken {
            assert!(frames.give_back(*address + 7), "any byte of it names it");
            assert!(!frames.give_back(*address), "twice");
        }
        assert_eq!(frames.free(), 4);
    }
}
