// SPDX-License-Identifier: Apache-2.0
//! A guest that moves while its rings run: every byte that the device wrote is in a page of the dirty log.
//!
//! The model is the guest's memory itself, compared byte by byte before and after (`Pipe` does it in every test of
//! honest guests, with logging on half of the time): what changed must be marked, and what is marked must be memory that
//! the device may write to.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ovsvhost::memory::{DirtyLog, Gpa, Logging, Words};
use ovsvhost::ring::{Journal, Past, Receiveq, Ring, RingFault, Transmitq, feature};
use vmm_sys_util::tempfile::TempFile;

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Shape, WRITE, room_for};
use super::guest::{Guest, Image, RINGS};

/// A log for all of a test guest's memory.
const SIZE: usize = (RINGS as usize / 4096 + 4096) / 8;
const FEATURES: u64 = feature::VERSION_1 | feature::MRG_RXBUF;

/// A dirty log as its front-end has it.
pub struct Log {
    pub file: File,
    mapped: Arc<DirtyLog>,
    pub logging: Arc<Logging>,
    is_on: bool,
}

impl Log {
    pub fn new() -> Self {
        let file = TempFile::new_in(std::path::Path::new("/dev/shm")).unwrap().into_file();
        file.set_len(SIZE as u64).unwrap();
        let mapped = Arc::new(DirtyLog::map(file.try_clone().unwrap(), 0, SIZE as u64, false).unwrap());
        Self { file, mapped, logging: Arc::default(), is_on: false }
    }

    /// One for this ring, off.
    pub fn of(ring: &mut Ring) -> Self {
        let log = Self::new();
        ring.log_to(&log.logging, None, false);
        log
    }

    pub fn turn(&mut self, is_on: bool) {
        self.logging.turn(is_on.then_some(&self.mapped));
        self.is_on = is_on;
    }

    /// Takes the pages marked since the last time, as a front-end does.
    pub fn take(&self) -> BTreeSet<u64> {
        const CHUNK: usize = 64;
        let (mut bytes, mut pages) = (vec![0; SIZE], BTreeSet::new());
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        for (from, chunk) in (0..).step_by(CHUNK).zip(bytes.chunks(CHUNK)).filter(|(_, chunk)| *chunk != [0; CHUNK]) {
            self.file.write_all_at(&[0; CHUNK], from).unwrap();
            let bits = (8 * from..).zip((0..8 * CHUNK).map(|bit| chunk[bit / 8] >> (bit % 8) & 1));
            pages.extend(bits.filter(|&(_, bit)| bit == 1).map(|(page, _)| page));
        }
        pages
    }

    /// # Panics
    /// When a byte that changed is in no page that was marked since the last time, or a page was marked that has none of
    /// `writable`.
    #[track_caller]
    pub fn assert_covers(&self, before: &Image, after: &Image, writable: impl IntoIterator<Item = Range<u64>>) {
        let changed = if self.is_on { before.differences(after) } else { Vec::new() };
        self.assert_has(&changed, writable);
    }

    #[track_caller]
    fn assert_has(&self, changed: &[Range<u64>], writable: impl IntoIterator<Item = Range<u64>>) {
        let marked = self.take();
        if !self.is_on {
            assert!(marked.is_empty(), "marked while logging is off: {marked:x?}");
            return;
        }
        let missing: Vec<u64> = pages(changed.iter().cloned()).difference(&marked).copied().collect();
        assert!(missing.is_empty(), "written and not marked: {missing:x?}");
        let writable = pages(writable);
        assert!(marked.is_subset(&writable), "marked for nothing: {:x?}", marked.difference(&writable));
    }
}

fn pages(ranges: impl IntoIterator<Item = Range<u64>>) -> BTreeSet<u64> {
    ranges.into_iter().filter(|r| !r.is_empty()).flat_map(|r| r.start / 4096..=(r.end - 1) / 4096).collect()
}

fn end(layout: Layout) -> (Guest, Driver) {
    let mut guest = Guest::new(room_for(64));
    let driver = Driver::new(&mut guest, layout, 64, 0, &mut Dice(1));
    (guest, driver)
}

/// Rows: C7.
#[test]
fn the_log_of_an_idle_ring_stays_clean() {
    for (layout, features) in LAYOUTS.into_iter().flat_map(|l| [(l, FEATURES), (l, FEATURES | feature::EVENT_IDX)]) {
        let (guest, mut driver) = end(layout);
        let mut ring = driver.activate(&guest, features, None, None);
        let mut log = Log::of(&mut ring);
        let mut tx = Transmitq::new(ring);
        log.turn(true);
        // Before its thread sleeps it asks for kicks: that is written, once.
        assert!(!tx.enable_kicks());
        log.assert_has(&[], driver.device_writes());
        for _ in 0..10 {
            assert!(!tx.enable_kicks());
            assert_eq!(tx.gather(), Ok(0));
        }
        assert_eq!(log.take(), BTreeSet::new());
    }
}

