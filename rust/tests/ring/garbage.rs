// SPDX-License-Identifier: Apache-2.0
//! Rings full of garbage: no panic, no endless walk, and not a byte written that the garbage did not offer.

use std::ops::Range;

use ovsvhost::ring::{Receiveq, Transmitq, feature};
use proptest::prelude::*;

use super::dice::Dice;
use super::driver::{Driver, INDIRECT, LAYOUTS, Layout, Shape, WRITE, packed, room_for, split};
use super::guest::{BUFFERS, Guest, RINGS};
use super::honest::layouts;

const SIZE: u32 = 32;
/// Garbage indirect tables lie in `[TABLES, DATA)`; garbage buffers begin at `DATA` or later, or nowhere at all, so
/// what is delivered does not change the descriptors that are being judged.
const TABLES: u64 = 0;
const DATA: u64 = 64 << 10;
const END: u64 = 2 * BUFFERS as u64;

/// A descriptor of either layout.
#[derive(Clone, Copy)]
struct Garbage {
    addr: u64,
    len: u32,
    flags: u16,
    /// The next one, or the id.
    link: u16,
}

impl Garbage {
    fn bytes(self, layout: Layout) -> [u8; 16] {
        let Self { addr, len, flags, link } = self;
        match layout {
            Layout::Split => split::Desc { addr, len, flags, next: link }.bytes(),
            Layout::Packed => packed::Desc { addr, len, id: link, flags }.bytes(),
        }
    }
}

/// A descriptor that is right in places: plain noise would be refused at its first field.
fn garbage(dice: &mut Dice, in_table: bool) -> Garbage {
    let mut flags = dice.pick(0..8) as u16;
    if dice.once_in(20) {
        flags = dice.next() as u16;
    }
    let is_table = flags & INDIRECT != 0 && !in_table;
    let addr = match dice.pick(0..12) {
        0 => dice.next(),
        1 => END - dice.pick(0..64) as u64,
        2 => u64::MAX - dice.pick(0..64) as u64,
        3 => BUFFERS as u64 - dice.pick(0..64) as u64,
        _ if is_table => TABLES + 16 * dice.pick(0..600) as u64 + u64::from(dice.once_in(4)),
        _ => DATA + dice.pick(0..BUFFERS) as u64,
    };
    let len = match dice.pick(0..12) {
        0 => dice.next() as u32,
        1 => 0,
        2 => 12,
        _ if is_table => 16 * dice.pick(0..80) as u32 + u32::from(dice.once_in(6)),
        _ => dice.pick(1..3_000) as u32,
    };
    let link = if dice.once_in(12) { dice.next() as u16 } else { dice.pick(0..SIZE as usize) as u16 };
    // No garbage may point at the tables themselves as a buffer: see `DATA`.
    let addr = if !is_table && addr < DATA { addr + DATA } else { addr };
    Garbage { addr, len, flags, link }
}

