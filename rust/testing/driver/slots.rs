// SPDX-License-Identifier: Apache-2.0
//! Fixed buffers over a ring: slot *i* always has the same memory and, in a split ring, the same descriptors.
//!
//! ```text
//!  slot 0        slot 1        slot 2          free: the slots that are ours, in the order they
//!  desc 0,1      desc 2,3      desc 4,5   …    came back; posted: the device's
//! ```
//! Split: descriptors are written when a slot is first posted and again when a frame's length differs (or always, if
//! asked): with frames of one size, posting a slot costs one available entry. Packed: the slot's number is the buffer
//! id, and its descriptors are written where the ring has come to.
//!
//! Compiled once per ring format; [`SlotRing`](super::SlotRing) is either.
//!
//! Invariant: a slot is free or posted, never both; only a posted slot can come back.
#![expect(clippy::cast_possible_truncation, reason = "slots, pieces and slot offsets are bounded at construction")]

use super::format::{RingFormat, Segment};
use super::place::RingPlace;
use super::round::Round;
use super::violations::Violations;
use super::{Layout, Shape};
use crate::testing::memory::{Gpa, GuestRam, Window};
use crate::testing::{Error, Result};

/// What a slot ring is made from.
#[derive(Clone, Copy, Debug)]
pub struct SlotRingConfig {
    /// Where the ring is.
    pub place: RingPlace,
    /// Descriptors in the ring.
    pub size: u16,
    /// Features agreed on: `RING_PACKED`, `IN_ORDER` and `EVENT_IDX` make a difference.
    pub agreed: u64,
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
    /// Bytes its descriptors or its table describe; 0 before they are written.
    len: u32,
    area: u32,
    /// Entries of its indirect table.
    entries: u16,
    posted: bool,
}

#[derive(Debug)]
pub(super) struct Area {
    pub(super) window: Window,
    pub(super) gpa: Gpa,
}

/// Fixed buffers over a ring of one format.
#[derive(Debug)]
pub struct Slots<R> {
    pub(super) ring: R,
    pub(super) shape: Shape,
    pub(super) writable: bool,
    pub(super) rewrite: bool,
    /// What a slot's number is multiplied by to become the ring's number of its buffer.
    scale: u16,
    pub(super) areas: Vec<Area>,
    tables: Option<Area>,
    each: Vec<Slot>,
    free: Vec<u16>,
    free_mask: usize,
    free_head: usize,
    free_tail: usize,
    pub(super) round: Round,
    pub(super) violations: Violations,
}

impl<R: RingFormat> Slots<R> {
    /// Takes guest memory for as many slots as the ring has room for, spread over all regions.
    pub(super) fn new(ram: &mut GuestRam, config: &SlotRingConfig, ring: R) -> Result<Self> {
        let &SlotRingConfig { size, shape, writable, rewrite, .. } = config;
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
        let each = (0..count)
            .zip(areas.iter().enumerate().cycle())
            .map(|(slot, (area, place))| {
                let offset = slot / regions * stride;
                let gpa = place.gpa.plus(offset as u64);
                Slot { gpa, offset: offset as u32, len: 0, area: area as u32, entries: 0, posted: false }
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
            scale: if R::KEEPS_DESCRIPTORS { per_slot as u16 } else { 1 },
            areas,
            tables,
            each,
            free,
            free_mask: capacity - 1,
            free_head: 0,
            free_tail: count,
            round: Round::default(),
            violations: Violations::default(),
        })
    }

    /// How frames lie in the slots.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Slots in all.
    pub fn slots(&self) -> usize {
        self.each.len()
    }

    /// Slots that are the driver's.
    #[inline]
    pub fn free(&self) -> usize {
        self.free_tail - self.free_head
    }

    /// Slots that are the device's.
    #[inline]
    pub fn posted(&self) -> usize {
        self.each.len() - self.free()
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
        let count = count.min(self.each.len());
        self.ring.prefetch_used(count as u16);
        for ahead in 0..count {
            let index = self.slot_of(self.ring.probably_used(ahead as u16));
            if index < self.each.len() {
                let (window, at) = self.place(index as u16);
                window.prefetch(at);
            }
        }
    }

