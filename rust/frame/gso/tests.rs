//! Plans against a naive segmenter that builds every packet anew from what it is to say.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[path = "../../tests/ring/packet.rs"]
mod packet;

use packet::{Check, Packet, sent, sum};

fn asking(packet: &Packet, gso_type: GsoType, size: u16) -> GsoRequest {
    GsoRequest { gso_type, size, transport: u16::try_from(packet.transport_at()).unwrap() }
}

fn segmentation(packet: &Packet) -> GsoType {
    match (packet.tcp, packet.v6) {
        (true, false) => GsoType::Tcp4,
        (true, true) => GsoType::Tcp6,
        (false, _) => GsoType::Udp,
    }
}

/// Every piece of a frame by its plan, with the sums that whoever writes it makes.
fn pieces(frame: &[u8], plan: &Plan, ident: u32) -> Vec<Vec<u8>> {
    let head = &frame[..frame.len().min(HEAD_SIZE)];
    let mut all: Vec<Vec<u8>> = Vec::new();
    let (mut covered, mut place) = (Vec::new(), None);
    for n in 0..plan.count() {
        let mut out = [0xa5; PIECE_HEAD_SIZE];
        let piece = plan.piece(n, head, ident, &mut out);
        let payload = &frame[piece.from as usize..][..piece.len as usize];
        let bytes = [&out[..piece.head_size], payload].concat();
        let is_last = n + 1 == plan.count();
        assert_eq!(bytes.len(), if is_last { plan.last() } else { plan.longest() } as usize);
        covered.extend_from_slice(&bytes[piece.sum_from..]);
        place = piece.checksum_at.map(|at| (all.len(), at)).or(place);
        all.push(bytes);
        if !plan.is_fragmented() || is_last {
            let (of, at) = place.unwrap();
            let value = sent(sum(&covered));
            all[of][at..at + 2].copy_from_slice(&value.to_be_bytes());
            covered.clear();
        }
    }
    all
}

