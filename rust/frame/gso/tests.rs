//! Plans against a naive segmenter that builds every packet anew from what it is to say.
#![allow(clippy::cast_possible_truncation, reason = "the upper byte of a product")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// The checksum of RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0_u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap()
}

fn sent(sum: u16) -> u16 {
    if sum == 0xffff { 0xffff } else { !sum }
}

/// What a packet is to be like.
#[derive(Debug, Clone)]
struct Packet {
    tags: Vec<u16>,
    v6: bool,
    /// IPv4 options, whole words.
    options: Vec<u8>,
    /// IPv6 extension headers: number, and what follows Next Header and length.
    extensions: Vec<(u8, Vec<u8>)>,
    tcp: bool,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    id: u16,
    df: bool,
    sequence: u32,
    flags: u8,
}

#[derive(Clone, Copy, PartialEq)]
enum Check {
    /// The pseudo-header's sum, for others to go on.
    Seed,
    Whole,
}

impl Packet {
    fn network_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    fn transport_at(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, body)| 2 + body.len()).sum();
        self.network_at() + if self.v6 { 40 + extensions } else { 20 + self.options.len() }
    }

    fn payload_at(&self) -> usize {
        self.transport_at() + if self.tcp { 20 + self.tcp_options.len() } else { 8 }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    /// Where the fragmentable part starts, and the byte that says what it starts with.
    fn fragmentable(&self) -> (usize, usize) {
        if !self.v6 {
            return (self.transport_at(), self.network_at() + 9);
        }
        let (mut at, mut pointer) = (self.network_at() + 40, self.network_at() + 6);
        let mut found = (at, pointer);
        for (number, body) in &self.extensions {
            pointer = at;
            at += 2 + body.len();
            if *number != 60 {
                found = (at, pointer);
            }
        }
        found
    }

    fn build(&self, check: Check) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in &self.tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0x20, 5]);
        }
        let segment = self.payload_at() - self.transport_at() + self.payload.len();
        let mut destination = vec![0xfd, 2];
        destination.extend(if self.v6 { vec![9; 14] } else { vec![10, 9] });
        let source: Vec<u8> = destination.iter().map(|byte| byte ^ 0x11).collect();
        let mut last_hop = destination.clone();
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x61, 0x23, 0x45, 0x67]);
            let length = self.transport_at() - self.network_at() - 40 + segment;
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            let numbers = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]);
            let numbers: Vec<u8> = numbers.collect();
            bytes.extend([numbers[0], 64]);
            bytes.extend(&source);
            bytes.extend(&destination);
            for ((number, body), next) in self.extensions.iter().zip(&numbers[1..]) {
                bytes.extend([*next, u8::try_from((2 + body.len()) / 8 - 1).unwrap()]);
                bytes.extend(body);
                if *number == 43 && body[1] > 0 {
                    last_hop = body[6..22].to_vec();
                }
            }
        } else {
            bytes.extend([0x08, 0x00, 0x45 + u8::try_from(self.options.len() / 4).unwrap(), 0x28]);
            let length = 20 + self.options.len() + segment;
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.df { 0x40 } else { 0 }, 0, 63, self.protocol(), 0, 0]);
            bytes.extend(&source);
            bytes.extend(&destination);
            bytes.extend(&self.options);
            seal_v4(&mut bytes, self.network_at());
        }
        bytes.extend([0x12, 0x34, 0x56, 0x78]);
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            let words = u8::try_from(5 + self.tcp_options.len() / 4).unwrap();
            bytes.extend([1, 2, 3, 4, words << 4, self.flags, 0xff, 0xfe, 0, 0, 0, 0]);
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend(u16::try_from(segment).unwrap().to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(&self.payload);
        let pseudo = [source, last_hop, vec![0, self.protocol()], u16::try_from(segment).unwrap().to_be_bytes().into()];
        let pseudo = pseudo.concat();
        let at = self.transport_at() + if self.tcp { 16 } else { 6 };
        let value = match check {
            Check::Seed => sum(&pseudo),
            Check::Whole => sent(sum(&[&pseudo, &bytes[self.transport_at()..]].concat())),
        };
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    fn request(&self, gso_type: GsoType, size: u16) -> GsoRequest {
        GsoRequest { gso_type, size, transport: u16::try_from(self.transport_at()).unwrap() }
    }

    fn segmentation(&self) -> GsoType {
        match (self.tcp, self.v6) {
            (true, false) => GsoType::Tcp4,
            (true, true) => GsoType::Tcp6,
            (false, _) => GsoType::Udp,
        }
    }

    /// The segments a stack would have sent by itself.
    fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size).max(1);
        let segment = |n: usize| {
            let payload = self.payload.iter().skip(n * size).take(size).copied().collect();
            let mut flags = self.flags;
            if n + 1 < count {
                flags &= !0x09;
            }
            if n > 0 {
                flags &= !0x80;
            }
            let id = self.id.wrapping_add(u16::try_from(n).unwrap());
            let sequence = self.sequence.wrapping_add(u32::try_from(n * size).unwrap());
            Self { payload, id, sequence, flags, ..self.clone() }.build(Check::Whole)
        };
        (0..count).map(segment).collect()
    }

    /// The fragments a stack would have sent by itself.
    fn fragments(&self, size: usize, ident: u32) -> Vec<Vec<u8>> {
        let whole = self.build(Check::Whole);
        let (cut, pointer) = self.fragmentable();
        let body = &whole[cut..];
        let size = size / 8 * 8;
        if body.len() <= size {
            return vec![whole];
        }
        let at = self.network_at();
        let fragment = |(n, chunk): (usize, &[u8])| {
            let mut bytes = whole[..cut].to_vec();
            let more = (n + 1) * size < body.len();
            let offset = u16::try_from(n * size / 8).unwrap();
            if self.v6 {
                let length = u16::try_from(cut - at - 40 + 8 + chunk.len()).unwrap();
                bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
                let next = std::mem::replace(&mut bytes[pointer], 44);
                bytes.extend([next, 0]);
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend(ident.to_be_bytes());
            } else {
                let length = u16::try_from(cut - at + chunk.len()).unwrap();
                bytes[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
                if self.df {
                    bytes[at + 4..at + 6].copy_from_slice(&ident.to_be_bytes()[2..]);
                }
                let flags = offset | if more { 0x2000 } else { 0 };
                bytes[at + 6..at + 8].copy_from_slice(&flags.to_be_bytes());
                if n > 0 {
                    // The only option of these packets that is not copied.
                    let options = &mut bytes[at + 20..cut];
                    if options.first() == Some(&7) {
                        options[..7].fill(1);
                    }
                }
                seal_v4(&mut bytes, at);
            }
            bytes.extend(chunk);
            bytes
        };
        body.chunks(size).enumerate().map(fragment).collect()
    }
}

