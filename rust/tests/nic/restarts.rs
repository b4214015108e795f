// SPDX-License-Identifier: Apache-2.0
//! Guests that start their queues again and again, and those whose frames a device keeps: who does not wait for them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ovsvhost::testing::memory::{Backing, RegionSpec};

use super::cable::{ip, join, wait_carrier, with_queues_to_send};
use super::rig::{Switch, wait};
use super::zero_copy::{bring_up, guest, guest_of, introduce, joins, marked, not_copied, state, strand, wait_active};

/// Bytes of each half of the guest's memory: to pin them takes so long that its starts are more than there are lanes.
const MEMORY: usize = 128 << 20;
/// Starts of a queue, and long enough for them to be in the way of others if anybody counts them.
const STARTS: usize = 2000;
/// The longest that anybody may wait for the device's thread: on a busy machine, many lanes' time.
const SOON: Duration = Duration::from_secs(5);

/// Ends those that run beside a test, also one that fails.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[track_caller]
fn soon(what: &str, done: impl FnOnce()) {
    let begun = Instant::now();
    done();
    assert!(begun.elapsed() < SOON, "{what} took {:?}", begun.elapsed());
}

/// Rows: A19, A22, C8, C13.
#[test]
fn a_guest_that_starts_its_queue_again_and_again_keeps_nobody_waiting_and_gets_what_is_left() {
    with_queues_to_send(1500, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut restless = guest_of(&mut switch, "a", 1, 64, &RegionSpec::spread(2, MEMORY, &Backing::Prealloc));
        join(&switch, joins);
        wait_active(&switch, "a");
        let (starts, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let frontend = &mut restless.frontend;
        thread::scope(|scope| {
            let end = Until(&is_over);
            let (starts, is_over) = (&starts, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Acquire) {
                    frontend.enable_pair(0, false).unwrap();
                    frontend.enable_pair(0, true).unwrap();
                    starts.fetch_add(1, Ordering::Relaxed);
                }
            });
            wait("many starts", || starts.load(Ordering::Relaxed) >= STARTS);
            soon("what is told of a device to be so", || {
                switch.datapath().set_nic("n0", |device| device.n_txq_desc = 128).unwrap();
                wait("the new ring", || switch.port("n0").status["n_txq_desc"] == "128" && switch.port("n0").link_up);
            });
            for is_up in [false, true] {
                soon("a link that changes", || {
                    ip(&format!("link set near {}", if is_up { "up" } else { "down" }));
                    if is_up {
                        wait_carrier();
                    }
                    switch.datapath().refresh_nic("n0").unwrap();
                    wait("it to be seen", || switch.port("n0").link_up == is_up);
                });
            }
            let mut other = guest(&mut switch, "b", 2, 64);
            soon("a lane of another guest", || wait_active(&switch, "b"));
            introduce(&cable, &mut other);
            let frame = marked(&other, 1400, 1);
            other.send(&frame);
            while cable.next() != frame {}
            other.wait_sent();
            assert_eq!(not_copied(&switch), 1);
            wait("the reason to be told", || state(&switch, "a").starts_with("Waiting(turn): "));
            drop(end);
        });
        wait_active(&switch, "a");
        soon("a device that leaves", || switch.datapath().del_port("n0").unwrap());
    });
}

/// Rows: A19, C8.
#[test]
fn a_guest_whose_frames_a_device_keeps_makes_no_other_wait_when_it_stops() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let (mut a, mut b) = (guest(&mut switch, "a", 1, 64), guest(&mut switch, "b", 2, 64));
        join(&switch, joins);
        for name in ["a", "b"] {
            wait_active(&switch, name);
        }
        introduce(&cable, &mut a);
        // A machine that leaves the other guest alone for a whole second is asked again.
        let is_first = (0..5).any(|_| {
            strand(&switch, &mut a, &mut cable, 12, 3000);
            let (others, bases, is_first) = thread::scope(|scope| {
                let stopping = scope.spawn(|| a.frontend.stop_rings().unwrap());
                wait("its lane to be given up", || state(&switch, "a").starts_with("Waiting(guest)"));
                let others = b.frontend.stop_rings().unwrap();
                let is_first = !stopping.is_finished();
                (others, stopping.join().unwrap(), is_first)
            });
            bring_up(&switch);
            a.resume(&bases);
            b.resume(&others);
            for (name, station) in [("a", &mut a), ("b", &mut b)] {
                station.wait_sent();
                wait_active(&switch, name);
            }
            is_first
        });
        assert!(is_first, "it waited each time for the second that the first waits for its device");
    });
}
