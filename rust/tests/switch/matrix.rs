// SPDX-License-Identifier: Apache-2.0
//! Frames of 64 to 9000 bytes in every layout a driver may choose: all arrive, in order, byte for byte.

use ovsvhost::vhost::EndpointKind;

use super::rig::Switch;
use super::traffic::Crew;

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
