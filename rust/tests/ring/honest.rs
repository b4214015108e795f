// SPDX-License-Identifier: Apache-2.0
//! Honest guests of every kind: whatever is sent in whatever buffers arrives whole, in order, and nowhere else.

use ovsvhost::ring::feature;
use proptest::prelude::*;

use super::dice::Dice;
use super::driver::{LAYOUTS, Layout, Shape, WRITE};
use super::pipe::{Ends, Frame, Pipe, header_size};

pub fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Split), Just(Layout::Packed)]
}

/// Ring sizes: mostly small ones, whose indices and slots wrap often; of any number where the layout allows it.
fn rings() -> impl Strategy<Value = (Layout, u32)> {
    let powers = || prop_oneof![10 => 0_u32..=8, 1 => 9_u32..=15].prop_map(|power| 1_u32 << power);
    let any = prop_oneof![10 => 1_u32..300, 1 => 300_u32..=32_768];
    prop_oneof![
        2 => powers().prop_map(|size| (Layout::Split, size)),
        1 => powers().prop_map(|size| (Layout::Packed, size)),
        2 => any.prop_map(|size| (Layout::Packed, size)),
    ]
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
        feature::IN_ORDER,
    ];
    proptest::collection::vec(any::<bool>(), bits.len())
        .prop_map(move |set| bits.iter().zip(set).map(|(bit, on)| if on { *bit } else { 0 }).sum())
}

