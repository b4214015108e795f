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

use super::format::{RingFormat, Segment};
use super::in_order::Order;
use super::place::RingPlace;
use super::split_descriptor::Descriptor;
use super::violations::Violations;
use super::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use crate::testing::memory::{Gpa, GuestRam, Window};
use crate::testing::wire::features;
use crate::testing::{Error, Result};

const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

/// The driver's state of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    pub(super) descriptors: Window,
    available: Window,
    used: Window,
    place: RingPlace,
    size: u16,
    pub(super) mask: u16,
    event_idx: bool,
    next_available: u16,
    published: u16,
    pub(super) last_used: u16,
    pub(super) seen_used: u16,
    pub(super) order: Option<Order>,
    pub(super) broken: bool,
}

impl SplitRing {
    /// A ring over memory that reads as zero; `size` is a power of two up to 32768, `agreed` are the features agreed
    /// on.
    ///
    /// # Errors
    /// `Config` for another size, or a place that is not in guest memory.
    pub fn new(ram: &GuestRam, place: RingPlace, size: u16, agreed: u64) -> Result<Self> {
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
            event_idx: agreed & features::EVENT_IDX != 0,
            next_available: 0,
            published: 0,
            last_used: 0,
            seen_used: 0,
            order: (agreed & features::IN_ORDER != 0).then(|| Order::new(size)),
            broken: false,
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

    /// The used element `ahead` places after the next.
    #[inline]
    pub(super) fn peek_used(&self, ahead: u16) -> (u32, u32) {
        let at = 4 + 8 * usize::from(self.last_used.wrapping_add(ahead) & self.mask);
        (self.used.load_u32(at), self.used.load_u32(at + 4))
    }

    /// Puts the head of a chain of ours in the available ring, not yet visible.
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        self.put_available(head);
        if let Some(order) = &mut self.order {
            order.post(head);
        }
    }

    /// Takes the next buffer of a device that works in order.
    fn take_in_order(&mut self, violations: &mut Violations) -> Option<(u32, Option<u32>)> {
        let waiting = self.seen_used.wrapping_sub(self.last_used);
        let (id, len) = self.peek_used(0);
        let order = self.order.as_mut()?;
        if !order.is_in_batch() {
            let Some(before) = order.before(id).filter(|before| *before < waiting) else {
                violations.head_not_posted += 1;
                self.broken = true;
                return None;
            };
            order.begin_batch(before + 1, len);
        }
        let (buffer, len) = order.take();
        self.last_used = self.last_used.wrapping_add(1);
        Some((buffer.into(), len))
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

impl RingFormat for SplitRing {
    const KEEPS_DESCRIPTORS: bool = true;

    fn size(&self) -> u16 {
        self.size
    }

    fn place(&self) -> RingPlace {
        self.place
    }

    #[inline]
    fn post_one(&mut self, buffer: u16, segment: Segment) {
        self.write_descriptor(buffer, describe(segment, 0, false));
        self.offer(buffer);
    }

    #[inline]
    fn post_chain(&mut self, buffer: u16, segments: impl Iterator<Item = Segment>) {
        let mut segments = segments.peekable();
        let mut index = buffer;
        while let Some(segment) = segments.next() {
            self.write_descriptor(index, describe(segment, index + 1, segments.peek().is_some()));
            index += 1;
        }
        self.offer(buffer);
    }

    fn post_table(&mut self, buffer: u16, table: Gpa, size: u32) {
        self.write_descriptor(buffer, Descriptor { address: table.0, len: size, flags: DESC_INDIRECT, next: 0 });
        self.offer(buffer);
    }

    #[inline]
    fn post_again(&mut self, buffer: u16) {
        self.offer(buffer);
    }

    #[inline]
    fn write_entry(table: &Window, index: u16, segment: Segment, more: bool) {
        describe(segment, index + 1, more).store(table, 16 * usize::from(index));
    }

    #[inline]
    fn publish(&mut self) -> bool {
        Self::publish(self)
    }

    #[inline]
    fn used_waiting(&mut self, _: usize, violations: &mut Violations) -> usize {
        if self.broken {
            return 0;
        }
        self.seen_used = self.used.load_u16_acquire(2);
        let waiting = self.seen_used.wrapping_sub(self.last_used);
        if waiting > self.next_available.wrapping_sub(self.last_used) {
            violations.used_index_jumped += 1;
            self.broken = true;
            return 0;
        }
        waiting.into()
    }

    #[inline]
    fn probably_used(&self, ahead: u16) -> u32 {
        match &self.order {
            Some(order) => order.ahead(ahead).into(),
            None => self.peek_used(ahead).0,
        }
    }

    #[inline]
    fn prefetch_used(&self, count: u16) {
        // Eight elements a line.
        for ahead in (0..count).step_by(8) {
            self.used.prefetch(4 + 8 * usize::from(self.last_used.wrapping_add(ahead) & self.mask));
        }
    }

    #[inline]
    fn take_used(&mut self, violations: &mut Violations) -> Option<(u32, Option<u32>)> {
        if self.last_used == self.seen_used || self.broken {
            return None;
        }
        if self.order.is_some() {
            return self.take_in_order(violations);
        }
        let (id, len) = self.peek_used(0);
        self.last_used = self.last_used.wrapping_add(1);
        Some((id, Some(len)))
    }

    fn want_calls(&mut self, wanted: bool) {
        Self::want_calls(self, wanted);
    }

    fn restart(&mut self) {
        // The wish about calls stands in the available ring, but a driver that resets its ring writes it anew.
        self.available.fill(0);
        self.used.fill(0);
        (self.next_available, self.published, self.last_used, self.seen_used) = (0, 0, 0, 0);
        self.broken = false;
        if let Some(order) = &mut self.order {
            order.clear();
        }
    }
}

/// A segment as a descriptor, followed by `next` if there is more.
pub(super) fn describe(segment: Segment, next: u16, more: bool) -> Descriptor {
    let direction = if segment.writable { DESC_WRITE } else { 0 };
    let (flags, next) = if more { (DESC_NEXT, next) } else { (0, 0) };
    Descriptor { address: segment.gpa.0, len: segment.len, flags: direction | flags, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory::{Backing, RegionSpec};

    fn ring(size: u16, event_idx: bool) -> SplitRing {
        let specs = RegionSpec::spread(1, 1 << 20, &Backing::Memfd);
        let mut ram = GuestRam::new(&specs).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, size).unwrap();
        SplitRing::new(&ram, place, size, if event_idx { features::EVENT_IDX } else { 0 }).unwrap()
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
        ring.put_available(7);
        ring.used().store_u16(2, 1);
        let mut violations = Violations::default();
        assert_eq!(ring.used_waiting(1, &mut violations), 1);
        assert_eq!(ring.take_used(&mut violations), Some((7, Some(60))));
        assert_eq!(ring.take_used(&mut violations), None);
    }

    #[test]
    fn a_size_that_is_no_power_of_two_is_refused() {
        let specs = RegionSpec::spread(1, 1 << 20, &Backing::Memfd);
        let mut ram = GuestRam::new(&specs).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, 8).unwrap();
        assert!(SplitRing::new(&ram, place, 6, 0).is_err());
        assert!(SplitRing::new(&ram, place, 0, 0).is_err());
    }
}
