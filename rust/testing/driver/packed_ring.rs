// SPDX-License-Identifier: Apache-2.0
//! A packed virtqueue from the driver's side (virtio 1.2 §2.8).
//!
//! ```text
//!  descriptors  16 × size, written by both     driver area  4 bytes        device area  4 bytes
//!  ┌addr u64┬len u32┬id u16┬flags u16┐ …       ┌off, wrap┬flags┐           ┌off, wrap┬flags┐
//!                      NEXT 1 WRITE 2            which call is wanted        which kick is wanted
//!                      INDIRECT 4
//!                      AVAIL 0x80 USED 0x8000
//! ```
//! A descriptor is available when AVAIL is the driver's wrap counter and USED is not, used when both are the device's.
//!
//! Invariants: of what was posted since the last publish, the first descriptor's flags are written last, so the device
//! sees all of it or nothing. Any size up to 32768 will do. Of a used descriptor only the id and the length are
//! believed, and the id only while that buffer is in flight.

use std::sync::atomic::{Ordering, fence};

use super::format::{RingFormat, Segment};
use super::in_order::Order;
use super::packed_descriptor::{Cursor, PackedDescriptor};
use super::place::RingPlace;
use super::violations::Violations;
use super::{DESC_AVAILABLE, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE};
use crate::testing::memory::{Gpa, GuestRam, Window};
use crate::testing::wire::features;
use crate::testing::{Error, Result};

const LARGEST: u16 = 32_768;
const EVENTS_ON: u16 = 0;
const EVENTS_OFF: u16 = 1;
const EVENT_AT: u16 = 2;

/// The driver's state of one packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    pub(super) descriptors: Window,
    driver_area: Window,
    device_area: Window,
    place: RingPlace,
    pub(super) size: u16,
    event_idx: bool,
    /// Where the next descriptor is made available.
    next: Cursor,
    /// Descriptors written since the last publish, and the second word of the first of them.
    pending: u16,
    held: (usize, u64),
    /// Where the next used descriptor is taken.
    pub(super) taken: Cursor,
    /// Where the next used descriptor is looked for, and the buffers found used and not taken.
    pub(super) seen: Cursor,
    pub(super) waiting: u16,
    /// Descriptors that every buffer takes; 0 when they differ.
    pub(super) stride: u16,
    /// Descriptors of each buffer; 0 for one that is not in flight.
    counts: Vec<u16>,
    pub(super) in_flight: u16,
    pub(super) order: Option<Order>,
    pub(super) broken: bool,
}

impl PackedRing {
    /// A ring over memory that reads as zero, of 1 to 32768 descriptors; `agreed` are the features agreed on. `stride`
    /// is the number of descriptors that every buffer will take, 0 when they differ.
    ///
    /// # Errors
    /// `Config` for another size, or a place that is not in guest memory.
    pub fn new(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64, stride: u16) -> Result<Self> {
        if !(1..=LARGEST).contains(&size) {
            return Err(Error::Config(format!("packed ring size {size} is not between 1 and {LARGEST}")));
        }
        Ok(Self {
            descriptors: ram.window(place.descriptors, 16 * usize::from(size))?,
            driver_area: ram.window(place.available, 4)?,
            device_area: ram.window(place.used, 4)?,
            place,
            size,
            event_idx: agreed & features::EVENT_IDX != 0,
            next: Cursor::FIRST,
            pending: 0,
            held: (0, 0),
            taken: Cursor::FIRST,
            seen: Cursor::FIRST,
            waiting: 0,
            stride,
            counts: vec![0; usize::from(size)],
            in_flight: 0,
            order: (agreed & features::IN_ORDER != 0).then(|| Order::new(size)),
            broken: false,
        })
    }

    /// The descriptor ring, for raw reads and writes.
    pub fn descriptors(&self) -> &Window {
        &self.descriptors
    }

    /// The driver's event suppression structure, for raw reads and writes.
    pub fn driver_area(&self) -> &Window {
        &self.driver_area
    }

    /// The device's event suppression structure, for raw reads and writes.
    pub fn device_area(&self) -> &Window {
        &self.device_area
    }

    /// Where the next descriptor is made available.
    pub fn next_available(&self) -> Cursor {
        self.next
    }

    /// Where the next used descriptor is taken.
    pub fn next_used(&self) -> Cursor {
        self.taken
    }

    /// Buffers posted and not taken back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Where the device has come to, as memory tells: behind everything it used.
    pub fn device_cursor(&mut self) -> Cursor {
        self.look(&mut Violations::default());
        self.seen
    }

