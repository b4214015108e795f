// SPDX-License-Identifier: Apache-2.0
//! Frames to be segmented, between guests that negotiated different offloads.
//!
//! A receiver that takes the offload gets the frame as it is; any other gets the packets that the sender's stack would
//! have sent by itself, byte for byte, by a naive segmenter. `Pipe` lays buffers anywhere and compares every byte.

use ovsvhost::burst::Stop;
use ovsvhost::drops::DropReason;
use ovsvhost::ring::{Receiveq, Transmitq, feature};
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Shape, WRITE, room_for};
use super::guest::Guest;
use super::honest::layouts;
use super::packet::{self, Check, Packet};
use super::pipe::{Ends, Frame, Gso, Pipe};

const HOST: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::HOST_USO
    | feature::VERSION_1;
const GUEST: [u64; 7] = [
    feature::GUEST_CSUM,
    feature::GUEST_TSO4,
    feature::GUEST_TSO6,
    feature::GUEST_ECN,
    feature::GUEST_UFO,
    feature::GUEST_USO4,
    feature::GUEST_USO6,
];

/// The frame a sender leaves to the device to segment.
fn large(packet: &Packet, size: u16, fragments: bool) -> Frame {
    let bytes = packet.build(Check::Seed);
    let at = packet.transport_at() as u16;
    let (mut kind, mut needs) = match (packet.tcp, packet.v6) {
        (true, false) => (1, feature::GUEST_TSO4),
        (true, true) => (4, feature::GUEST_TSO6),
        (false, _) if fragments => (3, feature::GUEST_UFO),
        (false, false) => (5, feature::GUEST_USO4),
        (false, true) => (5, feature::GUEST_USO6),
    };
    if packet.tcp && packet.flags & 0x80 != 0 {
        kind |= 0x80;
        needs |= feature::GUEST_ECN;
    }
    let pieces = if kind == 3 { packet.fragments(size.into(), 0) } else { packet.segments(size.into()) };
    let mut free = Vec::new();
    if kind == 3 && pieces.len() > 1 {
        // The device chooses the identification of fragments; in IPv4 it goes into the header's sum.
        let at = packet.network_at();
        free = match (packet.v6, packet.df) {
            (true, _) => std::iter::once(packet.fragmentable().0 + 4..packet.fragmentable().0 + 8).collect(),
            (false, true) => vec![at + 4..at + 6, at + 10..at + 12],
            (false, false) => Vec::new(),
        };
    }
    let checked = kind != 3 || pieces.len() == 1;
    let header_len = packet.payload_at() as u16;
    let gso = Gso { kind, size, header_len, needs: needs | feature::GUEST_CSUM, pieces, free, checked };
    Frame { bytes, partial: Some((at, if packet.tcp { 16 } else { 6 })), gso: Some(gso) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows: B6, C14.
    #[test]
    fn a_receiver_gets_a_frame_whole_or_as_a_stack_would_have_sent_it(
        (tx_layout, rx_layout) in (layouts(), layouts()),
        packets in proptest::collection::vec(
            packet::any(prop_oneof![4 => 0..4_000_u32, 4 => 4_000..20_000_u32, 1 => 60_000..64_000_u32]), 1..5),
        size in prop_oneof![1_u16..64, 64_u16..600, 600_u16..9_000],
        takes in prop_oneof![Just(vec![]), Just(vec![feature::GUEST_CSUM]), Just(GUEST.to_vec()), subsequence(GUEST.to_vec(), 0..=7)],
        (fragments, mergeable, modern, indirect) in any::<(bool, bool, bool, bool)>(),
        room in prop_oneof![60_usize..300, 300_usize..2_000, 9_000_usize..10_000],
        seed: u64,
    ) {
        let bit = |on, bit| if on { bit } else { 0 };
        let takes = takes.iter().fold(0, |all, bit| all | bit);
        let ends = Ends {
            tx_layout,
            rx_layout,
            tx_size: 256,
            rx_size: 1_024,
            tx_base: 0,
            rx_base: rx_layout.base(1_024, 65_500),
            tx_features: HOST | bit(indirect, feature::INDIRECT_DESC),
            rx_features: takes | bit(mergeable, feature::MRG_RXBUF) | bit(modern, feature::VERSION_1)
                | bit(indirect, feature::INDIRECT_DESC),
            seed,
        };
        let mut pipe = Pipe::new(ends);
        // What asks for more pieces than any stack is another test's; fragments must hold a header.
        let size = if fragments { size.max(100) } else { size.max(40) };
        for packet in packets.iter().filter(|packet| packet.payload_at() <= 256) {
            pipe.send(large(packet, size, fragments));
        }
        // A frame spread over more than a thousand descriptors is another test's too.
        let longest = packets.iter().map(|packet| packet.payload.len()).max().unwrap_or(0);
        let room = room.max(longest / 60);
        while pipe.offer(room) {}
        pipe.carry();
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
        payload: (0..payload).map(|at| (at % 251) as u8).collect(),
        id: 7,
        df: true,
        sequence: 1,
        flags: 0x18,
    }
}

fn ends(layout: Layout, rx_size: u32) -> Ends {
    Ends {
        tx_layout: layout,
        rx_layout: layout,
        tx_size: 64,
        rx_size,
        tx_base: 0,
        rx_base: 0,
        tx_features: HOST,
        rx_features: feature::VERSION_1,
        seed: 3,
    }
}

/// Rows: C14.
#[test]
fn a_frame_that_finds_too_few_buffers_is_tried_again_as_a_whole() {
    for layout in LAYOUTS {
        let mut pipe = Pipe::new(ends(layout, 64));
        let header_and_frame = 12 + tcp(10_000).build(Check::Seed).len();
        assert!(pipe.send_in(large(&tcp(10_000), 1_000, false), &[header_and_frame]));
        pipe.a_driver.publish();
        assert_eq!(pipe.tx.gather(), Ok(1));
        for round in 0..10 {
            pipe.b_driver.post(&pipe.b, &[(round * 2_048, 2_000)], WRITE, Shape::Chain);
            pipe.b_driver.publish();
            let delivery = pipe.rx.deliver(pipe.tx.burst(), &[0]);
            assert_eq!((delivery.fault, delivery.too_small), (None, 0));
            assert_eq!(delivery.settled, usize::from(round == 9), "{layout:?}: all pieces or none");
            assert_eq!(pipe.b_driver.has_used(), round == 9);
        }
        let mut payload = Vec::new();
        while let Some((posted, len)) = pipe.b_driver.take_used() {
            payload.extend(pipe.b.read(posted.buffers[0].0 + 12 + 54, len as usize - 12 - 54));
        }
        assert_eq!(payload, tcp(10_000).payload);
    }
}

/// Rows: A18, C14.
#[test]
fn a_frame_that_can_never_fit_is_refused_and_the_next_one_is_not() {
    for layout in LAYOUTS {
        let mut pipe = Pipe::new(ends(layout, 8));
        // More pieces than the ring has places; then a piece longer than a buffer; then one that fits.
        for (payload, size) in [(9_000, 1_000), (4_000, 3_000), (4_000, 1_000)] {
            assert!(pipe.send(large(&tcp(payload), size, false)));
        }
        while pipe.offer(1_500) {}
        let before = pipe.refused;
        while pipe.refused == before && pipe.delivered == 0 {
            assert_eq!(pipe.carry(), 3);
        }
        assert_eq!((pipe.refused, pipe.delivered, pipe.chains), (2, 1, 4), "{layout:?}");
    }
}

/// One way to spoil a frame.
type Lie = (&'static str, fn(&mut Vec<u8>));

/// What becomes of one frame behind this header, sent by a guest with these features.
fn judged(layout: Layout, features: u64, header: [u8; 12], frame: &[u8]) -> Option<Stop> {
    let mut dice = Dice(1);
    let mut guest = Guest::new(room_for(16));
    let mut driver = Driver::new(&mut guest, layout, 16, 0, &mut dice);
    let mut queue = Transmitq::new(driver.activate(&guest, features, None, None));
    guest.write(0, &header);
    guest.write(12, frame);
    driver.post(&guest, &[(0, 12 + frame.len() as u32)], 0, Shape::Chain);
    driver.publish();
    assert_eq!(queue.gather(), Ok(1));
    let stop = queue.burst().packets()[0].stop;
    // Whatever it says, no receiver is made to crash or to wait by it.
    let mut receiver = Guest::new(room_for(64));
    let mut buffers = Driver::new(&mut receiver, layout, 64, 0, &mut dice);
    let mut rx = Receiveq::new(buffers.activate(&receiver, feature::VERSION_1, None, None));
    for slot in 0..64 {
        buffers.post(&receiver, &[(slot * 2_048, 2_048)], WRITE, Shape::Chain);
    }
    buffers.publish();
    if stop.is_none() {
        let delivery = rx.deliver(queue.burst(), &[0]);
        assert_eq!((delivery.settled, delivery.fault), (1, None));
    }
    queue.commit();
    stop
}

/// The lies behind published faults: a checksum past the frame (CVE-2024-11614, a vhost back-end), a checksum start or a
/// segment size that the headers contradict (CVE-2024-43897, CVE-2024-43817, the kernel's reading of the same header).
///
/// Rows: C13.
#[test]
fn lies_about_segmentation_are_dropped_by_name() {
    const BAD: Option<Stop> = Some(Stop::Drop(DropReason::BadOffload));
    let packet = tcp(5_000);
    let frame = packet.build(Check::Seed);
    let header = |flags: u8, gso_type: u8, size: u16, start: u16, offset: u16| {
        let mut header = [0xee; 12];
        (header[0], header[1]) = (flags, gso_type);
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    };
    let good = header(1, 1, 1_448, 34, 16);
    let headers = [
        ("an unknown type", header(1, 9, 1_448, 34, 16)),
        ("ECN alone", header(1, 0x80, 1_448, 34, 16)),
        ("no segment size", header(1, 1, 0, 34, 16)),
        ("a segment of one byte", header(1, 1, 1, 34, 16)),
        ("no checksum left", header(0, 1, 1_448, 34, 16)),
        ("the wrong protocol", header(1, 5, 1_448, 34, 6)),
        ("the wrong version", header(1, 4, 1_448, 34, 16)),
        ("a checksum in the network header", header(1, 1, 1_448, 14, 16)),
        ("a checksum that starts past the end", header(1, 1, 1_448, 6_000, 16)),
        ("a checksum that ends past the end", header(1, 0, 0, 5_050, 6)),
        ("a checksum at the end of the number range", header(1, 1, 1_448, 0xffff, 0xffff)),
    ];
    let bodies: [Lie; 8] = [
        ("a total length of zero", |frame| frame[16..18].fill(0)),
        ("a total length past the end", |frame| frame[16..18].fill(0xff)),
        ("a total length short of the end", |frame| frame[16] = 1),
        ("a header length past the snapshot", |frame| frame[14] = 0x4f),
        ("a data offset into the header", |frame| frame[46] = 0x10),
        ("a fragment", |frame| frame[20] = 0x20),
        ("a frame cut within its header", |frame| frame.truncate(53)),
        ("tags to no end", |frame| {
            frame[12..].chunks_exact_mut(4).for_each(|tag| tag[..2].copy_from_slice(&[0x81, 0]));
        }),
    ];
    for layout in LAYOUTS {
        assert_eq!(judged(layout, HOST, good, &frame), None);
        assert_eq!(judged(layout, HOST, header(1, 1, 65_535, 34, 16), &frame), None, "one segment at most");
        assert_eq!(judged(layout, feature::VERSION_1, good, &frame), BAD);
        for (name, header) in headers {
            assert_eq!(judged(layout, HOST, header, &frame), BAD, "{layout:?}: {name}");
        }
        for (name, lie) in bodies {
            let mut frame = frame.clone();
            lie(&mut frame);
            assert_eq!(judged(layout, HOST, good, &frame), BAD, "{layout:?}: {name}");
        }
    }
}