fn packet() -> impl Strategy<Value = Packet> {
    packet::any(prop_oneof![0..60_u32, 60..3_000_u32, 60_000..64_000_u32])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments_are_those_a_stack_would_have_sent(
        packet in packet(), size in prop_oneof![1_u16..100, 500_u16..1_500, 1_500_u16..=u16::MAX],
    ) {
        let frame = packet.build(Check::Seed);
        let len = u32::try_from(frame.len()).unwrap();
        let head = &frame[..frame.len().min(HEAD_SIZE)];
        let plan = Plan::new(head, len, asking(&packet, segmentation(&packet), size));
        let too_many = packet.payload.len().div_ceil(usize::from(size)) > MAX_PIECES as usize;
        prop_assert_eq!(plan.is_none(), too_many || packet.payload_at() > HEAD_SIZE);
        let Some(plan) = plan else { return Ok(()) };
        prop_assert_eq!(usize::from(plan.header_len()), packet.payload_at());
        let pieces = pieces(&frame, &plan, 7);
        let expected = packet.segments(usize::from(size));
        prop_assert_eq!(pieces.len(), expected.len());
        for (piece, expected) in pieces.iter().zip(&expected) {
            prop_assert!(piece == expected, "{:02x?}\n{:02x?}", piece, expected);
        }
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| &piece[packet.payload_at()..]).copied().collect();
        prop_assert!(payload == packet.payload, "the payload is whole");
        prop_assert_eq!(pieces.iter().map(Vec::len).max(), Some(plan.longest() as usize));
    }

    #[test]
    fn fragments_are_those_a_stack_would_have_sent(
        packet in packet(), size in prop_oneof![64_u16..200, 500_u16..1_500, 1_500_u16..=u16::MAX], ident: u32,
    ) {
        let packet = Packet { tcp: false, ..packet };
        let frame = packet.build(Check::Seed);
        let len = u32::try_from(frame.len()).unwrap();
        let head = &frame[..frame.len().min(HEAD_SIZE)];
        let plan = Plan::new(head, len, asking(&packet, GsoType::UdpFragments, size));
        let headers_fit = packet.payload_at() <= HEAD_SIZE
            && packet.payload_at() - packet.fragmentable().0 <= usize::from(size) / 8 * 8;
        prop_assert_eq!(plan.is_some(), headers_fit);
        let Some(plan) = plan else { return Ok(()) };
        let pieces = pieces(&frame, &plan, ident);
        let expected = packet.fragments(usize::from(size), ident);
        prop_assert_eq!(pieces.len(), expected.len());
        for (piece, expected) in pieces.iter().zip(&expected) {
            prop_assert!(piece == expected, "{:02x?}\n{:02x?}", piece, expected);
        }
        prop_assert_eq!(pieces.iter().map(Vec::len).max(), Some(plan.longest() as usize));
    }

    #[test]
    fn garbage_is_answered(
        mut head in vec(any::<u8>(), 0..300), len in 0_u32..70_000, size: u16, transport in 0_u16..300,
        gso_type in select(vec![GsoType::Tcp4, GsoType::Tcp6, GsoType::Udp, GsoType::UdpFragments]),
        packet in packet(), flips in vec((0..300_usize, any::<u8>()), 0..4), real: bool, honest_len: bool,
    ) {
        let mut len = len;
        let mut request = GsoRequest { gso_type, size: size.max(1), transport };
        if real {
            let frame = packet.build(Check::Seed);
            if honest_len {
                len = u32::try_from(frame.len()).unwrap();
                request = asking(&packet, gso_type, size.max(1));
            }
            head = frame;
            head.truncate(300);
            for (at, value) in flips {
                if let Some(byte) = head.get_mut(at) {
                    *byte = value;
                }
            }
        }
        head.truncate(len as usize);
        if let Some(plan) = Plan::new(&head, len, request) {
            prop_assert!((1..=MAX_PIECES).contains(&plan.count()));
            let mut next = None;
            for n in 0..plan.count() {
                let mut out = [0; PIECE_HEAD_SIZE];
                let piece = plan.piece(n, &head, 1, &mut out);
                prop_assert!(piece.from + piece.len <= len);
                prop_assert!(next.is_none_or(|next| next == piece.from), "no byte is left out or sent twice");
                next = Some(piece.from + piece.len);
                prop_assert!(piece.head_size <= PIECE_HEAD_SIZE && piece.sum_from <= piece.head_size);
                prop_assert!(piece.checksum_at.is_none_or(|at| at + 2 <= piece.head_size));
                prop_assert!(piece.head_size + piece.len as usize <= plan.longest() as usize);
            }
            prop_assert_eq!(next, Some(len));
        }
    }
}

fn tcp(payload: usize) -> Packet {
    Packet {
        tags: vec![],
        v6: false,
        options: vec![],
        extensions: vec![],
        tcp: true,
        tcp_options: vec![],
        payload: (0..payload).map(|i| u8::try_from(i % 251).unwrap()).collect(),
        id: 0xfffe,
        df: true,
        sequence: u32::MAX - 100,
        flags: 0xff,
    }
}

#[test]
fn identification_and_sequence_wrap_and_flags_are_on_the_right_segment() {
    let packet = tcp(3_000);
    let frame = packet.build(Check::Seed);
    let request = asking(&packet, GsoType::Tcp4, 1_000);
    let plan = Plan::new(&frame[..256], u32::try_from(frame.len()).unwrap(), request).unwrap();
    let pieces = pieces(&frame, &plan, 0);
    let ids: Vec<u16> = pieces.iter().map(|p| u16::from_be_bytes([p[18], p[19]])).collect();
    assert_eq!(ids, [0xfffe, 0xffff, 0]);
    let sequences: Vec<u32> = pieces.iter().map(|p| u32::from_be_bytes([p[38], p[39], p[40], p[41]])).collect();
    assert_eq!(sequences, [u32::MAX - 100, 899, 1_899]);
    let flags: Vec<u8> = pieces.iter().map(|p| p[47]).collect();
    assert_eq!(flags, [0xf6, 0x76, 0x7f]);
}

