// SPDX-License-Identifier: Apache-2.0
//! A bond and a neighbour that speaks LACP, frame by frame: what it says decides which links carry.

use ovsvhost::datapath::{BondConfig, BondMode, LacpConfig, LacpStatus, Mac};
use ovsvhost::frame::lacp::{End, Pdu, state};
use ovsvhost::sys::netdev::Asker;

use super::bond::{Bench, is_rarp, near};
use super::cable::{FAR, ip, with_cable};
use super::exchange::from_far;
use super::rig::wait;

const US: Mac = Mac(0x0200_0000_0a01);
const THEM: Mac = Mac(0x0200_0000_0b01);

fn speaks(bond: &mut BondConfig) {
    bond.mode = BondMode::BalanceTcp;
    let (is_active, is_fast, falls_back) = (true, true, false);
    bond.lacp = Some(LacpConfig { is_active, is_fast, system: US, system_priority: 65_534, key: 3, falls_back });
}

/// The other system: by link, whether it answers, whether it is in step, and what it heard last.
struct Partner {
    answers: [bool; 2],
    is_in_step: [bool; 2],
    heard: [Option<Pdu>; 2],
    heard_from: [Mac; 2],
}

impl Partner {
    fn new() -> Self {
        Self { answers: [true; 2], is_in_step: [true; 2], heard: [None; 2], heard_from: [Mac(0); 2] }
    }

    /// Reads everything that came over either link, answers what is LACP, and gives the rest but for lessons.
    fn serve(&mut self, bench: &mut Bench) -> [Vec<Vec<u8>>; 2] {
        [0, 1].map(|at| {
            let mut rest = Vec::new();
            while let Some(frame) = bench.far[at].receive().unwrap() {
                let head = frame.first_chunk().copied().unwrap_or([0; 64]);
                match Pdu::parse(&head, frame.len() as u32) {
                    Some(pdu) => {
                        assert_eq!(frame.len(), 124);
                        assert!(frame[58..].iter().all(|byte| *byte == 0));
                        self.heard_from[at] = Mac::from_bytes(*frame[6..].first_chunk().unwrap());
                        self.heard[at] = Some(pdu);
                        if self.answers[at] {
                            self.speak(bench, at);
                        }
                    }
                    None if is_rarp(&frame) => {}
                    None => rest.push(frame),
                }
            }
            rest
        })
    }

    fn speak(&self, bench: &Bench, at: usize) {
        let bits = [(state::SYNCHRONIZED | state::COLLECTING | state::DISTRIBUTING, self.is_in_step[at])];
        let bits = bits.iter().filter(|(_, is_set)| *is_set).fold(0, |bits, (bit, _)| bits | bit);
        let actor = End {
            system_priority: 1,
            system: THEM,
            key: 7,
            port_priority: 1,
            port: at as u16 + 1,
            state: state::ACTIVITY | state::AGGREGATION | state::TIMEOUT | bits,
        };
        let pdu = Pdu { actor, partner: self.heard[at].map_or(End::UNKNOWN, |pdu| pdu.actor) };
        let mut frame = pdu.head(Mac(0x0200_0000_0b10 + at as u64)).to_vec();
        frame.resize(124, 0);
        bench.send_from(at, &frame);
    }

    #[track_caller]
    fn wait_enabled(&mut self, bench: &mut Bench, expected: [bool; 2]) {
        wait(&format!("links to be enabled: {expected:?}"), || {
            self.serve(bench);
            bench.look();
            bench.state().links.iter().map(|link| link.is_enabled).eq(expected)
        });
    }

    /// Sends many flows and says over which links each went.
    fn spread(&mut self, bench: &mut Bench, times: u8) -> Vec<[u32; 2]> {
        let mut seen = vec![[0; 2]; 60];
        for number in 0..times {
            for flow in 0..60 {
                let frame = flow_frame(bench, flow, number);
                bench.guest.send(&frame);
                bench.guest.wait_sent();
            }
        }
        wait("every frame at one of the far ends", || {
            for (at, frames) in self.serve(bench).iter().enumerate() {
                for frame in frames {
                    seen[usize::from(frame[35])][at] += 1;
                }
            }
            seen.iter().flatten().sum::<u32>() >= 60 * u32::from(times)
        });
        seen
    }
}

