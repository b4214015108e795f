// SPDX-License-Identifier: Apache-2.0
//! A device for one ring, written as the specification reads: slowly, one buffer at a time.
//!
//! Honest or not as a test wants it: used elements are written as told and become visible with `publish`.

use std::collections::HashMap;

use ovsvhost::testing::driver::{
    DESC_AVAILABLE, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, Descriptor, PackedDescriptor, RingPlace,
};
use ovsvhost::testing::memory::{Gpa, GuestRam, Window};

/// One piece of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub address: u64,
    pub len: usize,
    pub writable: bool,
}

/// The device's half of a ring.
pub struct Device {
    pub ram: GuestRam,
    place: RingPlace,
    size: u16,
    half: Half,
}

enum Half {
    Split {
        taken: u16,
        returned: u16,
    },
    Packed {
        taken: (u16, bool),
        used: (u16, bool),
        /// Descriptors of every buffer that the device has.
        held: HashMap<u32, u16>,
        /// What is to be written, where, and with which wrap counter.
        unpublished: Vec<(u16, bool, u32, u32)>,
    },
}

impl Device {
    pub fn new(ram: GuestRam, place: RingPlace, size: u16, packed: bool) -> Self {
        let half = if packed {
            Half::Packed { taken: (0, true), used: (0, true), held: HashMap::new(), unpublished: Vec::new() }
        } else {
            Half::Split { taken: 0, returned: 0 }
        };
        Self { ram, place, size, half }
    }

    pub fn window(&self, gpa: Gpa, size: usize) -> Window {
        self.ram.window(gpa, size).unwrap()
    }

    /// The next available buffer: what it is called, and its pieces.
    pub fn take(&mut self) -> Option<(u32, Vec<Piece>)> {
        match &self.half {
            Half::Split { taken, .. } => self.take_split(*taken),
            Half::Packed { taken, .. } => self.take_packed(*taken),
        }
    }

    fn take_split(&mut self, next: u16) -> Option<(u32, Vec<Piece>)> {
        let available = self.window(self.place.available, 6 + 2 * usize::from(self.size));
        if available.load_u16_acquire(2) == next {
            return None;
        }
        let head = available.load_u16(4 + 2 * usize::from(next % self.size));
        if let Half::Split { taken, .. } = &mut self.half {
            *taken = next.wrapping_add(1);
        }
        let table = self.window(self.place.descriptors, 16 * usize::from(self.size));
        let first = Descriptor::load(&table, 16 * usize::from(head));
        if first.flags & DESC_INDIRECT == 0 {
            return Some((head.into(), chain(&table, head)));
        }
        let table = self.window(Gpa(first.address), usize::try_from(first.len).unwrap());
        Some((head.into(), chain(&table, 0)))
    }

    fn take_packed(&mut self, from: (u16, bool)) -> Option<(u32, Vec<Piece>)> {
        let ring = self.window(self.place.descriptors, 16 * usize::from(self.size));
        let (mut index, mut wrap) = from;
        let mut pieces = Vec::new();
        let mut count = 0;
        loop {
            let descriptor = PackedDescriptor::load(&ring, 16 * usize::from(index));
            let available = (descriptor.flags & DESC_AVAILABLE != 0) == wrap;
            let used = (descriptor.flags & DESC_USED != 0) == wrap;
            if !available || used {
                assert_eq!(count, 0, "a buffer became available in pieces");
                return None;
            }
            if descriptor.flags & DESC_INDIRECT == 0 {
                pieces.push(piece(descriptor.address, descriptor.len, descriptor.flags));
            } else {
                let size = usize::try_from(descriptor.len).unwrap();
                let table = self.window(Gpa(descriptor.address), size);
                let entries = (0..size).step_by(16).map(|at| PackedDescriptor::load(&table, at));
                pieces.extend(entries.map(|entry| piece(entry.address, entry.len, entry.flags)));
            }
            (index, wrap) = step((index, wrap), 1, self.size);
            count += 1;
            if descriptor.flags & DESC_NEXT == 0 {
                let Half::Packed { taken, held, .. } = &mut self.half else { unreachable!() };
                *taken = (index, wrap);
                let id = u32::from(descriptor.id);
                assert_eq!(held.insert(id, count), None, "id {id} is in flight twice");
                return Some((id, pieces));
            }
        }
    }

