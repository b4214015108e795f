// SPDX-License-Identifier: Apache-2.0
//! The classes of flaws that were published for vhost back-ends since 2018, each with attacks of its kind: the guests
//! beside the attacker lose no frame, and the process keeps no descriptor.
//!
//! What is not here has no counterpart: crypto devices (CVE-2020-10724, CVE-2020-14374 to 14378).

use std::fs;
use std::thread;
use std::time::Duration;

use ovsvhost::testing::hostile::Case;
use ovsvhost::testing::traffic::{EndSettings, Json};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::Crew;

/// Runs attacks on a third port while two honest guests send to each other.
#[track_caller]
fn withstands(cases: &[&str]) {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &[("sizes", "mix"), ("layout", "indirect:2")]);
    let socket = switch.add("bad", EndpointKind::Server);
    let mut settings = EndSettings::default();
    let path = socket.to_str().unwrap();
    for (name, value) in [("side", "connect"), ("socket", path), ("mac", "02:00:00:00:00:99"), ("ring-size", "256")] {
        settings.set(name, value).unwrap();
    }
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let cases: Vec<Case> = cases.iter().map(|name| Case::find(name).unwrap()).collect();
    let attacks = thread::spawn(move || {
        for case in cases {
            let report = case.run(&settings, Duration::from_millis(10));
            let report = report.unwrap_or_else(|error| panic!("{}: {error}", case.name()));
            let reaction = report.get("outcome").and_then(|outcome| outcome.get("reaction")).cloned();
            assert_ne!(reaction, Some(Json::text("not_offered")), "{}", case.name());
        }
    });
    while !attacks.is_finished() {
        crew.send(0, 1, 20);
        crew.send(1, 0, 20);
    }
    attacks.join().expect("every attack was made");
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    assert!(["a", "b"].iter().all(|name| switch.port(name).error.is_none()));
    // Other tests in this process open and close descriptors, too: nextest gives each a process of its own.
    if std::env::var_os("NEXTEST").is_some() {
        wait("every descriptor of the attacks to be closed", || descriptors() <= before);
    }
}

/// CVE-2018-1059: a buffer is checked where it begins, not over its whole length. Rows: C13.
#[test]
fn a_buffer_past_the_end_of_its_region_is_refused() {
    withstands(&[
        "length-past-region",
        "address-crosses-regions",
        "length-huge",
        "packed-length-huge",
        "address-wraps",
        "packed-address-wraps",
        "ring-crosses-end",
        "packed-crosses-end",
        "indirect-huge",
        "packed-indirect-huge",
    ]);
}

/// CVE-2019-14818, CVE-2020-10726, CVE-2022-0669: descriptors that come beside messages stay open. Rows: C13.
#[test]
fn descriptors_beside_messages_are_closed() {
    withstands(&[
        "surplus-fds",
        "kick-many-fds",
        "call-flood",
        "fds-with-everything",
        "inflight-fds",
        "inflight-asked-often",
        "every-request-empty",
    ]);
}

/// CVE-2020-10722: a log whose size and offset wrap. Rows: C13.
#[test]
fn sizes_and_offsets_that_wrap_are_refused() {
    withstands(&["log-wraps", "memory-offset-wraps", "region-wraps", "region-user-wraps", "ring-wraps"]);
}

/// CVE-2020-10723, CVE-2021-3839: queue numbers that are cut to fewer bits, or not checked. Rows: C13.
#[test]
fn queue_numbers_and_sizes_out_of_range_are_refused() {
    withstands(&[
        "vring-out-of-range",
        "vring-index-past-16-bits",
        "kick-out-of-range",
        "ring-index",
        "ring-index-past-16-bits",
        "inflight-queues-huge",
        "ring-size-0",
        "ring-size-70000",
        "packed-size-0",
        "packed-size-32769",
        "packed-size-65536",
        "packed-size-huge",
        "packed-base-past-ring",
    ]);
}

/// CVE-2020-10725: an address that is not translated, in the middle of a batch. Rows: C13.
#[test]
fn one_bad_address_in_a_batch_is_refused() {
    withstands(&[
        "address-outside-in-batch",
        "packed-address-outside-in-batch",
        "rx-outside",
        "packed-rx-outside",
        "descriptor-flips",
        "packed-descriptor-flips",
    ]);
}

/// CVE-2022-2132: a header in so many pieces that nothing is left behind it. Rows: C13.
#[test]
fn a_header_in_many_pieces_is_refused() {
    withstands(&["header-in-crumbs", "frame-in-crumbs", "header-only", "header-short", "packed-header-in-crumbs"]);
}

/// CVE-2019-14835: a table of descriptors that hold nothing, longer than what is kept of it. Rows: C13.
#[test]
fn long_tables_of_nothing_are_refused() {
    withstands(&[
        "indirect-no-lengths",
        "packed-indirect-no-lengths",
        "indirect-long",
        "packed-indirect-long",
        "length-zero",
        "packed-length-zero",
        "rx-length-zero",
        "packed-rx-length-zero",
    ]);
}

/// CVE-2018-16880: receive buffers so small that a frame takes more of them than expected. Rows: C13.
#[test]
fn tiny_receive_buffers_are_refused() {
    withstands(&["rx-tiny", "packed-rx-tiny", "rx-header-only", "rx-length-huge", "packed-rx-length-huge"]);
}

/// CVE-2019-3900: a guest that keeps the device at work for ever. Rows: C8, C13.
#[test]
fn a_guest_without_end_does_not_keep_others_waiting() {
    withstands(&["supply-endless", "packed-ring-whole", "packed-chain-endless", "kick-storm", "indirect-loop"]);
}

/// CVE-2024-11614: a checksum over headers that lie. Rows: C13.
#[test]
fn checksums_over_lies_are_refused() {
    withstands(&[
        "vnet-checksum-outside",
        "vnet-noise",
        "checksum-over-addresses",
        "checksum-wraps",
        "checksum-last-byte",
    ]);
}