    /// Makes one descriptor available as it is, whatever it says; visible with the next publish.
    #[inline]
    pub fn push(&mut self, address: u64, len: u32, id: u16, flags: u16) {
        let at = 16 * usize::from(self.next.index);
        let descriptor = PackedDescriptor { address, len, id, flags: flags | self.next.available() };
        self.descriptors.store_u64(at, address);
        if self.pending == 0 {
            self.held = (at + 8, descriptor.rest());
        } else {
            self.descriptors.store_u64(at + 8, descriptor.rest());
        }
        self.pending += 1;
        self.next = self.next.plus(1, self.size);
    }

    #[inline]
    fn note_posted(&mut self, buffer: u16, count: u16) {
        self.counts[usize::from(buffer)] = count;
        self.in_flight += 1;
        if let Some(order) = &mut self.order {
            order.post(buffer);
        }
    }

    #[inline]
    pub(super) fn is_used(&self, at: Cursor) -> bool {
        let flags = self.descriptors.load_u16_acquire(16 * usize::from(at.index) + 14);
        flags & (DESC_AVAILABLE | DESC_USED) == at.used()
    }

    /// Finds all buffers that were used since the last look.
    #[inline]
    fn look(&mut self, violations: &mut Violations) {
        while self.waiting < self.in_flight && !self.broken && self.is_used(self.seen) {
            let id = self.descriptors.load_u16(16 * usize::from(self.seen.index) + 12);
            let (buffers, descriptors) = match &self.order {
                None => (1, self.count(u32::from(id), violations)),
                Some(order) => match order.before(u32::from(id)).and_then(|before| before.checked_sub(self.waiting)) {
                    Some(before) => (before + 1, self.batch_size(order, before + 1)),
                    None => (0, 0),
                },
            };
            if descriptors == 0 {
                if buffers == 0 {
                    violations.head_not_posted += 1;
                }
                // How many descriptors it would have freed cannot be known, so the rest of the ring cannot be read.
                self.broken = true;
                return;
            }
            self.seen = self.seen.plus(descriptors, self.size);
            self.waiting += buffers;
        }
    }

    /// Descriptors of the next `buffers` that were not seen used.
    fn batch_size(&self, order: &Order, buffers: u16) -> u16 {
        if self.stride != 0 {
            return buffers * self.stride;
        }
        (0..buffers).map(|ahead| self.counts[usize::from(order.ahead(self.waiting + ahead))]).sum()
    }

    /// Descriptors of a buffer that the device names; 0, and a violation, for one that is not in flight.
    #[inline]
    fn count(&self, id: u32, violations: &mut Violations) -> u16 {
        match self.counts.get(id as usize) {
            None => violations.unknown_head += 1,
            Some(0) => violations.head_not_posted += 1,
            Some(count) => return *count,
        }
        0
    }

    /// Takes a used buffer's descriptors back.
    #[inline]
    fn release(&mut self, buffer: u16) {
        let count = std::mem::take(&mut self.counts[usize::from(buffer)]);
        self.taken = self.taken.plus(count, self.size);
        self.waiting -= 1;
        self.in_flight -= 1;
    }

