// SPDX-License-Identifier: Apache-2.0
//! Frames both ways.

use ovsvhost::datapath::PortChange;
use ovsvhost::port::afxdp::XdpMode;
use ovsvhost::sys::netdev::Asker;

use super::cable::{FAR, ip, join, with_cable};
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

/// Sizes around every border: of a head, of a chunk on either side, of the MTU.
const SIZES: [usize; 24] = [
    60, 61, 63, 64, 65, 127, 128, 512, 1500, 1514, 2047, 2048, 3500, 3837, 3838, 3839, 3840, 3841, 4095, 4096, 4097,
    8191, 8193, 9014,
];

/// Rows: A18, A22.
#[test]
fn frames_of_any_size_come_and_go_as_they_were_in_every_mode_that_copies() {
    for mode in [XdpMode::Native, XdpMode::Generic, XdpMode::BestEffort] {
        with_cable(9000, move |mut cable| {
            let mut switch = Switch::new();
            let mut guest = Station::join(&mut switch, "a", 1);
            join(&switch, |nic| nic.device.mode = mode);
            let expected = if mode == XdpMode::BestEffort { "native" } else { mode.name() };
            assert_eq!(switch.port("n0").status["xdp-mode-in-use"], expected);
            assert_eq!(switch.port("n0").mtu, 9000, "the device's own");
            for (seed, size) in SIZES.into_iter().enumerate() {
                let frame = guest.frame(FAR, size);
                guest.send(&frame);
                assert_eq!(cable.next(), frame, "{size} bytes to the cable, {mode:?}");
                let frame = from_far(guest.mac, size, seed);
                cable.send(&frame);
                assert_eq!(guest.next(), frame, "{size} bytes from the cable, {mode:?}");
            }
            wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
            assert_eq!(switch.count("n0", "rx_missed_errors"), 0);
        });
    }
}

/// Rows: A22.
#[test]
fn a_burst_arrives_whole_in_order_and_is_kicked_once_for_as_many_as_a_kick_takes() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for round in 0..40 {
            let frames: Vec<_> = (0..32).map(|n| numbered(guest.frame(FAR, 60 + 40 * n), round, n)).collect();
            guest.send_together(&frames);
            for frame in &frames {
                assert_eq!(&cable.next(), frame);
            }
            let frames: Vec<_> = (0..32).map(|n| numbered(from_far(guest.mac, 60 + 40 * n, round), round, n)).collect();
            for frame in &frames {
                cable.send(frame);
            }
            for frame in &frames {
                assert_eq!(&guest.next(), frame);
            }
        }
        let (kicks, frames) = (switch.count("n0", "tx_q0_kicks"), switch.count("n0", "tx_packets"));
        assert_eq!(frames, 40 * 32);
        assert!(kicks < frames / 2, "{kicks} kicks for {frames} frames");
    });
}

fn numbered(mut frame: Vec<u8>, round: usize, n: usize) -> Vec<u8> {
    (frame[20], frame[21]) = (round as u8, n as u8);
    frame
}

/// Rows: A22.
#[test]
fn tags_stay_where_they_are() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for (size, tci) in [(64, 5_u16), (1514, 4094), (300, 0xe001)] {
            let tag = [[0x81, 0x00], tci.to_be_bytes()].concat();
            let mut frame = guest.frame(FAR, size);
            frame.splice(12..12, tag.clone());
            guest.send(&frame);
            assert_eq!(cable.next(), frame, "{size} bytes and a tag to the cable");
            let mut frame = from_far(guest.mac, size, 1);
            frame.splice(12..12, tag);
            cable.send(&frame);
            assert_eq!(guest.next(), frame, "{size} bytes and a tag from the cable");
        }
    });
}

/// Rows: A18.
#[test]
fn mtu_request_is_the_devices_and_a_longer_frame_is_dropped_by_name() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        let long = guest.frame(FAR, 4000);
        guest.send(&long);
        wait("the drop", || switch.count("n0", "tx_drop_mtu_exceeded") == 1);
        ip("link set far mtu 9000");
        for mtu in [9000, 1500, 9000] {
            let change = PortChange { mtu: Some(mtu), ..PortChange::default() };
            switch.datapath().set_port("n0", &change).unwrap();
            wait("the device's MTU", || device_mtu() == mtu);
            wait("the link", || switch.port("n0").link_up && switch.port("n0").error.is_none());
            assert_eq!(switch.port("n0").mtu, mtu);
            let size = mtu as usize + 14;
            let frame = guest.frame(FAR, size);
            // What the switch took before the device was taken over anew is gone.
            wait("a link that carries", || {
                guest.send(&guest.frame(FAR, 60));
                guest.wait_sent();
                cable.far.receive().unwrap().is_some()
            });
            while cable.far.receive().unwrap().is_some() {}
            guest.send(&frame);
            loop {
                let arrived = cable.next();
                if arrived.len() != 60 {
                    break assert_eq!(arrived, frame);
                }
            }
        }
    });
}

fn device_mtu() -> u32 {
    Asker::new().unwrap().find("near").unwrap().unwrap().mtu
}
