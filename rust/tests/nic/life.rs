// SPDX-License-Identifier: Apache-2.0
//! A device's ups and downs, and rings that are full.

use std::time::{Duration, Instant};

use ovsvhost::datapath::NicDevice;
use ovsvhost::port::afxdp::XdpMode;
use ovsvhost::sys::netdev::Asker;

use super::cable::{Cable, FAR, ip, join, nic, wait_carrier, wait_up, wait_with_news, with_cable};
use super::exchange::from_far;
use super::rig::{Switch, wait};
use super::station::Station;

/// One frame each way.
#[track_caller]
fn exchange(guest: &mut Station, cable: &mut Cable, size: usize) {
    let frame = guest.frame(FAR, size);
    guest.send(&frame);
    assert_eq!(cable.next(), frame);
    let frame = from_far(guest.mac, size, size);
    cable.send(&frame);
    assert_eq!(guest.next(), frame);
}

fn error(switch: &Switch) -> String {
    switch.port("n0").error.unwrap_or_default()
}

/// Rows: A22, C1.
#[test]
fn a_device_that_is_not_there_is_named_and_taken_over_when_it_comes() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        ip("link del near");
        switch.datapath().add_nic("br0", nic(100)).unwrap();
        wait("the reason", || error(&switch).contains("there is no network device near: create it"));
        assert!(!switch.port("n0").link_up);
        cable.plug_in();
        switch.datapath().refresh_nic("n0").unwrap();
        wait_up(&switch, "n0");
        assert_eq!(switch.port("n0").error, None);
        exchange(&mut guest, &mut cable, 100);
        cable.replace();
        wait_with_news(&switch, "n0", "the device of the same name", || {
            let index = switch.port("n0").status.get("if_index").cloned();
            index.is_some_and(|index| index == if_index().to_string())
        });
        wait_up(&switch, "n0");
        exchange(&mut guest, &mut cable, 200);
        assert_eq!(switch.count("n0", "tx_packets"), 2, "counters go on");
        wait("every descriptor to be accounted for", || {
            switch.count("n0", "tx_completed") + switch.count("n0", "tx_abandoned") == 2
        });
    });
}

fn if_index() -> u32 {
    Asker::new().unwrap().find("near").unwrap().map_or(0, |device| device.index)
}

/// Rows: A22, C1.
#[test]
fn what_is_in_the_way_of_a_device_is_in_the_log_once_however_often_it_is_tried() {
    with_cable(1500, |cable| {
        drop(cable);
        let switch = Switch::new();
        let mut lines = Vec::new();
        let mut read = |what: &str, count: usize| {
            wait(what, || {
                let new = switch.datapath().events().into_iter().filter(|event| event.kind == "device_error");
                lines.extend(new.map(|event| event.text));
                lines.len() >= count
            });
            assert_eq!(lines.len(), count, "{lines:?}");
            lines.last().cloned().unwrap()
        };
        let mut config = nic(100);
        config.device.n_rxq = 2;
        switch.datapath().add_nic("br0", config).unwrap();
        let refused = "n0: near has no queue 1: queues 0 to 1 are asked for";
        assert!(read("the refusal", 1).starts_with(refused));
        // It is tried again and again meanwhile.
        for _ in 0..10 {
            switch.datapath().refresh_nic("n0").unwrap();
        }
        switch.datapath().set_nic("n0", |device| device.n_rxq = 1).unwrap();
        wait_up(&switch, "n0");
        assert!(read("the end of it", 2).starts_with(&format!("n0: no longer: {}", &refused[4..])));
        ip("link set near down");
        wait_with_news(&switch, "n0", "the link to be down", || !switch.port("n0").link_up);
        assert!(read("the link", 3).starts_with("n0: near is down: bring it up"));
        ip("link del near");
        wait_with_news(&switch, "n0", "the device to be missed", || error(&switch).contains("there is no"));
        assert!(read("the device", 4).starts_with("n0: there is no network device near: create it"));
    });
}

