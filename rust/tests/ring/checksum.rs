// SPDX-License-Identifier: Apache-2.0
//! Checksums that a sender left open, finished for a receiver that takes only whole ones.
//!
//! The frames are real: UDP and TCP over IPv4 and IPv6. They are judged as a receiving stack judges them, by the sum
//! over pseudo-header and segment, and byte for byte against a plain computation.

use ovsvhost::ring::feature;
use ovsvhost::testing::frames::checksum;
use proptest::prelude::*;

use super::driver::Layout;
use super::honest::layouts;
use super::pipe::{Ends, Frame, Pipe, complete};

#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    tcp: bool,
}

impl Kind {
    fn transport_at(self) -> usize {
        if self.v6 { 54 } else { 34 }
    }

    fn checksum_at(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// A frame with `payload` whose checksum field holds the sum of the pseudo-header, as stacks leave it.
    fn frame(self, payload: &[u8]) -> Frame {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let segment = payload.len() + if self.tcp { 20 } else { 8 };
        let protocol = if self.tcp { 6 } else { 17 };
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((segment as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend((1..=32).collect::<Vec<u8>>());
        } else {
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend((20 + segment as u16).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let mut transport = vec![0x04, 0x00, 0x00, 0x35];
        if self.tcp {
            transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            transport.extend((segment as u16).to_be_bytes());
            transport.extend([0, 0]);
        }
        transport.extend(payload);
        let pseudo = checksum::pseudo_header(self.addresses(&bytes), protocol, segment);
        transport[self.checksum_at()..][..2].copy_from_slice(&pseudo.to_be_bytes());
        bytes.extend(transport);
        Frame { bytes, partial: Some((self.transport_at() as u16, self.checksum_at() as u16)), gso: None }
    }

    fn addresses(self, frame: &[u8]) -> &[u8] {
        if self.v6 { &frame[22..54] } else { &frame[26..34] }
    }

    /// What a receiving stack does: everything sums up to all ones.
    fn is_good(self, frame: &[u8]) -> bool {
        let segment = &frame[self.transport_at()..];
        let protocol = if self.tcp { 6 } else { 17 };
        let pseudo = checksum::pseudo_header(self.addresses(frame), protocol, segment.len());
        checksum::add(pseudo, checksum::sum(segment)) == 0xffff
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// `Pipe` lays the receiver's buffers anywhere, split anywhere, and compares every byte of its memory.
    /// Rows: B6.
    #[test]
    fn a_receiver_without_guest_csum_gets_whole_checksums(
        (tx_layout, rx_layout) in (layouts(), layouts()), v6: bool, tcp: bool, mergeable: bool, indirect: bool, seed: u64,
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1_600), 1..12),
        room in prop_oneof![12_usize..100, 100_usize..2_000],
    ) {
        let kind = Kind { v6, tcp };
        let bit = |on, bit| if on { bit } else { 0 };
        let rx_features = bit(mergeable, feature::MRG_RXBUF) | bit(indirect, feature::INDIRECT_DESC);
        let ends = Ends {
            tx_layout,
            rx_layout,
            tx_size: 64,
            rx_size: 2_048,
            tx_base: 0,
            rx_base: 65_500,
            tx_features: feature::VERSION_1 | feature::CSUM | bit(indirect, feature::INDIRECT_DESC),
            rx_features,
            seed,
        };
        let mut pipe = Pipe::new(ends);
        for payload in &payloads {
            let frame = kind.frame(payload);
            let mut whole = frame.bytes.clone();
            complete(&mut whole, kind.transport_at(), kind.checksum_at());
            prop_assert!(kind.is_good(&whole), "the plain computation satisfies a receiving stack");
            pipe.send(frame);
            for _ in 0..if mergeable { 1_700 / room + 2 } else { 1 } {
                pipe.offer(if mergeable { room } else { 1_700 });
            }
        }
        pipe.carry();
        // The pipe leaves one frame in ten out, and buffers of a few bytes in many pieces hold none of the long ones.
        prop_assert!(pipe.delivered > 0 || payloads.len() < 8 || room < 100, "something arrived");
    }
}

#[test]
fn a_sum_of_zero_is_sent_as_all_ones() {
    let kind = Kind { v6: false, tcp: false };
    // Choose the last payload word so that the complement comes out as zero.
    let mut frame = kind.frame(&[0, 0]);
    let sum = checksum::sum(&frame.bytes[kind.transport_at()..]);
    let end = frame.bytes.len();
    frame.bytes[end - 2..].copy_from_slice(&(0xffff - sum).to_be_bytes());
    complete(&mut frame.bytes.clone(), kind.transport_at(), kind.checksum_at());
    let features = feature::VERSION_1 | feature::CSUM;
    let ends = Ends {
        tx_layout: Layout::Split,
        rx_layout: Layout::Split,
        tx_size: 8,
        rx_size: 8,
        tx_base: 0,
        rx_base: 0,
        tx_features: features,
        rx_features: features,
        seed: 1,
    };
    let mut pipe = Pipe::new(ends);
    pipe.send_in(frame, &[12 + end]);
    let buffer = 0x1000;
    pipe.b_driver.post(&pipe.b, &[(buffer, 200)], super::driver::WRITE, super::driver::Shape::Chain);
    pipe.carry();
    assert_eq!(pipe.delivered, 1);
    let at = 12 + kind.transport_at() + kind.checksum_at();
    assert_eq!(pipe.b.read(buffer + at as u64, 2), [0xff, 0xff]);
}
