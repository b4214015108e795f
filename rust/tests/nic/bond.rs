// SPDX-License-Identifier: Apache-2.0
//! Two cables that are one port: which of them carries, what comes in over the other, and what happens when one goes.

use std::time::{Duration, Instant};

use ovsvhost::datapath::{BondConfig, BondMode, BondState, NicConfig, PortChange};
use ovsvhost::sys::netdev::Asker;
use ovsvhost::testing::memory::{Backing, RegionSpec};
use ovsvhost::testing::netdev::FarEnd;

use super::cable::{Cable, FAR, ip, join, wait_up, with_cable, with_queues_to_send};
use super::exchange::from_far;
use super::rig::{Switch, wait};
use super::station::Station;
use super::zero_copy::joins;

/// Names of the links, as ports.
const LINKS: [&str; 2] = ["n0", "n1"];

/// A guest, and a bond of two cables: `near` to `far`, and `near2` to `far2`.
pub struct Bench {
    pub switch: Switch,
    pub guest: Station,
    pub far: [FarEnd; 2],
}

impl Bench {
    pub fn new(cable: Cable, change: impl FnOnce(&mut BondConfig)) -> Self {
        Self::of_links(cable, 1, change, |_| {})
    }

    /// Each link sends on so many queues and is changed likewise.
    fn of_links(
        cable: Cable,
        queues: u32,
        change: impl FnOnce(&mut BondConfig),
        change_link: impl Fn(&mut NicConfig),
    ) -> Self {
        ip(&format!(
            "link add near2 numtxqueues {queues} numrxqueues 1 type veth peer name far2 numtxqueues 1 numrxqueues {queues}"
        ));
        for device in ["near2", "far2"] {
            ip(&format!("link set {device} addrgenmode none up"));
        }
        wait_carriers();
        let mut switch = Switch::new();
        let guest = Station::join_with(&mut switch, "a", 1, |config| {
            config.regions = RegionSpec::spread(2, 2 << 20, &Backing::Prealloc);
        });
        let mut config = BondConfig { name: "bond0".into(), ..BondConfig::default() };
        change(&mut config);
        switch.datapath().add_bond("br0", config).unwrap();
        for (at, name) in LINKS.into_iter().enumerate() {
            join(&switch, |nic| {
                (nic.name, nic.ofport, nic.bond) = (name.into(), 100 + at as u16, Some("bond0".into()));
                nic.device.netdev = near(at).into();
                change_link(nic);
            });
        }
        Self { switch, guest, far: [cable.far, FarEnd::open("far2").unwrap()] }
    }

    pub fn state(&self) -> BondState {
        self.switch.datapath().bonds().remove(0)
    }

    /// What a watch over the host's links would say all the time.
    pub fn look(&self) {
        for link in LINKS {
            self.switch.datapath().refresh_nic(link).unwrap();
        }
    }

    #[track_caller]
    pub fn wait_active(&self, name: Option<&str>) {
        wait(&format!("{name:?} to be active"), || {
            self.look();
            self.state().active.as_deref() == name
        });
    }

    /// The next frame at a far end that the guest sent: lessons that other links are used now are not among them.
    #[track_caller]
    fn next(&mut self, at: usize) -> Vec<u8> {
        let mut frame = None;
        wait(&format!("a frame at far end {at}"), || {
            frame = self.far[at].receive().unwrap().filter(|frame| !is_rarp(frame));
            frame.is_some()
        });
        frame.unwrap()
    }

    #[track_caller]
    pub fn send_from(&self, at: usize, frame: &[u8]) {
        wait("room in the far end's queue", || self.far[at].send(frame).unwrap());
    }

    /// One frame each way over a link.
    #[track_caller]
    fn exchange(&mut self, at: usize, size: usize) {
        let question = self.guest.frame(FAR, size);
        self.guest.send(&question);
        assert_eq!(self.next(at), question);
        let answer = from_far(self.guest.mac, size, size);
        self.send_from(at, &answer);
        assert_eq!(self.guest.next(), answer);
    }
}

pub fn near(at: usize) -> &'static str {
    ["near", "near2"][at]
}

pub fn is_rarp(frame: &[u8]) -> bool {
    frame[12..14] == [0x80, 0x35]
}

