// SPDX-License-Identifier: Apache-2.0
//! A naive driver of one ring of either layout, written from virtio 1.2 alone: plain indices, no shortcuts.

pub mod packed;
pub mod split;

use std::collections::VecDeque;
use std::fs::File;

use ovsvhost::ring::{Ring, RingConfig, feature};
use ovsvhost::testing::memory::{Gpa, Window};

use super::dice::Dice;
use super::guest::Guest;
use packed::PackedSide;
use split::SplitSide;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// The two layouts of the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Split,
    Packed,
}

pub const LAYOUTS: [Layout; 2] = [Layout::Split, Layout::Packed];

impl Layout {
    /// The feature bit that says so.
    pub fn feature(self) -> u64 {
        if self == Layout::Packed { feature::RING_PACKED } else { 0 }
    }

    /// A base at which both cursors may stand, made of any number.
    pub fn base(self, size: u32, any: u16) -> u16 {
        match self {
            Layout::Split => any,
            Layout::Packed => (u32::from(any & 0x7fff) % size) as u16 | any & 0x8000,
        }
    }
}

/// What a descriptor says, but for what links it to others.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
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
    pub id: u16,
    /// Its buffers in order: where, how long.
    pub buffers: Vec<(u64, u32)>,
    taken: Vec<u16>,
}

impl Posted {
    pub fn room(&self) -> usize {
        self.buffers.iter().map(|&(_, len)| len as usize).sum()
    }
}

enum Side {
    Split(SplitSide),
    Packed(PackedSide),
}

/// Calls a method of whichever layout it is.
macro_rules! side {
    ($driver:expr, $side:ident => $call:expr) => {
        match $driver {
            Side::Split($side) => $call,
            Side::Packed($side) => $call,
        }
    };
}

/// Three areas of memory for one ring, each apart and as badly aligned as the standard allows.
struct Areas {
    gpa: [u64; 3],
    windows: [Window; 3],
}

impl Areas {
    fn new(guest: &mut Guest, sizes: [(usize, usize); 3], dice: &mut Dice) -> Self {
        let mut area = |(bytes, align): (usize, usize)| {
            guest.ram.alloc(2, dice.pick(1..64), 1).unwrap();
            let gpa = guest.ram.alloc(2, bytes, align).unwrap();
            (gpa.0, guest.ram.window(gpa, bytes).unwrap())
        };
        let [(a, first), (b, second), (c, third)] = sizes.map(&mut area);
        let windows = [first, second, third];
        for window in &windows {
            window.fill(0);
        }
        Self { gpa: [a, b, c], windows }
    }
}

/// One ring, driver side.
pub struct Driver {
    pub layout: Layout,
    pub size: u32,
    side: Side,
    /// Buffers come back in order, and one entry may stand for several.
    pub in_order: bool,
    /// The id that the batch being taken back ends with, and what was written to that buffer.
    batch: Option<(u32, u32)>,
    /// What the device has, oldest first.
    pub posted: VecDeque<Posted>,
}

/// Bytes that a ring of `size` may take, gaps and alignment included.
pub fn room_for(size: u32) -> usize {
    26 * size as usize + 1024
}

impl Driver {
    /// A ring whose two cursors stand at `base`.
    pub fn new(guest: &mut Guest, layout: Layout, size: u32, base: u16, dice: &mut Dice) -> Self {
        let side = match layout {
            Layout::Split => Side::Split(SplitSide::new(guest, size, base, dice)),
            Layout::Packed => Side::Packed(PackedSide::new(guest, size, base, dice)),
        };
        Self { layout, size, side, in_order: false, batch: None, posted: VecDeque::new() }
    }

    /// The ring, device side; `features` but for the layout.
    pub fn activate(&mut self, guest: &Guest, features: u64, kick: Option<File>, call: Option<File>) -> Ring {
        self.in_order = features & feature::IN_ORDER != 0;
        let config = self.config(guest, features | self.layout.feature());
        config.activate(&guest.map, kick, call).unwrap()
    }

    /// The ring as a front-end describes it.
    pub fn config(&self, guest: &Guest, features: u64) -> RingConfig {
        let [desc_uva, avail_uva, used_uva] = self.areas().gpa.map(|gpa| guest.ram.user_address(Gpa(gpa)).unwrap());
        RingConfig { size: self.size, desc_uva, avail_uva, used_uva, base: self.used_base(), features }
    }

    fn areas(&self) -> &Areas {
        side!(&self.side, side => &side.areas)
    }

    /// The ring as a split one, to lie about what only split rings have.
    pub fn split(&mut self) -> &mut SplitSide {
        match &mut self.side {
            Side::Split(side) => side,
            Side::Packed(_) => panic!("a packed ring"),
        }
    }