/// A datagram of a flow from the guest, told from others by its source port's last byte.
fn flow_frame(bench: &Bench, flow: u8, number: u8) -> Vec<u8> {
    let mut frame = [&FAR[..], &bench.guest.mac, &[8, 0, 0x45, 0, 0, 46, 0, number, 0, 0, 64, 17, 0, 0]].concat();
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 4, flow, 0, 80, 0, 26, 0, 0]);
    frame.resize(60, number);
    frame
}

/// Rows: A22.
#[test]
fn a_bond_carries_flows_over_the_links_that_both_ends_agreed_on_and_nothing_before() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, speaks);
        bench.switch.datapath().set_bridge("br0", 300, 8192, true).unwrap();
        let mut partner = Partner { answers: [false; 2], ..Partner::new() };
        wait("it to speak", || {
            partner.serve(&mut bench);
            partner.heard.iter().all(Option::is_some)
        });
        let asker = Asker::new().unwrap();
        for at in 0..2 {
            let said = partner.heard[at].unwrap().actor;
            assert_eq!((said.system, said.system_priority, said.key), (US, 65_534, 3));
            assert!(said.is(state::ACTIVITY | state::TIMEOUT | state::AGGREGATION) && !said.is(state::SYNCHRONIZED));
            let address = asker.find(near(at)).unwrap().unwrap().address;
            assert_eq!(partner.heard_from[at], Mac::from_bytes(address), "each link has its own address");
        }
        assert!(!bench.state().is_negotiated);
        let question = flow_frame(&bench, 1, 1);
        bench.guest.send(&question);
        wait("the drop", || bench.switch.count("a", "rx_drop_no_receiver") == 1);
        bench.send_from(0, &from_far([0xff; 6], 100, 1));
        wait("the other drop", || bench.switch.count("n0", "rx_drop_inactive_member") == 1);

        partner.answers = [true; 2];
        partner.wait_enabled(&mut bench, [true; 2]);
        assert!(bench.state().is_negotiated);
        assert!(partner.serve(&mut bench).iter().all(Vec::is_empty), "what was dropped is not sent late");
        let seen = partner.spread(&mut bench, 4);
        assert!(seen.iter().all(|over| *over == [4, 0] || *over == [0, 4]), "each flow has its link: {seen:?}");
        let flows = [0, 1].map(|at| seen.iter().filter(|over| over[at] > 0).count());
        assert!(flows.iter().all(|count| *count > 8), "60 flows over two links as {flows:?}");
        // Over either link whatever the neighbour sends, and what links say to each other nobody else hears, though the
        // bridge forwards protocols.
        let heard = bench.switch.count("n1", "rx_packets");
        let mut marker = Pdu { actor: End::UNKNOWN, partner: End::UNKNOWN }.head(THEM).to_vec();
        marker[14] = 2;
        marker.resize(124, 0);
        for at in [0, 1] {
            partner.speak(&bench, at);
            bench.send_from(at, &marker);
            for to in [bench.guest.mac, [0xff; 6]] {
                let frame = from_far(to, 100, at);
                bench.send_from(at, &frame);
                assert_eq!(bench.guest.next(), frame);
            }
        }
        assert_eq!(bench.switch.count("n1", "rx_drop_reserved"), 1, "the marker");
        assert!(bench.switch.count("n1", "rx_packets") >= heard + 3, "what is heard is not lost");

        // The partner takes a link out, and brings it back; a cable is pulled.
        partner.is_in_step[0] = false;
        partner.speak(&bench, 0);
        partner.wait_enabled(&mut bench, [false, true]);
        assert!(partner.spread(&mut bench, 1).iter().all(|over| *over == [0, 1]));
        let before = bench.switch.count("n0", "rx_drop_inactive_member");
        bench.send_from(0, &from_far(bench.guest.mac, 100, 1));
        wait("the drop", || bench.switch.count("n0", "rx_drop_inactive_member") == before + 1);
        partner.is_in_step[0] = true;
        partner.speak(&bench, 0);
        partner.wait_enabled(&mut bench, [true; 2]);
        ip("link set near2 down");
        partner.wait_enabled(&mut bench, [true, false]);
        assert!(partner.spread(&mut bench, 1).iter().all(|over| *over == [1, 0]));
        assert!(bench.guest.receive().is_none());
    });
}

