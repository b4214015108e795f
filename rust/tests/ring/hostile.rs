// SPDX-License-Identifier: Apache-2.0
//! Guests that break the rules: each lie has its name, stops the queue, and touches nothing.

use ovsvhost::ring::{Receiveq, RingFault, Transmitq, feature};

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Piece, Shape, WRITE, room_for};
use super::guest::Guest;
use super::lies::{self, SIZE, TABLE};

const FEATURES: u64 = feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC;

fn liar(layout: Layout, base: u16, seed: u64) -> (Guest, Driver) {
    let mut guest = Guest::new(room_for(SIZE));
    let driver = Driver::new(&mut guest, layout, SIZE, layout.base(SIZE, base), &mut Dice(seed));
    (guest, driver)
}

/// A chain that points past the ring, whatever the layout.
fn put_wild(driver: &mut Driver, flags: u16) {
    match driver.layout {
        Layout::Split => driver.split().put_head(u16::MAX),
        Layout::Packed => driver.packed().put_as(&[Piece { addr: 0, len: 100, flags }], u16::MAX),
    }
    driver.publish();
}

/// Rows: C13.
#[test]
fn each_lie_of_a_sender_stops_its_queue_by_name_and_touches_nothing() {
    for (layout, lie) in LAYOUTS.into_iter().flat_map(|layout| lies::of(layout).map(move |lie| (layout, lie))) {
        let (guest, mut driver) = liar(layout, 65_530, 1);
        let mut tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
        (lie.tell)(&mut driver, &guest, 0);
        let before = guest.image();
        // Told twice: a broken queue stays broken, and does not move.
        for _ in 0..2 {
            assert_eq!(tx.gather(), Err(lie.fault), "{layout:?}: {}", lie.name);
            assert!(tx.burst().is_empty() && !tx.commit(), "{}", lie.name);
        }
        before.assert_is(&guest.image(), lie.name);
    }
}

/// Rows: C13.
#[test]
fn each_lie_of_a_receiver_stops_its_queue_by_name_and_touches_nothing() {
    let mut source = Source::new();
    for (layout, lie) in LAYOUTS.into_iter().flat_map(|layout| lies::of(layout).map(move |lie| (layout, lie))) {
        let (guest, mut driver) = liar(layout, 65_530, 1);
        let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
        (lie.tell)(&mut driver, &guest, WRITE);
        let before = guest.image();
        for _ in 0..2 {
            let delivery = rx.deliver(source.burst(3), &[0, 1, 2]);
            assert_eq!((delivery.fault, delivery.settled), (Some(lie.fault), 0), "{layout:?}: {}", lie.name);
            assert!(!rx.flush(), "{}: nothing came of it, so nobody is called", lie.name);
        }
        before.assert_is(&guest.image(), lie.name);
    }
}

/// A sender whose frames are only there to be delivered.
struct Source {
    guest: Guest,
    driver: Driver,
    tx: Transmitq,
}

impl Source {
    fn new() -> Self {
        let mut guest = Guest::new(room_for(SIZE));
        let mut driver = Driver::new(&mut guest, Layout::Split, SIZE, 0, &mut Dice(2));
        let tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
        Self { guest, driver, tx }
    }

    fn burst(&mut self, frames: usize) -> &ovsvhost::burst::Burst {
        self.tx.commit();
        while self.driver.take_used().is_some() {}
        for _ in 0..frames {
            self.driver.post(&self.guest, &[(0, 12 + 100)], 0, Shape::Chain);
        }
        self.driver.publish();
        assert_eq!(self.tx.gather(), Ok(frames));
        self.tx.burst()
    }
}

#[test]
fn what_came_before_a_lie_is_delivered_and_given_back() {
    for layout in LAYOUTS {
        let (guest, mut driver) = liar(layout, 0x8000, 3);
        let mut tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
        for _ in 0..5 {
            driver.post(&guest, &[(0, 112)], 0, Shape::Chain);
        }
        put_wild(&mut driver, 0);
        assert_eq!(tx.gather(), Ok(5));
        tx.commit();
        for _ in 0..5 {
            driver.take_used().expect("the honest ones come back");
        }
        assert_eq!(tx.gather(), Err(RingFault::IndexRange));
        assert_eq!(tx.into_ring().next_index(), driver.used_base(), "the index answered is the used one");
    }
}