    /// Writes a used element for the buffer of this name; visible with the next `publish`.
    pub fn give_back(&mut self, id: u32, len: usize) {
        let len = u32::try_from(len).unwrap();
        match &mut self.half {
            Half::Split { returned, .. } => {
                let place = *returned;
                *returned = returned.wrapping_add(1);
                self.write_used_element(place, id, len);
            }
            Half::Packed { used, held, unpublished, .. } => {
                unpublished.push((used.0, used.1, id, len));
                // A buffer that it does not have is a lie; lies are one descriptor long.
                *used = step(*used, held.remove(&id).unwrap_or(1), self.size);
            }
        }
    }

    /// Gives a batch back with one used element, as a device that works in order may.
    pub fn give_back_batch(&mut self, ids: &[u32], len: usize) {
        let (last, len) = (*ids.last().unwrap(), u32::try_from(len).unwrap());
        match &mut self.half {
            Half::Split { returned, .. } => {
                let place = *returned;
                *returned = returned.wrapping_add(u16::try_from(ids.len()).unwrap());
                self.write_used_element(place, last, len);
            }
            Half::Packed { used, held, unpublished, .. } => {
                unpublished.push((used.0, used.1, last, len));
                let count = ids.iter().map(|id| held.remove(id).unwrap()).sum();
                *used = step(*used, count, self.size);
            }
        }
    }

    fn write_used_element(&self, place: u16, id: u32, len: u32) {
        let used = self.window(self.place.used, 6 + 8 * usize::from(self.size));
        let at = 4 + 8 * usize::from(place % self.size);
        used.store_u32(at, id);
        used.store_u32(at + 4, len);
    }

    pub fn publish(&mut self) {
        let used = self.place.used;
        match &mut self.half {
            Half::Split { returned, .. } => {
                let returned = *returned;
                self.window(used, 6 + 8 * usize::from(self.size)).store_u16_release(2, returned);
            }
            Half::Packed { unpublished, .. } => {
                let elements = std::mem::take(unpublished);
                let ring = self.window(self.place.descriptors, 16 * usize::from(self.size));
                // The first one last: the driver sees all or none.
                for (index, wrap, id, len) in elements.into_iter().rev() {
                    let at = 16 * usize::from(index);
                    let id = u16::try_from(id & 0xffff).unwrap();
                    let flags = if wrap { DESC_AVAILABLE | DESC_USED } else { 0 };
                    PackedDescriptor { address: ring.load_u64(at), len, id, flags }.store(&ring, at);
                }
            }
        }
    }

    /// What the device may read of a buffer.
    pub fn read(&self, pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            assert!(!piece.writable);
            let start = bytes.len();
            bytes.resize(start + piece.len, 0);
            self.window(Gpa(piece.address), piece.len).read(0, &mut bytes[start..]);
        }
        bytes
    }

    /// Writes as much as the pieces hold; gives the rest.
    fn write<'a>(&self, pieces: &[Piece], bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        for piece in pieces {
            assert!(piece.writable);
            let (now, later) = rest.split_at(rest.len().min(piece.len));
            self.window(Gpa(piece.address), now.len()).write(0, now);
            rest = later;
        }
        rest
    }

    /// Delivers vnet header and frame into as many buffers as it takes.
    pub fn deliver(&mut self, frame: &[u8]) {
        let mut rest = frame;
        let mut first = None;
        let mut count = 0_u16;
        while !rest.is_empty() {
            let (id, pieces) = self.take().unwrap();
            first.get_or_insert(pieces[0].address);
            let left = self.write(&pieces, rest);
            self.give_back(id, rest.len() - left.len());
            (rest, count) = (left, count + 1);
        }
        self.window(Gpa(first.unwrap() + 10), 2).write(0, &count.to_le_bytes());
    }
}

fn step((index, wrap): (u16, bool), by: u16, size: u16) -> (u16, bool) {
    let next = index + by;
    if next < size { (next, wrap) } else { (next - size, !wrap) }
}

fn piece(address: u64, len: u32, flags: u16) -> Piece {
    assert_ne!(len, 0);
    Piece { address, len: usize::try_from(len).unwrap(), writable: flags & DESC_WRITE != 0 }
}

fn chain(table: &Window, head: u16) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut index = head;
    loop {
        let descriptor = Descriptor::load(table, 16 * usize::from(index));
        assert_eq!(descriptor.flags & DESC_INDIRECT, 0);
        pieces.push(piece(descriptor.address, descriptor.len, descriptor.flags));
        if descriptor.flags & DESC_NEXT == 0 {
            return pieces;
        }
        index = descriptor.next;
    }
}
