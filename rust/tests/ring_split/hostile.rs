// SPDX-License-Identifier: Apache-2.0
//! Guests that break the rules: each lie has its name, stops the queue, and touches nothing.

use ovsvhost::ring::{Receiveq, RingFault, Transmitq, feature};

use super::dice::Dice;
use super::driver::{Desc, Driver, INDIRECT, NEXT, Shape, WRITE, room_for, write_table};
use super::guest::{BUFFERS, Guest, RINGS};

const SIZE: u32 = 64;
const FEATURES: u64 = feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC;
/// Past the buffers: nothing is mapped from here to the rings.
const NOWHERE: u64 = 2 * BUFFERS as u64;
/// Where hostile indirect tables are.
const TABLE: u64 = 0x8000;

/// One lie: how the ring is set up, and what it must be called.
struct Lie {
    name: &'static str,
    fault: RingFault,
    tell: fn(&mut Driver, &Guest, u16),
}

/// A ring descriptor at index 0, made available.
fn one(driver: &mut Driver, desc: Desc) {
    driver.write_desc(0, desc);
    driver.put_head(0);
    driver.publish();
}

fn indirect(driver: &mut Driver, addr: u64, len: u32, flags: u16) {
    one(driver, Desc { addr, len, flags, next: 1 });
}

