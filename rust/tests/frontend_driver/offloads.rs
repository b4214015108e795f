// SPDX-License-Identifier: Apache-2.0
//! Frames that ask to be cut, against a cutter written as the RFCs read: whole, cut, or cut wrongly.

use ovsvhost::testing::frames::{
    Arrival, Checksum, Corruption, FramePlan, Gso, GsoKind, Inspector, Mac, Network, PlanConfig, Reassembly, Transport,
    Verdict, checksum,
};
use ovsvhost::testing::wire::features;

use super::HEADER;

const STATION: Mac = Mac([2, 0, 0, 0, 0, 2]);
const ALL: u64 = features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::GUEST_TSO6
    | features::GUEST_ECN
    | features::GUEST_UFO
    | features::GUEST_USO4
    | features::GUEST_USO6;

#[derive(Clone, Copy, Debug)]
struct Kind {
    gso: GsoKind,
    ecn: bool,
    network: Network,
    vlan: Option<u16>,
}

fn kinds() -> impl Iterator<Item = Kind> {
    let gso = [
        (GsoKind::Segments, false),
        (GsoKind::Segments, true),
        (GsoKind::Datagrams, false),
        (GsoKind::Fragments, false),
    ];
    gso.into_iter().flat_map(|(gso, ecn)| {
        [Network::V4, Network::V6]
            .into_iter()
            .flat_map(move |network| [None, Some(7)].map(|vlan| Kind { gso, ecn, network, vlan }))
    })
}

fn plan(kind: Kind) -> FramePlan {
    FramePlan::new(PlanConfig {
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: STATION,
        destinations: 1,
        network: kind.network,
        transport: if kind.gso == GsoKind::Segments { Transport::Tcp } else { Transport::Udp },
        checksum: Checksum::Partial,
        flows: 3,
        sizes: vec![65_000, 9000, 200, 1500],
        stream: 0x102,
        header_size: HEADER,
        vlan: kind.vlan,
        gso: Some(Gso { kind: kind.gso, size: 1448, ecn: kind.ecn }),
    })
    .unwrap()
}

/// Builds the frame at `turn` with the number 30.
fn build(plan: &FramePlan, turn: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if plan.is_numbered_by_piece() {
        plan.build_cut(turn, 30, &mut bytes);
    } else {
        plan.build(turn, &mut bytes);
    }
    bytes
}

fn inspector(agreed: u64) -> Inspector {
    Inspector { station: STATION, stations: 1, header_size: HEADER, agreed }
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&u16::try_from(value & 0xffff).unwrap().to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Where things are in a frame of this kind.
fn network_at(kind: Kind) -> usize {
    if kind.vlan.is_some() { 18 } else { 14 }
}

fn transport_at(kind: Kind) -> usize {
    network_at(kind) + if kind.network == Network::V4 { 20 } else { 40 }
}

/// Writes lengths and all checksums of a packet.
fn finish(kind: Kind, packet: &mut [u8]) {
    let (network, transport) = (network_at(kind), transport_at(kind));
    finish_network(kind, packet);
    let len = packet.len() - transport;
    let (protocol, at) = if kind.gso == GsoKind::Segments { (6, 16) } else { (17, 6) };
    if protocol == 17 {
        put(packet, transport + 4, len);
    }
    put(packet, transport + at, 0);
    let addresses = if kind.network == Network::V4 { network + 12..network + 20 } else { network + 8..network + 40 };
    let pseudo = checksum::pseudo_header(&packet[addresses], protocol, len);
    let sum = !checksum::add(pseudo, checksum::sum(&packet[transport..]));
    put(packet, transport + at, usize::from(if sum == 0 { 0xffff } else { sum }));
}

fn finish_network(kind: Kind, packet: &mut [u8]) {
    let network = network_at(kind);
    if kind.network == Network::V6 {
        put(packet, network + 4, packet.len() - network - 40);
        return;
    }
    put(packet, network + 2, packet.len() - network);
    put(packet, network + 10, 0);
    let sum = !checksum::sum(&packet[network..network + 20]);
    put(packet, network + 10, sum.into());
}

/// The packets of a frame, each behind an empty vnet header.
fn cut(kind: Kind, bytes: &[u8]) -> Vec<Vec<u8>> {
    let frame = &bytes[HEADER..];
    if bytes[1] == 0 {
        let mut whole = frame.to_vec();
        finish(kind, &mut whole);
        return vec![[&[0; HEADER][..], &whole].concat()];
    }
    if kind.gso == GsoKind::Fragments {
        return fragment(kind, frame);
    }
    let header_size = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    let size = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    let (headers, payload) = frame.split_at(header_size);
    let (network, transport) = (network_at(kind), transport_at(kind));
    let count = payload.chunks(size).count();
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, piece)| {
            let mut packet = [headers, piece].concat();
            if kind.network == Network::V4 {
                let id = word(&packet, network + 4);
                put(&mut packet, network + 4, id + index);
            }
            if kind.gso == GsoKind::Segments {
                let first = u32::from_be_bytes(packet[transport + 4..transport + 8].try_into().unwrap());
                let sequence = first.wrapping_add(u32::try_from(index * size).unwrap());
                packet[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
                if index > 0 {
                    packet[transport + 13] &= !0x80;
                }
                if index + 1 < count {
                    packet[transport + 13] &= !0x09;
                }
            }
            finish(kind, &mut packet);
            [&[0; HEADER][..], &packet].concat()
        })
        .collect()
}

