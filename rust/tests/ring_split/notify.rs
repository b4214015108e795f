// SPDX-License-Identifier: Apache-2.0
//! Whoever must be told is told: both sides of a ring go to sleep by the standard's rules, and neither sleeps for ever.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ovsvhost::ring::{Receiveq, Transmitq, feature};
use proptest::prelude::*;

use super::dice::Dice;
use super::driver::{Driver, Shape, WRITE, room_for};
use super::guest::Guest;
use super::wake;

const DEADLINE: Duration = Duration::from_secs(10);

fn modern(event_idx: bool) -> u64 {
    feature::VERSION_1 | if event_idx { feature::EVENT_IDX } else { 0 }
}

/// The driver's side of notification, by the letter of virtio 1.2 §2.7.7 and §2.7.10.
struct Wishes {
    event_idx: bool,
    /// The available index when the driver last looked whether to kick.
    told: u16,
}

impl Wishes {
    /// Publishes, and says whether the device is to be kicked.
    fn publish(&mut self, driver: &Driver) -> bool {
        let (old, new) = (self.told, driver.next_avail());
        driver.publish();
        // Between the index and the look at the device's wish.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.told = new;
        if self.event_idx {
            let event = driver.avail_event();
            // By the letter: is `event` one of the entries just added?
            (0..new.wrapping_sub(old)).any(|i| old.wrapping_add(i) == event)
        } else {
            !driver.no_notify() && new != old
        }
    }

