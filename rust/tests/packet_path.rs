// SPDX-License-Identifier: Apache-2.0
//! The packet path allocates nothing, waits for no lock and tries one a group: what poll threads ask of this binary's
//! allocator and of the core's locks is counted while frames flow.
#![allow(unreachable_pub, dead_code, reason = "rooms shared with the switch's tests, of which this one uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation, reason = "a test")]

#[path = "nic/cable.rs"]
mod cable;
#[path = "switch/rig.rs"]
mod rig;
#[path = "switch/station.rs"]
mod station;
#[path = "switch/traffic.rs"]
mod traffic;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ovsvhost::lock;
use ovsvhost::testing::allocations::CountingAllocator;
use ovsvhost::vhost::EndpointKind;
use rig::Switch;
use traffic::Crew;

/// The counters are the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What poll threads did so far, or in between.
#[derive(Debug)]
struct Asked {
    allocations: u64,
    locks_waited_for: u64,
    locks_tried: u64,
    /// Groups that they delivered: frames of one burst for one receiveq. Each ends in one decision whether to call.
    groups: u64,
    frames: u64,
}

impl Asked {
    fn so_far(switch: &Switch) -> Self {
        let (locks_waited_for, locks_tried) = lock::count::by_poll_threads();
        let ports = ["a", "b"].map(|port| switch.statistics(port));
        let sum = |which: &dyn Fn(&str) -> bool| {
            ports.iter().flatten().filter(|(name, _)| which(name)).map(|(_, n)| n).sum::<u64>()
        };
        Self {
            allocations: CountingAllocator::calls_of_poll_threads(),
            locks_waited_for,
            locks_tried,
            groups: sum(&|name| name.starts_with("tx_q") && name.contains("_guest_notifications")),
            frames: sum(&|name| name == "tx_packets"),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            locks_waited_for: self.locks_waited_for - before.locks_waited_for,
            locks_tried: self.locks_tried - before.locks_tried,
            groups: self.groups - before.groups,
            frames: self.frames - before.frames,
        }
    }
}

fn asked_while_frames_flow(settings: &[(&str, &str)]) -> Asked {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, settings);
    crew.send(0, 1, 50);
    crew.send(1, 0, 50);
    let before = Asked::so_far(&switch);
    assert!(before.allocations > 0, "the counter sees poll threads: they allocate when a queue is given to them");
    assert!(before.locks_waited_for > 0, "the counter sees poll threads: they lock their mailbox to read it");
    let began = Instant::now();
    crew.send(0, 1, 500);
    crew.send(1, 0, 500);
    // Each of the two addresses is noted anew in every second that it is seen in, under a lock of its own.
    let noted = 2 * (began.elapsed().as_secs() + 2);
    let mut asked = Asked::so_far(&switch).since(&before);
    asked.locks_tried = asked.locks_tried.saturating_sub(noted);
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    asked
}

#[test]
fn poll_threads_allocate_nothing_and_try_one_lock_a_group_for_frames_of_any_shape() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let shapes: [&[(&str, &str)]; 4] = [
        &[("layout", "one"), ("sizes", "mix")],
        &[("layout", "indirect:2"), ("sizes", "mix"), ("checksum", "partial")],
        &[("layout", "chain:5"), ("sizes", "mix")],
        &[("pairs", "2"), ("without", "MRG_RXBUF")],
    ];
    for settings in shapes {
        let asked = asked_while_frames_flow(settings);
        assert_eq!((asked.allocations, asked.locks_waited_for), (0, 0), "{settings:?}");
        assert!(asked.locks_tried <= asked.groups, "{settings:?}: {asked:?}");
        assert!(asked.groups * 2 < asked.frames, "groups too small to tell one from a frame: {settings:?}: {asked:?}");
    }
}

/// Rows: A22.
#[test]
fn poll_threads_allocate_nothing_and_wait_for_no_lock_for_frames_to_and_from_a_network_device() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    cable::with_cable(9000, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = station::Station::join(&mut switch, "a", 1);
        cable::join(&switch, |_| {});
        let mut exchange = |rounds: usize| {
            for size in (0..rounds).map(|round| 60 + round * 89 % 8_900) {
                let frames: Vec<_> = (0..8).map(|_| guest.frame(cable::FAR, size)).collect();
                guest.send_together(&frames);
                for frame in &frames {
                    assert_eq!(&cable.next(), frame);
                }
                let mut frame = guest.frame(guest.mac, size);
                frame[6..12].copy_from_slice(&cable::FAR);
                cable.send(&frame);
                assert_eq!(guest.next(), frame);
            }
        };
        exchange(10);
        let asked = || (CountingAllocator::calls_of_poll_threads(), lock::count::by_poll_threads().0);
        let before = asked();
        assert!(before.0 > 0, "the counter sees poll threads: they allocate when a queue is given to them");
        exchange(150);
        assert_eq!(asked(), before);
    });
}
