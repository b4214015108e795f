// SPDX-License-Identifier: Apache-2.0
//! Fixed buffers over a split ring: slot *i* always has the same memory and the same descriptors.
//!
//! ```text
//!  slot 0        slot 1        slot 2          free: the slots that are ours, in the order they
//!  desc 0,1      desc 2,3      desc 4,5   …    came back; posted: the device's
//! ```
//! Descriptors are written when a slot is first posted and again when a frame's length differs (or
//! always, if asked): with frames of one size, posting a slot costs one available entry.
//!
//! Invariant: a slot is free or posted, never both; only a posted slot can come back.
#![expect(clippy::cast_possible_truncation, reason = "slots, pieces and slot offsets are bounded at construction")]

use super::split_ring::{Descriptor, RingPlace, SplitRing};
use super::violations::Violations;
use super::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Layout, Shape};
use crate::testing::memory::{Gpa, GuestRam, Window};
use crate::testing::{Error, Result};

/// What a slot ring is made from.
#[derive(Clone, Copy, Debug)]
pub struct SlotRingConfig {
    /// Where the ring is.
    pub place: RingPlace,
    /// Descriptors in the ring.
    pub size: u16,
    /// Whether `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// How a frame lies in a slot.
    pub shape: Shape,
    /// Whether the device writes the slots (a receiveq).
    pub writable: bool,
    /// Whether descriptors are written again on every post, as most drivers do.
    pub rewrite: bool,
}

/// Fields are read one by one: a load over a flag just stored would wait for the store.
#[derive(Debug)]
struct Slot {
    gpa: Gpa,
    offset: u32,
    /// Bytes its descriptors describe; 0 before they are written.
    len: u32,
    area: u32,
    posted: bool,
}

#[derive(Debug)]
struct Area {
    window: Window,
    gpa: Gpa,
}

/// A ring of fixed buffers.
#[derive(Debug)]
pub struct SlotRing {
    ring: SplitRing,
    shape: Shape,
    writable: bool,
    rewrite: bool,
    descriptors_per_slot: u16,
    areas: Vec<Area>,
    tables: Option<Area>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    free_mask: usize,
    free_head: usize,
    free_tail: usize,
    broken: bool,
    violations: Violations,
}

impl SlotRing {
    /// Takes guest memory for as many slots as the ring has room for, spread over all regions.
    ///
    /// # Errors
    /// `Config` when memory is too small or a frame needs more descriptors than the ring has.
    pub fn new(ram: &mut GuestRam, config: SlotRingConfig) -> Result<Self> {
        let SlotRingConfig { place, size, event_idx, shape, writable, rewrite } = config;
        let ring = SplitRing::new(ram, place, size, event_idx)?;
        let per_slot = shape.layout.ring_descriptors();
        let count = usize::from(size) / per_slot;
        if count == 0 {
            return Err(Error::Config(format!("a ring of {size} descriptors cannot hold a frame of {per_slot}")));
        }
        let stride = shape.stride();
        let regions = ram.regions().len().min(count);
        let mut areas = Vec::with_capacity(regions);
        for region in 0..regions {
            let size = stride * count.div_ceil(regions);
            let gpa = ram.alloc(region, size, 4096)?;
            areas.push(Area { window: ram.window(gpa, size)?, gpa });
        }
        let slots = (0..count)
            .zip(areas.iter().enumerate().cycle())
            .map(|(slot, (area, place))| {
                let offset = slot / regions * stride;
                let gpa = place.gpa.plus(offset as u64);
                Slot { gpa, offset: offset as u32, len: 0, area: area as u32, posted: false }
            })
            .collect();
        let tables = match shape.layout {
            Layout::Indirect(entries) => {
                let size = 16 * usize::from(entries) * count;
                let gpa = ram.alloc(0, size, 64)?;
                Some(Area { window: ram.window(gpa, size)?, gpa })
            }
            _ => None,
        };
        let capacity = count.next_power_of_two();
        let mut free = vec![0; capacity];
        for (slot, place) in free.iter_mut().enumerate().take(count) {
            *place = slot as u16;
        }
        Ok(Self {
            ring,
            shape,
            writable,
            rewrite,
            descriptors_per_slot: per_slot as u16,
            areas,
            tables,
            slots,
            free,
            free_mask: capacity - 1,
            free_head: 0,
            free_tail: count,
            broken: false,
            violations: Violations::default(),
        })
    }

