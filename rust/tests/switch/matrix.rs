// SPDX-License-Identifier: Apache-2.0
//! Frames of 64 to 9000 bytes in every layout a driver may choose: all arrive, in order, byte for byte.

use ovsvhost::vhost::EndpointKind;

use super::rig::Switch;
use super::traffic::{Crew, end};

/// Both ways on every queue of one kind of pair.
fn cell(kind: EndpointKind, settings: &[(&str, &str)], rounds: u64) {
    let mut switch = Switch::new();
    let all = [&[("sizes", "mix"), ("ring-size", "128")], settings].concat();
    let mut crew = Crew::pair(&mut switch, kind, &all);
    // Twenty sizes make a round.
    crew.send(0, 1, 20 * rounds);
    crew.send(1, 0, 20 * rounds);
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    for (ours, theirs) in [("a", "b"), ("b", "a")] {
        let dropped = switch.count(ours, "tx_dropped") + switch.count(theirs, "rx_dropped");
        assert_eq!(dropped, 0, "{theirs} to {ours}: {settings:?}");
    }
}

fn layouts(settings: &[(&str, &str)]) {
    for layout in ["one", "two", "chain:4", "indirect:2", "indirect:5"] {
        for pairs in ["1", "2"] {
            for event_idx in ["", "event_idx"] {
                let cell_settings =
                    [settings, &[("layout", layout), ("pairs", pairs), ("without", event_idx)]].concat();
                cell(EndpointKind::Client, &cell_settings, 4);
            }
        }
    }
}

#[test]
fn modern_mergeable_frames_cross_in_every_layout() {
    layouts(&[]);
}

#[test]
fn modern_unmerged_frames_cross_in_every_layout() {
    layouts(&[("without", "mrg_rxbuf")]);
}

#[test]
fn legacy_mergeable_frames_cross_in_every_layout() {
    layouts(&[("without", "version_1")]);
}

#[test]
fn legacy_unmerged_frames_cross_in_every_layout() {
    layouts(&[("without", "version_1+mrg_rxbuf")]);
}

#[test]
fn receive_buffers_of_every_layout_are_filled() {
    for layout in ["two", "chain:3", "indirect:1", "indirect:4"] {
        for merge in ["", "mrg_rxbuf"] {
            cell(EndpointKind::Client, &[("rx-layout", layout), ("without", merge)], 4);
        }
    }
}

#[test]
fn server_ports_take_the_same_frames() {
    for order in ["qemu", "virtio-user"] {
        for layout in ["two", "indirect:3"] {
            cell(EndpointKind::Server, &[("order", order), ("layout", layout), ("pairs", "2")], 4);
        }
    }
}

#[test]
fn small_receive_buffers_merge_into_jumbo_frames() {
    cell(
        EndpointKind::Client,
        &[("buffer", "1000"), ("ring-size", "512"), ("network", "ipv6"), ("sizes", "84+1024+2048+9000")],
        6,
    );
}

#[test]
fn a_second_of_frames_on_the_smallest_rings_loses_none() {
    // Every frame waits for the one before: the rings are full and empty all the time.
    let mut switch = Switch::new();
    let settings = [("ring-size", "2"), ("layout", "one"), ("rx-layout", "one"), ("without", "mrg_rxbuf")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    for _ in 0..300 {
        crew.send(0, 1, 2);
        crew.send(1, 0, 1);
    }
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
}

/// Sizes that IPv6 with TCP can have, too.
const SIZES: &str = "84+127+128+129+256+511+590+1024+1500+1514+1518+2034+2048+2049+4096+5000+8999+9000";

/// All rings of one kind: with and without batches in order, in tables and not, on one queue pair and on many. One
/// guest speaks UDP over IPv4, the other TCP over IPv6.
fn kinds_of_rings(format: &str, size: &str, without: &str) {
    for in_order in ["", "in_order"] {
        for (layout, rx_layout) in [("one", "one"), ("two", "one"), ("chain:4", "two"), ("indirect:3", "indirect:2")] {
            for pairs in ["1", "2", "8"] {
                let require = format!("{format}+{in_order}");
                let settings = [
                    ("require", require.as_str()),
                    ("without", without),
                    ("ring-size", size),
                    ("layout", layout),
                    ("rx-layout", rx_layout),
                    ("pairs", pairs),
                    ("sizes", SIZES),
                ];
                let mut switch = Switch::new();
                let kind = EndpointKind::Client;
                let [a, b] = ["a", "b"].map(|name| switch.add(name, kind));
                let other = [&settings[..], &[("network", "ipv6"), ("transport", "tcp")]].concat();
                let ends = vec![end(0, &a, kind, &settings), end(1, &b, kind, &other)];
                let mut crew = Crew::assemble(ends, &switch);
                // Eighteen sizes make a round; rings go round more than once.
                crew.send(0, 1, 36);
                crew.send(1, 0, 36);
                crew.assert_exact(0, 1);
                crew.assert_exact(1, 0);
                let dropped: u64 = ["tx_dropped", "rx_dropped"]
                    .iter()
                    .flat_map(|key| ["a", "b"].map(|port| switch.count(port, key)))
                    .sum();
                assert_eq!(dropped, 0, "{settings:?}");
            }
        }
    }
}

/// Rows: A10.
#[test]
fn split_mergeable_rings_of_every_kind_carry_every_frame() {
    kinds_of_rings("version_1", "64", "");
}

/// Rows: A10.
#[test]
fn split_unmerged_rings_of_every_kind_carry_every_frame() {
    kinds_of_rings("version_1", "64", "mrg_rxbuf");
}

/// Rows: A10, C3.
#[test]
fn packed_mergeable_rings_of_every_kind_carry_every_frame() {
    kinds_of_rings("ring_packed", "61", "");
}

/// Rows: A10, C3.
#[test]
fn packed_unmerged_rings_of_every_kind_carry_every_frame() {
    kinds_of_rings("ring_packed", "61", "mrg_rxbuf");
}

#[test]
fn packed_rings_of_every_size_carry_every_frame() {
    for size in ["1", "2", "3", "17", "1000", "32768"] {
        let settings = [("require", "ring_packed"), ("ring-size", size), ("without", "mrg_rxbuf")];
        let mut switch = Switch::new();
        let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
        crew.send(0, 1, 100);
        crew.send(1, 0, 100);
        crew.assert_exact(0, 1);
        crew.assert_exact(1, 0);
    }
}

/// A frame every so often, so that both sides sleep in between: every call and kick must come.
#[test]
fn packed_rings_with_and_without_events_lose_no_wake_up() {
    for without in ["", "event_idx"] {
        let settings = [("require", "ring_packed"), ("ring-size", "7"), ("without", without)];
        let mut switch = Switch::new();
        let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
        for _ in 0..60 {
            crew.send(0, 1, 1);
            crew.send(1, 0, 1);
        }
        crew.assert_exact(0, 1);
        crew.assert_exact(1, 0);
    }
}