pub fn ends() -> impl Strategy<Value = Ends> {
    (rings(), rings(), bases(), bases(), features(), features(), any::<u64>()).prop_map(
        |((tx_layout, tx_size), (rx_layout, rx_size), tx_base, rx_base, tx_features, rx_features, seed)| Ends {
            tx_layout,
            rx_layout,
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
    Frame { bytes: dice.bytes(len), partial, gso: None }
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
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

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

/// A pair of rings of one layout and size.
fn pair(layout: Layout, size: u32, features: u64) -> Ends {
    Ends {
        tx_layout: layout,
        rx_layout: layout,
        tx_size: size,
        rx_size: size,
        tx_base: 65_530,
        rx_base: 65_500,
        tx_features: features,
        rx_features: features,
        seed: u64::from(size),
    }
}

#[test]
fn cursors_pass_their_end_in_the_smallest_rings() {
    let kinds =
        [(1_u32, feature::VERSION_1), (2, feature::MRG_RXBUF | feature::EVENT_IDX), (4, 0), (3, feature::IN_ORDER)];
    for (layout, (size, features)) in LAYOUTS.iter().flat_map(|layout| kinds.map(|kind| (*layout, kind))) {
        if layout == Layout::Split && !size.is_power_of_two() {
            continue;
        }
        let mut pipe = Pipe::new(pair(layout, size, features));
        for _ in 0..60 {
            let bytes = pipe.dice.bytes(60);
            assert!(pipe.send_in(Frame { bytes, partial: None, gso: None }, &[60 + header_size(features)]));
            pipe.offer(2_000);
            pipe.carry();
        }
        assert!(pipe.delivered >= 25, "{} of 60 with {layout:?} of {size}", pipe.delivered);
    }
}

#[test]
fn a_ring_of_every_size_is_filled_to_the_brim_and_drained() {
    let split = (0..=15).map(|power| (Layout::Split, 1_u32 << power));
    let packed = [1, 2, 3, 4, 5, 7, 63, 64, 65, 100, 1_000, 4_095, 32_767, 32_768].map(|size| (Layout::Packed, size));
    for (layout, size) in split.chain(packed) {
        let in_order = if size % 3 == 1 { feature::IN_ORDER } else { 0 };
        let mut pipe = Pipe::new(pair(layout, size, feature::VERSION_1 | in_order));
        // A second time over what the first one left, unless that takes long.
        for _ in 0..if size > 1_000 { 1 } else { 2 } {
            let mut sent = 0;
            // One buffer each: as many frames as descriptors, memory permitting.
            while pipe.a_driver.free() > 0 && pipe.send(Frame { bytes: vec![0x5a; 20], partial: None, gso: None }) {
                sent += 1;
            }
            while pipe.b_driver.free() > 0 && pipe.offer(40) {}
            assert_eq!(pipe.carry(), sent, "{layout:?} of {size}");
        }
    }
}

#[test]
fn a_chain_of_a_thousand_buffers_is_one_frame() {
    for (layout, indirect) in
        LAYOUTS.into_iter().flat_map(|layout| [0, feature::INDIRECT_DESC].map(|bit| (layout, bit)))
    {
        let ends = Ends {
            tx_size: 1024,
            rx_size: 16,
            tx_features: feature::VERSION_1 | indirect,
            rx_features: feature::VERSION_1 | feature::MRG_RXBUF,
            ..pair(layout, 16, 0)
        };
        let mut pipe = Pipe::new(ends);
        let bytes = pipe.dice.bytes(1_012);
        // Some frames are left to themselves by the pipe: until this one is not.
        while pipe.delivered == 0 {
            pipe.send_in(Frame { bytes: bytes.clone(), partial: None, gso: None }, &[1; 1_024]);
            pipe.offer(600);
            pipe.offer(600);
            assert_eq!(pipe.carry(), 1);
        }
    }
}

/// Buffers so small that a frame would take more than a thousand of them: it is refused, smaller ones are not, and the
/// queue goes on.
///
/// Rows: C13.
#[test]
fn a_frame_over_more_than_a_thousand_buffers_is_refused_and_its_receiver_goes_on() {
    for layout in LAYOUTS {
        let features = feature::VERSION_1 | feature::MRG_RXBUF;
        let mut pipe = Pipe::new(pair(layout, 2_048, features));
        let frames = [20_000, 900, 30_000].map(|size| pipe.dice.bytes(size));
        for bytes in frames.clone() {
            let size = 12 + bytes.len();
            assert!(pipe.send_in(Frame { bytes, partial: None, gso: None }, &[size]));
        }
        for place in 0..2_000 {
            pipe.b_driver.post(&pipe.b, &[(place * 16, 16)], WRITE, Shape::Chain);
        }
        pipe.a_driver.publish();
        pipe.b_driver.publish();
        assert_eq!(pipe.tx.gather(), Ok(3), "{layout:?}");
        let delivery = pipe.rx.deliver(pipe.tx.burst(), &[0, 1, 2]);
        assert_eq!((delivery.fault, delivery.settled, delivery.too_small), (None, 3, 0b101), "{layout:?}");
        let mut frame = Vec::new();
        while let Some((posted, len)) = pipe.b_driver.take_used() {
            frame.extend(pipe.b.read(posted.buffers[0].0, len as usize));
        }
        assert_eq!(u16::from_le_bytes([frame[10], frame[11]]), 57, "912 bytes in buffers of 16");
        assert_eq!(frame[12..], frames[1], "{layout:?}");
    }
}

/// Chains that are long and direct end a packed ring's look ahead; those between them come in the same burst.
#[test]
fn long_chains_between_short_ones_share_their_burst() {
    for layout in LAYOUTS {
        let features = feature::VERSION_1 | feature::INDIRECT_DESC;
        let mut pipe = Pipe::new(pair(layout, 256, features));
        for i in 0..40 {
            let bytes = pipe.dice.bytes(100);
            let sizes: &[usize] = [&[112][..], &[12, 100], &[12, 40, 60], &[6, 6, 50, 50], &[5, 107]][i % 5];
            assert!(pipe.send_in(Frame { bytes, partial: None, gso: None }, sizes));
        }
        pipe.a_driver.publish();
        assert_eq!(pipe.tx.gather(), Ok(40), "{layout:?}");
        // The same again, in full.
        assert_eq!(pipe.carry(), 40, "{layout:?}");
    }
}
