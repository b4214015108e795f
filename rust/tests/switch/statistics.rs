// SPDX-License-Identifier: Apache-2.0
//! The numbers of a port: exact, cumulative over reconnects, and the sum of its queues'.

use std::collections::BTreeMap;

use ovsvhost::datapath::PortChange;
use ovsvhost::testing::traffic::LinkState;
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::station::Station;
use super::traffic::Crew;

/// Every number of the port is the sum of that number over its queues, where queues have it.
fn assert_sums(all: &BTreeMap<String, u64>) {
    for side in ["rx", "tx"] {
        for (port, queue) in [("packets", "good_packets"), ("bytes", "good_bytes"), ("dropped", "dropped")] {
            let sum: u64 = (0..128).filter_map(|n| all.get(&format!("{side}_q{n}_{queue}"))).sum();
            assert_eq!(all[&format!("{side}_{port}")], sum, "{side}_{port}");
        }
        let classes: u64 =
            ["1_to_64", "65_to_127", "128_to_255", "256_to_511", "512_to_1023", "1024_to_1522", "1523_to_max"]
                .iter()
                .filter_map(|class| all.get(&format!("{side}_{class}_packets")))
                .sum();
        assert_eq!(all[&format!("{side}_packets")], classes, "size classes of {side}");
        let reasons = all.iter().filter(|(name, _)| name.starts_with(&format!("{side}_drop_")));
        assert_eq!(all[&format!("{side}_dropped")], reasons.map(|(_, n)| n).sum::<u64>(), "reasons of {side}");
    }
}

/// Rows: B2.
#[test]
fn what_was_sent_was_counted_and_queues_sum_up() {
    let mut switch = Switch::new();
    let settings = [("pairs", "2"), ("sizes", "mix")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    let before = [switch.statistics("a"), switch.statistics("b")];
    crew.send(0, 1, 100);
    crew.send(1, 0, 40);
    let arrived = |switch: &Switch| switch.count("a", "tx_packets") + switch.count("b", "tx_packets");
    let announced = before[0]["tx_packets"] + before[1]["tx_packets"];
    wait("the counts", || arrived(&switch) - announced == 200 + 80);
    let after = [switch.statistics("a"), switch.statistics("b")];
    after.iter().for_each(assert_sums);
    let grown = |port: usize, key: &str| after[port][key] - before[port][key];
    for (port, other, frames) in [(0, 1, 200), (1, 0, 80)] {
        let bytes: u64 = crew.ends[port].senders().iter().map(|sender| sender.counters().bytes).sum();
        assert_eq!((grown(port, "rx_packets"), grown(port, "rx_bytes")), (frames, bytes));
        assert_eq!((grown(other, "tx_packets"), grown(other, "tx_bytes")), (frames, bytes));
        assert_eq!((after[port]["rx_dropped"], after[port]["tx_dropped"]), (0, 0));
    }
}

/// Rows: B2.
#[test]
fn frames_without_a_buffer_are_counted_and_the_count_is_what_is_lost() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join(&mut switch, "b", 2);
    b.send(&b.frame([0xff; 6], 64));
    a.next();
    // The receiver has 64 buffers and takes nothing back meanwhile.
    for _ in 0..200 {
        a.wait_sent();
        a.send(&a.frame(b.mac, 300));
    }
    a.wait_sent();
    let mut arrived = 0;
    while b.receive().is_some() {
        arrived += 1;
    }
    assert_eq!(arrived, 64);
    wait("the counts", || switch.count("b", "tx_dropped") == 200 - arrived);
    let all = switch.statistics("b");
    assert_sums(&all);
    assert_eq!((all["tx_drop_no_buffer"], all["ovs_tx_failure_drops"]), (136, 136));
    assert_eq!(switch.count("a", "rx_packets"), 200);
}

