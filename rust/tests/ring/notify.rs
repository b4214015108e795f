// SPDX-License-Identifier: Apache-2.0
//! Whoever must be told is told: both sides of a ring go to sleep by the standard's rules, and neither sleeps for ever.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ovsvhost::ring::{Receiveq, Transmitq, feature};
use proptest::prelude::*;

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Shape, WRITE, room_for};
use super::guest::Guest;
use super::honest::layouts;
use super::wake;

const DEADLINE: Duration = Duration::from_secs(10);

fn modern(event_idx: bool) -> u64 {
    feature::VERSION_1 | if event_idx { feature::EVENT_IDX } else { 0 }
}

fn driver(guest: &mut Guest, layout: Layout, size: u32, base: u16) -> Driver {
    Driver::new(guest, layout, size, layout.base(size, base), &mut Dice(1))
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
        steps in steps(), layout in layouts(), event_idx: bool, base: u16, power in 0_u32..8, odd in 0_u32..40,
    ) {
        let size = if layout == Layout::Split { 1 << power } else { (1 << power) + odd };
        let mut guest = Guest::new(room_for(size));
        let mut driver = driver(&mut guest, layout, size, base);
        let call = wake::eventfd();
        let ring = driver.activate(&guest, modern(event_idx), None, Some(call.try_clone().unwrap()));
        let mut queue = Transmitq::new(ring);
        // A call at the start cures one lost over a restart; the thread that polls makes it, at its desk.
        prop_assert_eq!(wake::count(&call), 0);
        queue.ring_mut().greet();
        prop_assert_eq!(wake::count(&call), 1);
        let (mut device_asleep, mut driver_asleep) = (false, false);
        let mut with_device = 0;
        for step in steps {
            match step {
                Step::Post(count) if !driver_asleep => {
                    let count = count.min(driver.free());
                    for _ in 0..count {
                        post_frame(&mut driver, &guest);
                    }
                    with_device += count;
                    let kick = driver.publish_and_ask(event_idx);
                    if device_asleep && count > 0 {
                        prop_assert!(kick, "a sleeping device must be kicked");
                        device_asleep = false;
                        queue.disable_kicks();
                    }
                }
                Step::DriverSleeps if !driver_asleep && !driver.posted.is_empty() => {
                    while driver.take_used().is_some() {}
                    driver.want_calls(event_idx, true);
                    driver_asleep = !driver.has_used() && !driver.posted.is_empty();
                    wake::count(&call);
                }
                Step::Poll if !device_asleep => {
                    let moved = queue.gather().unwrap();
                    let called = queue.commit();
                    with_device -= moved;
                    prop_assert_eq!(called, wake::count(&call) > 0);
                    if driver_asleep && moved > 0 {
                        prop_assert!(called, "a sleeping driver must be called");
                    }
                    if called {
                        while driver.take_used().is_some() {}
                        driver.want_calls(event_idx, false);
                        driver_asleep = false;
                    }
                }
                Step::DeviceSleeps if !device_asleep => {
                    let work = queue.enable_kicks();
                    prop_assert_eq!(work, with_device > 0, "the last look sees what is there");
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
        groups in proptest::collection::vec((1_usize..70, any::<bool>()), 1..40), layout in layouts(), event_idx: bool, base: u16,
    ) {
        let (mut a, mut b) = (Guest::new(room_for(256)), Guest::new(room_for(256)));
        let (mut sender, mut receiver) = (driver(&mut a, Layout::Split, 256, 0), driver(&mut b, layout, 256, base));
        let call = wake::eventfd();
        let mut tx = Transmitq::new(sender.activate(&a, modern(false), None, None));
        let mut rx = Receiveq::new(receiver.activate(&b, modern(event_idx), None, Some(call.try_clone().unwrap())));
        wake::count(&call);
        for (count, waits) in groups {
            for _ in 0..count {
                post_frame(&mut sender, &a);
                receiver.post(&b, &[(4096, 100)], WRITE, Shape::Chain);
            }
            sender.publish();
            receiver.publish();
            receiver.want_calls(event_idx, waits);
            while tx.gather().unwrap() > 0 {
                let list: Vec<u8> = (0..tx.burst().len() as u8).collect();
                rx.deliver(tx.burst(), &list);
                let called = rx.flush();
                prop_assert_eq!(called, wake::count(&call) > 0);
                prop_assert_eq!(called, waits, "told if and only if it wants to be");
                // Told once, it takes what is there and asks anew.
                while receiver.take_used().is_some() {}
                receiver.want_calls(event_idx, waits);
                tx.commit();
            }
            while sender.take_used().is_some() {}
        }
    }
}

#[test]
fn frames_cross_between_threads_that_sleep_whenever_they_can() {
    for (layout, event_idx) in LAYOUTS.into_iter().flat_map(|layout| [false, true].map(|event_idx| (layout, event_idx)))
    {
        // Small rings: everybody waits for everybody all the time, in a packed one out of step with the index.
        let size = if layout == Layout::Split { 8 } else { 7 };
        let (mut a, mut b) = (Guest::new(room_for(8)), Guest::new(room_for(8)));
        // Bases: the index wraps on the way.
        let (mut sender, mut receiver) = (driver(&mut a, layout, size, 65_000), driver(&mut b, layout, size, 65_300));
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
    let (mut posted, mut back) = (0, 0);
    while back < FRAMES {
        while posted < FRAMES && driver.free() > 0 {
            post_frame(&mut driver, guest);
            posted += 1;
        }
        if driver.publish_and_ask(event_idx) {
            let mut kick = kick;
            kick.write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        while driver.take_used().is_some() {
            back += 1;
        }
        if driver.free() > 0 && posted < FRAMES {
            continue;
        }
        driver.want_calls(event_idx, true);
        if !driver.has_used() && back < FRAMES {
            assert!(wake::wait(call, DEADLINE), "the sender sleeps and nobody calls it: {back} of {posted} came back");
        }
        driver.want_calls(event_idx, false);
    }
}

fn receive_all(mut driver: Driver, guest: &Guest, event_idx: bool, call: &File) {
    let mut received = 0;
    while received < FRAMES {
        while driver.free() > 0 {
            driver.post(guest, &[(4096, 100)], WRITE, Shape::Chain);
        }
        driver.publish();
        driver.want_calls(event_idx, true);
        if !driver.has_used() {
            assert!(wake::wait(call, DEADLINE), "the receiver sleeps and nobody calls it: it has {received}");
        }
        driver.want_calls(event_idx, false);
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
