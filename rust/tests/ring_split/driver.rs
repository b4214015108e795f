// SPDX-License-Identifier: Apache-2.0
//! A naive driver of one split ring, written from virtio 1.2 §2.7 alone: plain indices, a list of free descriptors in
//! any order, no shortcuts.

use std::collections::VecDeque;
use std::fs::File;

use ovsvhost::ring::{Ring, RingConfig};
use ovsvhost::testing::memory::{Gpa, Window};

use super::dice::Dice;
use super::guest::Guest;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

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

/// How a chain is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Descriptors of the ring.
    Chain,
    /// This many descriptors of the ring, the rest in an indirect table at the address.
    Table(usize, u64),
}

/// A chain that is with the device.
#[derive(Clone, Debug)]
pub struct Posted {
    pub head: u16,
    /// Its buffers in order: where, how long.
    pub buffers: Vec<(u64, u32)>,
    taken: Vec<u16>,
}

impl Posted {
    pub fn room(&self) -> usize {
        self.buffers.iter().map(|&(_, len)| len as usize).sum()
    }
}

/// One ring, driver side.
pub struct Driver {
    pub size: u32,
    pub desc: u64,
    pub used: u64,
    windows: [Window; 3],
    uva: [u64; 3],
    next_avail: u16,
    last_used: u16,
    free: Vec<u16>,
    /// What the device has, oldest first.
    pub posted: VecDeque<Posted>,
}

/// Bytes that a ring of `size` may take, gaps and alignment included.
pub fn room_for(size: u32) -> usize {
    26 * size as usize + 1024
}

impl Driver {
    /// A ring whose two indices stand at `base`, its three areas apart and as badly aligned as the standard allows.
    pub fn new(guest: &mut Guest, size: u32, base: u16, dice: &mut Dice) -> Self {
        let entries = size as usize;
        let mut area = |bytes: usize, align: usize| {
            guest.ram.alloc(2, dice.pick(1..64), 1).unwrap();
            let gpa = guest.ram.alloc(2, bytes, align).unwrap();
            (gpa.0, guest.ram.window(gpa, bytes).unwrap())
        };
        let (desc, desc_window) = area(16 * entries, 16);
        let (avail, avail_window) = area(6 + 2 * entries, 2);
        let (used, used_window) = area(6 + 8 * entries, 4);
        let windows = [desc_window, avail_window, used_window];
        for window in &windows {
            window.fill(0);
        }
        windows[1].store_u16(2, base);
        windows[2].store_u16(2, base);
        let uva = [desc, avail, used].map(|gpa| guest.ram.user_address(Gpa(gpa)).unwrap());
        let mut free: Vec<u16> = (0..size).map(|i| i as u16).collect();
        dice.shuffle(&mut free);
        Self { size, desc, used, windows, uva, next_avail: base, last_used: base, free, posted: VecDeque::new() }
    }

    /// The ring, device side.
    pub fn activate(&self, guest: &Guest, features: u64, kick: Option<File>, call: Option<File>) -> Ring {
        let [desc_uva, avail_uva, used_uva] = self.uva;
        let base = self.windows[2].load_u16(2);
        let config = RingConfig { size: self.size, desc_uva, avail_uva, used_uva, base, features };
        config.activate(&guest.map, kick, call).unwrap()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.windows[0].write(16 * usize::from(index), &desc.bytes());
    }

    /// Puts a chain of these buffers in the available ring, not yet visible.
    pub fn post(&mut self, guest: &Guest, buffers: &[(u64, u32)], flags: u16, shape: Shape) -> u16 {
        let own = match shape {
            Shape::Chain => buffers.len(),
            Shape::Table(before, _) => before + 1,
        };
        let taken = self.free.split_off(self.free.len() - own);
        for (i, &index) in taken.iter().enumerate() {
            let next = taken.get(i + 1).copied();
            let more = if next.is_some() { NEXT } else { 0 };
            let (addr, len) = buffers.get(i).copied().unwrap_or_default();
            let desc = match shape {
                Shape::Table(before, table) if i == before => {
                    let entries = buffers.len() - before;
                    write_table(guest, table, &buffers[before..], flags);
                    Desc { addr: table, len: 16 * entries as u32, flags: INDIRECT, next: 0xffff }
                }
                _ => Desc { addr, len, flags: flags | more, next: next.unwrap_or(0xffff) },
            };
            self.write_desc(index, desc);
        }
        let head = taken[0];
        self.put_head(head);
        self.posted.push_back(Posted { head, buffers: buffers.to_vec(), taken });
        head
    }

    /// Puts any head in the available ring, not yet visible.
    pub fn put_head(&mut self, head: u16) {
        let slot = usize::from(self.next_avail) % self.size as usize;
        self.windows[1].store_u16(4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Makes everything posted visible.
    pub fn publish(&self) {
        self.windows[1].store_u16_release(2, self.next_avail);
    }

    /// The available index as the device is to see it, right or wrong.
    pub fn publish_index(&self, index: u16) {
        self.windows[1].store_u16_release(2, index);
    }

    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The device's index.
    pub fn used_index(&self) -> u16 {
        self.windows[2].load_u16_acquire(2)
    }

    /// Takes the next chain back if there is one: it must be the oldest, for this device works in order.
    pub fn take_used(&mut self) -> Option<(Posted, u32)> {
        if self.used_index() == self.last_used {
            return None;
        }
        let at = 4 + 8 * (usize::from(self.last_used) % self.size as usize);
        let (id, len) = (self.windows[2].load_u32(at), self.windows[2].load_u32(at + 4));
        let posted = self.posted.pop_front().expect("the device gave back more than it was given");
        assert_eq!(id, u32::from(posted.head), "the oldest chain comes back first");
        self.last_used = self.last_used.wrapping_add(1);
        self.free.extend(&posted.taken);
        Some((posted, len))
    }

    /// Which bytes the device may write besides buffers: the used ring's elements that are due, and its index.
    pub fn used_slot(&self, ahead: usize) -> u64 {
        self.used + 4 + 8 * ((usize::from(self.last_used) + ahead) % self.size as usize) as u64
    }

    /// The driver's wish under flags: calls or none.
    pub fn set_no_interrupt(&self, none: bool) {
        self.windows[1].store_u16(0, u16::from(none));
    }

    /// The driver's wish under `EVENT_IDX`: call when the used index passes this.
    pub fn set_used_event(&self, event: u16) {
        self.windows[1].store_u16(4 + 2 * self.size as usize, event);
    }

    /// The device's wish under flags.
    pub fn no_notify(&self) -> bool {
        self.windows[2].load_u16(0) & 1 != 0
    }

    /// The device's wish under `EVENT_IDX`.
    pub fn avail_event(&self) -> u16 {
        self.windows[2].load_u16(4 + 8 * self.size as usize)
    }

    pub fn last_used(&self) -> u16 {
        self.last_used
    }
}

/// An indirect table of these buffers, linked one after the other.
pub fn write_table(guest: &Guest, table: u64, buffers: &[(u64, u32)], flags: u16) {
    for (i, &(addr, len)) in buffers.iter().enumerate() {
        let more = if i + 1 < buffers.len() { NEXT } else { 0 };
        let desc = Desc { addr, len, flags: flags | more, next: (i + 1) as u16 };
        guest.write(table + 16 * i as u64, &desc.bytes());
    }
}