    /// Asks for a call at the next used entry, or for none.
    fn want_calls(&self, driver: &Driver, wanted: bool) {
        if self.event_idx {
            let next = driver.last_used();
            driver.set_used_event(if wanted { next } else { next.wrapping_sub(1) });
        } else {
            driver.set_no_interrupt(!wanted);
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

fn driver(guest: &mut Guest, size: u32, base: u16) -> Driver {
    Driver::new(guest, size, base, &mut Dice(1))
}

/// Posts one frame of 60 bytes at the slot's own place.
fn post_frame(driver: &mut Driver, guest: &Guest) {
    driver.post(guest, &[(4096, 72)], 0, Shape::Chain);
}

/// One step of the interleaving.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver posts so many, publishes them together, and kicks if asked to.
    Post(usize),
    /// The driver takes everything back, asks for calls, looks again, and sleeps if there is nothing.
    DriverSleeps,
    /// The device moves one burst.
    Poll,
    /// The device has nothing to do and sleeps: kicks on, one more look.
    DeviceSleeps,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1_usize..9).prop_map(Step::Post),
        2 => Just(Step::DriverSleeps),
        3 => Just(Step::Poll),
        3 => Just(Step::DeviceSleeps),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn transmitq_and_its_driver_never_both_wait(
        steps in steps(), event_idx: bool, base: u16, power in 0_u32..8,
    ) {
        let size = 1 << power;
        let mut guest = Guest::new(room_for(size));
        let mut driver = driver(&mut guest, size, base);
        let call = wake::eventfd();
        let ring = driver.activate(&guest, modern(event_idx), None, Some(call.try_clone().unwrap()));
        let mut queue = Transmitq::new(ring);
        let mut wishes = Wishes { event_idx, told: base };
        // A call at the start cures one lost over a restart; the thread that polls makes it, at its desk.
        prop_assert_eq!(wake::count(&call), 0);
        queue.ring_mut().greet();
        prop_assert_eq!(wake::count(&call), 1);
        let (mut device_asleep, mut driver_asleep) = (false, false);
        for step in steps {
            match step {
                Step::Post(count) if !driver_asleep => {
                    let count = count.min(driver.free());
                    for _ in 0..count {
                        post_frame(&mut driver, &guest);
                    }
                    let kick = wishes.publish(&driver);
                    if device_asleep && count > 0 {
                        prop_assert!(kick, "a sleeping device must be kicked");
                        device_asleep = false;
                        queue.disable_kicks();
                    }
                }
                Step::DriverSleeps if !driver_asleep && !driver.posted.is_empty() => {
                    while driver.take_used().is_some() {}
                    wishes.want_calls(&driver, true);
                    driver_asleep = driver.used_index() == driver.last_used() && !driver.posted.is_empty();
                    wake::count(&call);
                }
                Step::Poll if !device_asleep => {
                    let moved = queue.gather().unwrap();
                    let called = queue.commit();
                    prop_assert_eq!(called, wake::count(&call) > 0);
                    if driver_asleep && moved > 0 {
                        prop_assert!(called, "a sleeping driver must be called");
                    }
                    if called {
                        while driver.take_used().is_some() {}
                        wishes.want_calls(&driver, false);
                        driver_asleep = false;
                    }
                }
                Step::DeviceSleeps if !device_asleep => {
                    let work = queue.enable_kicks();
                    prop_assert_eq!(work, driver.next_avail() != driver.used_index(), "the last look sees what is there");
                    device_asleep = !work;
                    if work {
                        queue.disable_kicks();
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn receiveq_calls_a_driver_that_waits_and_spares_one_that_does_not(
        groups in proptest::collection::vec((1_usize..70, any::<bool>()), 1..40), event_idx: bool, base: u16,
    ) {
        let (mut a, mut b) = (Guest::new(room_for(256)), Guest::new(room_for(256)));
        let (mut sender, mut receiver) = (driver(&mut a, 256, 0), driver(&mut b, 256, base));
        let call = wake::eventfd();
        let mut tx = Transmitq::new(sender.activate(&a, modern(false), None, None));
        let mut rx = Receiveq::new(receiver.activate(&b, modern(event_idx), None, Some(call.try_clone().unwrap())));
        let wishes = Wishes { event_idx, told: base };
        wake::count(&call);
        for (count, waits) in groups {
            for _ in 0..count {
                post_frame(&mut sender, &a);
                receiver.post(&b, &[(4096, 100)], WRITE, Shape::Chain);
            }
            sender.publish();
            receiver.publish();
            wishes.want_calls(&receiver, waits);
            while tx.gather().unwrap() > 0 {
                let list: Vec<u8> = (0..tx.burst().len() as u8).collect();
                rx.deliver(tx.burst(), &list);
                let called = rx.flush();
                prop_assert_eq!(called, wake::count(&call) > 0);
                prop_assert_eq!(called, waits, "told if and only if it wants to be");
                // Told once, it takes what is there and asks anew.
                while receiver.take_used().is_some() {}
                wishes.want_calls(&receiver, waits);
                tx.commit();
            }
            while sender.take_used().is_some() {}
        }
    }
}

#[test]
fn frames_cross_between_threads_that_sleep_whenever_they_can() {
    for event_idx in [false, true] {
        let (mut a, mut b) = (Guest::new(room_for(8)), Guest::new(room_for(8)));
        // Small rings: everybody waits for everybody all the time. Bases: the index wraps on the way.
        let (sender, receiver) = (driver(&mut a, 8, 65_000), driver(&mut b, 8, 65_300));
        let [kick, tx_call, rx_call] = [(); 3].map(|()| wake::eventfd());
        let clone = |file: &File| Some(file.try_clone().unwrap());
        let tx = Transmitq::new(sender.activate(&a, modern(event_idx), clone(&kick), clone(&tx_call)));
        let rx = Receiveq::new(receiver.activate(&b, modern(event_idx), None, clone(&rx_call)));
        let (a, b) = (Arc::new(a), Arc::new(b));
        let sending = thread::spawn({
            let (kick, a) = (kick.try_clone().unwrap(), Arc::clone(&a));
            move || send_all(sender, &a, event_idx, &kick, &tx_call)
        });
        let receiving = thread::spawn({
            let b = Arc::clone(&b);
            move || receive_all(receiver, &b, event_idx, &rx_call)
        });
        forward_all(tx, rx, &kick);
        sending.join().expect("the sender was told in time");
        receiving.join().expect("the receiver was told in time");
    }
}

const FRAMES: usize = 6_000;

fn send_all(mut driver: Driver, guest: &Guest, event_idx: bool, kick: &File, call: &File) {
    use std::io::Write;
    let mut wishes = Wishes { event_idx, told: driver.next_avail() };
    let (mut posted, mut back) = (0, 0);
    while back < FRAMES {
        while posted < FRAMES && driver.free() > 0 {
            post_frame(&mut driver, guest);
            posted += 1;
        }
        if wishes.publish(&driver) {
            let mut kick = kick;
            kick.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        while driver.take_used().is_some() {
            back += 1;
        }
        if driver.free() > 0 && posted < FRAMES {
            continue;
        }
        wishes.want_calls(&driver, true);
        if driver.used_index() == driver.last_used() && back < FRAMES {
            assert!(wake::wait(call, DEADLINE), "the sender sleeps and nobody calls it: {back} of {posted} came back");
        }
        wishes.want_calls(&driver, false);
    }
}

fn receive_all(mut driver: Driver, guest: &Guest, event_idx: bool, call: &File) {
    let wishes = Wishes { event_idx, told: driver.next_avail() };
    let mut received = 0;
    while received < FRAMES {
        while driver.free() > 0 {
            driver.post(guest, &[(4096, 100)], WRITE, Shape::Chain);
        }
        driver.publish();
        wishes.want_calls(&driver, true);
        if driver.used_index() == driver.last_used() {
            assert!(wake::wait(call, DEADLINE), "the receiver sleeps and nobody calls it: it has {received}");
        }
        wishes.want_calls(&driver, false);
        while driver.take_used().is_some() {
            received += 1;
        }
    }
}

fn forward_all(mut tx: Transmitq, mut rx: Receiveq, kick: &File) {
    let (mut moved, deadline) = (0, Instant::now() + 6 * DEADLINE);
    while moved < FRAMES {
        assert!(Instant::now() < deadline, "stuck after {moved} frames");
        let count = tx.gather().unwrap();
        if count == 0 {
            if !tx.enable_kicks() {
                assert!(wake::wait(kick, DEADLINE), "the device sleeps and nobody kicks it: it moved {moved}");
            }
            tx.disable_kicks();
            continue;
        }
        let list: Vec<u8> = (0..count as u8).collect();
        let mut rest = &list[..];
        while !rest.is_empty() {
            assert!(Instant::now() < deadline, "the receiver posts no buffers: {moved} moved");
            let settled = rx.deliver(tx.burst(), rest).settled;
            rx.flush();
            rest = &rest[settled..];
            if settled == 0 {
                thread::yield_now();
            }
        }
        tx.commit();
        moved += count;
    }
}