    /// The ring as a packed one.
    pub fn packed(&mut self) -> &mut PackedSide {
        match &mut self.side {
            Side::Packed(side) => side,
            Side::Split(_) => panic!("a split ring"),
        }
    }

    /// Where the descriptor table or ring is.
    pub fn desc(&self) -> u64 {
        self.areas().gpa[0]
    }

    /// Every stretch of the ring that the device may write, whatever it is told.
    pub fn device_writes(&self) -> Vec<std::ops::Range<u64>> {
        side!(&self.side, side => side.device_writes())
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        side!(&self.side, side => side.free())
    }

    /// Writes a chain of these, linked one to the next, not yet visible. Nobody waits for it to come back.
    pub fn put(&mut self, pieces: &[Piece]) -> u16 {
        side!(&mut self.side, side => side.put(pieces).0)
    }

    /// Writes a chain of these buffers, not yet visible.
    pub fn post(&mut self, guest: &Guest, buffers: &[(u64, u32)], flags: u16, shape: Shape) -> u16 {
        let mut pieces: Vec<Piece> = buffers.iter().map(|&(addr, len)| Piece { addr, len, flags }).collect();
        if let Shape::Table(before, table) = shape {
            let rest = pieces.split_off(before);
            self.write_table(guest, table, &rest);
            pieces.push(Piece { addr: table, len: 16 * rest.len() as u32, flags: INDIRECT });
        }
        let (id, taken) = side!(&mut self.side, side => side.put(&pieces));
        self.posted.push_back(Posted { id, buffers: buffers.to_vec(), taken });
        id
    }

    /// An indirect table of these, one after the other.
    pub fn write_table(&self, guest: &Guest, table: u64, pieces: &[Piece]) {
        for (i, piece) in pieces.iter().enumerate() {
            let is_last = i + 1 == pieces.len();
            let bytes = match self.layout {
                Layout::Split => split::in_table(*piece, i, is_last),
                Layout::Packed => packed::in_table(*piece, i),
            };
            guest.write(table + 16 * i as u64, &bytes);
        }
    }

    /// Makes everything posted visible.
    pub fn publish(&mut self) {
        side!(&mut self.side, side => side.publish());
    }

    /// Where the device stands by what it published: the base to start another one at.
    pub fn used_base(&self) -> u16 {
        side!(&self.side, side => side.used_base())
    }

    /// True if something came back that was not taken yet.
    pub fn has_used(&self) -> bool {
        self.batch.is_some() || side!(&self.side, side => side.used().is_some())
    }

    /// Takes the next chain back if there is one: it must be the oldest, for this device works in order.
    pub fn take_used(&mut self) -> Option<(Posted, u32)> {
        let (id, len) = self.batch.take().or_else(|| side!(&self.side, side => side.used()))?;
        let posted = self.posted.pop_front().expect("the device gave back more than it was given");
        side!(&mut self.side, side => side.take_back(&posted));
        if self.in_order && id != u32::from(posted.id) {
            // One entry stands for all up to its id (virtio 1.2 §2.7.9, §2.8.9).
            self.batch = Some((id, len));
            return Some((posted, 0));
        }
        assert_eq!(id, u32::from(posted.id), "the oldest chain comes back first");
        Some((posted, len))
    }

    /// How many bytes were written to each chain that came back and was not taken yet.
    pub fn used_lens(&self) -> Vec<u32> {
        let ahead = |i| side!(&self.side, side => side.used_ahead(&self.posted, i));
        (0..self.posted.len()).map_while(ahead).map(|(_, len)| len).collect()
    }

    /// What the device writes into the ring to give the oldest chains back, so many bytes written to each.
    pub fn used_writes(&self, lens: &[u32], as_batch: bool) -> Vec<(u64, Vec<u8>)> {
        let all = self.posted.iter().zip(lens).map(|(posted, &len)| (posted.clone(), len));
        let given: Vec<(Posted, u32)> = all.collect();
        side!(&self.side, side => side.used_writes(&given, as_batch))
    }

    /// What the device may have written besides, though it says nothing: where, how many bytes.
    pub fn scribbles(&self, used: usize) -> Vec<(u64, usize)> {
        side!(&self.side, side => side.scribbles(used, self.posted.len()))
    }

    /// Asks for a call at the next chain used, or for none.
    pub fn want_calls(&mut self, event_idx: bool, wanted: bool) {
        side!(&mut self.side, side => side.want_calls(event_idx, wanted));
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Publishes, and says whether the device is to be kicked for it.
    pub fn publish_and_ask(&mut self, event_idx: bool) -> bool {
        self.publish();
        // Between the entries and the look at the device's wish.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        side!(&mut self.side, side => side.is_kick_due(event_idx))
    }
}
