// SPDX-License-Identifier: Apache-2.0
//! Chains that stay out and come back in any order; and a device that is killed with some of them out.
//!
//! The device that is killed is a process of its own (this program once more), and is killed at any instruction. The
//! driver counts: every chain comes back, and none twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ovsvhost::memory::{self, GuestMap, Words};
use ovsvhost::ring::{Held, Journal, Past, Ring, RingConfig, Transmitq, feature};
use ovsvhost::testing::driver::{RingPlace, Segment, SplitDriver, Violations};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec};

use super::dice::Dice;

const SIZE: u16 = 64;
const FEATURES: u64 = feature::VERSION_1;
const FRAME: u32 = 12 + 60;
/// Words of a journal: its cell, a line, and its shadow.
const WORDS: usize = 16 + 512;
/// What tells the process to be started that it is a device: the number of the process it is of, and of its files.
const DEVICE: &str = "OVSVHOST_TEST_DEVICE";

struct Guest {
    ram: GuestRam,
    driver: SplitDriver,
    place: RingPlace,
    buffers: Vec<Gpa>,
    out: BTreeSet<u16>,
    journal: File,
}

impl Guest {
    fn new() -> Self {
        let mut ram = GuestRam::new(&RegionSpec::spread(1, 1 << 20, &Backing::Memfd)).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, SIZE).unwrap();
        let driver = SplitDriver::new(&ram, place, SIZE, FEATURES).unwrap();
        let buffers = (0..SIZE).map(|_| ram.alloc(0, FRAME as usize, 64).unwrap()).collect();
        let words = GuestRam::new(&RegionSpec::spread(1, 8 * WORDS, &Backing::Memfd)).unwrap();
        let journal = words.regions()[0].file().try_clone().unwrap();
        Self { ram, driver, place, buffers, out: BTreeSet::new(), journal }
    }

    /// Offers a buffer if one is free.
    fn post(&mut self) -> bool {
        if self.out.len() == usize::from(SIZE) {
            return false;
        }
        let gpa = self.buffers[self.out.len()];
        let head = self.driver.add(&[Segment { gpa, len: FRAME, writable: false }]).unwrap();
        assert!(self.out.insert(head), "the driver has chain {head} once");
        self.driver.publish();
        true
    }

    /// Takes every buffer that came back.
    fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.driver.poll_used() {
            assert!(self.out.remove(&used.head), "chain {} came back and was not out", used.head);
            count += 1;
        }
        assert_eq!(self.driver.violations(), Violations::default());
        count
    }

    fn seen_by_device(&self) -> Seen {
        let region = &self.ram.regions()[0];
        Seen {
            uva: region.user_address(),
            memory: region.file().try_clone().unwrap(),
            journal: self.journal.try_clone().unwrap(),
            place: self.place,
        }
    }
}

/// A guest as a device sees it.
struct Seen {
    uva: u64,
    memory: File,
    journal: File,
    place: RingPlace,
}

impl Seen {
    fn ring(self, is_known: bool) -> (Ring, Option<String>) {
        let Self { uva, memory, journal, place } = self;
        let size = memory.metadata().unwrap().len();
        let spec = memory::RegionSpec { gpa: 0, uva, size, mmap_offset: 0, file: memory };
        let map = Arc::new(GuestMap::map(vec![spec], false).unwrap());
        let journal = Journal::new(Arc::new(Words::of_file(journal, 8 * WORDS).unwrap()), 0, 16).unwrap();
        let [desc_uva, avail_uva, used_uva] = [place.descriptors, place.available, place.used].map(|gpa| uva + gpa.0);
        let config = RingConfig { size: SIZE.into(), desc_uva, avail_uva, used_uva, base: 0, features: FEATURES };
        config.resume(&map, None, None, Some(Past { journal, is_known })).unwrap()
    }

    /// As the process sees it that this one was started by.
    fn of_parent() -> Option<(Self, bool, u64)> {
        let told = std::env::var(DEVICE).ok()?;
        let words: Vec<u64> = told.split(' ').map(|word| word.parse().unwrap()).collect();
        let [process, memory, journal, uva, desc, avail, used, is_known, seed] = words[..] else { panic!("{told}") };
        let open = |fd| File::options().read(true).write(true).open(format!("/proc/{process}/fd/{fd}")).unwrap();
        let place = RingPlace { descriptors: Gpa(desc), available: Gpa(avail), used: Gpa(used) };
        Some((Self { uva, memory: open(memory), journal: open(journal), place }, is_known != 0, seed))
    }

