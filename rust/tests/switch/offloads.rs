// SPDX-License-Identifier: Apache-2.0
//! Frames of up to 64 KiB that ask to be cut, to guests that take them whole and to guests that do not: every piece is
//! counted, its headers and every byte of it judged.

use ovsvhost::testing::traffic::{End, LinkState};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::{Crew, end};

/// All that a guest may agree to take.
const TAKES: &str = "guest_csum+guest_tso4+guest_tso6+guest_ecn+guest_ufo+guest_uso4+guest_uso6";
const SIZES: &str = "65000+1500+40000+9000+3000+200";

type Settings<'a> = &'a [(&'a str, &'a str)];

/// Sends `count` frames one after the other; each arrives with all its pieces before the next is sent.
#[track_caller]
fn send(crew: &mut Crew, count: u64) {
    for _ in 0..count {
        let (sent, arrived) = (crew.ends[0].sent(), crew.ends[1].numbered());
        crew.until("room for a frame", |crew| crew.ends[0].send(1, 1, u64::MAX) == 1);
        let pieces = crew.ends[0].sent() - sent;
        crew.until("all pieces of a frame", |crew| crew.ends[1].numbered() - arrived == pieces);
    }
}

/// Frames and bytes that the switch delivered to port `b`.
fn counted(switch: &Switch) -> [u64; 2] {
    ["tx_packets", "tx_bytes"].map(|key| switch.count("b", key))
}

/// Frames and bytes that the guest there got.
fn received(crew: &Crew) -> [u64; 2] {
    let counters = crew.ends[1].receivers()[0].counters();
    [counters.frames, counters.bytes]
}

fn grown(now: [u64; 2], before: [u64; 2]) -> [u64; 2] {
    [now[0] - before[0], now[1] - before[1]]
}

/// Every kind of frame, from one guest to one with these settings; gives that one, per kind.
fn to_receiver(receiver: Settings<'_>, check: impl Fn(&str, &End)) {
    for (gso, transport) in [("tso", "tcp"), ("tso-ecn", "tcp"), ("uso", "udp"), ("ufo", "udp")] {
        for network in ["ipv4", "ipv6"] {
            let mut switch = Switch::new();
            let kind = EndpointKind::Client;
            let [a, b] = ["a", "b"].map(|name| switch.add(name, kind));
            let sender = [
                ("gso", gso),
                ("transport", transport),
                ("network", network),
                ("sizes", SIZES),
                ("layout", "chain:18"),
                ("ring-size", "256"),
            ];
            let ends = vec![end(0, &a, kind, &sender), end(1, &b, kind, receiver)];
            let mut crew = Crew::assemble(ends, &switch);
            let before = [counted(&switch), received(&crew)];
            send(&mut crew, 12);
            crew.assert_exact(0, 1);
            // A frame counts as what its receiver gets: one, or the packets it was cut into.
            let got = grown(received(&crew), before[1]);
            wait("the counts", || grown(counted(&switch), before[0]) == got);
            assert!(crew.ends.iter().all(|end| end.link() == LinkState::Up));
            check(&format!("{gso} over {network}"), &crew.ends[1]);
        }
    }
}

fn whole_and_fragments(end: &End) -> (u64, u64) {
    let counters = end.receivers()[0].counters();
    (counters.whole, counters.fragments)
}

/// Rows: C14.
#[test]
fn a_guest_that_takes_long_frames_gets_them_whole() {
    to_receiver(&[("require", TAKES), ("ring-size", "512")], |what, end| {
        let (whole, fragments) = whole_and_fragments(end);
        assert_eq!((whole, fragments), (if what.starts_with("ufo") { 0 } else { 8 }, 0), "{what}");
    });
}

/// Rows: C14.
#[test]
fn a_guest_that_takes_long_frames_without_merging_gets_them_whole() {
    let settings = [("require", TAKES), ("without", "mrg_rxbuf"), ("rx-layout", "chain:4")];
    to_receiver(&settings, |what, end| assert_eq!(whole_and_fragments(end).1, 0, "{what}"));
}

/// Rows: B2, C14.
#[test]
fn a_guest_without_offloads_gets_packets() {
    to_receiver(&[("ring-size", "512")], |what, end| {
        let (whole, fragments) = whole_and_fragments(end);
        assert_eq!((whole, fragments > 0), (0, what.starts_with("ufo")), "{what}");
    });
}

/// Rows: C14.
#[test]
fn a_guest_without_offloads_and_with_small_buffers_gets_packets() {
    let settings = [("ring-size", "1024"), ("buffer", "500")];
    to_receiver(&settings, |what, end| assert_eq!(whole_and_fragments(end).0, 0, "{what}"));
}

/// Rows: C14.
#[test]
fn a_guest_without_merging_and_offloads_gets_packets() {
    let settings = [("ring-size", "512"), ("without", "mrg_rxbuf")];
    to_receiver(&settings, |what, end| assert_eq!(whole_and_fragments(end).0, 0, "{what}"));
}

/// Rows: C14.
#[test]
fn a_guest_that_takes_partial_checksums_alone_gets_packets_with_them() {
    let settings = [("ring-size", "512"), ("require", "guest_csum")];
    to_receiver(&settings, |what, end| assert_eq!(whole_and_fragments(end).0, 0, "{what}"));
}

/// Rows: C14.
#[test]
fn long_frames_cross_packed_rings_too() {
    for takes in [TAKES, ""] {
        let require = format!("ring_packed+in_order+{takes}");
        to_receiver(&[("require", &require), ("ring-size", "500")], |_, _| ());
    }
}

/// Rows: C14.
#[test]
fn long_frames_with_a_vlan_tag_are_cut_behind_it() {
    let mut switch = Switch::new();
    let kind = EndpointKind::Client;
    let [a, b] = ["a", "b"].map(|name| switch.add(name, kind));
    let sender = [("gso", "tso"), ("transport", "tcp"), ("sizes", SIZES), ("vlan", "7"), ("layout", "two")];
    let ends = vec![end(0, &a, kind, &sender), end(1, &b, kind, &[("ring-size", "512")])];
    let mut crew = Crew::assemble(ends, &switch);
    send(&mut crew, 12);
    crew.assert_exact(0, 1);
}
