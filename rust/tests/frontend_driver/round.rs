// SPDX-License-Identifier: Apache-2.0
//! Rings that go round, all buffers in flight: the way of senders and receivers at full rate.

use super::device::Device;
use super::{HEADER, Kind, PACKED, SPLIT, inspector, plan};
use ovsvhost::testing::driver::{Layout, RingPlace, Shape, SlotRing, SlotRingConfig};
use ovsvhost::testing::frames::{Checksum, FramePlan, PlanConfig};
use ovsvhost::testing::memory::{Backing, GuestRam, RegionSpec};
use ovsvhost::testing::traffic::{Check, Receiver, Sender, Streams};

const ROOM: usize = 128;
/// Of 64 slots the sixteenth part comes back together; of 61 too.
const BLOCK: usize = 4;
const KINDS: [Kind; 3] = [SPLIT, PACKED, Kind { size: 61, ..PACKED }];

fn kinds_and_rewrites() -> impl Iterator<Item = (Kind, bool)> {
    KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)])
}

/// A ring whose buffers lie in one region without gaps, and the device for it.
fn ring(kind: Kind, rewrite: bool, writable: bool) -> (SlotRing, Device) {
    let Kind { size, features: agreed } = kind;
    let mut ram = GuestRam::new(&RegionSpec::spread(1, 4 << 20, &Backing::Memfd)).unwrap();
    let place = RingPlace::alloc_agreed(&mut ram, 0, size, agreed).unwrap();
    let shape = Shape { layout: Layout::One, header_size: HEADER, room: ROOM, gap: 0 };
    let config = SlotRingConfig { place, size, agreed, shape, writable, rewrite };
    let queue = SlotRing::new(&mut ram, config).unwrap();
    (queue, Device::new(ram, place, size, agreed & PACKED.features != 0))
}

/// Frames whose first line is all that is written.
fn light_plan(flows: u16) -> FramePlan {
    let config = plan().config().clone();
    FramePlan::new(PlanConfig { checksum: Checksum::Zero, sizes: vec![64], flows, ..config }).unwrap()
}

/// Takes back and posts again without a look.
fn turn(queue: &mut SlotRing, most: usize) -> Option<usize> {
    let turned = match queue {
        SlotRing::Split(slots) => slots.turn(most, |_, _, _, _| true),
        SlotRing::Packed(slots) => slots.turn(most, |_, _, _, _| true),
    };
    queue.publish();
    turned
}

fn post_all(queue: &mut SlotRing) {
    while let Some(slot) = queue.take_free() {
        queue.post(slot, HEADER + 64);
    }
    queue.publish();
}

/// The device uses `count` buffers in order; their ids.
fn use_some(device: &mut Device, count: usize) -> Vec<u32> {
    let ids: Vec<u32> = std::iter::from_fn(|| device.take()).take(count).map(|(id, _)| id).collect();
    for &id in &ids {
        device.give_back(id, 0);
    }
    device.publish();
    ids
}

#[test]
fn a_full_ring_goes_round_in_whole_blocks() {
    for (kind, rewrite) in kinds_and_rewrites() {
        let (mut queue, mut device) = ring(kind, rewrite, false);
        let block = BLOCK.min(usize::from(kind.size) / 16);
        assert_eq!(turn(&mut queue, 64), None, "nothing is in flight");
        post_all(&mut queue);
        assert_eq!(turn(&mut queue, 64), Some(0));
        assert_eq!(turn(&mut queue, block - 1), None, "less than a block is wanted");
        let mut next = 0;
        for lap in 0..200 {
            let ids = use_some(&mut device, block + lap % block);
            for id in ids {
                assert_eq!(id, next, "{kind:?}");
                next = (next + 1) % u32::from(kind.size);
            }
            let came = turn(&mut queue, 64).unwrap();
            assert!(came >= block && came.is_multiple_of(block), "{kind:?}: {came}");
        }
        assert_eq!((queue.violations().total(), queue.free()), (0, 0));
    }
}

#[test]
fn what_does_not_come_back_in_turn_is_left_to_the_long_way() {
    for (kind, rewrite) in kinds_and_rewrites() {
        let (mut queue, mut device) = ring(kind, rewrite, false);
        post_all(&mut queue);
        let ids: Vec<u32> = (0..8).map(|_| device.take().unwrap().0).collect();
        for at in [0, 1, 3, 2, 4, 5, 6, 7] {
            device.give_back(ids[at], 0);
        }
        device.publish();
        assert_eq!(turn(&mut queue, 64), Some(2), "{kind:?}");
        assert_eq!(turn(&mut queue, 64), None, "{kind:?}");
        assert_eq!(queue.reclaim(), 6);
        assert_eq!(turn(&mut queue, 64), None, "{kind:?}: slots are free");
        post_all(&mut queue);
        assert_eq!(turn(&mut queue, 64), None, "{kind:?}: they are not posted in turn");
        assert_eq!((queue.violations().total(), queue.free()), (0, 0));
    }
}

