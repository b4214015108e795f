// SPDX-License-Identifier: Apache-2.0
//! What a guest leaves undone is done when it comes to the cable: checksums are finished, long frames are cut. The far end
//! judges every header and every byte.

use ovsvhost::testing::frames::{
    Arrival, Checksum, FramePlan, Gso, GsoKind, Inspector, Mac, Network, PlanConfig, Reassembly, Transport, Verdict,
};
use ovsvhost::testing::wire::features;

use super::cable::{Cable, FAR, ip, join, wait_carrier, wait_with_news, with_cable};
use super::rig::{Switch, wait};
use super::station::Station;

const HEADER: usize = 12;
const STREAM: u16 = 7;

/// What a guest offloads that offloads all there is.
const GIVES: u64 = features::CSUM
    | features::HOST_TSO4
    | features::HOST_TSO6
    | features::HOST_ECN
    | features::HOST_UFO
    | features::HOST_USO;

fn plan(network: Network, transport: Transport, sizes: &[usize], gso: Option<Gso>) -> FramePlan {
    FramePlan::new(PlanConfig {
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: Mac(FAR),
        destinations: 1,
        network,
        transport,
        checksum: Checksum::Partial,
        flows: 1,
        sizes: sizes.to_vec(),
        stream: STREAM,
        header_size: HEADER,
        vlan: None,
        gso,
    })
    .unwrap()
}

fn inspector() -> Inspector {
    Inspector { station: Mac(FAR), stations: 1, header_size: HEADER, agreed: 0 }
}

/// The next frame at the far end, behind the header of a receiver that agreed to nothing.
fn next(cable: &mut Cable) -> Vec<u8> {
    [vec![0; HEADER], cable.next()].concat()
}

fn guest(switch: &mut Switch) -> Station {
    let guest = Station::join_with(switch, "a", 1, |config| {
        config.features |= GIVES;
        config.required |= GIVES;
    });
    join(switch, |_| {});
    guest
}

/// Descriptors of the smallest ring.
const SMALL_RING: u64 = 64;

/// A guest beside a device with such a ring.
fn guest_of_a_small_ring(switch: &mut Switch) -> Station {
    let guest = Station::join_with(switch, "a", 1, |config| {
        config.features |= GIVES;
        config.required |= GIVES;
    });
    join(switch, |nic| nic.device.n_txq_desc = SMALL_RING as u32);
    guest
}

fn send(guest: &mut Station, bytes: &[u8]) {
    let (header, frame) = bytes.split_at(HEADER);
    guest.send_with(header.try_into().unwrap(), frame);
}

/// Rows: A22, B6.
#[test]
fn a_checksum_left_to_us_is_right_at_the_far_end() {
    with_cable(9000, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch);
        for network in [Network::V4, Network::V6] {
            for transport in [Transport::Udp, Transport::Tcp] {
                let sizes = [90, 91, 127, 128, 129, 1500, 1514, 4095, 4096, 4097, 8191, 9014];
                let plan = plan(network, transport, &sizes, None);
                let mut bytes = Vec::new();
                for sequence in 0..sizes.len() as u64 {
                    plan.build(sequence, &mut bytes);
                    send(&mut guest, &bytes);
                    let verdict = inspector().inspect(&next(&mut cable));
                    assert_eq!(verdict, Verdict::Numbered { stream: STREAM, sequence }, "{network:?} {transport:?}");
                }
            }
        }
    });
}

/// Rows: A22, C14.
#[test]
fn a_frame_left_to_us_to_cut_comes_in_pieces_of_which_each_is_right() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch);
        let mut expected = 0;
        for network in [Network::V4, Network::V6] {
            for (kind, transport, size, ecn) in [
                (GsoKind::Segments, Transport::Tcp, 1000, false),
                (GsoKind::Segments, Transport::Tcp, 1428, true),
                (GsoKind::Datagrams, Transport::Udp, 1200, false),
            ] {
                let plan = plan(network, transport, &[16_000, 3_000, 1_514], Some(Gso { kind, size, ecn }));
                let (mut bytes, mut first) = (Vec::new(), 0);
                for turn in 0..6 {
                    plan.build_cut(turn, first, &mut bytes);
                    send(&mut guest, &bytes);
                    for n in 0..plan.pieces(turn) {
                        let piece = Verdict::Numbered { stream: STREAM, sequence: first + n };
                        let verdict = inspector().inspect(&next(&mut cable));
                        assert_eq!(verdict, piece, "{kind:?} {network:?}, piece {n} of frame {turn}");
                    }
                    first += plan.pieces(turn);
                }
                expected += first;
            }
        }
        wait("the count of what was sent", || switch.count("n0", "tx_packets") == expected);
    });
}

