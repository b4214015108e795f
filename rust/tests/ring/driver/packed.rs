// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a packed ring, from virtio 1.2 §2.8: descriptors in the order of the ring, ids in any order.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Areas, NEXT, Piece, Posted, WRITE};
use crate::dice::Dice;
use crate::guest::Guest;

/// Flags of availability, by the lap's wrap counter.
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// A descriptor as the standard draws it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

impl Desc {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}

/// Entry `i` of an indirect table. The id says nothing there, and of the flags only the direction; drivers leave others.
pub fn in_table(piece: Piece, i: usize) -> [u8; 16] {
    let noise = [0, NEXT, AVAIL, AVAIL | NEXT][i % 4];
    Desc { addr: piece.addr, len: piece.len, id: 0xeeee, flags: piece.flags | noise }.bytes()
}

/// A place in the ring and the lap's wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub index: usize,
    pub wrap: bool,
}

impl Cursor {
    fn step(&mut self, size: u32) {
        self.index += 1;
        if self.index == size as usize {
            *self = Self { index: 0, wrap: !self.wrap };
        }
    }

    fn word(self) -> u16 {
        self.index as u16 | u16::from(self.wrap) << 15
    }
}

/// One packed ring.
pub struct PackedSide {
    size: u32,
    pub(super) areas: Areas,
    pub next_avail: Cursor,
    last_used: Cursor,
    /// Where `next_avail` was when the driver last looked whether to kick, and how many descriptors ago.
    told: (Cursor, usize),
    free: usize,
    ids: Vec<u16>,
    /// Flags of first descriptors that are not written yet.
    hidden: Vec<(usize, u16)>,
}

impl PackedSide {
    pub(super) fn new(guest: &mut Guest, size: u32, base: u16, dice: &mut Dice) -> Self {
        let areas = Areas::new(guest, [(16 * size as usize, 16), (4, 4), (4, 4)], dice);
        let start = Cursor { index: usize::from(base & 0x7fff), wrap: base & 0x8000 != 0 };
        let mut ids: Vec<u16> = (0..size).map(|i| i as u16).collect();
        dice.shuffle(&mut ids);
        let free = size as usize;
        let side =
            Self { size, areas, next_avail: start, last_used: start, told: (start, 0), free, ids, hidden: Vec::new() };
        // As the ring is left by whoever brought it to this base: everything used, in this lap or the one before.
        for index in 0..size as usize {
            let wrap = if index < start.index { start.wrap } else { !start.wrap };
            side.store_flags(index, if wrap { AVAIL | USED } else { 0 });
        }
        side
    }

