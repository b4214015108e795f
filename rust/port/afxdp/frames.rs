//! Frames to send: which are free, which the kernel has.

use super::CHUNK;
use super::latency::Moment;
use crate::memory::{Area, Span};

/// The tx part of an area. Every frame is free, being written, or posted; a posted one comes back once.
#[derive(Debug)]
pub(super) struct Frames {
    /// Address of the first, bytes into the area.
    first: u64,
    /// Last given back, first taken: those are in the cache still.
    free: Vec<u32>,
    /// When each that is out was taken; 0 for the others.
    out_since: Box<[u32]>,
}

impl Frames {
    /// `count` frames from `first` on, all free.
    pub(super) fn new(first: u64, count: u32) -> Self {
        Self { first, free: (0..count).rev().collect(), out_since: vec![0; count as usize].into() }
    }

    /// How many can be taken.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.out_since.len()
    }

    /// Takes a frame for `len` bytes, at most a chunk. It is `now`.
    #[inline]
    pub(super) fn take(&mut self, area: &Area, len: u32, now: Moment) -> Option<(u64, Span)> {
        let number = *self.free.last()?;
        let address = self.first + u64::from(number) * u64::from(CHUNK);
        let span = area.span(address, len)?;
        *self.out_since.get_mut(number as usize)? = now.stamp();
        self.free.pop();
        Some((address, span))
    }

    /// A frame came back: gives when it was taken ([`Moment::stamp`]). None if it was not out, or is none of these.
    #[inline]
    pub(super) fn give_back(&mut self, address: u64) -> Option<u32> {
        let number = u32::try_from(address.checked_sub(self.first)? / u64::from(CHUNK)).ok()?;
        let since = std::mem::take(self.out_since.get_mut(number as usize)?);
        if since == 0 {
            return None;
        }
        self.free.push(number);
        Some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_once_and_from_its_own_part_only() {
        let area = Area::new(8 * CHUNK as usize).unwrap();
        let (mut frames, now) = (Frames::new(4 * u64::from(CHUNK), 4), Moment::now());
        let taken: Vec<u64> = (0..4).map(|_| frames.take(&area, 60, now).unwrap().0).collect();
        assert!(frames.take(&area, 60, now).is_none());
        assert_eq!(frames.free(), 0);
        for strange in [0, 3 * u64::from(CHUNK), 8 * u64::from(CHUNK), u64::MAX] {
            assert_eq!(frames.give_back(strange), None, "{strange:#x}");
        }
        for address in &taken {
            assert_eq!(frames.give_back(*address + 7), Some(now.stamp()), "any byte of it names it");
            assert_eq!(frames.give_back(*address), None, "twice");
        }
        assert_eq!(frames.free(), 4);
    }
}