    /// Starts this test once more, as the device.
    fn start(&self, is_known: bool, seed: u64) -> Child {
        let told = [
            std::process::id().into(),
            self.memory.as_raw_fd().unsigned_abs().into(),
            self.journal.as_raw_fd().unsigned_abs().into(),
            self.uva,
            self.place.descriptors.0,
            self.place.available.0,
            self.place.used.0,
            is_known.into(),
            seed,
        ];
        let told = told.map(|word| word.to_string()).join(" ");
        let name = "held::a_device_that_is_killed_with_chains_out_leaves_a_ring_that_goes_on";
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(DEVICE, told)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// A device and the chains that it keeps for a while.
struct Device {
    tx: Transmitq,
    held: Held,
    out: Vec<(u16, u16)>,
    dice: Dice,
}

impl Device {
    fn new(ring: Ring, seed: u64) -> Self {
        Self { tx: Transmitq::new(ring), held: Held::new(SIZE.into()), out: Vec::new(), dice: Dice(seed) }
    }

    /// Takes what is there, keeps some of it, gives some of it back. Gives how many it took.
    fn turn(&mut self) -> usize {
        let count = self.tx.gather().unwrap();
        if count > 0 {
            for frame in 0..count as u8 {
                if self.tx.may_hold() && self.dice.once_in(2) {
                    let (pieces, keeper) = (1 + self.dice.pick(0..3) as u16, self.dice.pick(0..2) as u16);
                    if let Some(slot) = self.held.take(frame, pieces, keeper) {
                        self.out.extend(std::iter::repeat_n((slot, keeper), pieces.into()));
                    }
                }
            }
            self.tx.commit_all_but(&mut self.held);
        }
        self.dice.shuffle(&mut self.out);
        let backs = if self.out.is_empty() { 0 } else { self.dice.pick(0..self.out.len() + 1) };
        for (slot, keeper) in self.out.drain(..backs) {
            self.held.came_back(slot, keeper);
        }
        if self.held.has_done() {
            self.tx.give_back(&mut self.held, true);
        }
        count
    }
}

/// Rows: A21.
#[test]
fn chains_come_back_once_each_whatever_their_order() {
    let mut guest = Guest::new();
    let mut device = Device::new(guest.seen_by_device().ring(false).0, 7);
    let mut back = 0;
    for _ in 0..5_000 {
        for _ in 0..device.dice.pick(0..5) {
            guest.post();
        }
        device.turn();
        back += guest.take();
    }
    device.held.everything_came_back();
    device.tx.give_back(&mut device.held, true);
    back += guest.take();
    assert!(guest.out.is_empty() && back > 5_000, "{back} came back, {:?} did not", guest.out);
    assert_eq!(device.tx.into_ring().next_index() as usize, back % 65_536, "available = used");
}

/// Rows: A21.
#[test]
fn half_of_the_ring_goes_on_while_the_other_half_is_out() {
    let mut guest = Guest::new();
    let mut device = Device::new(guest.seen_by_device().ring(false).0, 7);
    for _ in 0..1_000 {
        guest.post();
        if device.tx.gather().unwrap() > 0 {
            let _ = device.held.take(0, 1, 0);
            device.tx.commit_all_but(&mut device.held);
        }
        guest.take();
    }
    assert_eq!(guest.out.len(), usize::from(SIZE) / 2);
}

/// Rows: A19, C3.
#[test]
fn a_device_that_is_killed_with_chains_out_leaves_a_ring_that_goes_on() {
    if let Some((seen, is_known, seed)) = Seen::of_parent() {
        let mut device = Device::new(seen.ring(is_known).0, seed);
        loop {
            device.turn();
        }
    }
    let mut guest = Guest::new();
    let (mut dice, mut kills_with_chains_out) = (Dice(3), 0);
    for life in 0.. {
        // Where it is killed is chance: some more lives on a machine where it is seldom in the middle.
        if life >= 40 && kills_with_chains_out > 10 {
            break;
        }
        assert!(life < 1000, "killed {kills_with_chains_out} times with chains out");
        // The device opens these files of ours.
        let seen = guest.seen_by_device();
        let mut device = seen.start(life > 0, life);
        let begun = Instant::now();
        while guest.take() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the device of life {life} gives nothing back");
            guest.post();
        }
        let until = Instant::now() + Duration::from_micros(dice.pick(0..3_000) as u64);
        while Instant::now() < until {
            guest.post();
            guest.take();
        }
        device.kill().unwrap();
        device.wait().unwrap();
        guest.take();
        kills_with_chains_out += usize::from(!guest.out.is_empty());
    }
    let (ring, note) = guest.seen_by_device().ring(true);
    assert_eq!(note, None);
    let mut last = Device::new(ring, 1);
    let (left, mut taken) = (guest.out.len(), 0);
    while !guest.out.is_empty() {
        taken += last.turn();
        guest.take();
    }
    assert_eq!(taken, left, "each that was out is gathered again, once");
}

/// Rows: C3.
#[test]
fn what_is_written_down_of_another_ring_is_forgotten() {
    let mut guest = Guest::new();
    let mut device = Device::new(guest.seen_by_device().ring(false).0, 7);
    for _ in 0..8 {
        guest.post();
    }
    assert_eq!(device.tx.gather().unwrap(), 8);
    for frame in 0..4 {
        device.held.take(frame, 1, 0).unwrap();
    }
    device.tx.commit_all_but(&mut device.held);
    assert_eq!(guest.take(), 4);
    drop(device);
    // A guest that was reset meanwhile: nothing of the ring is as it was, but for its place.
    let anew = Guest::new();
    let seen = Seen { journal: guest.journal.try_clone().unwrap(), ..anew.seen_by_device() };
    let (ring, note) = seen.ring(true);
    assert!(note.is_some_and(|note| note.contains("set it up anew")));
    assert_eq!(ring.next_index(), 0);
    // What was forgotten is not found again.
    let (ring, note) = guest.seen_by_device().ring(true);
    assert!(note.is_some());
    assert_eq!(ring.next_index(), 4);
}