#[test]
fn a_receiver_gets_what_fits_before_its_lie() {
    let mut source = Source::new();
    for layout in LAYOUTS {
        let (guest, mut driver) = liar(layout, 0x8000, 4);
        let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
        for slot in 0..2 {
            driver.post(&guest, &[(slot * 4096, 2048)], WRITE, Shape::Chain);
        }
        put_wild(&mut driver, WRITE);
        let delivery = rx.deliver(source.burst(5), &[0, 1, 2, 3, 4]);
        assert_eq!((delivery.settled, delivery.fault), (2, Some(RingFault::IndexRange)));
        for _ in 0..2 {
            driver.take_used().expect("what fitted is there");
        }
        assert!(!driver.has_used());
    }
}

#[test]
fn a_receiver_whose_index_goes_back_is_stopped() {
    let mut source = Source::new();
    let (guest, mut driver) = liar(Layout::Split, 0, 5);
    let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
    for slot in 0..4 {
        driver.post(&guest, &[(slot * 4096, 2048)], WRITE, Shape::Chain);
    }
    driver.publish();
    assert_eq!(rx.deliver(source.burst(2), &[0, 1]).settled, 2);
    // Three were taken back while the device knows of four: it must not go on with what it once saw.
    driver.split().publish_index(3);
    let delivery = rx.deliver(source.burst(3), &[0, 1, 2]);
    assert_eq!(delivery.fault, Some(RingFault::IndexJump));
    assert_eq!((delivery.settled, driver.split().used_index()), (0, 2));
}

/// A frame that needs more buffers than there are leaves those it looked at to the driver, as they were.
#[test]
fn buffers_too_few_for_a_frame_stay_as_they_are() {
    let mut source = Source::new();
    for layout in LAYOUTS {
        let (guest, mut driver) = liar(layout, 0x8000 + 60, 7);
        let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
        for slot in 0..3 {
            driver.post(&guest, &[(slot * 4096, 30)], WRITE, Shape::Chain);
        }
        driver.publish();
        let before = guest.image();
        for _ in 0..2 {
            let delivery = rx.deliver(source.burst(2), &[0, 1]);
            assert_eq!((delivery.settled, delivery.fault), (0, None));
            assert!(!rx.flush() && !driver.has_used());
            let mut expected = before.clone();
            for (at, len) in driver.scribbles(0) {
                expected.write(at, &guest.image().read(at, len));
            }
            expected.assert_is(&guest.image(), "a receiver with too little room");
        }
        driver.post(&guest, &[(3 * 4096, 1_000)], WRITE, Shape::Chain);
        driver.publish();
        assert_eq!(rx.deliver(source.burst(2), &[0, 1]).settled, 1, "{layout:?}");
        let lens: Vec<u32> = std::iter::from_fn(|| driver.take_used()).map(|(_, len)| len).collect();
        assert_eq!(lens, [30, 30, 30, 22], "{layout:?}");
    }
}

#[test]
fn indirect_tables_that_were_not_negotiated_are_refused() {
    for layout in LAYOUTS {
        let (guest, mut driver) = liar(layout, 0x8000, 6);
        let mut tx = Transmitq::new(driver.activate(&guest, feature::VERSION_1, None, None));
        driver.post(&guest, &[(0, 12), (4096, 100)], 0, Shape::Table(0, TABLE));
        driver.publish();
        assert_eq!(tx.gather(), Err(RingFault::BadIndirect));
    }
}

#[test]
fn a_ring_that_cannot_be_is_refused_by_name() {
    let (mut guest, mut dice) = (Guest::new(room_for(SIZE)), Dice(8));
    let driver = Driver::new(&mut guest, Layout::Packed, 60, 0x8000, &mut dice);
    let sizes = [(0, 0), (0, 60), (0, 65_536), (feature::RING_PACKED, 0), (feature::RING_PACKED, 32_769)];
    for (features, size) in sizes {
        let refused = driver.config(&guest, features);
        let refused = ovsvhost::ring::RingConfig { size, ..refused }.activate(&guest.map, None, None).unwrap_err();
        assert!(refused.to_string().starts_with(&format!("a size of {size} is not")), "{refused}");
    }
    for base in [60, 0x803c, 0xffff] {
        let config = ovsvhost::ring::RingConfig { base, ..driver.config(&guest, feature::RING_PACKED) };
        let refused = config.activate(&guest.map, None, None).unwrap_err().to_string();
        assert!(refused.ends_with("of a packed ring of 60"), "{refused}");
    }
}
