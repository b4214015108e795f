// SPDX-License-Identifier: Apache-2.0
//! Who gets a frame: learning, flooding, what stays here, and every drop by its name.

use ovsvhost::datapath::PortChange;
use ovsvhost::testing::wire::{Message, Request, features};

use super::rig::{Switch, wait};
use super::station::Station;

const ALL: [u8; 6] = [0xff; 6];

/// Three guests on one bridge that know nothing of each other.
fn three() -> (Switch, [Station; 3]) {
    let mut switch = Switch::new();
    let stations = [("a", 1), ("b", 2), ("c", 3)].map(|(name, last)| Station::join(&mut switch, name, last));
    (switch, stations)
}

/// Nothing more is on its way to `station`: a broadcast of `other` is the next to arrive there.
#[track_caller]
fn nothing_came(station: &mut Station, other: &mut Station) {
    let mark = other.frame(ALL, 99);
    other.send(&mark);
    assert_eq!(station.next(), mark, "a frame came that should not have");
}

/// Rows: B3.
#[test]
fn a_frame_to_an_unknown_address_goes_everywhere_and_to_a_known_one_goes_there() {
    let (switch, [mut a, mut b, mut c]) = three();
    let first = a.frame(b.mac, 100);
    a.send(&first);
    assert_eq!((b.next(), c.next()), (first.clone(), first), "flooded");
    let answer = b.frame(a.mac, 200);
    b.send(&answer);
    assert_eq!(a.next(), answer);
    let second = a.frame(b.mac, 300);
    a.send(&second);
    assert_eq!(b.next(), second);
    nothing_came(&mut c, &mut a);
    assert_eq!((switch.behind(a.mac), switch.behind(b.mac)), (Some(1), Some(2)));
    assert_eq!(switch.behind(c.mac), None);
}

#[test]
fn broadcast_and_multicast_go_everywhere_and_are_counted() {
    let (switch, [mut a, mut b, mut c]) = three();
    for to in [ALL, [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
        let frame = a.frame(to, 64);
        a.send(&frame);
        assert_eq!((b.next(), c.next()), (frame.clone(), frame));
    }
    wait("the counts", || switch.count("a", "rx_packets") == 3);
    assert_eq!(switch.count("a", "rx_broadcast_packets"), 1);
    assert_eq!(switch.count("a", "rx_multicast_packets"), 2);
    wait("the counts", || switch.count("c", "tx_packets") == 3);
    assert_eq!((switch.count("c", "tx_broadcast_packets"), switch.count("c", "tx_multicast_packets")), (1, 2));
    assert_eq!(switch.count("a", "tx_packets"), 0, "nobody hears himself");
}

/// Rows: B3.
#[test]
fn link_local_protocols_stay_here_unless_forward_bpdu_is_set() {
    let (switch, [mut a, mut b, mut c]) = three();
    for last in 0..16 {
        let frame = a.frame([1, 0x80, 0xc2, 0, 0, last], 64);
        a.send(&frame);
    }
    // The next address is an ordinary multicast one.
    let frame = a.frame([1, 0x80, 0xc2, 0, 0, 0x10], 64);
    a.send(&frame);
    assert_eq!((b.next(), c.next()), (frame.clone(), frame));
    wait("the counts", || switch.count("a", "rx_drop_reserved") == 16);
    switch.datapath().set_bridge("br0", 300, 8_192, true).unwrap();
    let bpdu = a.frame([1, 0x80, 0xc2, 0, 0, 0], 64);
    a.send(&bpdu);
    assert_eq!((b.next(), c.next()), (bpdu.clone(), bpdu));
}

/// Rows: B2.
#[test]
fn each_drop_has_its_name() {
    let (switch, [mut a, mut b, _c]) = three();
    let hello = b.frame(ALL, 64);
    b.send(&hello);
    a.next();
    // Its own address is behind the port it came from.
    a.send(&a.frame(ALL, 64));
    b.next();
    a.send(&a.frame(a.mac, 64));
    // A group address cannot send.
    let mut frame = a.frame(b.mac, 64);
    frame[6] = 1;
    a.send(&frame);
    a.send(&a.frame(b.mac, 13));
    a.send(&a.frame(b.mac, 0));
    // Segmentation was not negotiated, nor were partial checksums.
    a.send_with(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &a.frame(b.mac, 64));
    a.send_with(&[1, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0], &a.frame(b.mac, 64));
    nothing_came(&mut b, &mut a);
    let want = [("same_port", 1), ("bad_source", 1), ("runt", 2), ("bad_offload", 2)];
    for (name, count) in want {
        wait(name, || switch.count("a", &format!("rx_drop_{name}")) == count);
    }
    assert_eq!(switch.count("a", "rx_dropped"), 6);
    assert_eq!(switch.count("a", "rx_errors"), 5);
}

/// Rows: A18, B2.
#[test]
fn frames_over_the_receivers_mtu_are_dropped_and_counted() {
    let (switch, [mut a, mut b, _c]) = three();
    b.send(&b.frame(ALL, 64));
    a.next();
    switch.datapath().set_port("b", &PortChange { mtu: Some(1_500), ..PortChange::default() }).unwrap();
    let mut tagged = a.frame(b.mac, 1_518);
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    tagged.truncate(1_518);
    a.send(&a.frame(b.mac, 1_515));
    let largest = a.frame(b.mac, 1_514);
    a.send(&largest);
    assert_eq!(b.next(), largest);
    a.send(&tagged);
    assert_eq!(b.next(), tagged, "a tag is not payload");
    tagged.push(0);
    a.send(&tagged);
    nothing_came(&mut b, &mut a);
    wait("the counts", || switch.count("b", "tx_drop_mtu_exceeded") == 2);
    assert_eq!(switch.count("b", "ovs_tx_mtu_exceeded_drops"), 2);
    assert_eq!((switch.count("b", "tx_dropped"), switch.count("a", "rx_dropped")), (2, 0));
    switch.datapath().set_port("b", &PortChange { mtu: Some(9_000), ..PortChange::default() }).unwrap();
    let jumbo = a.frame(b.mac, 9_014);
    a.send(&jumbo);
    assert_eq!(b.next(), jumbo, "the change is live");
}

/// Rows: A18, B2.
#[test]
fn a_frame_larger_than_buffers_that_cannot_merge_is_dropped_by_that_name() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join_with(&mut switch, "b", 2, |config| config.features &= !features::MRG_RXBUF);
    // The buffers have 2048 bytes, 12 of them for the header.
    let fits = a.frame(b.mac, 2_036);
    a.send(&a.frame(b.mac, 2_037));
    a.send(&fits);
    assert_eq!(b.next(), fits);
    wait("the counts", || switch.count("b", "tx_drop_rx_buffer_too_small") == 1);
    assert_eq!(switch.count("b", "ovs_tx_failure_drops"), 1);
}