fn wait_carriers() {
    let asker = Asker::new().unwrap();
    for device in ["near", "far", "near2", "far2"] {
        wait("the carrier", || asker.find(device).unwrap().is_some_and(|device| device.has_carrier));
    }
}

/// Rows: A20, A22.
#[test]
fn one_link_carries_and_what_comes_over_the_other_is_dropped_by_name() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |_| {});
        bench.wait_active(Some("n0"));
        for size in [60, 300, 1514] {
            bench.exchange(0, size);
        }
        // To everybody: one copy for the bond.
        let flooded = bench.guest.frame([0xff; 6], 100);
        bench.guest.send(&flooded);
        assert_eq!(bench.next(0), flooded);
        assert_eq!(bench.switch.behind(FAR), Some(100), "shown as its first link");
        // The neighbour floods over both links: the guest gets one copy.
        for number in 0..20 {
            let mut frame = from_far([0xff; 6], 100, number);
            frame[6..12].copy_from_slice(&[2, 0, 0, 0, 9, number as u8]);
            bench.send_from(1, &frame);
            bench.send_from(0, &frame);
            assert_eq!(bench.guest.next(), frame);
        }
        wait("the other copies", || bench.switch.count("n1", "rx_drop_inactive_member") == 20);
        assert!(bench.guest.receive().is_none());
        assert!(bench.far[1].receive().unwrap().is_none(), "nothing left over the other link");
        assert_eq!(bench.switch.count("n1", "tx_packets"), 0);
        assert_eq!((bench.switch.count("n0", "rx_packets"), bench.switch.count("n1", "rx_packets")), (23, 0));
    });
}

/// Rows: A20, A22.
#[test]
fn the_other_link_takes_over_under_traffic_and_the_neighbour_is_told_who_is_here() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |_| {});
        bench.wait_active(Some("n0"));
        let mac = bench.guest.mac;
        for round in 0..4_usize {
            let (from, to) = (round % 2, (round + 1) % 2);
            bench.exchange(from, 60);
            while bench.far[to].receive().unwrap().is_some() {}
            // Numbered frames all the time: whichever end gets them, in order, none twice, and none is lost once the
            // switch has seen that the link is gone.
            let (mut number, mut seen, mut taught) = (0_u64, Vec::new(), false);
            let mut after = None;
            ip(&format!("link set {} down", near(from)));
            wait("frames over the other link", || {
                bench.look();
                // Said once every poll thread uses the other link.
                if after.is_none() && !bench.switch.port(LINKS[from]).link_up {
                    assert_eq!(bench.state().active.as_deref(), Some(LINKS[to]));
                    after = Some(number);
                }
                let mut frame = bench.guest.frame(FAR, 100);
                frame[20..28].copy_from_slice(&number.to_le_bytes());
                bench.guest.send(&frame);
                bench.guest.wait_sent();
                number += 1;
                while let Some(frame) = bench.far[to].receive().unwrap() {
                    if is_rarp(&frame) {
                        taught |= frame[6..12] == mac && frame[22..28] == mac;
                    } else {
                        seen.push(u64::from_le_bytes(frame[20..28].try_into().unwrap()));
                    }
                }
                taught && after.is_some_and(|after| seen.last().is_some_and(|last| *last >= after + 100))
            });
            assert!(seen.is_sorted_by(|a, b| a < b), "in order and none twice");
            let after = after.unwrap();
            let whole: Vec<u64> = seen.iter().copied().filter(|number| *number >= after).collect();
            assert_eq!(whole, (after..after + whole.len() as u64).collect::<Vec<_>>(), "none is lost from then on");
            bench.exchange(to, 61);
            ip(&format!("link set {} up", near(from)));
            wait_carriers();
            bench.far[from] = FarEnd::open(["far", "far2"][from]).unwrap();
            wait("the links", || {
                bench.look();
                LINKS.iter().all(|name| bench.switch.port(name).link_up)
            });
            assert_eq!(bench.state().active.as_deref(), Some(LINKS[to]), "who carries goes on");
        }
        let moved = bench.switch.datapath().fdb_stats("br0").unwrap();
        assert!(moved.contains(&("moved", 0)), "behind the bond, whichever link: {moved:?}");
    });
}