/// IP fragments of 1448 bytes.
fn fragment(kind: Kind, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut datagram = frame.to_vec();
    finish(kind, &mut datagram);
    let (network, transport) = (network_at(kind), transport_at(kind));
    let (headers, payload) = datagram.split_at(transport);
    let count = payload.chunks(1448).count();
    payload
        .chunks(1448)
        .enumerate()
        .map(|(index, piece)| {
            let more = index + 1 < count;
            let offset = index * 1448 / 8;
            let mut packet = headers.to_vec();
            if kind.network == Network::V4 {
                put(&mut packet, network + 4, 77);
                put(&mut packet, network + 6, offset | if more { 0x2000 } else { 0 });
            } else {
                packet[network + 6] = 44;
                packet.extend([17, 0, 0, 0, 0, 0, 0, 77]);
                put(&mut packet, transport + 2, offset << 3 | usize::from(more));
            }
            packet.extend_from_slice(piece);
            finish_network(kind, &mut packet);
            [&[0; HEADER][..], &packet].concat()
        })
        .collect()
}

/// What became of packets, one after the other.
fn judge(agreed: u64, packets: &[Vec<u8>]) -> Vec<Verdict> {
    let mut datagram = Reassembly::default();
    let inspector = inspector(agreed);
    let verdicts = packets.iter().filter_map(|packet| match datagram.take(HEADER, packet) {
        Arrival::Whole => Some(inspector.inspect(packet)),
        Arrival::Part => None,
        Arrival::Datagram => Some(inspector.inspect(datagram.datagram())),
        Arrival::Wrong(kind) => Some(Verdict::Corrupt(kind)),
    });
    verdicts.collect()
}

#[test]
fn a_frame_that_comes_whole_is_known_with_all_its_pieces() {
    for kind in kinds() {
        let plan = plan(kind);
        for turn in 0..4 {
            let bytes = build(&plan, turn);
            assert_eq!(bytes.len(), HEADER + plan.size(turn), "{kind:?}");
            let count = plan.pieces(turn);
            let expected = match (plan.is_numbered_by_piece(), count) {
                (true, 1) => Verdict::Numbered { stream: 0x102, sequence: 30 },
                (true, _) => Verdict::Pieces { stream: 0x102, first: 30, step: 3, count },
                (false, _) => Verdict::Numbered { stream: 0x102, sequence: turn },
            };
            assert_eq!(judge(ALL, &[bytes]), [expected], "{kind:?} turn {turn}");
        }
    }
}

#[test]
fn a_frame_that_was_cut_is_known_by_every_piece() {
    for kind in kinds() {
        let plan = plan(kind);
        for turn in 0..4 {
            let packets = cut(kind, &build(&plan, turn));
            if plan.is_numbered_by_piece() {
                assert_eq!(packets.len() as u64, plan.pieces(turn), "{kind:?} turn {turn}");
            }
            let first = if plan.is_numbered_by_piece() { 30 } else { turn };
            let numbers = (0..plan.pieces(turn)).map(|piece| first + 3 * piece);
            let expected: Vec<Verdict> =
                numbers.map(|sequence| Verdict::Numbered { stream: 0x102, sequence }).collect();
            // Nobody who gets packets must have agreed to anything.
            assert_eq!(judge(0, &packets), expected, "{kind:?} turn {turn}");
        }
    }
}

