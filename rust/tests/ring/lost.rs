// SPDX-License-Identifier: Apache-2.0
//! A guest whose memory file is cut short under the switch: its queues stop, and nobody dies.
//!
//! Only the device's mapping is guarded, so the driver's side of these tests keeps its hands off what was cut.

use ovsvhost::ring::{Receiveq, RingFault, Transmitq, feature};

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Shape, WRITE, room_for};
use super::guest::{BUFFERS, Guest};

const FEATURES: u64 = feature::VERSION_1;
/// In the second buffer region, which is the one cut.
const CUT: u64 = BUFFERS as u64 + 8192;

fn end(layout: Layout) -> (Guest, Driver) {
    let mut guest = Guest::new(room_for(64));
    let driver = Driver::new(&mut guest, layout, 64, 0, &mut Dice(1));
    (guest, driver)
}

fn cut(guest: &Guest) {
    guest.ram.regions()[1].file().set_len(0).unwrap();
}

#[test]
fn a_sender_whose_memory_is_cut_short_reads_as_zeroes_once_and_then_stops() {
    for layout in LAYOUTS {
        let (guest, mut driver) = end(layout);
        let mut tx = Transmitq::new(driver.activate(&guest, FEATURES, None, None));
        for _ in 0..3 {
            driver.post(&guest, &[(CUT, 112)], 0, Shape::Chain);
        }
        driver.publish();
        cut(&guest);
        // The pages go away before the first look: the copy meets it, goes on over zeroes, and the next burst is refused.
        assert_eq!(tx.gather(), Ok(3));
        assert!(tx.burst().heads().iter().all(|head| head.0 == [0; 64]));
        tx.commit();
        driver.post(&guest, &[(0, 112)], 0, Shape::Chain);
        driver.publish();
        assert_eq!(tx.gather(), Err(RingFault::MemoryLost));
    }
}

#[test]
fn a_receiver_whose_memory_is_cut_short_stops_and_its_sender_does_not() {
    for layout in LAYOUTS {
        let ((a, mut sender), (b, mut receiver)) = (end(layout), end(layout));
        let mut tx = Transmitq::new(sender.activate(&a, FEATURES, None, None));
        let mut rx = Receiveq::new(receiver.activate(&b, FEATURES, None, None));
        for _ in 0..4 {
            sender.post(&a, &[(0, 112)], 0, Shape::Chain);
            receiver.post(&b, &[(CUT, 2048)], WRITE, Shape::Chain);
        }
        sender.publish();
        receiver.publish();
        cut(&b);
        assert_eq!(tx.gather(), Ok(4));
        assert_eq!(rx.deliver(tx.burst(), &[0, 1]).fault, None);
        let delivery = rx.deliver(tx.burst(), &[2, 3]);
        assert_eq!((delivery.settled, delivery.fault), (0, Some(RingFault::MemoryLost)));
        tx.commit();
        for _ in 0..4 {
            sender.take_used().expect("the sender has everything back");
        }
        sender.post(&a, &[(0, 112)], 0, Shape::Chain);
        assert_eq!(tx.gather(), Ok(0), "and may go on");
    }
}