/// Rows: A22.
#[test]
fn a_bond_without_a_link_drops_by_name_and_carries_again_with_the_first_that_comes() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |bond| bond.updelay = Duration::from_secs(3000));
        bench.wait_active(Some("n0"));
        assert!(!bench.state().links[1].is_enabled, "it waits out its delay");
        assert!(bench.state().links[1].due.is_some_and(|due| due > Duration::from_secs(2900)));
        bench.exchange(0, 60);
        ip("link set near2 down");
        ip("link set near down");
        bench.wait_active(None);
        let dropped = bench.switch.count("n0", "tx_drop_link_down");
        bench.guest.send(&bench.guest.frame(FAR, 64));
        wait("the drop", || bench.switch.count("n0", "tx_drop_link_down") == dropped + 1);
        ip("link set near2 up");
        wait("the carrier", || Asker::new().unwrap().find("near2").unwrap().is_some_and(|device| device.has_carrier));
        bench.far[1] = FarEnd::open("far2").unwrap();
        bench.wait_active(Some("n1"));
        assert!(bench.state().links[1].is_enabled, "no other was: it need not wait");
        bench.exchange(1, 62);
    });
}

/// Rows: A22.
#[test]
fn delays_pass_by_themselves() {
    with_cable(1500, |cable| {
        let delay = Duration::from_millis(300);
        let mut bench = Bench::new(cable, |bond| bond.downdelay = delay);
        bench.wait_active(Some("n0"));
        let began = Instant::now();
        ip("link set near down");
        bench.wait_active(Some("n1"));
        assert!(began.elapsed() >= delay);
        bench.exchange(1, 60);
        let config =
            BondConfig { name: "bond0".into(), updelay: delay, primary: Some("n0".into()), ..BondConfig::default() };
        bench.switch.datapath().set_bond(config).unwrap();
        let began = Instant::now();
        ip("link set near up");
        wait_up(&bench.switch, "n0");
        bench.wait_active(Some("n0"));
        assert!(began.elapsed() >= delay, "the primary, once its delay is over");
    });
}

/// Rows: A22, L5.
#[test]
fn links_are_chosen_by_hand_disabled_and_taken_away() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |_| {});
        bench.wait_active(Some("n0"));
        let datapath = bench.switch.datapath();
        assert!(datapath.activate_link("bond0", "n1").unwrap());
        assert!(!datapath.activate_link("bond0", "n1").unwrap());
        bench.exchange(1, 60);
        bench.switch.datapath().hold_link("bond0", "n1", false).unwrap();
        assert_eq!(bench.state().active.as_deref(), Some("n0"), "when the call is over");
        bench.exchange(0, 61);
        let datapath = bench.switch.datapath();
        let refusal = |result: ovsvhost::error::Result<()>| result.unwrap_err().to_string();
        let text = refusal(datapath.activate_link("bond0", "n1").map(drop));
        assert_eq!(text, "member n1 of bond bond0 is disabled: enable it first");
        assert_eq!(refusal(datapath.hold_link("bond0", "n7", true)), "bond bond0 has no member named n7");
        assert_eq!(refusal(datapath.hold_link("bond7", "n1", true)), "no bond named bond7");
        assert_eq!(refusal(datapath.del_bond("bond0")), "bond bond0 has links: delete them first");
        let config = BondConfig { name: "bond0".into(), ..BondConfig::default() };
        assert_eq!(refusal(datapath.add_bond("br0", config.clone())), "a bond named bond0 exists already");
        let late = BondConfig { updelay: Duration::from_secs(3601), ..config.clone() };
        assert_eq!(refusal(datapath.set_bond(late)), "bond bond0: bond_updelay 3601000 is not in 0..3600000");
        datapath.hold_link("bond0", "n1", true).unwrap();
        datapath.del_port("n0").unwrap();
        assert_eq!(bench.state().active.as_deref(), Some("n1"));
        bench.exchange(1, 62);
        assert_eq!(bench.switch.behind(FAR), Some(101));
        bench.switch.datapath().del_port("n1").unwrap();
        assert!(bench.state().links.is_empty());
        bench.guest.send(&bench.guest.frame(FAR, 64));
        bench.guest.wait_sent();
        bench.switch.datapath().del_bond("bond0").unwrap();
        assert!(bench.switch.datapath().bonds().is_empty());
        assert_eq!(bench.switch.behind(FAR), None, "nobody is behind it any more");
        // Its number is free, and so are the devices.
        join(&bench.switch, |_| {});
        let question = bench.guest.frame(FAR, 64);
        bench.guest.send(&question);
        bench.far[0] = FarEnd::open("far").unwrap();
        wait("the frame", || {
            bench.guest.send(&question);
            bench.guest.wait_sent();
            bench.far[0].receive().unwrap().as_ref() == Some(&question)
        });
    });
}

