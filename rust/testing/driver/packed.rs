// SPDX-License-Identifier: Apache-2.0
//! A driver for buffers of any shape over a [`PackedRing`]: add, publish, take back.
//!
//! Invariant: an id is free or of exactly one posted buffer, and posted buffers take no more descriptors than there
//! are.

use std::collections::VecDeque;

use super::format::{RingFormat, Segment};
use super::packed_ring::PackedRing;
use super::place::RingPlace;
use super::split::Used;
use super::violations::Violations;
use crate::testing::memory::{Gpa, GuestRam};
use crate::testing::{Error, Result};

/// An honest driver for one packed virtqueue; [`ring_mut`](Self::ring_mut) is the way to be less honest.
#[derive(Debug)]
pub struct PackedDriver {
    ring: PackedRing,
    free: VecDeque<u16>,
    /// Descriptors of each posted buffer.
    counts: Vec<usize>,
    room: usize,
    violations: Violations,
}

impl PackedDriver {
    /// A driver over fresh ring memory at `place`.
    ///
    /// # Errors
    /// As [`PackedRing::new`].
    pub fn new(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self> {
        Ok(Self {
            ring: PackedRing::new(ram, place, size, agreed, 0)?,
            free: (0..size).collect(),
            counts: vec![0; usize::from(size)],
            room: usize::from(size),
            violations: Violations::default(),
        })
    }

    /// The ring underneath.
    pub fn ring(&self) -> &PackedRing {
        &self.ring
    }

    /// The ring underneath, to write what the specification forbids.
    pub fn ring_mut(&mut self) -> &mut PackedRing {
        &mut self.ring
    }

    /// Rules that the device broke so far.
    pub fn violations(&self) -> Violations {
        self.violations
    }

    /// Descriptors not in any posted buffer.
    pub fn free(&self) -> usize {
        self.room
    }

    /// Posts a buffer of these segments, not yet visible; gives its id.
    ///
    /// # Errors
    /// `Config` when there are no segments, or too few free descriptors.
    pub fn add(&mut self, segments: &[Segment]) -> Result<u16> {
        let id = self.take(segments.len())?;
        self.ring.post_chain(id, segments.iter().copied());
        Ok(id)
    }

    /// Posts one descriptor that points to a table of these segments, written at `table`; gives the buffer's id.
    ///
    /// # Errors
    /// As [`add`](Self::add), and when `table` is not in guest memory.
    pub fn add_indirect(&mut self, ram: &GuestRam, table: Gpa, segments: &[Segment]) -> Result<u16> {
        let window = ram.window(table, 16 * segments.len())?;
        for (index, segment) in (0_u16..).zip(segments) {
            PackedRing::write_entry(&window, index, *segment, usize::from(index) + 1 < segments.len());
        }
        let size =
            u32::try_from(16 * segments.len()).map_err(|_| Error::Config("an indirect table past 4 GiB".into()))?;
        let id = self.take(1)?;
        self.ring.post_table(id, table, size);
        Ok(id)
    }

    /// Makes the posted buffers visible; `true` when the device wants to be kicked.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes back the next buffer the device is done with. `len` is 0 for one of a batch, whose length it does not
    /// tell.
    pub fn poll_used(&mut self) -> Option<Used> {
        self.ring.used_waiting(1, &mut self.violations);
        let (id, len) = self.ring.take_used(&mut self.violations)?;
        let head = u16::try_from(id).ok()?;
        if let Some(count) = self.counts.get_mut(usize::from(head)) {
            self.room += std::mem::take(count);
        }
        self.free.push_back(head);
        Some(Used { head, len: len.unwrap_or(0) })
    }

    fn take(&mut self, count: usize) -> Result<u16> {
        let wrong = || Error::Config(format!("a buffer of {count} does not fit {} free descriptors", self.room));
        if count == 0 || count > self.room {
            return Err(wrong());
        }
        let id = self.free.pop_front().ok_or_else(wrong)?;
        if let Some(place) = self.counts.get_mut(usize::from(id)) {
            *place = count;
        }
        self.room -= count;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed_descriptor::{Cursor, PackedDescriptor};
    use super::super::{DESC_AVAILABLE, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE};
    use super::*;
    use crate::testing::memory::{Backing, RegionSpec};
    use crate::testing::wire::features;

    fn driver(size: u16, agreed: u64) -> (GuestRam, PackedDriver) {
        let mut ram = GuestRam::new(&RegionSpec::spread(1, 1 << 20, &Backing::Memfd)).unwrap();
        let place = RingPlace::alloc_packed(&mut ram, 0, size).unwrap();
        let driver = PackedDriver::new(&ram, place, size, agreed).unwrap();
        (ram, driver)
    }

    fn at(driver: &PackedDriver, index: u16) -> PackedDescriptor {
        PackedDescriptor::load(driver.ring().descriptors(), 16 * usize::from(index))
    }

    /// The device's side: a buffer used at `cursor`.
    fn give_back(driver: &PackedDriver, cursor: Cursor, id: u16, len: u32) {
        let used = PackedDescriptor { address: 0, len, id, flags: cursor.used() };
        used.store(driver.ring().descriptors(), 16 * usize::from(cursor.index));
    }

    const SEGMENT: Segment = Segment { gpa: Gpa(0x1000), len: 64, writable: true };

    #[test]
    fn nothing_is_visible_before_publish() {
        let (_ram, mut driver) = driver(8, 0);
        driver.add(&[SEGMENT; 2]).unwrap();
        driver.add(&[SEGMENT]).unwrap();
        assert_eq!(at(&driver, 0).flags, 0);
        assert!(driver.publish());
        assert_eq!(at(&driver, 0).flags, DESC_AVAILABLE | DESC_WRITE | DESC_NEXT);
        assert_eq!(at(&driver, 1).flags, DESC_AVAILABLE | DESC_WRITE);
        assert_eq!((at(&driver, 1).id, at(&driver, 2).id), (0, 1));
    }

    #[test]
    fn wrap_counters_turn_with_every_round_of_a_ring_of_any_size() {
        for size in [1, 3, 7, 8, 1000, 32_768] {
            let (_ram, mut driver) = driver(size, 0);
            let mut cursor = Cursor::FIRST;
            for round in 0..3 * u32::from(size) {
                let id = driver.add(&[SEGMENT]).unwrap();
                assert!(driver.publish());
                let available = if (round / u32::from(size)).is_multiple_of(2) { DESC_AVAILABLE } else { DESC_USED };
                assert_eq!(at(&driver, cursor.index).flags, available | DESC_WRITE);
                assert_eq!(driver.poll_used(), None);
                give_back(&driver, cursor, id, 7);
                assert_eq!(driver.poll_used(), Some(Used { head: id, len: 7 }));
                cursor = cursor.plus(1, size);
            }
            assert_eq!(driver.violations().total(), 0);
        }
    }

    #[test]
    fn buffers_come_back_in_any_order_and_free_what_they_took() {
        let (_ram, mut driver) = driver(5, 0);
        let ids: Vec<u16> = [1, 3, 1].map(|count| driver.add(&[SEGMENT; 3][..count]).unwrap()).into();
        driver.publish();
        assert_eq!(driver.free(), 0);
        // The last of one first, then the one of three: a used descriptor stands as far on as its buffer was long.
        give_back(&driver, Cursor::FIRST, ids[2], 1);
        give_back(&driver, Cursor { index: 1, wrap: true }, ids[1], 2);
        give_back(&driver, Cursor { index: 4, wrap: true }, ids[0], 3);
        let back: Vec<u16> = std::iter::from_fn(|| driver.poll_used()).map(|used| used.head).collect();
        assert_eq!(back, [ids[2], ids[1], ids[0]]);
        assert_eq!((driver.free(), driver.violations().total()), (5, 0));
    }

    #[test]
    fn one_used_descriptor_returns_a_batch_in_order() {
        let (_ram, mut driver) = driver(6, features::IN_ORDER);
        let ids: Vec<u16> = (0..4).map(|_| driver.add(&[SEGMENT]).unwrap()).collect();
        driver.publish();
        give_back(&driver, Cursor::FIRST, ids[2], 9);
        let back: Vec<Used> = std::iter::from_fn(|| driver.poll_used()).collect();
        let expected = [(ids[0], 0), (ids[1], 0), (ids[2], 9)];
        assert_eq!(back, expected.map(|(head, len)| Used { head, len }));
        give_back(&driver, Cursor { index: 3, wrap: true }, ids[3], 1);
        assert_eq!(driver.poll_used(), Some(Used { head: ids[3], len: 1 }));
        assert_eq!((driver.free(), driver.violations().total()), (6, 0));
    }

    #[test]
    fn ids_that_are_not_in_flight_are_violations_and_end_the_ring() {
        for (id, in_order) in [(1, false), (77, false), (1, true), (77, true)] {
            let (_ram, mut driver) = driver(4, if in_order { features::IN_ORDER } else { 0 });
            driver.add(&[SEGMENT]).unwrap();
            driver.publish();
            give_back(&driver, Cursor::FIRST, id, 0);
            assert_eq!(driver.poll_used(), None);
            give_back(&driver, Cursor::FIRST, 0, 0);
            assert_eq!(driver.poll_used(), None, "what cannot be read is left alone");
            assert_eq!(driver.violations().total(), 1);
        }
    }

    #[test]
    fn a_kick_is_written_as_the_device_asked() {
        let (_ram, mut driver) = driver(4, features::EVENT_IDX);
        let mut publish = |flags: u16, event: u16, count: usize| {
            driver.ring().device_area().store_u16(0, event);
            driver.ring().device_area().store_u16(2, flags);
            for _ in 0..count {
                driver.add(&[SEGMENT]).unwrap();
            }
            let kick = driver.publish();
            for _ in 0..count {
                let cursor = driver.ring().next_used();
                give_back(&driver, cursor, at(&driver, cursor.index).id, 0);
                assert!(driver.poll_used().is_some());
            }
            kick
        };
        let second_round = 0;
        let first_round = 1 << 15;
        assert!(publish(0, 0, 1));
        assert!(!publish(1, 0, 1));
        assert!(!publish(2, first_round | 1, 2), "the event is behind");
        assert!(publish(2, second_round | 1, 2), "the event was passed");
        assert!(!publish(2, second_round | 3, 1), "the event is ahead");
        assert!(publish(2, first_round, 2), "the event was passed in the round that began");
    }

    #[test]
    fn an_indirect_table_holds_the_buffer() {
        let (mut ram, mut driver) = driver(4, 0);
        let table = ram.alloc(0, 64, 16).unwrap();
        driver.add_indirect(&ram, table, &[SEGMENT; 2]).unwrap();
        driver.publish();
        let entry = at(&driver, 0);
        assert_eq!((entry.flags, entry.len), (DESC_AVAILABLE | DESC_INDIRECT, 32));
        let window = ram.window(table, 32).unwrap();
        assert_eq!(PackedDescriptor::load(&window, 0).flags, DESC_WRITE);
        assert_eq!(PackedDescriptor::load(&window, 16).flags, DESC_WRITE);
    }

    #[test]
    fn a_buffer_that_does_not_fit_takes_nothing() {
        let (_ram, mut driver) = driver(2, 0);
        assert!(driver.add(&[SEGMENT; 3]).is_err());
        assert!(driver.add(&[]).is_err());
        assert_eq!(driver.free(), 2);
    }
}
