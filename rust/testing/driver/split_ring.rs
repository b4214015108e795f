// SPDX-License-Identifier: Apache-2.0
//! A split virtqueue from the driver's side (virtio 1.2 §2.7).
//!
//! ```text
//!  descriptors  16 × size      available  4 + 2 × size + 2      used  4 + 8 × size + 2
//!  ┌addr┬len┬flags┬next┐       ┌flags┬idx┬ring…┬used_event┐     ┌flags┬idx┬(id,len)…┬avail_event┐
//!     driver writes                  driver writes                    device writes
//! ```
//! Invariants: what is put in the available ring becomes visible only by [`SplitRing::publish`];
//! used elements are read only below the used index that was read with acquire.

use std::sync::atomic::{Ordering, fence};

use crate::testing::memory::{Gpa, GuestRam, Window};
use crate::testing::{Error, Result};

const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

/// Where the three parts of a ring are.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    /// The descriptor table.
    pub descriptors: Gpa,
    /// The available ring.
    pub available: Gpa,
    /// The used ring.
    pub used: Gpa,
}

impl RingPlace {
    /// Takes room for a ring of `size` descriptors in `region`, laid out as legacy guests do: the
    /// available ring behind the descriptors, the used ring on its own page; all zeros.
    ///
    /// # Errors
    /// `Config` when the region is too small.
    pub fn alloc(ram: &mut GuestRam, region: usize, size: u16) -> Result<Self> {
        let size = usize::from(size);
        let (table, available) = (16 * size, 6 + 2 * size);
        let used_at = (table + available).next_multiple_of(4096);
        let whole = used_at + 6 + 8 * size;
        let base = ram.alloc(region, whole, 4096)?;
        // Drivers clear their rings; a back-end may take a ring that nobody ever wrote for private memory.
        ram.window(base, whole)?.fill(0);
        Ok(Self { descriptors: base, available: base.plus(table as u64), used: base.plus(used_at as u64) })
    }
}

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

/// The driver's state of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    descriptors: Window,
    available: Window,
    used: Window,
    place: RingPlace,
    size: u16,
    mask: u16,
    event_idx: bool,
    next_available: u16,
    published: u16,
    last_used: u16,
    seen_used: u16,
}

impl SplitRing {
    /// A ring over memory that reads as zero; `size` is a power of two up to 32768.
    ///
    /// # Errors
    /// `Config` for another size, or a place that is not in guest memory.
    pub fn new(ram: &GuestRam, place: RingPlace, size: u16, event_idx: bool) -> Result<Self> {
        if !size.is_power_of_two() {
            return Err(Error::Config(format!("ring size {size} is not a power of two")));
        }
        let entries = usize::from(size);
        let ring = Self {
            descriptors: ram.window(place.descriptors, 16 * entries)?,
            available: ram.window(place.available, 6 + 2 * entries)?,
            used: ram.window(place.used, 6 + 8 * entries)?,
            place,
            size,
            mask: size - 1,
            event_idx,
            next_available: 0,
            published: 0,
            last_used: 0,
            seen_used: 0,
        };
        Ok(ring)
    }

    /// Descriptors in the table.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring is.
    pub fn place(&self) -> RingPlace {
        self.place
    }

    /// The descriptor table, for raw writes.
    pub fn descriptors(&self) -> &Window {
        &self.descriptors
    }

    /// The available ring, for raw writes.
    pub fn available(&self) -> &Window {
        &self.available
    }

    /// The used ring, for raw reads and writes.
    pub fn used(&self) -> &Window {
        &self.used
    }

    /// The index the next published buffer gets.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// The used index up to which the driver took buffers back.
    pub fn last_used(&self) -> u16 {
        self.last_used
    }

    /// The used index as it stands in memory: where QEMU resumes after a back-end died.
    pub fn used_index(&self) -> u16 {
        self.used.load_u16_acquire(2)
    }