    /// The ring underneath.
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// The ring underneath, for notification wishes and raw writes.
    pub fn ring_mut(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// How frames lie in the slots.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Slots that are the driver's.
    #[inline]
    pub fn free(&self) -> usize {
        self.free_tail - self.free_head
    }

    /// Slots that are the device's.
    #[inline]
    pub fn posted(&self) -> usize {
        self.slots.len() - self.free()
    }

    /// Rules that the device broke so far.
    pub fn violations(&self) -> Violations {
        self.violations
    }

    /// Counts a rule that only the caller can see broken.
    pub fn violations_mut(&mut self) -> &mut Violations {
        &mut self.violations
    }

    /// Takes a free slot.
    #[inline]
    pub fn take_free(&mut self) -> Option<u16> {
        if self.free_head == self.free_tail {
            return None;
        }
        let slot = self.free[self.free_head & self.free_mask];
        self.free_head += 1;
        Some(slot)
    }

    /// Asks for the first lines of the next `count` free slots, to be written.
    #[inline]
    pub fn prefetch_free(&self, count: usize) {
        for ahead in 0..count.min(self.free()) {
            let slot = self.free[(self.free_head + ahead) & self.free_mask];
            let (window, at) = self.place(slot);
            window.prefetch_for_write(at);
        }
    }

    /// Asks for the first lines of the next `count` slots that came back, to be read.
    #[inline]
    pub fn prefetch_used(&self, count: usize) {
        let count = count.min(self.slots.len());
        self.ring.prefetch_used(count as u16);
        for ahead in 0..count {
            let (id, _) = self.ring.peek_used(ahead as u16);
            let per_slot = u32::from(self.descriptors_per_slot);
            let index = if per_slot == 1 { id } else { id / per_slot };
            if (index as usize) < self.slots.len() {
                let (window, at) = self.place(index as u16);
                window.prefetch(at);
            }
        }
    }

    /// Gives a slot back to the driver's side.
    #[inline]
    pub fn put_free(&mut self, slot: u16) {
        self.free[self.free_tail & self.free_mask] = slot;
        self.free_tail += 1;
    }

    /// Hands the device a slot with `total` bytes, header included; visible after
    /// [`publish`](Self::publish).
    #[inline]
    pub fn post(&mut self, slot: u16, total: usize) {
        let state = &mut self.slots[usize::from(slot)];
        let gpa = state.gpa;
        let described = std::mem::replace(&mut state.len, total as u32);
        state.posted = true;
        if self.rewrite || described as usize != total {
            self.describe(slot, gpa, total);
        }
        self.ring.put_available(slot * self.descriptors_per_slot);
    }

    /// Makes posted slots visible; `true` when the device wants to be kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// How many slots came back and wait to be taken; reads the device's index.
    #[inline]
    pub fn used_waiting(&mut self) -> usize {
        let waiting = usize::from(self.ring.used_waiting());
        if waiting > self.posted() {
            if !self.broken {
                self.violations.used_index_jumped += 1;
            }
            self.broken = true;
        }
        if self.broken { 0 } else { waiting }
    }

    /// Takes the next slot that came back, of those [`used_waiting`](Self::used_waiting) saw: the
    /// slot and the bytes written. A used element that breaks a rule is counted and skipped.
    #[inline]
    pub fn take_used(&mut self) -> Option<(u16, usize)> {
        loop {
            let (id, len) = self.ring.take_used()?;
            let per_slot = u32::from(self.descriptors_per_slot);
            let index = if per_slot == 1 { id } else { id / per_slot };
            let Some(slot) = self.slots.get_mut(index as usize) else {
                self.violations.unknown_head += 1;
                continue;
            };
            if per_slot != 1 && id % per_slot != 0 {
                self.violations.unknown_head += 1;
                continue;
            }
            if !slot.posted {
                self.violations.head_not_posted += 1;
                continue;
            }
            slot.posted = false;
            if self.writable && len > slot.len {
                self.violations.length_too_large += 1;
            }
            let len = len.min(slot.len);
            return Some((index as u16, len as usize));
        }
    }

    /// Takes back all slots the device is done with; gives their number. For a transmitq.
    #[inline]
    pub fn reclaim(&mut self) -> usize {
        let mut count = 0;
        let waiting = self.used_waiting();
        if waiting > 0 {
            self.ring.prefetch_used(waiting as u16);
            while let Some((slot, _)) = self.take_used() {
                self.put_free(slot);
                count += 1;
            }
        }
        count
    }

    /// Window and offset of a slot's first byte.
    #[inline]
    pub fn place(&self, slot: u16) -> (&Window, usize) {
        let slot = &self.slots[usize::from(slot)];
        (&self.areas[slot.area as usize].window, slot.offset as usize)
    }

    /// Writes header and frame into the slot's pieces.
    pub fn scatter(&self, slot: u16, bytes: &[u8]) {
        let (window, base) = self.place(slot);
        let mut rest = bytes;
        for (at, size) in self.shape.pieces(bytes.len()) {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            window.write(base + at, piece);
            rest = after;
        }
    }

    /// Appends the first `len` bytes the device wrote into the slot.
    pub fn gather(&self, slot: u16, len: usize, bytes: &mut Vec<u8>) {
        let (window, base) = self.place(slot);
        let mut left = len;
        // The descriptors describe the whole slot, so the pieces are cut for all of it.
        for (at, size) in self.shape.pieces(self.slots[usize::from(slot)].len as usize) {
            let size = size.min(left);
            let start = bytes.len();
            bytes.resize(start + size, 0);
            window.read(base + at, &mut bytes[start..]);
            left -= size;
        }
    }

    #[inline]
    fn describe(&self, slot: u16, gpa: Gpa, total: usize) {
        if let Layout::One = self.shape.layout {
            let flags = self.direction();
            self.ring.write_descriptor(slot, Descriptor { address: gpa.0, len: total as u32, flags, next: 0 });
        } else if let Some(tables) = &self.tables {
            self.describe_indirect(slot, gpa, total, tables);
        } else {
            self.describe_chain(slot, gpa, total);
        }
    }

    fn direction(&self) -> u16 {
        if self.writable { DESC_WRITE } else { 0 }
    }

    #[inline(never)]
    fn describe_chain(&self, slot: u16, gpa: Gpa, total: usize) {
        let first = slot * self.descriptors_per_slot;
        for (index, piece) in (first..).zip(self.piece_descriptors(gpa, total, first)) {
            self.ring.write_descriptor(index, piece);
        }
    }

    #[inline(never)]
    fn describe_indirect(&self, slot: u16, gpa: Gpa, total: usize, tables: &Area) {
        let first = 16 * self.shape.layout.pieces() * usize::from(slot);
        let mut entries = 0;
        for piece in self.piece_descriptors(gpa, total, 0) {
            piece.store(&tables.window, first + 16 * entries);
            entries += 1;
        }
        let address = tables.gpa.plus(first as u64).0;
        let table = Descriptor { address, len: 16 * entries as u32, flags: DESC_INDIRECT, next: 0 };
        self.ring.write_descriptor(slot, table);
    }

    /// The descriptors of a frame's pieces, the first of them at index `first`.
    fn piece_descriptors(&self, gpa: Gpa, total: usize, first: u16) -> impl Iterator<Item = Descriptor> {
        let direction = self.direction();
        let mut pieces = (first + 1..).zip(self.shape.pieces(total)).peekable();
        std::iter::from_fn(move || {
            let (next, (at, size)) = pieces.next()?;
            let more = if pieces.peek().is_some() { DESC_NEXT } else { 0 };
            Some(Descriptor { address: gpa.plus(at as u64).0, len: size as u32, flags: direction | more, next })
        })
    }
}
