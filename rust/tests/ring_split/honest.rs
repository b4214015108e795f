// SPDX-License-Identifier: Apache-2.0
//! Honest guests of every kind: whatever is sent in whatever buffers arrives whole, in order, and nowhere else.

use ovsvhost::ring::feature;
use proptest::prelude::*;

use super::dice::Dice;
use super::pipe::{Ends, Frame, Pipe, header_size};

/// Ring sizes: mostly small ones, whose indices and slots wrap often.
fn sizes() -> impl Strategy<Value = u32> {
    prop_oneof![10 => 0_u32..=8, 1 => 9_u32..=15].prop_map(|power| 1 << power)
}

/// Bases: mostly near the end of the index.
fn bases() -> impl Strategy<Value = u16> {
    prop_oneof![3 => 65_400_u16..=65_535, 1 => any::<u16>()]
}

fn features() -> impl Strategy<Value = u64> {
    let bits = [
        feature::VERSION_1,
        feature::MRG_RXBUF,
        feature::INDIRECT_DESC,
        feature::EVENT_IDX,
        feature::CSUM,
        feature::GUEST_CSUM,
    ];
    proptest::collection::vec(any::<bool>(), bits.len())
        .prop_map(move |set| bits.iter().zip(set).map(|(bit, on)| if on { *bit } else { 0 }).sum())
}

pub fn ends() -> impl Strategy<Value = Ends> {
    (sizes(), sizes(), bases(), bases(), features(), features(), any::<u64>()).prop_map(
        |(tx_size, rx_size, tx_base, rx_base, tx_features, rx_features, seed)| Ends {
            tx_size,
            rx_size,
            tx_base,
            rx_base,
            tx_features,
            rx_features,
            seed,
        },
    )
}

/// A frame of any length that a guest could send, some that it should not.
fn frame(dice: &mut Dice, features: u64) -> Frame {
    let len = match dice.pick(0..40) {
        0 | 1 => dice.pick(0..14),
        2 => dice.pick(65_500..65_600),
        3..8 => dice.pick(1_400..9_100),
        8..16 => dice.pick(50..80),
        _ => dice.pick(14..1_600),
    };
    let partial = (features & feature::CSUM != 0 && len >= 14 && dice.once_in(2)).then(|| {
        let start = dice.pick(0..(len - 1).min(65_000));
        (start as u16, dice.pick(0..(len - 1 - start).min(65_000)) as u16)
    });
    Frame { bytes: dice.bytes(len), partial }
}

fn room(dice: &mut Dice, features: u64) -> usize {
    let header = header_size(features);
    match (features & feature::MRG_RXBUF != 0, dice.pick(0..20)) {
        (true, 0) => dice.pick(header..80),
        (true, 1) => dice.pick(4_000..70_000),
        (true, _) => dice.pick(200..2_100),
        (false, 0) => dice.pick(header..400),
        (false, 1) => 65_600,
        (false, _) => dice.pick(1_600..9_200),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_arrives_whole_in_order_and_nowhere_else(ends in ends()) {
        let mut pipe = Pipe::new(ends);
        for _ in 0..6 {
            for _ in 0..pipe.dice.pick(0..100) {
                let frame = frame(&mut pipe.dice, ends.tx_features);
                if !pipe.send(frame) {
                    break;
                }
            }
            for _ in 0..pipe.dice.pick(0..100) {
                let room = room(&mut pipe.dice, ends.rx_features);
                if !pipe.offer(room) {
                    break;
                }
            }
            pipe.carry();
        }
    }
}

#[test]
fn indices_pass_their_end_in_the_smallest_rings() {
    for (size, features) in [(1, feature::VERSION_1), (2, feature::MRG_RXBUF | feature::EVENT_IDX), (4, 0)] {
        let ends = Ends {
            tx_size: size,
            rx_size: size,
            tx_base: 65_530,
            rx_base: 65_500,
            tx_features: features,
            rx_features: features,
            seed: 7,
        };
        let mut pipe = Pipe::new(ends);
        for _ in 0..60 {
            let bytes = pipe.dice.bytes(60);
            assert!(pipe.send_in(Frame { bytes, partial: None }, &[60 + header_size(features)]));
            pipe.offer(2_000);
            pipe.carry();
        }
        assert!(pipe.delivered >= 25, "{} of 60 with ring size {size}", pipe.delivered);
    }
}

#[test]
fn a_ring_of_every_size_is_filled_to_the_brim_and_drained() {
    for power in 0..=15_u32 {
        let size = 1_u32 << power;
        let ends = Ends {
            tx_size: size,
            rx_size: size,
            tx_base: 0,
            rx_base: 32_768,
            tx_features: feature::VERSION_1,
            rx_features: feature::VERSION_1,
            seed: u64::from(power),
        };
        let mut pipe = Pipe::new(ends);
        let mut sent = 0;
        // One buffer each: as many frames as descriptors, memory permitting.
        while pipe.a_driver.free() > 0 && pipe.send(Frame { bytes: vec![0x5a; 20], partial: None }) {
            sent += 1;
        }
        while pipe.b_driver.free() > 0 && pipe.offer(40) {}
        assert_eq!(pipe.carry(), sent, "ring size {size}");
    }
}

#[test]
fn a_chain_of_a_thousand_buffers_is_one_frame() {
    for features in [feature::VERSION_1, feature::VERSION_1 | feature::INDIRECT_DESC] {
        let ends = Ends {
            tx_size: 1024,
            rx_size: 16,
            tx_base: 65_535,
            rx_base: 0,
            tx_features: features,
            rx_features: feature::VERSION_1 | feature::MRG_RXBUF,
            seed: 3,
        };
        let mut pipe = Pipe::new(ends);
        let bytes = pipe.dice.bytes(1_012);
        pipe.send_in(Frame { bytes, partial: None }, &[1; 1_024]);
        pipe.offer(600);
        pipe.offer(600);
        assert_eq!((pipe.carry(), pipe.delivered), (1, 1));
    }
}