    fn event_passed(&self, word: u16) -> bool {
        let mut event = word & 0x7fff;
        if (word >> 15 != 0) != self.next.wrap {
            event = event.wrapping_sub(self.size);
        }
        let new = self.next.index;
        let old = new.wrapping_sub(self.pending);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

impl RingFormat for PackedRing {
    const KEEPS_DESCRIPTORS: bool = false;

    fn size(&self) -> u16 {
        self.size
    }

    fn place(&self) -> RingPlace {
        self.place
    }

    #[inline]
    fn post_one(&mut self, buffer: u16, segment: Segment) {
        let flags = if segment.writable { DESC_WRITE } else { 0 };
        self.push(segment.gpa.0, segment.len, buffer, flags);
        self.note_posted(buffer, 1);
    }

    #[inline]
    fn post_chain(&mut self, buffer: u16, segments: impl Iterator<Item = Segment>) {
        let mut segments = segments.peekable();
        let mut count = 0;
        while let Some(segment) = segments.next() {
            let direction = if segment.writable { DESC_WRITE } else { 0 };
            // Only the last one's id counts: a device that reads another's is to be found out.
            let (id, more) = if segments.peek().is_some() { (!buffer, DESC_NEXT) } else { (buffer, 0) };
            self.push(segment.gpa.0, segment.len, id, direction | more);
            count += 1;
        }
        self.note_posted(buffer, count);
    }

    fn post_table(&mut self, buffer: u16, table: Gpa, size: u32) {
        self.push(table.0, size, buffer, DESC_INDIRECT);
        self.note_posted(buffer, 1);
    }

    fn post_again(&mut self, _: u16) {
        debug_assert!(false, "the device writes over packed descriptors");
    }

    #[inline]
    fn write_entry(table: &Window, index: u16, segment: Segment, _: bool) {
        // The order in the table is the order of the buffer; only WRITE means anything here (§2.8.10).
        let flags = if segment.writable { DESC_WRITE } else { 0 };
        let entry = PackedDescriptor { address: segment.gpa.0, len: segment.len, id: 0, flags };
        entry.store(table, 16 * usize::from(index));
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.pending == 0 {
            return false;
        }
        self.descriptors.store_u64_release(self.held.0, self.held.1);
        // The descriptors must be visible before the device's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        let kick = match self.device_area.load_u16_acquire(2) & 3 {
            EVENTS_OFF => false,
            EVENT_AT if self.event_idx => self.event_passed(self.device_area.load_u16(0)),
            _ => true,
        };
        self.pending = 0;
        kick
    }

    #[inline]
    fn used_waiting(&mut self, least: usize, violations: &mut Violations) -> usize {
        if least > 1 && self.stride != 0 && self.order.is_none() {
            // Used descriptors come in ring order: while the one that makes `least` is not there, the others are not
            // looked at, for the device is writing their lines.
            let ahead = (least - 1) * usize::from(self.stride);
            let distance = u16::try_from(ahead).unwrap_or(u16::MAX);
            if distance >= self.size || !self.is_used(self.taken.plus(distance, self.size)) {
                return usize::from(self.waiting);
            }
        }
        self.look(violations);
        usize::from(self.waiting)
    }

    #[inline]
    fn probably_used(&self, ahead: u16) -> u32 {
        if let Some(order) = &self.order {
            return order.ahead(ahead).into();
        }
        let distance = ahead.saturating_mul(self.stride.max(1)).min(self.size - 1);
        self.descriptors.load_u16(16 * usize::from(self.taken.plus(distance, self.size).index) + 12).into()
    }

    #[inline]
    fn prefetch_used(&self, count: u16) {
        // Four descriptors a line.
        let last = count.saturating_mul(self.stride.max(1)).min(self.size);
        for ahead in (0..last).step_by(4) {
            self.descriptors.prefetch(16 * usize::from(self.taken.plus(ahead, self.size).index));
        }
    }

    #[inline]
    fn take_used(&mut self, violations: &mut Violations) -> Option<(u32, Option<u32>)> {
        if self.waiting == 0 {
            return None;
        }
        let at = 16 * usize::from(self.taken.index);
        let (id, len) = (u32::from(self.descriptors.load_u16(at + 12)), self.descriptors.load_u32(at + 8));
        if let Some(order) = &mut self.order {
            if !order.is_in_batch() {
                let Some(before) = order.before(id).filter(|before| *before < self.waiting) else {
                    violations.head_not_posted += 1;
                    (self.broken, self.waiting) = (true, 0);
                    return None;
                };
                order.begin_batch(before + 1, len);
            }
            let (buffer, len) = order.take();
            self.release(buffer);
            return Some((buffer.into(), len));
        }
        if self.count(id, violations) == 0 {
            // It named the same buffer twice, or changed its mind.
            (self.broken, self.waiting) = (true, 0);
            return None;
        }
        // Below the size of the ring: it has a count.
        self.release((id & 0xffff) as u16);
        Some((id, Some(len)))
    }

    fn want_calls(&mut self, wanted: bool) {
        let flags = match wanted {
            false => EVENTS_OFF,
            true if self.event_idx => {
                self.driver_area.store_u16(0, self.taken.word());
                EVENT_AT
            }
            true => EVENTS_ON,
        };
        self.driver_area.store_u16_release(2, flags);
        fence(Ordering::SeqCst);
    }

    fn restart(&mut self) {
        self.descriptors.fill(0);
        self.device_area.fill(0);
        (self.next, self.taken, self.seen) = (Cursor::FIRST, Cursor::FIRST, Cursor::FIRST);
        (self.pending, self.waiting, self.in_flight, self.broken) = (0, 0, 0, false);
        self.counts.fill(0);
        if let Some(order) = &mut self.order {
            order.clear();
        }
    }
}
