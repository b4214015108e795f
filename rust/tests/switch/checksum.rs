// SPDX-License-Identifier: Apache-2.0
//! Two guests unequal in what they negotiated: one takes partial checksums, the other gets them finished.

use ovsvhost::vhost::EndpointKind;

use super::rig::Switch;
use super::traffic::{Crew, end};

fn to_both(network: &str, transport: &str) {
    let mut switch = Switch::new();
    let kind = EndpointKind::Client;
    let [a, b, c] = ["a", "b", "c"].map(|name| switch.add(name, kind));
    let flooded = ("to", "ff:ff:ff:ff:ff:ff");
    let sender = [
        ("checksum", "partial"),
        ("require", "csum"),
        ("network", network),
        ("transport", transport),
        ("sizes", "84+85+127+128+129+590+1500+1514+2034+2048+2049+4096+8999+9000"),
        ("layout", "two"),
        flooded,
    ];
    let mut crew = Crew::assemble(
        vec![
            end(0, &a, kind, &sender),
            // Receivers judge every byte: a partial checksum where none was negotiated is corrupt, and so is a wrong one.
            end(1, &b, kind, &[("buffer", "1111"), ("ring-size", "512")]),
            end(2, &c, kind, &[("require", "guest_csum"), ("ring-size", "512")]),
        ],
        &switch,
    );
    crew.send(0, 1, 200);
    crew.until("the other receiver", |crew| crew.ends[2].numbered() == 200);
    crew.assert_exact(0, 1);
    crew.assert_exact(0, 2);
}

/// Rows: B6.
#[test]
fn udp_over_ipv4_reaches_guests_unequal_in_checksums() {
    to_both("ipv4", "udp");
}

/// Rows: B6.
#[test]
fn tcp_over_ipv4_reaches_guests_unequal_in_checksums() {
    to_both("ipv4", "tcp");
}

/// Rows: B6.
#[test]
fn udp_over_ipv6_reaches_guests_unequal_in_checksums() {
    to_both("ipv6", "udp");
}

/// Rows: B6.
#[test]
fn tcp_over_ipv6_reaches_guests_unequal_in_checksums() {
    to_both("ipv6", "tcp");
}