/// Lies that work on both kinds of queue. The last argument is the direction flag of an honest buffer.
const LIES: &[Lie] = &[
    Lie {
        name: "index one past the ring",
        fault: RingFault::IndexJump,
        tell: |driver, _, _| driver.publish_index(driver.next_avail().wrapping_add(SIZE as u16 + 1)),
    },
    Lie {
        name: "index gone back by one",
        fault: RingFault::IndexJump,
        tell: |driver, _, _| driver.publish_index(driver.next_avail().wrapping_sub(1)),
    },
    Lie {
        name: "head past the table",
        fault: RingFault::IndexRange,
        tell: |driver, _, _| {
            driver.put_head(SIZE as u16);
            driver.publish();
        },
    },
    Lie {
        name: "largest head",
        fault: RingFault::IndexRange,
        tell: |driver, _, _| {
            driver.put_head(u16::MAX);
            driver.publish();
        },
    },
    Lie {
        name: "next past the table",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 1, flags: flags | NEXT, next: SIZE as u16 }),
    },
    Lie {
        name: "next past the table after a header",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 65_535 }),
    },
    Lie {
        name: "chain that is its own tail",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 0 }),
    },
    Lie {
        name: "loop of every descriptor",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| {
            for index in 0..SIZE as u16 {
                let next = (index + 1) % SIZE as u16;
                driver.write_desc(index, Desc { addr: 0, len: 1, flags: flags | NEXT, next });
            }
            driver.put_head(0);
            driver.publish();
        },
    },
    Lie {
        name: "loop of empty buffers",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| one(driver, Desc { addr: u64::MAX, len: 0, flags: flags | NEXT, next: 0 }),
    },
    Lie {
        name: "loop in an indirect table",
        fault: RingFault::ChainLoop,
        tell: |driver, guest, flags| {
            guest.write(TABLE, &Desc { addr: 0, len: 12, flags: flags | NEXT, next: 1 }.bytes());
            guest.write(TABLE + 16, &Desc { addr: 0, len: 1, flags: flags | NEXT, next: 0 }.bytes());
            indirect(driver, TABLE, 32, INDIRECT);
        },
    },
    Lie {
        name: "next past an indirect table",
        fault: RingFault::IndexRange,
        tell: |driver, guest, flags| {
            guest.write(TABLE, &Desc { addr: 0, len: 12, flags: flags | NEXT, next: 2 }.bytes());
            indirect(driver, TABLE, 32, INDIRECT);
        },
    },
    Lie {
        name: "indirect table of no entries",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| indirect(driver, TABLE, 0, INDIRECT),
    },
    Lie {
        name: "indirect table of half an entry",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| indirect(driver, TABLE, 8, INDIRECT),
    },
    Lie {
        name: "indirect table of one entry and a half",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| indirect(driver, TABLE, 24, INDIRECT),
    },
    Lie {
        name: "indirect table of more than 32768 entries",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| indirect(driver, 0, 16 * 32_769, INDIRECT),
    },
    Lie {
        name: "largest indirect table",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| indirect(driver, 0, 0xffff_fff0, INDIRECT),
    },
    Lie {
        name: "indirect with next",
        fault: RingFault::BadIndirect,
        tell: |driver, guest, flags| {
            write_table(guest, TABLE, &[(0, 12), (4096, 100)], flags);
            indirect(driver, TABLE, 32, INDIRECT | NEXT);
        },
    },
    Lie {
        name: "indirect table in an indirect table",
        fault: RingFault::BadIndirect,
        tell: |driver, guest, _| {
            guest.write(TABLE, &Desc { addr: TABLE, len: 32, flags: INDIRECT, next: 0 }.bytes());
            indirect(driver, TABLE, 32, INDIRECT);
        },
    },
    Lie {
        name: "indirect table outside memory",
        fault: RingFault::Address,
        tell: |driver, _, _| indirect(driver, NOWHERE, 32, INDIRECT),
    },
    Lie {
        name: "indirect table across the end of memory",
        fault: RingFault::Address,
        tell: |driver, _, _| indirect(driver, NOWHERE - 16, 32, INDIRECT),
    },
    Lie {
        name: "indirect table that wraps around",
        fault: RingFault::Address,
        tell: |driver, _, _| indirect(driver, u64::MAX - 15, 32, INDIRECT),
    },
    Lie {
        name: "buffer outside memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| one(driver, Desc { addr: NOWHERE, len: 100, flags, next: 0 }),
    },
    Lie {
        name: "buffer across the end of memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| one(driver, Desc { addr: NOWHERE - 99, len: 100, flags, next: 0 }),
    },
    Lie {
        name: "buffer that wraps around",
        fault: RingFault::Address,
        tell: |driver, _, flags| one(driver, Desc { addr: u64::MAX - 50, len: 100, flags, next: 0 }),
    },
    Lie {
        name: "buffer of every byte there is",
        fault: RingFault::Address,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: u32::MAX, flags, next: 0 }),
    },
    Lie {
        name: "buffer past the rings",
        fault: RingFault::Address,
        tell: |driver, _, flags| one(driver, Desc { addr: RINGS + (1 << 20), len: 100, flags, next: 0 }),
    },
    Lie {
        name: "second buffer outside memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| {
            driver.write_desc(1, Desc { addr: NOWHERE, len: 1500, flags, next: 0 });
            one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 1 });
        },
    },
    Lie {
        name: "wrong direction",
        fault: RingFault::WrongDirection,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 100, flags: flags ^ WRITE, next: 0 }),
    },
    Lie {
        name: "wrong direction further on",
        fault: RingFault::WrongDirection,
        tell: |driver, _, flags| {
            driver.write_desc(1, Desc { addr: 4096, len: 1500, flags: flags ^ WRITE, next: 0 });
            one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 1 });
        },
    },
    Lie {
        name: "wrong direction in an indirect table",
        fault: RingFault::WrongDirection,
        tell: |driver, guest, flags| {
            write_table(guest, TABLE, &[(0, 12), (4096, 1500)], flags ^ WRITE);
            indirect(driver, TABLE, 32, INDIRECT);
        },
    },
    Lie {
        name: "buffer of no bytes",
        fault: RingFault::ShortChain,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 0, flags, next: 0 }),
    },
    Lie {
        name: "buffer one byte short of a header",
        fault: RingFault::ShortChain,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 11, flags, next: 0 }),
    },
    Lie {
        name: "chain one byte short of a header",
        fault: RingFault::ShortChain,
        tell: |driver, guest, flags| {
            write_table(guest, TABLE, &[(0, 5), (NOWHERE, 0), (4096, 6)], flags);
            indirect(driver, TABLE, 48, INDIRECT);
        },
    },
    Lie {
        name: "chain of more bytes than a length can say",
        fault: RingFault::LongChain,
        tell: |driver, guest, flags| {
            write_table(guest, TABLE, &[(0, 100), (NOWHERE, u32::MAX)], flags);
            indirect(driver, TABLE, 32, INDIRECT);
        },
    },
    Lie {
        name: "chain of more pieces than any frame",
        fault: RingFault::LongChain,
        tell: |driver, guest, flags| {
            write_table(guest, TABLE, &[(0, 1); 3_000], flags);
            indirect(driver, TABLE, 16 * 3_000, INDIRECT);
        },
    },
];

