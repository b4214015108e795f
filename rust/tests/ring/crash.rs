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

#[test]
fn a_base_that_was_sent_counts_more_than_what_is_written_down() {
    let mut guest = Guest::new(room_for(64));
    let driver = Driver::new(&mut guest, Layout::Packed, 50, 0x8000, &mut Dice(1));
    let journal = journal(50);
    for (known, written, sent, stands_at) in [
        (true, 17, UNKNOWN, 17),
        (true, 17, 17, 17),
        (true, 17, 0x8000, 0x8000),
        (true, 50, UNKNOWN, UNKNOWN),
        (false, 17, UNKNOWN, UNKNOWN),
    ] {
        journal.settle(written);
        let (ring, note) = resume(&driver, &guest, sent, &journal, known);
        assert_eq!(ring.next_index(), stands_at, "{written:#x} written down, {sent:#x} sent");
        assert_eq!(journal.intent().new, stands_at);
        assert_eq!(note.is_some(), known && stands_at != written, "{note:?}");
    }
}
