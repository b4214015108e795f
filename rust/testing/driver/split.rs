// SPDX-License-Identifier: Apache-2.0
//! A driver for chains of any shape over a [`SplitRing`]: add, publish, take back.
//!
//! Invariant: a descriptor is in the free list or in exactly one posted chain.

use std::collections::VecDeque;

use super::format::{RingFormat, Segment};
use super::place::RingPlace;
use super::split_descriptor::Descriptor;
use super::split_ring::SplitRing;
use super::violations::Violations;
use super::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use crate::testing::memory::{Gpa, GuestRam};
use crate::testing::{Error, Result};

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head that [`SplitDriver::add`] gave out.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// An honest driver for one split virtqueue; [`ring_mut`](Self::ring_mut) is the way to be less honest.
#[derive(Debug)]
pub struct SplitDriver {
    ring: SplitRing,
    /// Taken from the front and given back at the end: a device that works in order sees ring order (§2.7.9).
    free: VecDeque<u16>,
    chains: Vec<Option<Vec<u16>>>,
    violations: Violations,
}

impl SplitDriver {
    /// A driver over fresh ring memory at `place`.
    ///
    /// # Errors
    /// As [`SplitRing::new`].
    pub fn new(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self> {
        Ok(Self {
            ring: SplitRing::new(ram, place, size, agreed)?,
            free: (0..size).collect(),
            chains: vec![None; usize::from(size)],
            violations: Violations::default(),
        })
    }

    /// The ring underneath.
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// The ring underneath, to write what the specification forbids.
    pub fn ring_mut(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// Rules that the device broke so far.
    pub fn violations(&self) -> Violations {
        self.violations
    }

    /// Descriptors not in any posted chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Posts a chain of these buffers, not yet visible; gives its head.
    ///
    /// # Errors
    /// `Config` when the chain is empty or there are too few free descriptors.
    pub fn add(&mut self, segments: &[Segment]) -> Result<u16> {
        let taken = self.take(segments.len())?;
        for (place, (&index, segment)) in taken.iter().zip(segments).enumerate() {
            let next = taken.get(place + 1).copied();
            self.ring.write_descriptor(index, describe(*segment, next));
        }
        self.post(taken)
    }

    /// Posts one descriptor that points to a table of these buffers, written at `table`.
    ///
    /// # Errors
    /// As [`add`](Self::add), and when `table` is not in guest memory.
    pub fn add_indirect(&mut self, ram: &GuestRam, table: Gpa, segments: &[Segment]) -> Result<u16> {
        let window = ram.window(table, 16 * segments.len())?;
        for (place, segment) in segments.iter().enumerate() {
            let next = u16::try_from(place + 1).ok().filter(|_| place + 1 < segments.len());
            describe(*segment, next).store(&window, 16 * place);
        }
        let len =
            u32::try_from(16 * segments.len()).map_err(|_| Error::Config("an indirect table past 4 GiB".into()))?;
        let taken = self.take(1)?;
        if let [index] = taken[..] {
            let entry = Descriptor { address: table.0, len, flags: DESC_INDIRECT, next: 0 };
            self.ring.write_descriptor(index, entry);
        }
        self.post(taken)
    }

    /// Makes the posted chains visible; `true` when the device wants to be kicked.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes back the next chain the device is done with. `len` is 0 for one of a batch, whose length it does not tell.
    pub fn poll_used(&mut self) -> Option<Used> {
        self.ring.used_waiting(1, &mut self.violations);
        loop {
            let (id, len) = self.ring.take_used(&mut self.violations)?;
            let Some(head) = u16::try_from(id).ok().filter(|&head| head < self.ring.size()) else {
                self.violations.unknown_head += 1;
                continue;
            };
            let Some(chain) = self.chains.get_mut(usize::from(head)).and_then(Option::take) else {
                self.violations.head_not_posted += 1;
                continue;
            };
            self.free.extend(chain);
            return Some(Used { head, len: len.unwrap_or(0) });
        }
    }

    fn take(&mut self, count: usize) -> Result<Vec<u16>> {
        if count == 0 || count > self.free.len() {
            return Err(Error::Config(format!("a chain of {count} does not fit {} free descriptors", self.free.len())));
        }
        Ok(self.free.drain(..count).collect())
    }

    fn post(&mut self, taken: Vec<u16>) -> Result<u16> {
        let head = taken.first().copied().ok_or_else(|| Error::Config("an empty chain".into()))?;
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = Some(taken);
        }
        self.ring.offer(head);
        Ok(head)
    }
}

fn describe(segment: Segment, next: Option<u16>) -> Descriptor {
    let write = if segment.writable { DESC_WRITE } else { 0 };
    let more = if next.is_some() { DESC_NEXT } else { 0 };
    Descriptor { address: segment.gpa.0, len: segment.len, flags: write | more, next: next.unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory::{Backing, RegionSpec};

    fn driver(size: u16) -> (GuestRam, SplitDriver) {
        let specs = RegionSpec::spread(1, 1 << 20, &Backing::Memfd);
        let mut ram = GuestRam::new(&specs).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, size).unwrap();
        let driver = SplitDriver::new(&ram, place, size, 0).unwrap();
        (ram, driver)
    }

    fn give_back(driver: &SplitDriver, position: u16, id: u32, len: u32) {
        let used = driver.ring().used();
        let at = 4 + 8 * usize::from(position % driver.ring().size());
        used.store_u32(at, id);
        used.store_u32(at + 4, len);
        used.store_u16_release(2, position.wrapping_add(1));
    }

    const SEGMENT: Segment = Segment { gpa: Gpa(0x1000), len: 64, writable: true };

    #[test]
    fn a_chain_is_linked_and_comes_back_whole() {
        let (_ram, mut driver) = driver(8);
        let head = driver.add(&[SEGMENT; 3]).unwrap();
        assert_eq!(driver.free(), 5);
        let first = Descriptor::load(driver.ring().descriptors(), 16 * usize::from(head));
        assert_eq!(first.flags, DESC_NEXT | DESC_WRITE);
        driver.publish();
        give_back(&driver, 0, u32::from(head), 64);
        assert_eq!(driver.poll_used(), Some(Used { head, len: 64 }));
        assert_eq!(driver.free(), 8);
    }

    #[test]
    fn a_chain_that_does_not_fit_takes_nothing() {
        let (_ram, mut driver) = driver(2);
        assert!(driver.add(&[SEGMENT; 3]).is_err());
        assert_eq!(driver.free(), 2);
    }

    #[test]
    fn a_buffer_returned_twice_is_a_violation() {
        let (_ram, mut driver) = driver(4);
        let head = driver.add(&[SEGMENT]).unwrap();
        driver.add(&[SEGMENT]).unwrap();
        give_back(&driver, 0, u32::from(head), 0);
        assert!(driver.poll_used().is_some());
        give_back(&driver, 1, u32::from(head), 0);
        assert_eq!(driver.poll_used(), None);
        assert_eq!(driver.violations().head_not_posted, 1);
    }

    #[test]
    fn an_unknown_head_and_a_jumping_index_are_violations() {
        let (_ram, mut driver) = driver(4);
        driver.add(&[SEGMENT]).unwrap();
        give_back(&driver, 0, 4, 0);
        assert_eq!(driver.poll_used(), None);
        assert_eq!(driver.violations().unknown_head, 1);
        give_back(&driver, 99, 0, 0);
        assert_eq!(driver.poll_used(), None);
        assert_eq!(driver.violations().used_index_jumped, 1);
    }

    #[test]
    fn an_indirect_table_holds_the_chain() {
        let (mut ram, mut driver) = driver(4);
        let table = ram.alloc(0, 64, 16).unwrap();
        let head = driver.add_indirect(&ram, table, &[SEGMENT; 2]).unwrap();
        let entry = Descriptor::load(driver.ring().descriptors(), 16 * usize::from(head));
        assert_eq!((entry.flags, entry.len), (DESC_INDIRECT, 32));
        let window = ram.window(table, 32).unwrap();
        assert_eq!(Descriptor::load(&window, 0).next, 1);
        assert_eq!(Descriptor::load(&window, 16).flags, DESC_WRITE);
    }
}