/// Rows: A22, C1.
#[test]
fn a_link_that_goes_down_and_comes_back_carries_again() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for (device, hint) in [("near", Some("near is down: bring it up (ip link set near up)")), ("far", None)] {
            exchange(&mut guest, &mut cable, 64);
            ip(&format!("link set {device} down"));
            wait_with_news(&switch, "n0", "the link to be down", || !switch.port("n0").link_up);
            wait("the reason", || switch.port("n0").error.as_deref() == hint);
            let lost = switch.count("n0", "tx_drop_link_down");
            guest.send(&guest.frame(FAR, 64));
            wait("the drop", || switch.count("n0", "tx_drop_link_down") == lost + 1);
            ip(&format!("link set {device} up"));
            wait_carrier();
            wait_with_news(&switch, "n0", "the link to be up", || switch.port("n0").link_up);
            if device == "far" {
                cable.far = ovsvhost::testing::netdev::FarEnd::open("far").unwrap();
            }
            exchange(&mut guest, &mut cable, 65);
        }
        assert!(switch.port("n0").link_resets >= 4);
    });
}

/// Rows: A20, A22.
#[test]
fn a_transmit_ring_that_is_full_drops_by_name_and_what_was_posted_is_sent_when_the_device_can() {
    for n_txq_desc in [64, 128, 256] {
        with_cable(1500, move |mut cable| {
            let mut switch = Switch::new();
            let mut guest = Station::join(&mut switch, "a", 1);
            join(&switch, |nic| nic.device.n_txq_desc = n_txq_desc);
            exchange(&mut guest, &mut cable, 60);
            // Nobody tells the switch: it goes on posting to a device that takes nothing, until it looks by itself.
            let posted = (0..10).any(|_| fill_before_it_is_noticed(&switch, &mut guest, &mut cable, n_txq_desc));
            assert!(posted, "a link that is down was noticed ten times before {n_txq_desc} frames were posted");
            let earlier = switch.count("n0", "tx_completed");
            ip("link set near up");
            for n in 0..u64::from(n_txq_desc) {
                assert_eq!(cable.next()[20..28], n.to_le_bytes(), "of a ring of {n_txq_desc}");
            }
            wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
            assert_eq!(switch.count("n0", "tx_completed"), earlier + u64::from(n_txq_desc));
            wait_carrier();
            wait_with_news(&switch, "n0", "the link to be up", || switch.port("n0").link_up);
            exchange(&mut guest, &mut cable, 61);
        });
    }
}

/// Takes the link down and sends more frames than the transmit ring holds. Gives whether they met a full ring: a switch
/// that found the link down meanwhile drops them for that, and is brought back to where it was.
fn fill_before_it_is_noticed(switch: &Switch, guest: &mut Station, cable: &mut Cable, n_txq_desc: u32) -> bool {
    let resets = switch.port("n0").link_resets;
    let dropped = switch.count("n0", "tx_drop_no_buffer");
    let is_noticed = || switch.port("n0").link_resets != resets;
    ip("link set near down");
    for n in 0..u64::from(n_txq_desc) + 40 {
        let mut frame = guest.frame(FAR, 60);
        frame[20..28].copy_from_slice(&n.to_le_bytes());
        guest.send(&frame);
        guest.wait_sent();
    }
    wait("the drops", || is_noticed() || switch.count("n0", "tx_drop_no_buffer") == dropped + 40);
    let (inflight, most) = (switch.count("n0", "tx_inflight"), switch.count("n0", "tx_inflight_max"));
    if switch.count("n0", "tx_drop_no_buffer") == dropped + 40 {
        assert_eq!((inflight, most), (u64::from(n_txq_desc), u64::from(n_txq_desc)));
        return true;
    }
    ip("link set near up");
    for n in 0..inflight {
        assert_eq!(cable.next()[20..28], n.to_le_bytes());
    }
    wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
    wait_carrier();
    wait_with_news(switch, "n0", "the link to be up", || switch.port("n0").link_up);
    false
}

/// Rows: A22, L6.
#[test]
fn a_port_is_deleted_and_made_again_many_times_with_frames_on_their_way() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        for round in 0..30 {
            join(&switch, |nic| {
                nic.device =
                    NicDevice { n_rxq_desc: 64 << (round % 4), n_txq_desc: 64 << (round % 3), ..nic.device.clone() };
                nic.device.mode = if round % 5 == 4 { XdpMode::Generic } else { XdpMode::Native };
                nic.device.need_wakeup = round % 2 == 0;
            });
            exchange(&mut guest, &mut cable, 60 + round);
            // On their way while the port goes.
            for n in 0..16 {
                cable.send(&from_far(guest.mac, 60, n));
                guest.send(&guest.frame(FAR, 60));
            }
            switch.datapath().del_port("n0").unwrap();
            guest.wait_sent();
            while cable.far.receive().unwrap().is_some() {}
            while guest.receive().is_some() {}
        }
    });
}