/// Rows: C13.
#[test]
fn each_lie_of_a_sender_stops_its_queue_by_name_and_touches_nothing() {
    for lie in LIES {
        let mut guest = Guest::new(room_for(SIZE));
        let mut driver = Driver::new(&mut guest, SIZE, 65_530, &mut Dice(1));
        let mut tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
        (lie.tell)(&mut driver, &guest, 0);
        let before = guest.image();
        // Told twice: a broken queue stays broken, and does not move.
        for _ in 0..2 {
            assert_eq!(tx.gather(), Err(lie.fault), "{}", lie.name);
            assert!(tx.burst().is_empty() && !tx.commit(), "{}", lie.name);
        }
        before.assert_is(&guest.image(), lie.name);
    }
}

/// Rows: C13.
#[test]
fn each_lie_of_a_receiver_stops_its_queue_by_name_and_touches_nothing() {
    let mut source = Source::new();
    for lie in LIES {
        let mut guest = Guest::new(room_for(SIZE));
        let mut driver = Driver::new(&mut guest, SIZE, 65_530, &mut Dice(1));
        let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
        (lie.tell)(&mut driver, &guest, WRITE);
        let before = guest.image();
        for _ in 0..2 {
            let delivery = rx.deliver(source.burst(3), &[0, 1, 2]);
            assert_eq!((delivery.fault, delivery.settled), (Some(lie.fault), 0), "{}", lie.name);
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
        let driver = Driver::new(&mut guest, SIZE, 0, &mut Dice(2));
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
    let mut guest = Guest::new(room_for(SIZE));
    let mut driver = Driver::new(&mut guest, SIZE, 0, &mut Dice(3));
    let mut tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
    for _ in 0..5 {
        driver.post(&guest, &[(0, 112)], 0, Shape::Chain);
    }
    driver.put_head(u16::MAX);
    driver.publish();
    assert_eq!(tx.gather(), Ok(5));
    tx.commit();
    for _ in 0..5 {
        driver.take_used().expect("the honest ones come back");
    }
    assert_eq!(tx.gather(), Err(RingFault::IndexRange));
    assert_eq!(tx.into_ring().next_index(), driver.used_index(), "the index answered is the used one");
}

#[test]
fn a_receiver_gets_what_fits_before_its_lie() {
    let mut source = Source::new();
    let mut guest = Guest::new(room_for(SIZE));
    let mut driver = Driver::new(&mut guest, SIZE, 0, &mut Dice(4));
    let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
    for slot in 0..2 {
        driver.post(&guest, &[(slot * 4096, 2048)], WRITE, Shape::Chain);
    }
    driver.put_head(u16::MAX);
    driver.publish();
    let delivery = rx.deliver(source.burst(5), &[0, 1, 2, 3, 4]);
    assert_eq!((delivery.settled, delivery.fault), (2, Some(RingFault::IndexRange)));
    assert_eq!(driver.used_index(), 2);
}

#[test]
fn a_receiver_whose_index_goes_back_is_stopped() {
    let mut source = Source::new();
    let mut guest = Guest::new(room_for(SIZE));
    let mut driver = Driver::new(&mut guest, SIZE, 0, &mut Dice(5));
    let mut rx = Receiveq::new(driver.activate(&guest, FEATURES, None, None));
    for slot in 0..4 {
        driver.post(&guest, &[(slot * 4096, 2048)], WRITE, Shape::Chain);
    }
    driver.publish();
    assert_eq!(rx.deliver(source.burst(2), &[0, 1]).settled, 2);
    // Three were taken back while the device knows of four: it must not go on with what it once saw.
    driver.publish_index(3);
    let delivery = rx.deliver(source.burst(3), &[0, 1, 2]);
    assert_eq!(delivery.fault, Some(RingFault::IndexJump));
    assert_eq!((delivery.settled, driver.used_index()), (0, 2));
}

#[test]
fn indirect_tables_that_were_not_negotiated_are_refused() {
    let mut guest = Guest::new(room_for(SIZE));
    let mut driver = Driver::new(&mut guest, SIZE, 0, &mut Dice(6));
    let mut tx = Transmitq::new(driver.activate(&guest, feature::VERSION_1, None, None));
    driver.post(&guest, &[(0, 12), (4096, 100)], 0, Shape::Table(0, TABLE));
    driver.publish();
    assert_eq!(tx.gather(), Err(RingFault::BadIndirect));
}
