// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a split ring, from virtio 1.2 §2.7: a list of free descriptors in any order.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Areas, NEXT, Piece, Posted};
use crate::dice::Dice;
use crate::guest::Guest;

/// A descriptor as the standard draws it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Entry `i` of an indirect table, linked to the one after it.
pub fn in_table(piece: Piece, i: usize, is_last: bool) -> [u8; 16] {
    let more = if is_last { 0 } else { NEXT };
    Desc { addr: piece.addr, len: piece.len, flags: piece.flags | more, next: (i + 1) as u16 }.bytes()
}

/// One split ring.
pub struct SplitSide {
    size: u32,
    pub(super) areas: Areas,
    next_avail: u16,
    last_used: u16,
    /// The available index when the driver last looked whether to kick.
    told: u16,
    free: Vec<u16>,
}

impl SplitSide {
    pub(super) fn new(guest: &mut Guest, size: u32, base: u16, dice: &mut Dice) -> Self {
        let entries = size as usize;
        let areas = Areas::new(guest, [(16 * entries, 16), (6 + 2 * entries, 2), (6 + 8 * entries, 4)], dice);
        areas.windows[1].store_u16(2, base);
        areas.windows[2].store_u16(2, base);
        let mut free: Vec<u16> = (0..size).map(|i| i as u16).collect();
        dice.shuffle(&mut free);
        Self { size, areas, next_avail: base, last_used: base, told: base, free }
    }

    fn used_ring(&self) -> u64 {
        self.areas.gpa[2]
    }

    #[allow(clippy::single_range_in_vec_init, reason = "a list of stretches, here one")]
    pub(super) fn device_writes(&self) -> Vec<Range<u64>> {
        let used = self.used_ring();
        vec![used..used + 6 + 8 * u64::from(self.size)]
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.areas.windows[0].write(16 * usize::from(index), &desc.bytes());
    }

    pub(super) fn put(&mut self, pieces: &[Piece]) -> (u16, Vec<u16>) {
        let taken = self.free.split_off(self.free.len() - pieces.len());
        for (i, (&index, piece)) in taken.iter().zip(pieces).enumerate() {
            let next = taken.get(i + 1).copied();
            let more = if next.is_some() { NEXT } else { 0 };
            let (flags, next) = (piece.flags | more, next.unwrap_or(0xffff));
            self.write_desc(index, Desc { addr: piece.addr, len: piece.len, flags, next });
        }
        self.put_head(taken[0]);
        (taken[0], taken)
    }

    /// Puts any head in the available ring, not yet visible.
    pub fn put_head(&mut self, head: u16) {
        let slot = usize::from(self.next_avail) % self.size as usize;
        self.areas.windows[1].store_u16(4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    pub(super) fn publish(&mut self) {
        self.publish_index(self.next_avail);
    }

    /// The available index as the device is to see it, right or wrong.
    pub fn publish_index(&self, index: u16) {
        self.areas.windows[1].store_u16_release(2, index);
    }

    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The device's index.
    pub fn used_index(&self) -> u16 {
        self.areas.windows[2].load_u16_acquire(2)
    }

    pub(super) fn used_base(&self) -> u16 {
        self.used_index()
    }

    pub(super) fn used(&self) -> Option<(u32, u32)> {
        (self.used_index() != self.last_used).then(|| self.element(self.last_used))
    }

    fn element(&self, index: u16) -> (u32, u32) {
        let at = 4 + 8 * (usize::from(index) % self.size as usize);
        (self.areas.windows[2].load_u32(at), self.areas.windows[2].load_u32(at + 4))
    }

    pub(super) fn used_ahead(&self, _posted: &VecDeque<Posted>, ahead: usize) -> Option<(u32, u32)> {
        let index = self.last_used.wrapping_add(ahead as u16);
        (usize::from(self.used_index().wrapping_sub(self.last_used)) > ahead).then(|| self.element(index))
    }

    pub(super) fn take_back(&mut self, posted: &Posted) {
        self.last_used = self.last_used.wrapping_add(1);
        self.free.extend(&posted.taken);
    }

    fn used_slot(&self, ahead: usize) -> u64 {
        self.used_ring() + 4 + 8 * ((usize::from(self.last_used) + ahead) % self.size as usize) as u64
    }

    pub(super) fn used_writes(&self, given: &[(Posted, u32)], as_batch: bool) -> Vec<(u64, Vec<u8>)> {
        let element = |(posted, len): &(Posted, u32)| [u32::from(posted.id).to_le_bytes(), len.to_le_bytes()].concat();
        let mut writes: Vec<_> = if as_batch {
            given.last().iter().map(|last| (self.used_slot(0), element(last))).collect()
        } else {
            given.iter().enumerate().map(|(i, one)| (self.used_slot(i), element(one))).collect()
        };
        let index = self.last_used.wrapping_add(given.len() as u16);
        writes.push((self.used_ring() + 2, index.to_le_bytes().to_vec()));
        writes
    }

    /// Elements past the index say nothing yet: the device may have begun one that it did not finish.
    pub(super) fn scribbles(&self, used: usize, posted: usize) -> Vec<(u64, usize)> {
        (used..posted).map(|ahead| (self.used_slot(ahead), 8)).collect()
    }

    pub(super) fn want_calls(&mut self, event_idx: bool, wanted: bool) {
        if event_idx {
            let event = if wanted { self.last_used } else { self.last_used.wrapping_sub(1) };
            self.areas.windows[1].store_u16(4 + 2 * self.size as usize, event);
        } else {
            self.areas.windows[1].store_u16(0, u16::from(!wanted));
        }
    }

    pub(super) fn is_kick_due(&mut self, event_idx: bool) -> bool {
        let (old, new) = (std::mem::replace(&mut self.told, self.next_avail), self.next_avail);
        if event_idx {
            let event = self.areas.windows[2].load_u16(4 + 8 * self.size as usize);
            // By the letter: is `event` one of the entries just added?
            (0..new.wrapping_sub(old)).any(|i| old.wrapping_add(i) == event)
        } else {
            self.areas.windows[2].load_u16(0) & 1 == 0 && new != old
        }
    }
}