#[test]
fn headers_that_lie_are_refused() {
    let packet = tcp(3_000);
    let frame = packet.build(Check::Seed);
    let len = u32::try_from(frame.len()).unwrap();
    let request = asking(&packet, GsoType::Tcp4, 1_000);
    let refused = |name: &str, change: &dyn Fn(&mut Vec<u8>), len: u32, request: GsoRequest| {
        let mut head = frame[..256].to_vec();
        change(&mut head);
        assert_eq!(Plan::new(&head, len, request), None, "{name}");
    };
    assert!(Plan::new(&frame[..256], len, request).is_some());
    refused("total length short by one", &|h| h[17] = h[17].wrapping_sub(1), len, request);
    refused("total length of zero", &|h| h[16..18].fill(0), len, request);
    refused("total length of all ones", &|h| h[16..18].fill(0xff), len, request);
    refused("bytes past the packet", &|_| {}, len + 1, request);
    refused("no IPv4", &|h| h[14] = 0x65, len, request);
    refused("header of four words", &|h| h[14] = 0x44, len, request);
    refused("header past its end", &|h| h[14] = 0x4f, len, request);
    refused("a fragment", &|h| h[20] = 0x20, len, request);
    refused("UDP", &|h| h[23] = 17, len, request);
    refused("data offset of four words", &|h| h[46] = 0x40, len, request);
    refused("unknown ethertype", &|h| h[12] = 0x09, len, request);
    refused("ARP", &|h| h[13] = 0x06, len, request);
    refused("IPv6 asked for", &|_| {}, len, GsoRequest { gso_type: GsoType::Tcp6, ..request });
    refused("UDP asked for", &|_| {}, len, GsoRequest { gso_type: GsoType::Udp, ..request });
    refused("transport elsewhere", &|_| {}, len, GsoRequest { transport: 38, ..request });
    refused("one byte a piece", &|_| {}, len, GsoRequest { size: 1, ..request });
}

#[test]
fn a_datagram_whose_length_lies_is_refused() {
    let packet = Packet { tcp: false, ..tcp(3_000) };
    let mut frame = packet.build(Check::Seed);
    let len = u32::try_from(frame.len()).unwrap();
    for gso_type in [GsoType::Udp, GsoType::UdpFragments] {
        assert!(Plan::new(&frame[..256], len, asking(&packet, gso_type, 1_000)).is_some());
    }
    frame[38] ^= 1;
    for gso_type in [GsoType::Udp, GsoType::UdpFragments] {
        assert_eq!(Plan::new(&frame[..256], len, asking(&packet, gso_type, 1_000)), None);
    }
}

#[test]
fn fragments_too_small_for_a_header_are_refused() {
    let packet = Packet { tcp: false, ..tcp(3_000) };
    let frame = packet.build(Check::Seed);
    let len = u32::try_from(frame.len()).unwrap();
    assert_eq!(Plan::new(&frame[..256], len, asking(&packet, GsoType::UdpFragments, 7)), None);
    assert!(Plan::new(&frame[..256], len, asking(&packet, GsoType::UdpFragments, 8)).is_some());
}

#[test]
fn headers_longer_than_the_snapshot_are_refused() {
    for (options, fits) in [(54, true), (62, false)] {
        let extensions = vec![(60, vec![0; 118]), (60, vec![0; options])];
        let packet = Packet { v6: true, extensions, ..tcp(3_000) };
        assert_eq!(packet.payload_at() <= HEAD_SIZE, fits);
        let frame = packet.build(Check::Seed);
        let plan = Plan::new(&frame, u32::try_from(frame.len()).unwrap(), asking(&packet, GsoType::Tcp6, 1_000));
        assert_eq!(plan.is_some(), fits, "{options} bytes of options");
    }
}