/// A frame from a station behind the guest's port, told from others by its last byte.
fn from_station(bench: &Bench, to: [u8; 6], station: u8, number: u8) -> Vec<u8> {
    let mut frame = bench.guest.frame(to, 100);
    (frame[11], frame[20]) = (station, number);
    frame
}

/// Rows: A22.
#[test]
fn stations_are_shared_out_over_the_links_and_each_stays_with_its_own() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |bond| bond.mode = BondMode::BalanceSlb);
        bench.wait_active(Some("n0"));
        wait("both links", || bench.state().links.iter().all(|link| link.is_enabled));
        for far in &mut bench.far {
            while far.receive().unwrap().is_some() {}
        }
        let mut seen = [[0_u32; 256]; 2];
        for number in 0..4 {
            for station in 1..=60 {
                // Known and unknown: to one, and to everybody.
                let to = if number % 2 == 0 { FAR } else { [0xff; 6] };
                let frame = from_station(&bench, to, station, number);
                bench.guest.send(&frame);
                bench.guest.wait_sent();
            }
        }
        wait("every frame at one of the far ends", || {
            for (far, seen) in bench.far.iter_mut().zip(&mut seen) {
                while let Some(frame) = far.receive().unwrap() {
                    seen[usize::from(frame[11])] += u32::from(!is_rarp(&frame));
                }
            }
            seen.iter().flatten().sum::<u32>() >= 240
        });
        for station in 1..=60 {
            let over: Vec<u32> = seen.iter().map(|seen| seen[station]).collect();
            assert!(over == [4, 0] || over == [0, 4], "station {station} over {over:?}");
        }
        let stations = seen.map(|seen| seen.iter().filter(|count| **count > 0).count());
        assert!(stations.iter().all(|count| *count > 8), "60 stations over two links as {stations:?}");
        // One goes: all are with the other, at once.
        ip("link set near down");
        bench.wait_active(Some("n1"));
        for station in 1..=60 {
            let frame = from_station(&bench, FAR, station, 9);
            bench.guest.send(&frame);
            assert_eq!(bench.next(1), frame);
        }
    });
}

/// Rows: A19, A22.
#[test]
fn stations_whose_frames_are_not_copied_are_shared_out_over_the_links_too() {
    with_queues_to_send(1500, 4, |cable| {
        let slb = |bond: &mut BondConfig| bond.mode = BondMode::BalanceSlb;
        let mut bench = Bench::of_links(cable, 4, slb, joins);
        bench.wait_active(Some("n0"));
        wait("both links", || bench.state().links.iter().all(|link| link.is_enabled));
        let change = PortChange { zero_copy: Some(true), ..PortChange::default() };
        bench.switch.datapath().set_port("a", &change).unwrap();
        wait("a lane to each device", || {
            bench
                .switch
                .port("a")
                .status
                .get("zero-copy")
                .is_some_and(|text| text == "Active: near queue 1, near2 queue 1")
        });
        // A frame to who is nowhere goes to many, and is copied.
        let greeting = from_far(bench.guest.mac, 60, 0);
        bench.send_from(0, &greeting);
        while bench.guest.next() != greeting {}
        for far in &mut bench.far {
            while far.receive().unwrap().is_some() {}
        }
        let mut seen = [0_u32; 2];
        for station in 1..=60 {
            let mut frame = from_station(&bench, FAR, station, 1);
            frame.resize(1400, station);
            bench.guest.send(&frame);
            bench.guest.wait_sent();
        }
        wait("every frame at one of the far ends", || {
            for (far, seen) in bench.far.iter_mut().zip(&mut seen) {
                while let Some(frame) = far.receive().unwrap() {
                    *seen += u32::from(!is_rarp(&frame));
                }
            }
            seen.iter().sum::<u32>() == 60
        });
        assert!(seen.iter().all(|count| *count > 8), "60 stations over two links as {seen:?}");
        let not_copied = LINKS.map(|link| bench.switch.count(link, "tx_zero_copy_packets"));
        assert_eq!(not_copied, seen.map(u64::from));
    });
}