#[test]
fn a_guest_that_did_not_agree_to_it_gets_nothing_to_cut() {
    for kind in kinds() {
        let bytes = build(&plan(kind), 0);
        let own = match (kind.gso, kind.network, kind.ecn) {
            (_, _, true) => features::GUEST_ECN,
            (GsoKind::Segments, Network::V4, _) => features::GUEST_TSO4,
            (GsoKind::Segments, Network::V6, _) => features::GUEST_TSO6,
            (GsoKind::Datagrams, Network::V4, _) => features::GUEST_USO4,
            (GsoKind::Datagrams, Network::V6, _) => features::GUEST_USO6,
            (GsoKind::Fragments, ..) => features::GUEST_UFO,
        };
        let wrong = Verdict::Corrupt(Corruption::VnetHeader);
        assert_eq!(inspector(ALL & !own).inspect(&bytes), wrong, "{kind:?}");
        assert_eq!(inspector(ALL & !features::GUEST_CSUM).inspect(&bytes), wrong, "{kind:?}");
    }
}

#[test]
fn every_wrong_header_of_a_piece_is_found_out() {
    for kind in kinds().filter(|kind| kind.gso == GsoKind::Segments) {
        let good = cut(kind, &build(&plan(kind), 1));
        let transport = HEADER + transport_at(kind);
        // A sequence number, PSH too early, PSH lost, CWR in the second or lost in the first, a timestamp, the window.
        let ecn_wrong = usize::from(!kind.ecn);
        let last = good.len() - 1;
        let lies = [(1, 7, 1), (0, 13, 8), (last, 13, 8), (1, 13, 0x80), (ecn_wrong, 13, 0x80), (2, 26, 1), (3, 14, 1)];
        for (piece, at, bit) in lies {
            let mut packet = good[piece].clone();
            packet[transport + at] ^= bit;
            finish(kind, &mut packet[HEADER..]);
            assert_eq!(judge(0, &[packet]), [Verdict::Corrupt(Corruption::Piece)], "{kind:?} piece {piece} byte {at}");
        }
        if kind.network == Network::V4 {
            let mut packet = good[2].clone();
            packet[HEADER + network_at(kind) + 5] ^= 1;
            finish(kind, &mut packet[HEADER..]);
            assert_eq!(judge(0, &[packet]), [Verdict::Corrupt(Corruption::Piece)], "{kind:?} id");
        }
    }
}

#[test]
fn a_piece_that_is_too_short_is_found_out() {
    for kind in kinds().filter(|kind| kind.gso != GsoKind::Fragments) {
        let mut packet = cut(kind, &build(&plan(kind), 1)).swap_remove(1);
        packet.pop();
        finish(kind, &mut packet[HEADER..]);
        assert_eq!(judge(0, &[packet]), [Verdict::Corrupt(Corruption::Piece)], "{kind:?}");
    }
}

#[test]
fn fragments_out_of_place_are_found_out() {
    for kind in kinds().filter(|kind| kind.gso == GsoKind::Fragments) {
        let good = cut(kind, &build(&plan(kind), 1));
        for lost in 0..good.len() - 1 {
            let mut rest = good.clone();
            rest.remove(lost);
            let verdicts = judge(0, &rest);
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Corrupt(Corruption::Piece)), "{kind:?}");
            assert!(!verdicts.is_empty());
        }
        let mut flipped = good.clone();
        flipped[2][HEADER + 100] ^= 1;
        assert_eq!(judge(0, &flipped), [Verdict::Corrupt(Corruption::TransportChecksum)], "{kind:?}");
    }
}

#[test]
fn a_flip_of_any_bit_is_never_passed_as_whole() {
    for kind in kinds().filter(|kind| kind.gso != GsoKind::Fragments && kind.vlan.is_none()) {
        let packet = &cut(kind, &build(&plan(kind), 1))[1];
        // The source address is under no checksum, nor are class, flow label and hops of IPv6.
        let uncovered =
            |at: usize| (6..12).contains(&at) || kind.network == Network::V6 && [14, 15, 16, 17, 21].contains(&at);
        for at in (0..packet.len() - HEADER).filter(|at| !uncovered(*at)) {
            let mut flipped = packet.clone();
            flipped[HEADER + at] ^= 0x10;
            let verdicts = judge(0, &[flipped]);
            assert!(!verdicts.iter().any(|verdict| matches!(verdict, Verdict::Numbered { .. })), "{kind:?} byte {at}");
        }
    }
}