/// Rows: C7.
#[test]
fn what_a_ring_says_to_its_driver_is_marked() {
    for (layout, features) in LAYOUTS.into_iter().flat_map(|l| [(l, FEATURES), (l, FEATURES | feature::EVENT_IDX)]) {
        let (guest, mut driver) = end(layout);
        let mut ring = driver.activate(&guest, features, None, None);
        let mut log = Log::of(&mut ring);
        let mut tx = Transmitq::new(ring);
        log.turn(true);
        for wanted in [true, false, true] {
            let before = guest.image();
            if wanted {
                tx.enable_kicks();
            } else {
                tx.disable_kicks();
            }
            let changed = before.differences(&guest.image());
            assert!(!changed.is_empty());
            log.assert_has(&changed, driver.device_writes());
        }
    }
}

/// A front-end says where the used ring is in its log, and is taken by its word.
/// Rows: C7.
#[test]
fn a_used_ring_is_marked_where_the_front_end_says() {
    for layout in LAYOUTS {
        let (guest, mut driver) = end(layout);
        let mut ring = driver.activate(&guest, FEATURES, None, None);
        let log = Log::new();
        log.logging.turn(Some(&log.mapped));
        ring.log_to(&log.logging, Some(Gpa(0x7_7000)), false);
        let mut tx = Transmitq::new(ring);
        log.take();
        tx.enable_kicks();
        assert_eq!(log.take(), BTreeSet::from([0x77]));
    }
}

/// Whoever goes on after a crash cannot know what was written and not marked.
/// Rows: A13, C7.
#[test]
fn a_ring_that_is_taken_over_is_marked_again_with_all_that_was_lent_to_it() {
    for layout in LAYOUTS {
        let (guest, mut driver) = end(layout);
        let journal = || {
            let words = Arc::new(Words::anonymous(8 * (64 + 16)).unwrap());
            Journal::new(words, 0, 16).unwrap()
        };
        driver.post(&guest, &[(0x1_0ff0, 0x20)], WRITE, Shape::Chain);
        driver.post(&guest, &[(0x2_0000, 0x1000), (0x3_0000, 0x2001)], WRITE, Shape::Chain);
        driver.publish();
        for is_taken_over in [true, false] {
            let config = driver.config(&guest, FEATURES | layout.feature());
            let past = Past { journal: journal(), is_known: false };
            let (mut ring, _) = config.resume(&guest.map, None, None, Some(past)).unwrap();
            let log = Log::new();
            log.logging.turn(Some(&log.mapped));
            ring.log_to(&log.logging, None, is_taken_over);
            let want = if is_taken_over {
                let lent = [0x1_0ff0..0x1_1010, 0x2_0000..0x2_1000, 0x3_0000..0x3_2001];
                pages(driver.device_writes().into_iter().chain(lent))
            } else {
                BTreeSet::new()
            };
            assert_eq!(log.take(), want);
        }
    }
}

/// Rows: C7.
#[test]
fn a_queue_whose_log_is_cut_short_stops_and_nobody_dies() {
    for layout in LAYOUTS {
        let ((a, mut sender), (b, mut receiver)) = (end(layout), end(layout));
        let mut tx = Transmitq::new(sender.activate(&a, FEATURES, None, None));
        let mut ring = receiver.activate(&b, FEATURES, None, None);
        let mut log = Log::of(&mut ring);
        let mut rx = Receiveq::new(ring);
        for i in 0..3 {
            sender.post(&a, &[(0, 112)], 0, Shape::Chain);
            receiver.post(&b, &[(4096 * i, 2048)], WRITE, Shape::Chain);
        }
        sender.publish();
        receiver.publish();
        log.turn(true);
        log.file.set_len(0).unwrap();
        assert_eq!(tx.gather(), Ok(3));
        assert_eq!(rx.deliver(tx.burst(), &[0]).fault, None, "the group that meets it ends");
        assert_eq!(rx.deliver(tx.burst(), &[1]).fault, Some(RingFault::LogLost));
        log.turn(false);
        assert_eq!(rx.deliver(tx.burst(), &[2]).fault, None, "without a log there is nothing to lose");
    }
}