/// Rows: A22, L5.
#[test]
fn settings_of_a_device_change_live_and_counters_go_on() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for (n, size) in [64, 4096, 512].into_iter().enumerate() {
            exchange(&mut guest, &mut cable, 60);
            wait("the count", || switch.count("n0", "tx_packets") == 1 + n as u64);
            switch.datapath().set_nic("n0", |device| device.n_txq_desc = size).unwrap();
            wait("the device to be taken over anew", || switch.port("n0").status["n_txq_desc"] == size.to_string());
            wait_up(&switch, "n0");
        }
        exchange(&mut guest, &mut cable, 60);
        let refused = switch.datapath().set_nic("n0", |device| device.n_txq_desc = 100).unwrap_err().to_string();
        assert_eq!(refused, "n0: n_txq_desc 100 is not a power of two in 64..4096");
        let refused = switch.datapath().set_nic("a", |_| {}).unwrap_err().to_string();
        assert_eq!(refused, "port a is a guest's, not a network device's");
        exchange(&mut guest, &mut cable, 60);
    });
}

/// Rows: A22, C1.
#[test]
fn what_is_in_the_way_of_a_device_is_named_with_its_cure() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        let refused = |change: &dyn Fn(&mut NicDevice), part: &str| {
            let mut config = nic(100);
            change(&mut config.device);
            switch.datapath().add_nic("br0", config).unwrap();
            wait(&format!("'{part}' in {:?}", error(&switch)), || error(&switch).contains(part));
            assert!(!switch.port("n0").link_up);
            switch.datapath().del_port("n0").unwrap();
        };
        refused(&|d| d.n_rxq = 2, "near has no queue 1: queues 0 to 1 are asked for; set n_rxq and xdp-start-queue");
        refused(&|d| d.mode = XdpMode::NativeWithZerocopy, "cannot be had in mode native-with-zerocopy");
        refused(&|d| (d.netdev, d.mode) = ("lo".into(), XdpMode::Native), "lo: its driver runs no XDP programs");
        // A second port cannot have the device of the first, nor a second process.
        join(&switch, |_| {});
        let mut second = nic(101);
        second.name = "n1".into();
        let text = switch.datapath().add_nic("br0", second).unwrap_err().to_string();
        assert_eq!(text, "n1: network device near belongs to port n0; give it another");
        let other = Switch::new();
        other.datapath().add_nic("br0", nic(100)).unwrap();
        wait("the reason", || error(&other).contains("near has another XDP program: take it off"));
        exchange(&mut guest, &mut cable, 60);
        switch.datapath().del_port("n0").unwrap();
        wait_up(&other, "n0");
    });
}

/// Rows: A22, C10.
#[test]
fn a_frame_from_the_cable_wakes_a_switch_that_sleeps() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        let sleeps = || -> u64 { switch.datapath().pmds().iter().map(|pmd| pmd.stats.sleeps.read()).sum() };
        let slept = || -> u64 { switch.datapath().pmds().iter().map(|pmd| pmd.stats.sleep_cycles.read()).sum() };
        for n in 0..20 {
            let (before, began) = (sleeps(), Instant::now());
            exchange(&mut guest, &mut cable, 60 + n);
            wait("the switch to sleep", || sleeps() > before);
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert!(slept() > 0);
    });
}

/// Rows: A22.
#[test]
fn two_devices_and_frames_between_them() {
    with_cable(1500, |mut cable| {
        ip("link add near2 type veth peer name far2");
        for device in ["near2", "far2"] {
            ip(&format!("link set {device} addrgenmode none up"));
        }
        let asker = Asker::new().unwrap();
        wait("the carrier", || asker.find("far2").unwrap().is_some_and(|device| device.has_carrier));
        let mut second = ovsvhost::testing::netdev::FarEnd::open("far2").unwrap();
        let switch = Switch::new();
        join(&switch, |_| {});
        join(&switch, |nic| {
            (nic.name, nic.ofport, nic.device.netdev) = ("n1".into(), 101, "near2".into());
        });
        let there = [2, 0, 0, 0, 0, 0xfb];
        for size in [60, 64, 1500, 1514] {
            let frame = from_far(there, size, size);
            cable.send(&frame);
            let mut got = None;
            wait("a frame at the other far end", || {
                got = second.receive().unwrap();
                got.is_some()
            });
            assert_eq!(got.unwrap(), frame);
            let mut answer = [FAR, there].concat();
            answer.extend_from_slice(&frame[12..]);
            wait("room", || second.send(&answer).unwrap());
            assert_eq!(cable.next(), answer);
        }
    });
}
