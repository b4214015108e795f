// SPDX-License-Identifier: Apache-2.0
//! A device that dies while it gives buffers back: the next one finishes what its journal says was under way.

use std::sync::Arc;

use ovsvhost::memory::Words;
use ovsvhost::ring::{Journal, Past, Receiveq, Ring, Transmitq, feature};
use proptest::prelude::*;

use super::dice::Dice;
use super::driver::{Driver, Layout, Shape, WRITE, room_for};
use super::guest::Guest;

const FEATURES: u64 = feature::VERSION_1 | feature::MRG_RXBUF;
/// What a VMM sends that lost the base.
const UNKNOWN: u16 = 0;

fn journal(size: u32) -> Journal {
    let words = Arc::new(Words::anonymous(8 * (size as usize + 16)).unwrap());
    Journal::new(words, 0, 16).unwrap()
}

fn resume(driver: &Driver, guest: &Guest, base: u16, journal: &Journal, is_known: bool) -> (Ring, Option<String>) {
    let config = ovsvhost::ring::RingConfig { base, ..driver.config(guest, FEATURES | feature::RING_PACKED) };
    config.resume(&guest.map, None, None, Some(Past { journal: journal.again(), is_known })).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// A SIGKILL leaves a process's stores in the order of the program: the guest's memory is made anew as it was after
    /// each of them, and the switch that comes next has to end up where the first one would have.
    /// Rows: C3.
    #[test]
    fn a_commit_cut_off_at_any_store_is_finished(
        size in 8_u32..40, base: u16, chains in 1_usize..8, frames in 1_usize..6, seed: u64,
    ) {
        let mut dice = Dice(seed);
        let (mut a, mut b) = (Guest::new(room_for(64)), Guest::new(room_for(size)));
        let mut sender = Driver::new(&mut a, Layout::Split, 64, 0, &mut dice);
        let mut receiver = Driver::new(&mut b, Layout::Packed, size, Layout::Packed.base(size, base), &mut dice);
        let mut tx = Transmitq::new(sender.activate(&a, FEATURES, None, None));
        for _ in 0..frames {
            sender.post(&a, &[(0, 112)], 0, Shape::Chain);
        }
        for i in 0..chains as u64 {
            let room = dice.pick(1..120) as u32 + 20;
            receiver.post(&b, &[(4096 * i, room)], WRITE, Shape::Chain);
        }
        sender.publish();
        receiver.publish();
        tx.gather().unwrap();

        let journal = journal(size);
        let (ring, note) = resume(&receiver, &b, receiver.used_base(), &journal, false);
        prop_assert_eq!(note, None);
        let mut rx = Receiveq::new(ring);
        let before = b.image();
        let list: Vec<u8> = (0..frames as u8).collect();
        let settled = rx.deliver(tx.burst(), &list).settled;
        let after = b.image();
        let end = journal.intent();
        prop_assert_eq!(end.old, end.new);
        let stands_at = rx.into_ring().next_index();
        prop_assert_eq!(stands_at, end.new);

        // What it stored into the ring, in its order: the first one last.
        let lens: Vec<u32> = {
            let mut copy = receiver.used_lens();
            copy.truncate(chains);
            copy
        };
        prop_assert!(settled == 0 || !lens.is_empty());
        let mut stores = receiver.used_writes(&lens, false);
        if !stores.is_empty() {
            stores.rotate_left(1);
        }
        let start = receiver.used_base();
        for cut in 0..=stores.len() {
            // The payload was there before the first of them.
            for (at, bytes) in receiver.used_writes(&lens, false) {
                b.write(at, &before.read(at, bytes.len()));
            }
            for (at, bytes) in &stores[..cut] {
                b.write(*at, bytes);
            }
            journal.intend(start, end.new, lens.len() as u16);
            let (ring, note) = resume(&receiver, &b, UNKNOWN, &journal, true);
            prop_assert_eq!(note, None);
            prop_assert_eq!(ring.next_index(), end.new, "after {} stores", cut);
            prop_assert_eq!(journal.intent(), end);
            let mut expected = after.clone();
            // The device's own wishes are made anew by whoever takes the ring.
            for range in receiver.device_writes().into_iter().skip(size as usize) {
                expected.write(range.start, &b.read(range.start, 4));
            }
            expected.assert_is(&b.image(), "after the crash");
        }
        for len in lens {
            prop_assert_eq!(receiver.take_used().map(|(_, len)| len), Some(len));
        }
    }
}