#[test]
fn every_frame_of_a_ring_that_goes_round_is_a_new_one() {
    for (kind, rewrite) in kinds_and_rewrites() {
        for flows in [1, 7] {
            let (queue, mut device) = ring(kind, rewrite, false);
            let mut sender = Sender::new(queue, light_plan(flows), true);
            // An announcement among the first: its slot is to become a frame like all others.
            sender.send_raw(&[0xff; HEADER + 64]).unwrap();
            device.take().map(|(id, _)| device.give_back(id, 0)).unwrap();
            device.publish();
            let mut sequence = 0;
            for pass in 0..400 {
                sender.pass(32);
                // Now and then two change places, and the long way has to bring the ring back into turn.
                let mut taken: Vec<_> = std::iter::from_fn(|| device.take()).take(5 + pass % 40).collect();
                for (_, pieces) in &taken {
                    let frame = device.read(pieces);
                    assert_eq!(&frame[54..62], &u64::to_le_bytes(sequence), "{kind:?}, rewrite {rewrite}");
                    let port = u16::from_be_bytes([frame[46], frame[47]]);
                    assert_eq!(u64::from(port), 1024 + sequence % u64::from(flows));
                    sequence += 1;
                }
                if pass % 60 == 59 {
                    taken.swap(0, 1);
                }
                for (id, _) in taken {
                    device.give_back(id, 0);
                }
                device.publish();
            }
            let counters = sender.counters();
            assert_eq!((counters.frames, counters.bytes), (sender.next(), 64 * sender.next()));
            assert!(sequence > 5000, "{sequence}");
            assert_eq!(sender.violations().total(), 0);
        }
    }
}

#[test]
fn a_buffer_that_comes_back_twice_is_a_violation_in_a_ring_that_goes_round() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, true, false);
        let mut sender = Sender::new(queue, light_plan(1), true);
        for _ in 0..4 {
            sender.pass(32);
        }
        use_some(&mut device, 12);
        sender.pass(32);
        let sent = sender.next();
        let ids: Vec<u32> = (0..8).map(|_| device.take().unwrap().0).collect();
        for _ in 0..ids.len() {
            device.give_back(ids[0], 0);
        }
        device.publish();
        for _ in 0..3 {
            sender.pass(32);
        }
        assert!(sender.violations().total() > 0, "{kind:?}");
        // It was sent again at once, so the second time it might be in flight. The third time it cannot be.
        assert!(sender.next() - sent <= 2, "{kind:?}: what did not come back is not sent again");
    }
}

/// Delivers light frames with these numbers.
fn deliver(device: &mut Device, numbers: impl IntoIterator<Item = u64>) {
    let plan = light_plan(1);
    let mut frame = Vec::new();
    for number in numbers {
        plan.build(number, &mut frame);
        device.deliver(&frame);
    }
    device.publish();
}

#[test]
fn every_frame_is_counted_however_few_came_at_once() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, false, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Count, true);
        receiver.queue_mut().publish();
        let mut streams = Streams::new(1);
        let mut sent = 0;
        for count in (0..300).map(|pass| pass % 23) {
            deliver(&mut device, sent..sent + count);
            sent += count;
            // What is less than a block may wait for a few passes, not for ever.
            for _ in 0..10 {
                receiver.pass(64, &mut streams);
            }
            assert_eq!(receiver.counters().frames, sent, "{kind:?}");
        }
        let counters = receiver.counters();
        assert_eq!((counters.bytes, counters.behind, receiver.violations().total()), (64 * sent, 0, 0));
    }
}

#[test]
fn numbers_that_run_backwards_are_noticed_by_who_only_counts() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, false, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Count, true);
        receiver.queue_mut().publish();
        for numbers in [0..4, 4..8, 4..8] {
            deliver(&mut device, numbers);
            receiver.pass(64, &mut Streams::new(1));
        }
        assert_eq!((receiver.counters().frames, receiver.counters().behind), (12 - 12 % BLOCK as u64, 1), "{kind:?}");
    }
}

#[test]
fn lengths_that_cannot_be_and_frames_of_many_buffers_are_not_counted_by_the_block() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, false, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Count, true);
        receiver.queue_mut().publish();
        let mut streams = Streams::new(1);
        let mut frame = Vec::new();
        // Three buffers, which are counted as one frame.
        light_plan(1).build(0, &mut frame);
        frame.resize(HEADER + 300, 0);
        device.deliver(&frame);
        deliver(&mut device, 1..8);
        receiver.pass(64, &mut streams);
        for _ in 0..10 {
            receiver.pass(64, &mut streams);
        }
        assert_eq!((receiver.counters().frames, receiver.counters().merged), (8, 1), "{kind:?}");
        assert_eq!(receiver.counters().bytes, 300 + 7 * 64);
        for len in [5, 4000, 5, 4000] {
            let (id, _) = device.take().unwrap();
            device.give_back(id, len);
        }
        device.publish();
        for _ in 0..10 {
            receiver.pass(64, &mut streams);
        }
        let violations = receiver.violations();
        assert_eq!((violations.length_too_small, violations.length_too_large), (2, 2), "{kind:?}");
    }
}