/// Rows: A22, C14.
#[test]
fn a_datagram_left_to_us_to_cut_comes_in_fragments_that_make_it_whole() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch);
        for network in [Network::V4, Network::V6] {
            let gso = Gso { kind: GsoKind::Fragments, size: 1448, ecn: false };
            let plan = plan(network, Transport::Udp, &[16_000, 4_000, 2_000], Some(gso));
            let (mut bytes, mut reassembly) = (Vec::new(), Reassembly::default());
            for sequence in 0..6 {
                plan.build(sequence, &mut bytes);
                send(&mut guest, &bytes);
                loop {
                    match reassembly.take(HEADER, &next(&mut cable)) {
                        Arrival::Part => {}
                        Arrival::Datagram => break,
                        other => panic!("{network:?}, datagram {sequence}: {other:?}"),
                    }
                }
                let verdict = inspector().inspect(reassembly.datagram());
                assert_eq!(verdict, Verdict::Numbered { stream: STREAM, sequence }, "{network:?}");
            }
        }
    });
}

/// Rows: A20, A22, C14.
#[test]
fn a_frame_of_more_pieces_than_a_ring_holds_goes_out_in_parts_and_in_order() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest_of_a_small_ring(&mut switch);
        let mut expected = 0;
        for network in [Network::V4, Network::V6] {
            for (kind, transport) in [(GsoKind::Segments, Transport::Tcp), (GsoKind::Datagrams, Transport::Udp)] {
                let plan = plan(network, transport, &[16_000, 300], Some(Gso { kind, size: 100, ecn: false }));
                let (mut bytes, mut first) = (Vec::new(), 0);
                assert!(plan.pieces(0) > 2 * SMALL_RING);
                // What comes after it waits its turn.
                for turn in 0..4 {
                    plan.build_cut(turn, first, &mut bytes);
                    send(&mut guest, &bytes);
                    first += plan.pieces(turn);
                }
                for sequence in 0..first {
                    let piece = Verdict::Numbered { stream: STREAM, sequence };
                    let verdict = inspector().inspect(&next(&mut cable));
                    assert_eq!(verdict, piece, "{kind:?} {network:?}, piece {sequence}");
                }
                expected += first;
            }
        }
        wait("the count of what was sent", || switch.count("n0", "tx_packets") == expected);
        assert_eq!(switch.count("n0", "tx_dropped"), 0);
        assert_eq!(switch.count("n0", "tx_inflight_max"), SMALL_RING);
    });
}

/// Rows: A20, A22, C14.
#[test]
fn the_rest_of_a_frame_is_given_up_by_name_when_the_device_takes_no_more_and_the_next_passes() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest_of_a_small_ring(&mut switch);
        let gso = |size| Some(Gso { kind: GsoKind::Segments, size, ecn: false });
        let (small, large) = (
            plan(Network::V4, Transport::Tcp, &[8_000], gso(100)),
            plan(Network::V4, Transport::Tcp, &[8_000], gso(1000)),
        );
        let mut bytes = Vec::new();
        ip("link set near down");
        small.build_cut(0, 0, &mut bytes);
        send(&mut guest, &bytes);
        wait("the drop", || switch.count("n0", "tx_dropped") == 1);
        // The switch may have seen that the device is down before it sent a part, or after.
        let sent = switch.count("n0", "tx_packets");
        let by_name = ["tx_drop_no_buffer", "tx_drop_link_down"].map(|name| switch.count("n0", name));
        assert!((sent == 0 || sent == SMALL_RING) && by_name.iter().sum::<u64>() == 1, "{sent} pieces, {by_name:?}");
        ip("link set near up");
        wait_carrier();
        wait_with_news(&switch, "n0", "the link to be up", || switch.port("n0").link_up);
        large.build_cut(0, 0, &mut bytes);
        send(&mut guest, &bytes);
        let pieces = (0..sent).chain(0..large.pieces(0));
        for sequence in pieces {
            assert_eq!(inspector().inspect(&next(&mut cable)), Verdict::Numbered { stream: STREAM, sequence });
        }
    });
}

/// Rows: A22, C14.
#[test]
fn a_datagram_of_more_fragments_than_a_ring_holds_is_dropped_by_name_and_the_next_passes() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest_of_a_small_ring(&mut switch);
        let gso = Some(Gso { kind: GsoKind::Fragments, size: 96, ecn: false });
        let plan = plan(Network::V4, Transport::Udp, &[8_000, 110], gso);
        let mut bytes = Vec::new();
        plan.build(0, &mut bytes);
        send(&mut guest, &bytes);
        wait("the drop", || switch.count("n0", "tx_drop_device_refused") == 1);
        plan.build(1, &mut bytes);
        send(&mut guest, &bytes);
        assert_eq!(inspector().inspect(&next(&mut cable)), Verdict::Numbered { stream: STREAM, sequence: 1 });
        assert_eq!(switch.count("n0", "tx_packets"), 1);
    });
}