/// Rows: A22.
#[test]
fn a_link_whose_partner_falls_silent_carries_no_more_though_it_has_a_carrier() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, speaks);
        let mut partner = Partner::new();
        partner.wait_enabled(&mut bench, [true; 2]);
        partner.answers[1] = false;
        partner.wait_enabled(&mut bench, [true, false]);
        let links = bench.state().links;
        assert_eq!(links[1].lacp.unwrap().status, LacpStatus::Expired);
        assert!(!links[1].may_enable && bench.switch.port("n1").link_up);
        assert!(partner.spread(&mut bench, 1).iter().all(|over| *over == [1, 0]));
        partner.answers[1] = true;
        partner.speak(&bench, 1);
        partner.wait_enabled(&mut bench, [true; 2]);
    });
}

/// Rows: A22, L5.
#[test]
fn without_a_partner_one_link_carries_where_that_was_asked_for_live() {
    with_cable(1500, |cable| {
        let mut bench = Bench::new(cable, speaks);
        let mut partner = Partner { answers: [false; 2], ..Partner::new() };
        let mut config = BondConfig { name: "bond0".into(), ..BondConfig::default() };
        speaks(&mut config);
        let refused = BondConfig {
            lacp: config.lacp.clone().map(|lacp| LacpConfig { system: Mac(0), ..lacp }),
            ..config.clone()
        };
        let text = bench.switch.datapath().set_bond(refused).unwrap_err().to_string();
        assert_eq!(text, "bond bond0: lacp-system-id 00:00:00:00:00:00 is no system's own address");
        config.lacp = config.lacp.map(|lacp| LacpConfig { falls_back: true, ..lacp });
        bench.switch.datapath().set_bond(config.clone()).unwrap();
        partner.wait_enabled(&mut bench, [true; 2]);
        bench.wait_active(Some("n0"));
        assert!(!bench.state().is_negotiated);
        assert!(partner.spread(&mut bench, 1).iter().all(|over| *over == [1, 0]), "the active one");
        let frame = from_far(bench.guest.mac, 100, 1);
        let before = bench.switch.count("n1", "rx_drop_inactive_member");
        bench.send_from(1, &frame);
        wait("the drop", || bench.switch.count("n1", "rx_drop_inactive_member") == before + 1);
        bench.send_from(0, &frame);
        assert_eq!(bench.guest.next(), frame);
        partner.answers = [true; 2];
        (0..2).for_each(|at| partner.speak(&bench, at));
        wait("agreement", || {
            partner.serve(&mut bench);
            bench.state().is_negotiated && bench.state().links.iter().all(|link| link.is_enabled)
        });
        let over = [0, 1].map(|at| partner.spread(&mut bench, 1).iter().filter(|over| over[at] > 0).count());
        assert!(over.iter().all(|count| *count > 8), "{over:?}");
        // LACP off: a bond of flows is for those who agree to it.
        bench.switch.datapath().set_bond(BondConfig { lacp: None, ..config.clone() }).unwrap();
        let dropped = bench.switch.count("n0", "tx_drop_link_down");
        bench.guest.send(&flow_frame(&bench, 1, 1));
        wait("the drop", || bench.switch.count("n0", "tx_drop_link_down") == dropped + 1);
        bench.switch.datapath().set_bond(BondConfig { lacp: None, mode: BondMode::ActiveBackup, ..config }).unwrap();
        assert!(partner.spread(&mut bench, 1).iter().all(|over| over.iter().sum::<u32>() == 1));
    });
}