/// Rows: A22.
#[test]
fn what_comes_back_over_the_other_link_is_dropped_and_so_is_the_second_copy_of_what_is_for_all() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |bond| bond.mode = BondMode::BalanceSlb);
        bench.wait_active(Some("n0"));
        let mac = bench.guest.mac;
        let question = bench.guest.frame([0xff; 6], 80);
        bench.guest.send(&question);
        bench.guest.wait_sent();
        assert_eq!(bench.switch.behind(mac), Some(1));
        // The neighbour floods what came over one link back over the other.
        bench.send_from(0, &question);
        wait("the reflection", || bench.switch.count("n0", "rx_drop_reflected") == 1);
        // Over either link what is for one station, over the active one what is for all.
        for at in [0, 1] {
            let frame = from_far(mac, 100, at);
            bench.send_from(at, &frame);
            assert_eq!(bench.guest.next(), frame);
        }
        let to_all = from_far([0xff; 6], 100, 1);
        bench.send_from(1, &to_all);
        wait("the second copy", || bench.switch.count("n1", "rx_drop_inactive_member") == 1);
        bench.send_from(0, &to_all);
        assert_eq!(bench.guest.next(), to_all);
        // Who was here a moment ago has not moved, whatever comes over a link; once nobody is here, he has.
        let mut moved = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac, &[10, 0, 0, 7]].concat();
        moved.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 7]);
        moved.resize(60, 0);
        bench.send_from(0, &moved);
        wait("our own announcement", || bench.switch.count("n0", "rx_drop_reflected") == 2);
        assert_eq!(bench.switch.behind(mac), Some(1));
        bench.guest.frontend.hang_up();
        bench.switch.wait_link("a", false);
        bench.send_from(0, &moved);
        wait("the move", || bench.switch.behind(mac) == Some(100));
    });
}

/// Rows: A22, L5.
#[test]
fn loads_are_evened_out_and_shares_moved_by_hand() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, |bond| {
            (bond.mode, bond.rebalance) = (BondMode::BalanceSlb, Duration::from_secs(1));
        });
        bench.wait_active(Some("n0"));
        wait("both links", || bench.state().links.iter().all(|link| link.is_enabled));
        assert!(bench.state().rebalance.is_some_and(|due| due <= Duration::from_secs(1)));
        // Every station over one link, by hand, each with much to say.
        let datapath = bench.switch.datapath();
        let spread = |bench: &Bench| -> Vec<u64> {
            let links = bench.state().links;
            links.iter().map(|link| link.shares.iter().map(|(_, bytes)| bytes).sum()).collect()
        };
        let text = datapath.give_share("bond0", 256, "n0").unwrap_err().to_string();
        assert_eq!(text, "hash 256 is not in 0..255");
        for share in 0..256 {
            datapath.give_share("bond0", share, "n0").unwrap();
        }
        wait("loads on both links", || {
            for station in 1..=30 {
                let mut frame = from_station(&bench, FAR, station, 0);
                frame.resize(1514, 0);
                bench.guest.send(&frame);
            }
            bench.guest.wait_sent();
            for far in &mut bench.far {
                while far.receive().unwrap().is_some() {}
            }
            let loads = spread(&bench);
            loads.iter().all(|load| *load > 100_000) && loads[0].abs_diff(loads[1]) < loads.iter().sum::<u64>() / 3
        });
        let config = BondConfig { name: "bond0".into(), ..BondConfig::default() };
        bench.switch.datapath().set_bond(config).unwrap();
        let text = bench.switch.datapath().give_share("bond0", 0, "n0").unwrap_err().to_string();
        assert_eq!(text, "bond bond0 is of mode active-backup: only balance-slb has shares");
        let active = usize::from(bench.state().active.as_deref() == Some("n1"));
        for far in &mut bench.far {
            while far.receive().unwrap().is_some() {}
        }
        let frame = bench.guest.frame(FAR, 60);
        bench.guest.send(&frame);
        assert_eq!(bench.next(active), frame);
    });
}