/// Fills ring and tables, and gives what a device may write: every stretch a writable descriptor offers.
fn fill(driver: &mut Driver, guest: &Guest, dice: &mut Dice) -> Vec<Range<u64>> {
    let mut offered = Vec::new();
    let mut offer = |desc: Garbage| {
        if desc.flags & WRITE != 0 {
            offered.push(desc.addr..desc.addr.saturating_add(u64::from(desc.len)));
        }
    };
    for index in 0..SIZE as u16 {
        let mut desc = garbage(dice, false);
        if driver.layout == Layout::Packed {
            // Mostly available, in this lap.
            let start = driver.packed().next_avail;
            let wrap = start.wrap == (usize::from(index) >= start.index);
            if !dice.once_in(40) {
                desc.flags = desc.flags & 7 | packed::PackedSide::available(wrap);
            }
            let packed = packed::Desc { addr: desc.addr, len: desc.len, id: desc.link, flags: desc.flags };
            driver.packed().write_desc(usize::from(index), packed);
        } else {
            let split = split::Desc { addr: desc.addr, len: desc.len, flags: desc.flags, next: desc.link };
            driver.split().write_desc(index, split);
        }
        offer(desc);
    }
    let mut tables = Vec::new();
    for _ in 0..700 {
        let mut desc = garbage(dice, true);
        // A table that is read one byte off is other garbage; without this bit none of it is writable.
        desc.flags &= !(WRITE << 8);
        tables.extend(desc.bytes(driver.layout));
        offer(desc);
    }
    guest.write(TABLES, &tables);
    offered.extend(driver.device_writes());
    offered
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows: C13.
    #[test]
    fn garbage_in_a_transmitq_writes_nothing_but_its_used_ring(layout in layouts(), seed: u64, bits in 0_u64..32, base: u16) {
        let mut dice = Dice(seed);
        let mut guest = Guest::new(room_for(SIZE));
        let mut driver = Driver::new(&mut guest, layout, SIZE, layout.base(SIZE, base), &mut dice);
        fill(&mut driver, &guest, &mut dice);
        let mut tx = Transmitq::new(driver.activate(&guest, features(bits), None, None));
        publish_garbage(&mut driver, &mut dice);
        let before = guest.image();
        for _ in 0..4 {
            let Ok(count) = tx.gather() else { break };
            prop_assert!(count <= 64);
            tx.commit();
        }
        let used = driver.device_writes();
        for at in before.differences(&guest.image()).into_iter().flatten() {
            prop_assert!(used.iter().any(|range| range.contains(&at)), "{:#x}", at);
        }
    }

    /// Rows: C13.
    #[test]
    fn garbage_in_a_receiveq_is_written_only_where_it_is_writable(layout in layouts(), seed: u64, bits in 0_u64..32, base: u16) {
        let mut dice = Dice(seed);
        let (mut source, mut guest) = (Guest::new(room_for(64)), Guest::new(room_for(SIZE)));
        let mut sender = Driver::new(&mut source, Layout::Split, 64, 0, &mut dice);
        let mut tx = Transmitq::new(sender.activate(&source, feature::VERSION_1, None, None));
        let mut driver = Driver::new(&mut guest, layout, SIZE, layout.base(SIZE, base), &mut dice);
        let offered = fill(&mut driver, &guest, &mut dice);
        let mut rx = Receiveq::new(driver.activate(&guest, features(bits), None, None));
        publish_garbage(&mut driver, &mut dice);
        let before = guest.image();
        for _ in 0..8 {
            for _ in 0..dice.pick(1..20) {
                sender.post(&source, &[(0, 12 + dice.pick(14..4_000) as u32)], 0, Shape::Chain);
            }
            sender.publish();
            let count = tx.gather().unwrap();
            let list: Vec<u8> = (0..count as u8).collect();
            let delivery = rx.deliver(tx.burst(), &list);
            rx.flush();
            tx.commit();
            while sender.take_used().is_some() {}
            prop_assert!(delivery.settled <= list.len());
            if delivery.fault.is_some() {
                break;
            }
        }
        for change in before.differences(&guest.image()) {
            // A change may run over several buffers that touch: look at its every byte.
            for at in change.clone() {
                prop_assert!(offered.iter().any(|o| o.contains(&at)), "{:#x} of {:x?} was never offered", at, change);
            }
        }
    }

    #[test]
    fn a_device_made_anew_over_other_garbage_never_panics(layout in layouts(), seed: u64, bits in 0_u64..32) {
        let mut dice = Dice(seed);
        let mut guest = Guest::new(room_for(SIZE));
        let base = layout.base(SIZE, dice.next() as u16);
        let mut driver = Driver::new(&mut guest, layout, SIZE, base, &mut dice);
        for _ in 0..4 {
            fill(&mut driver, &guest, &mut dice);
            let mut tx = Transmitq::new(driver.activate(&guest, features(bits), None, None));
            publish_garbage(&mut driver, &mut dice);
            while let Ok(1..) = tx.gather() {
                tx.commit();
            }
            tx.enable_kicks();
            let stands_at = tx.into_ring().next_index();
            match layout {
                Layout::Split => prop_assert_eq!(stands_at, driver.split().used_index()),
                Layout::Packed => prop_assert!(u32::from(stands_at & 0x7fff) < SIZE),
            }
        }
    }
}

fn features(bits: u64) -> u64 {
    let all = [feature::VERSION_1, feature::MRG_RXBUF, feature::INDIRECT_DESC, feature::EVENT_IDX, feature::IN_ORDER];
    all.iter().enumerate().map(|(i, bit)| if bits >> i & 1 != 0 { *bit } else { 0 }).sum()
}

/// Heads that are mostly in range, and an index that is mostly possible.
fn publish_garbage(driver: &mut Driver, dice: &mut Dice) {
    if driver.layout == Layout::Packed {
        // Its descriptors are available as they are.
        return;
    }
    for _ in 0..dice.pick(1..SIZE as usize + 1) {
        let head = if dice.once_in(30) { dice.next() as u16 } else { dice.pick(0..SIZE as usize) as u16 };
        driver.split().put_head(head);
    }
    if dice.once_in(20) {
        driver.split().publish_index(dice.next() as u16);
    } else {
        driver.publish();
    }
}

#[test]
fn the_rings_of_these_tests_are_where_they_are_thought_to_be() {
    for layout in LAYOUTS {
        let mut guest = Guest::new(room_for(SIZE));
        let driver = Driver::new(&mut guest, layout, SIZE, 0, &mut Dice(1));
        assert!(driver.desc() >= RINGS && driver.device_writes().iter().all(|range| range.start >= RINGS));
    }
}