    /// The slot of a buffer; no slot at all for numbers that the ring does not have.
    #[inline]
    fn slot_of(&self, buffer: u32) -> usize {
        (if self.scale == 1 { buffer } else { buffer / u32::from(self.scale) }) as usize
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
        let state = &mut self.each[usize::from(slot)];
        let gpa = state.gpa;
        let described = std::mem::replace(&mut state.len, total as u32);
        state.posted = true;
        self.round.note(slot, total as u32, self.each.len());
        let buffer = slot * self.scale;
        if R::KEEPS_DESCRIPTORS && !self.rewrite && described as usize == total {
            self.ring.post_again(buffer);
        } else if let Layout::One = self.shape.layout {
            self.ring.post_one(buffer, Segment { gpa, len: total as u32, writable: self.writable });
        } else {
            let segments = segments(&self.shape, self.writable, gpa, total);
            match &self.tables {
                None => self.ring.post_chain(buffer, segments),
                Some(tables) => {
                    // The table of a slot stays as it is, as its descriptors do.
                    let first = 16 * self.shape.layout.pieces() * usize::from(slot);
                    if self.rewrite || described as usize != total {
                        self.each[usize::from(slot)].entries = write_table::<R>(tables, first, segments);
                    }
                    let size = 16 * u32::from(self.each[usize::from(slot)].entries);
                    self.ring.post_table(buffer, tables.gpa.plus(first as u64), size);
                }
            }
        }
    }

    /// Makes posted slots visible; `true` when the device wants to be kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// How many slots came back and wait to be taken; reads what the device wrote. A packed ring may say less while
    /// there are fewer than `least`.
    #[inline]
    pub fn used_waiting(&mut self, least: usize) -> usize {
        self.ring.used_waiting(least, &mut self.violations)
    }

    /// Takes the next slot that came back, of those [`used_waiting`](Self::used_waiting) saw: the
    /// slot and the bytes written. A used element that breaks a rule is counted and skipped.
    #[inline]
    pub fn take_used(&mut self) -> Option<(u16, usize)> {
        loop {
            let (buffer, len) = self.ring.take_used(&mut self.violations)?;
            let index = self.slot_of(buffer);
            let Some(slot) = self.each.get_mut(index) else {
                self.violations.unknown_head += 1;
                continue;
            };
            if self.scale != 1 && !buffer.is_multiple_of(u32::from(self.scale)) {
                self.violations.unknown_head += 1;
                continue;
            }
            if !slot.posted {
                self.violations.head_not_posted += 1;
                continue;
            }
            slot.posted = false;
            let len = len.unwrap_or(slot.len);
            if self.writable && len > slot.len {
                self.violations.length_too_large += 1;
            }
            let len = len.min(slot.len);
            return Some((index as u16, len as usize));
        }
    }

    /// Begins anew on cleared ring memory; gives how many slots the device had.
    pub(super) fn restart(&mut self) -> usize {
        let posted = self.posted();
        self.ring.restart();
        for (slot, state) in (0_u16..).zip(&mut self.each) {
            state.posted = false;
            self.free[usize::from(slot)] = slot;
        }
        (self.free_head, self.free_tail) = (0, self.each.len());
        posted
    }

    /// Takes back all slots the device is done with; gives their number. For a transmitq.
    #[inline]
    pub fn reclaim(&mut self) -> usize {
        self.reclaim_some(usize::MAX)
    }

    /// The same for `most` slots at most.
    #[inline]
    pub fn reclaim_some(&mut self, most: usize) -> usize {
        let mut count = 0;
        let waiting = self.used_waiting(1).min(most);
        if waiting > 0 {
            self.ring.prefetch_used(waiting as u16);
            while count < most
                && let Some((slot, _)) = self.take_used()
            {
                self.put_free(slot);
                count += 1;
            }
        }
        count
    }

    /// Window and offset of a slot's first byte.
    #[inline]
    pub fn place(&self, slot: u16) -> (&Window, usize) {
        let slot = &self.each[usize::from(slot)];
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
        for (at, size) in self.shape.pieces(self.each[usize::from(slot)].len as usize) {
            let size = size.min(left);
            let start = bytes.len();
            bytes.resize(start + size, 0);
            window.read(base + at, &mut bytes[start..]);
            left -= size;
        }
    }
}

/// The segments of a frame of `total` bytes in the slot at `gpa`.
#[inline]
fn segments(shape: &Shape, writable: bool, gpa: Gpa, total: usize) -> impl Iterator<Item = Segment> + use<> {
    let pieces = shape.pieces(total);
    pieces.map(move |(at, size)| Segment { gpa: gpa.plus(at as u64), len: size as u32, writable })
}

/// Writes an indirect table at `first` of the tables; gives its entries.
#[inline(never)]
fn write_table<R: RingFormat>(tables: &Area, first: usize, segments: impl Iterator<Item = Segment>) -> u16 {
    let table = tables.window.part(first, tables.window.size() - first);
    let mut segments = segments.peekable();
    let mut entries = 0;
    while let Some(segment) = segments.next() {
        R::write_entry(&table, entries, segment, segments.peek().is_some());
        entries += 1;
    }
    entries
}