/// Rows: C11.
#[test]
fn numbers_go_on_over_a_reconnect() {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &[("sizes", "64+700")]);
    let announced = switch.count("b", "tx_packets");
    crew.send(0, 1, 50);
    wait("the counts", || switch.count("b", "tx_packets") == announced + 50);
    let before = (switch.statistics("a"), switch.statistics("b"));
    let resets = switch.port("b").link_resets;
    crew.ends[1].hang_up();
    switch.wait_link("b", false);
    let away = switch.statistics("b");
    assert_eq!(away, before.1, "nothing vanishes with the guest");
    crew.until("the guest to come back", |crew| crew.ends[1].link() == LinkState::Up);
    switch.wait_link("b", true);
    assert!(switch.port("b").link_resets >= resets + 2);
    crew.send(0, 1, 50);
    crew.assert_exact(0, 1);
    wait("the counts", || switch.count("b", "tx_packets") == announced + 100);
    for (name, was) in &before.0 {
        assert!(switch.count("a", name) >= *was, "{name} went back");
    }
    assert_sums(&switch.statistics("b"));
}

/// Rows: B4.
#[test]
fn a_receiver_that_is_short_of_buffers_is_tried_again_as_often_as_is_set() {
    for (retries, tried) in [(8, 1), (0, 0)] {
        let mut switch = Switch::new();
        let mut a = Station::join(&mut switch, "a", 1);
        let mut b = Station::join(&mut switch, "b", 2);
        switch.datapath().set_port("b", &PortChange { retries: Some(retries), ..PortChange::default() }).unwrap();
        b.send(&b.frame([0xff; 6], 64));
        a.next();
        // All but 20 of its 64 buffers are full; then 30 frames come at once. The first attempt fills what is left, and
        // one more shows that the guest makes no progress.
        for _ in 0..44 {
            a.send(&a.frame(b.mac, 64));
            a.wait_sent();
        }
        let frame = a.frame(b.mac, 64);
        a.send_together(&vec![frame; 30]);
        a.wait_sent();
        wait("the counts", || switch.count("b", "tx_packets") + switch.count("b", "tx_dropped") == 74);
        assert_eq!((switch.count("b", "tx_packets"), switch.count("b", "tx_drop_no_buffer")), (64, 10));
        assert_eq!(switch.count("b", "ovs_tx_retries"), tried);
    }
}

/// Rows: B2.
#[test]
fn every_frame_is_counted_once_where_it_came_in_and_once_where_it_was_to_go() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join(&mut switch, "b", 2);
    let _c = Station::join(&mut switch, "c", 3);
    b.send(&b.frame([0xff; 6], 64));
    a.next();
    let all = [0xff; 6];
    let mut from_group = a.frame(b.mac, 64);
    from_group[6] |= 1;
    let frames = [
        vec![0; 13],                           // runt
        from_group,                            // bad source
        a.frame([1, 0x80, 0xc2, 0, 0, 0], 64), // reserved
        a.frame(a.mac, 64),                    // to a itself
        a.frame(b.mac, 64),                    // to b
        a.frame(b.mac, 9_100),                 // over b's MTU
        a.frame(all, 200),                     // to b and c
        a.frame([2, 0, 0, 0, 0, 0x77], 300),   // unknown: to b and c
    ];
    let sent = 20 * frames.len() as u64;
    let mut away = 0;
    for round in 0..20 {
        if round == 10 {
            // From here on both others are down: nobody gets what is flooded.
            let down = PortChange { admin_up: Some(false), ..PortChange::default() };
            switch.datapath().set_port("b", &down).unwrap();
            switch.datapath().set_port("c", &down).unwrap();
            away = switch.count("b", "tx_packets") + switch.count("b", "tx_dropped");
        }
        for frame in &frames {
            a.send(frame);
        }
        a.wait_sent();
        while b.receive().is_some() {}
    }
    let (a, b) = (switch.statistics("a"), switch.statistics("b"));
    [&a, &b].into_iter().for_each(assert_sums);
    assert_eq!(a["rx_packets"] + a["rx_dropped"], sent, "{a:?}");
    // Up: its own, those too long, and two that are flooded. Down: the two that were meant for it.
    assert_eq!(away, 10 * 4, "{b:?}");
    assert_eq!(b["tx_packets"] + b["tx_dropped"], away + 10 * 2, "{b:?}");
    assert_eq!((b["tx_drop_admin_down"], b["tx_drop_mtu_exceeded"]), (20, 10));
    assert_eq!((a["rx_drop_no_receiver"], a["rx_drop_same_port"]), (20, 20));
    let named = ["ovs_tx_failure_drops", "ovs_tx_mtu_exceeded_drops", "ovs_tx_qos_drops"];
    assert_eq!(b["tx_dropped"], named.iter().map(|name| b[*name]).sum::<u64>());
}