    pub(super) fn device_writes(&self) -> Vec<Range<u64>> {
        let (ring, device) = (self.areas.gpa[0], self.areas.gpa[2]);
        // Length, id and flags of every descriptor, never its address.
        let mut writes: Vec<_> = (0..u64::from(self.size)).map(|i| ring + 16 * i + 8..ring + 16 * i + 16).collect();
        writes.push(device..device + 4);
        writes
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    fn store_flags(&self, index: usize, flags: u16) {
        self.areas.windows[0].store_u16_release(16 * index + 14, flags);
    }

    pub fn write_desc(&self, index: usize, desc: Desc) {
        self.areas.windows[0].write(16 * index, &desc.bytes());
    }

    /// What makes a descriptor of this lap available.
    pub fn available(wrap: bool) -> u16 {
        if wrap { AVAIL } else { USED }
    }

    pub(super) fn put(&mut self, pieces: &[Piece]) -> (u16, Vec<u16>) {
        let id = self.ids.pop().unwrap_or_default();
        self.put_as(pieces, id);
        (id, (0..pieces.len()).map(|_| 0).collect())
    }

    /// Writes a chain with any id, not yet visible. Only its last descriptor has the id.
    pub fn put_as(&mut self, pieces: &[Piece], id: u16) {
        assert!(pieces.len() <= self.free, "the ring is full");
        for (i, piece) in pieces.iter().enumerate() {
            let is_last = i + 1 == pieces.len();
            let Cursor { index, wrap } = self.next_avail;
            let more = if is_last { 0 } else { NEXT };
            let flags = piece.flags | more | Self::available(wrap);
            let id = if is_last { id } else { 0xdddd };
            if i == 0 {
                // All but the flags, which make the chain available.
                let desc = Desc { addr: piece.addr, len: piece.len, id, flags: 0 };
                self.areas.windows[0].write(16 * index, &desc.bytes()[..14]);
                self.hidden.push((index, flags));
            } else {
                self.write_desc(index, Desc { addr: piece.addr, len: piece.len, id, flags });
            }
            self.next_avail.step(self.size);
        }
        self.free -= pieces.len();
        self.told.1 += pieces.len();
    }

    pub(super) fn publish(&mut self) {
        for (index, flags) in std::mem::take(&mut self.hidden) {
            self.store_flags(index, flags);
        }
    }

    /// As far as the driver took chains back: a packed ring does not say how far the device is.
    pub(super) fn used_base(&self) -> u16 {
        self.last_used.word()
    }

    pub(super) fn used(&self) -> Option<(u32, u32)> {
        self.used_at(self.last_used)
    }

    pub(super) fn used_ahead(&self, posted: &VecDeque<Posted>, ahead: usize) -> Option<(u32, u32)> {
        let mut at = self.last_used;
        for _ in posted.iter().take(ahead).flat_map(|posted| &posted.taken) {
            at.step(self.size);
        }
        self.used_at(at)
    }

    fn used_at(&self, at: Cursor) -> Option<(u32, u32)> {
        let Cursor { index, wrap } = at;
        let flags = self.areas.windows[0].load_u16_acquire(16 * index + 14);
        if flags & (AVAIL | USED) != if wrap { AVAIL | USED } else { 0 } {
            return None;
        }
        // The length counts only if something was written.
        let len = if flags & WRITE != 0 { self.areas.windows[0].load_u32(16 * index + 8) } else { 0 };
        Some((u32::from(self.areas.windows[0].load_u16(16 * index + 12)), len))
    }

    pub(super) fn take_back(&mut self, posted: &Posted) {
        for _ in &posted.taken {
            self.last_used.step(self.size);
        }
        self.free += posted.taken.len();
        self.ids.push(posted.id);
    }

    pub(super) fn used_writes(&self, given: &[(Posted, u32)], as_batch: bool) -> Vec<(u64, Vec<u8>)> {
        let (mut at, mut writes) = (self.last_used, Vec::new());
        let mut write = |at: Cursor, id: u16, len: u32| {
            let made_used = if at.wrap { AVAIL | USED } else { 0 };
            let flags = made_used | if len > 0 { WRITE } else { 0 };
            let bytes = Desc { addr: 0, len, id, flags }.bytes()[8..].to_vec();
            writes.push((self.areas.gpa[0] + 16 * at.index as u64 + 8, bytes));
        };
        if as_batch {
            if let Some((posted, len)) = given.last() {
                write(at, posted.id, *len);
            }
            return writes;
        }
        for (posted, len) in given {
            write(at, posted.id, *len);
            for _ in &posted.taken {
                at.step(self.size);
            }
        }
        writes
    }

    /// A descriptor that was not used is the driver's: the device leaves it alone.
    #[allow(clippy::unused_self, reason = "as a split ring's")]
    pub(super) fn scribbles(&self, _used: usize, _posted: usize) -> Vec<(u64, usize)> {
        Vec::new()
    }

    pub(super) fn want_calls(&mut self, event_idx: bool, wanted: bool) {
        let flags = match (event_idx, wanted) {
            (true, true) => 2,
            (false, true) => 0,
            (_, false) => 1,
        };
        self.areas.windows[1].store_u16(0, self.last_used.word());
        self.areas.windows[1].store_u16_release(2, flags);
    }

    pub(super) fn is_kick_due(&mut self, event_idx: bool) -> bool {
        let (mut at, added) = std::mem::replace(&mut self.told, (self.next_avail, 0));
        let flags = self.areas.windows[2].load_u16_acquire(2);
        let event = self.areas.windows[2].load_u16(0);
        match flags {
            1 => false,
            2 => {
                assert!(event_idx, "what was not negotiated is not used");
                // By the letter: is it one of the descriptors just added?
                (0..added).any(|_| {
                    let is_it = at.word() == event;
                    at.step(self.size);
                    is_it
                })
            }
            _ => added > 0,
        }
    }
}