    /// Writes a descriptor; visible to the device only with a chain that names it.
    #[inline]
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        descriptor.store(&self.descriptors, 16 * usize::from(index & self.mask));
    }

    /// Puts a chain's head in the available ring, not yet visible.
    #[inline]
    pub fn put_available(&mut self, head: u16) {
        let at = 4 + 2 * usize::from(self.next_available & self.mask);
        // A device that works in order gets the same heads in the same places; not writing them
        // again leaves the line shared with it.
        if self.available.load_u16(at) != head {
            self.available.store_u16(at, head);
        }
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Makes everything put so far visible; `true` when the device wants to be kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_available {
            return false;
        }
        self.available.store_u16_release(2, self.next_available);
        // The index must be visible before the device's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.published, self.next_available);
        if self.event_idx {
            let event = self.used.load_u16(4 + 8 * usize::from(self.size));
            let new = self.next_available;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used.load_u16(0) & NO_NOTIFY == 0
        }
    }

    /// How many used elements wait to be taken; reads the device's index.
    #[inline]
    pub fn used_waiting(&mut self) -> u16 {
        self.seen_used = self.used.load_u16_acquire(2);
        self.seen_used.wrapping_sub(self.last_used)
    }

    /// The used element `ahead` places after the next, without taking it; only below
    /// [`used_waiting`](Self::used_waiting).
    #[inline]
    pub fn peek_used(&self, ahead: u16) -> (u32, u32) {
        let at = 4 + 8 * usize::from(self.last_used.wrapping_add(ahead) & self.mask);
        (self.used.load_u32(at), self.used.load_u32(at + 4))
    }

    /// Asks for the lines of the next `count` used elements.
    #[inline]
    pub fn prefetch_used(&self, count: u16) {
        // Eight elements a line.
        for ahead in (0..count).step_by(8) {
            self.used.prefetch(4 + 8 * usize::from(self.last_used.wrapping_add(ahead) & self.mask));
        }
    }

    /// Takes the next used element of those last seen: its id and length.
    #[inline]
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.last_used == self.seen_used {
            return None;
        }
        let element = self.peek_used(0);
        self.last_used = self.last_used.wrapping_add(1);
        Some(element)
    }

    /// Asks for calls, or asks for none; after asking, look at
    /// [`used_waiting`](Self::used_waiting) once more before sleeping.
    pub fn want_calls(&mut self, wanted: bool) {
        let entries = usize::from(self.size);
        if self.event_idx {
            // One behind is the event that comes last: at most one call per 65536 buffers.
            let event = if wanted { self.last_used } else { self.last_used.wrapping_sub(1) };
            self.available.store_u16(4 + 2 * entries, event);
        } else {
            self.available.store_u16(0, if wanted { 0 } else { NO_INTERRUPT });
        }
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory::{Backing, RegionSpec};

    fn ring(size: u16, event_idx: bool) -> SplitRing {
        let specs = RegionSpec::spread(1, 1 << 20, &Backing::Memfd);
        let mut ram = GuestRam::new(&specs).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, size).unwrap();
        SplitRing::new(&ram, place, size, event_idx).unwrap()
    }

    #[test]
    fn nothing_is_visible_before_publish() {
        let mut ring = ring(8, false);
        ring.put_available(3);
        assert_eq!(ring.available().load_u16(2), 0);
        assert!(ring.publish());
        assert_eq!(ring.available().load_u16(2), 1);
        assert_eq!(ring.available().load_u16(4), 3);
    }

    #[test]
    fn the_no_notify_flag_is_honoured() {
        let mut ring = ring(8, false);
        ring.used().store_u16(0, 1);
        ring.put_available(0);
        assert!(!ring.publish());
    }

    #[test]
    fn with_event_idx_a_kick_comes_when_the_event_is_passed() {
        let mut ring = ring(8, true);
        ring.used().store_u16(4 + 64, 2);
        for (head, kick) in [(0, false), (1, false), (2, true), (3, false)] {
            ring.put_available(head);
            assert_eq!(ring.publish(), kick, "at {head}");
        }
    }

    #[test]
    fn used_elements_come_out_in_order_and_once() {
        let mut ring = ring(4, false);
        ring.used().store_u32(4, 7);
        ring.used().store_u32(8, 60);
        ring.used().store_u16(2, 1);
        assert_eq!(ring.used_waiting(), 1);
        assert_eq!(ring.take_used(), Some((7, 60)));
        assert_eq!(ring.take_used(), None);
    }

    #[test]
    fn a_size_that_is_no_power_of_two_is_refused() {
        let specs = RegionSpec::spread(1, 1 << 20, &Backing::Memfd);
        let mut ram = GuestRam::new(&specs).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, 8).unwrap();
        assert!(SplitRing::new(&ram, place, 6, false).is_err());
        assert!(SplitRing::new(&ram, place, 0, false).is_err());
    }
}
