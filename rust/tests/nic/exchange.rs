// SPDX-License-Identifier: Apache-2.0
//! Frames both ways.

use super::cable::{FAR, join, with_cable};
use super::rig::{Switch, wait};
use super::station::Station;

/// A frame of `len` bytes from the far end to `to`.
pub fn from_far(to: [u8; 6], len: usize, seed: usize) -> Vec<u8> {
    let mut frame = [to, FAR].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend((14..len).map(|at| ((at * 7 + seed) % 253) as u8));
    frame
}

/// Rows: A22.
#[test]
fn a_guest_and_the_far_end_of_a_cable_answer_each_other() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for round in 0..50 {
            let question = guest.frame(FAR, 60 + round);
            guest.send(&question);
            assert_eq!(cable.next(), question);
            let answer = from_far(guest.mac, 60 + round, round);
            cable.send(&answer);
            assert_eq!(guest.next(), answer);
        }
        assert_eq!((switch.count("n0", "tx_packets"), switch.count("n0", "rx_packets")), (50, 50));
        wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
        assert_eq!(switch.count("n0", "tx_completed"), 50);
    });
}