/// A ring as its guest and the device before left it at `at`; and one on cleared memory.
fn left_at(at: Option<u16>) -> (Guest, Driver) {
    let mut guest = Guest::new(room_for(64));
    let driver = Driver::new(&mut guest, Layout::Packed, 50, at.unwrap_or(0x8000), &mut Dice(1));
    for range in driver.device_writes().into_iter().take(50) {
        // What was used once keeps its buffer's address.
        let (address, bytes) = if at.is_some() { (0x1000_u64, 8) } else { (0, 16) };
        guest.write(range.start - 8, &u128::from(address).to_le_bytes()[..bytes]);
    }
    (guest, driver)
}

/// QEMU sends 0 or where rings begin, virtio-user always where they begin: neither tells a ring in use from a new one.
/// Rows: C3.
#[test]
fn what_is_written_down_counts_when_the_ring_agrees_and_the_base_when_not() {
    const FIRST: u16 = 0x8000;
    for (left, written, sent, stands_at) in [
        (Some(0x8011), 0x8011, UNKNOWN, 0x8011),
        (Some(0x8011), 0x8011, FIRST, 0x8011),
        (Some(17), 17, FIRST, 17),
        // Its index in the other lap, or past its end, is not where this ring stands.
        (Some(0x8011), 17, 0x8011, 0x8011),
        (Some(17), 0x8011, 17, 17),
        (Some(0x8011), 50, 0x8011, 0x8011),
        // Set up anew meanwhile.
        (None, 0x8011, FIRST, FIRST),
        (None, 17, UNKNOWN, FIRST),
        (None, FIRST, UNKNOWN, FIRST),
    ] {
        let (guest, driver) = left_at(left);
        let journal = journal(50);
        journal.settle(written);
        let (ring, note) = resume(&driver, &guest, sent, &journal, true);
        assert_eq!(ring.next_index(), stands_at, "{left:x?} left, {written:#x} written down, {sent:#x} sent: {note:?}");
        assert_eq!(journal.intent().new, stands_at);
        assert_eq!(note.is_some(), stands_at != written, "{note:?}");
    }
}

/// Rows: C3.
#[test]
fn a_ring_in_use_of_which_nobody_knows_where_it_stands_is_refused() {
    for (left, sent) in [(0x8011, 0x8000), (0x8011, 0x8010)] {
        let (guest, driver) = left_at(Some(left));
        let config = driver.config(&guest, FEATURES | feature::RING_PACKED);
        let config = ovsvhost::ring::RingConfig { base: sent, ..config };
        let past = Past { journal: journal(50), is_known: false };
        let refused = config.resume(&guest.map, None, None, Some(past)).unwrap_err().to_string();
        assert!(refused.contains("restart the guest's network driver"), "{refused}");
    }
    let (guest, driver) = left_at(None);
    assert_eq!(resume(&driver, &guest, UNKNOWN, &journal(50), false).0.next_index(), 0x8000, "nobody used it yet");
}

/// Rows: C3.
#[test]
fn a_commit_under_way_that_is_made_of_nothing_gives_no_buffer_back() {
    const FIRST: u16 = 0x8000;
    let mut dice = Dice(1);
    let mut guest = Guest::new(room_for(64));
    let mut driver = Driver::new(&mut guest, Layout::Packed, 50, FIRST, &mut dice);
    driver.post(&guest, &[(0, 200)], WRITE, Shape::Chain);
    driver.publish();
    let journal = journal(50);
    journal.intend(FIRST, FIRST + 1, 0);
    let (ring, note) = resume(&driver, &guest, FIRST, &journal, true);
    assert!(note.is_some_and(|note| note.contains("not written down in full")));
    assert_eq!(ring.next_index(), FIRST);
    assert!(driver.take_used().is_none(), "the buffer is still to be filled");
}