/// Writes an IPv4 header's checksum.
fn seal_v4(bytes: &mut [u8], at: usize) {
    let end = at + usize::from(bytes[at] & 15) * 4;
    bytes[at + 10..at + 12].fill(0);
    let value = !sum(&bytes[at..end]);
    bytes[at + 10..at + 12].copy_from_slice(&value.to_be_bytes());
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
        assert!(bytes.len() <= plan.longest() as usize);
        covered.extend_from_slice(&bytes[piece.sum_from..]);
        place = piece.checksum_at.map(|at| (all.len(), at)).or(place);
        all.push(bytes);
        if !plan.is_fragmented() || n + 1 == plan.count() {
            let (of, at) = place.unwrap();
            let value = sent(sum(&covered));
            all[of][at..at + 2].copy_from_slice(&value.to_be_bytes());
            covered.clear();
        }
    }
    all
}

fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let padding = |words: usize| vec![0; 6 + 8 * words];
    let hop_by_hop = proptest::option::of((0..3_usize).prop_map(move |words| (0, padding(words))));
    let routing = proptest::option::of(
        (0..3_u8, vec(any::<u8>(), 32)).prop_map(|(left, list)| (43, [vec![4, left, 1, 0, 0, 0], list].concat())),
    );
    let options = vec((0..3_usize).prop_map(move |words| (60, padding(words))), 0..3);
    (hop_by_hop, routing, options).prop_map(|(a, b, c)| a.into_iter().chain(b).chain(c).collect())
}

fn packet() -> impl Strategy<Value = Packet> {
    let payload = (prop_oneof![0..60_u32, 60..3_000_u32, 60_000..64_000_u32], any::<u32>()).prop_map(|(len, seed)| {
        (0..len).map(|at| (at.wrapping_add(seed).wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
    });
    (
        select(vec![vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x9100, 0x8100]]),
        any::<(bool, bool, bool, u16, u32, u8)>(),
        select(vec![vec![], vec![1, 1, 1, 0], vec![7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0]]),
        extensions(),
        (0..=10_usize).prop_flat_map(|words| vec(any::<u8>(), 4 * words)),
        payload,
    )
        .prop_map(|(tags, (v6, tcp, df, id, sequence, flags), options, extensions, tcp_options, payload)| {
            let (options, extensions) = if v6 { (vec![], extensions) } else { (options, vec![]) };
            Packet { tags, v6, options, extensions, tcp, tcp_options, payload, id, df, sequence, flags }
        })
}

proptest! {
    #[test]
    fn segments_are_those_a_stack_would_have_sent(
        packet in packet(), size in prop_oneof![1_u16..100, 500_u16..1_500, 1_500_u16..=u16::MAX],
    ) {
        let frame = packet.build(Check::Seed);
        let len = u32::try_from(frame.len()).unwrap();
        let head = &frame[..frame.len().min(HEAD_SIZE)];
        let plan = Plan::new(head, len, packet.request(packet.segmentation(), size));
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
        let plan = Plan::new(head, len, packet.request(GsoType::UdpFragments, size));
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
                request = packet.request(gso_type, size.max(1));
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
    let request = packet.request(GsoType::Tcp4, 1_000);
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
    let request = packet.request(GsoType::Tcp4, 1_000);
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
        assert!(Plan::new(&frame[..256], len, packet.request(gso_type, 1_000)).is_some());
    }
    frame[38] ^= 1;
    for gso_type in [GsoType::Udp, GsoType::UdpFragments] {
        assert_eq!(Plan::new(&frame[..256], len, packet.request(gso_type, 1_000)), None);
    }
}

#[test]
fn fragments_too_small_for_a_header_are_refused() {
    let packet = Packet { tcp: false, ..tcp(3_000) };
    let frame = packet.build(Check::Seed);
    let len = u32::try_from(frame.len()).unwrap();
    assert_eq!(Plan::new(&frame[..256], len, packet.request(GsoType::UdpFragments, 7)), None);
    assert!(Plan::new(&frame[..256], len, packet.request(GsoType::UdpFragments, 8)).is_some());
}

#[test]
fn headers_longer_than_the_snapshot_are_refused() {
    for (options, fits) in [(54, true), (62, false)] {
        let extensions = vec![(60, vec![0; 118]), (60, vec![0; options])];
        let packet = Packet { v6: true, extensions, ..tcp(3_000) };
        assert_eq!(packet.payload_at() <= HEAD_SIZE, fits);
        let frame = packet.build(Check::Seed);
        let plan = Plan::new(&frame, u32::try_from(frame.len()).unwrap(), packet.request(GsoType::Tcp6, 1_000));
        assert_eq!(plan.is_some(), fits, "{options} bytes of options");
    }
}