#[test]
fn a_port_that_is_down_neither_sends_nor_receives() {
    let (switch, [mut a, mut b, mut c]) = three();
    switch.datapath().set_port("b", &PortChange { admin_up: Some(false), ..PortChange::default() }).unwrap();
    assert!(!switch.port("b").link_up);
    b.send(&b.frame(ALL, 64));
    b.wait_sent();
    wait("the counts", || switch.count("b", "rx_drop_admin_down") == 1);
    let frame = a.frame(ALL, 64);
    a.send(&frame);
    assert_eq!(c.next(), frame);
    a.wait_sent();
    assert!(b.receive().is_none());
    switch.datapath().set_port("b", &PortChange { admin_up: Some(true), ..PortChange::default() }).unwrap();
    let frame = a.frame(ALL, 65);
    a.send(&frame);
    assert_eq!((b.next(), c.next()), (frame.clone(), frame));
}

#[test]
fn a_frame_for_everybody_is_not_counted_against_a_port_that_is_down() {
    let (switch, [mut a, mut b, mut c]) = three();
    b.send(&b.frame(ALL, 64));
    a.next();
    c.next();
    switch.datapath().set_port("b", &PortChange { admin_up: Some(false), ..PortChange::default() }).unwrap();
    let (to_b, to_all) = (a.frame(b.mac, 64), a.frame(ALL, 65));
    a.send_together(&[to_b, to_all.clone()]);
    assert_eq!(c.next(), to_all);
    a.wait_sent();
    wait("the counts", || switch.count("b", "tx_drop_admin_down") == 1);
    assert_eq!((switch.count("b", "tx_dropped"), switch.count("a", "rx_dropped")), (1, 0));
}

/// Rows: B3.
#[test]
fn send_rarp_moves_an_address_and_tells_everybody() {
    let (switch, [mut a, mut b, mut c]) = three();
    // Somebody behind a, who then moves to b: the new host says so for the guest.
    a.send(&a.frame(ALL, 64));
    b.next();
    c.next();
    wait("the address", || switch.behind(a.mac) == Some(1));
    let [m0, m1, m2, m3, m4, m5] = a.mac;
    let message = Message::number(Request::SEND_RARP, u64::from_le_bytes([m0, m1, m2, m3, m4, m5, 0, 0]));
    b.frontend.session().unwrap().channel().send(&message, &[]).unwrap();
    wait("the address to move", || switch.behind(a.mac) == Some(2));
    for station in [&mut a, &mut c] {
        let rarp = station.next();
        assert_eq!((&rarp[..6], &rarp[12..14]), (&ALL[..], &[0x80, 0x35][..]));
        assert_eq!(rarp[6..12], [m0, m1, m2, m3, m4, m5]);
    }
    let frame = c.frame(a.mac, 64);
    c.send(&frame);
    assert_eq!(b.next(), frame, "frames follow");
    nothing_came(&mut a, &mut c);
}

#[test]
fn an_empty_bridge_drops_for_want_of_a_receiver() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    for _ in 0..5 {
        a.send(&a.frame(ALL, 64));
    }
    a.wait_sent();
    wait("the counts", || switch.count("a", "rx_drop_no_receiver") == 5);
}
