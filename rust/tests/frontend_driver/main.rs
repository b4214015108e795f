// SPDX-License-Identifier: Apache-2.0
//! The front-end's driver rings against a device that is written as the specification reads: slowly, one buffer at a
//! time, and honest or not as a test wants it.
#![allow(unreachable_pub, reason = "a test has no users: what is pub is for its other rooms")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod device;
mod offloads;
mod round;

use device::{Device, Piece};
use ovsvhost::testing::driver::{Layout, RingPlace, Shape, SlotRing, SlotRingConfig};
use ovsvhost::testing::frames::{Checksum, FramePlan, Inspector, Mac, Network, PlanConfig, Transport, Verdict};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec};
use ovsvhost::testing::traffic::{Check, Receiver, Sender, Streams};
use ovsvhost::testing::wire::features;

const HEADER: usize = 12;
const LAYOUTS: [Layout; 6] =
    [Layout::One, Layout::Two, Layout::Chain(3), Layout::Chain(7), Layout::Indirect(2), Layout::Indirect(5)];

/// What the rings are like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    size: u16,
    features: u64,
}

const SPLIT: Kind = Kind { size: 64, features: 0 };
const PACKED: Kind = Kind { size: 64, features: features::RING_PACKED };
const KINDS: [Kind; 5] = [
    SPLIT,
    Kind { features: features::IN_ORDER, ..SPLIT },
    PACKED,
    // Packed rings need not be a power of two long.
    Kind { size: 61, ..PACKED },
    Kind { size: 83, features: features::RING_PACKED | features::IN_ORDER },
];

impl Kind {
    fn is_in_order(self) -> bool {
        self.features & features::IN_ORDER != 0
    }
}

fn every_kind_and_layout() -> impl Iterator<Item = (Kind, Layout)> {
    KINDS.into_iter().flat_map(|kind| LAYOUTS.map(|layout| (kind, layout)))
}

/// A ring over two regions, and the device for it.
fn ring(kind: Kind, layout: Layout, room: usize, writable: bool) -> (SlotRing, Device) {
    let Kind { size, features: agreed } = kind;
    let mut ram = GuestRam::new(&RegionSpec::spread(2, 4 << 20, &Backing::Memfd)).unwrap();
    let place = RingPlace::alloc_agreed(&mut ram, 0, size, agreed).unwrap();
    let shape = Shape { layout, header_size: HEADER, room, gap: 64 };
    let config = SlotRingConfig { place, size, agreed, shape, writable, rewrite: false };
    let queue = SlotRing::new(&mut ram, config).unwrap();
    (queue, Device::new(ram, place, size, agreed & features::RING_PACKED != 0))
}

fn plan() -> FramePlan {
    FramePlan::new(PlanConfig {
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: Mac([2, 0, 0, 0, 0, 2]),
        destinations: 1,
        network: Network::V4,
        transport: Transport::Udp,
        checksum: Checksum::Good,
        flows: 1,
        sizes: vec![64, 1500, 77, 590],
        stream: 0,
        header_size: HEADER,
        vlan: None,
        gso: None,
    })
    .unwrap()
}

fn inspector() -> Inspector {
    Inspector { station: Mac([2, 0, 0, 0, 0, 2]), stations: 1, header_size: HEADER, agreed: 0 }
}

fn numbered(sequence: u64) -> Verdict {
    Verdict::Numbered { stream: 0, sequence }
}

#[test]
fn what_is_sent_in_any_layout_is_what_the_device_reads() {
    for (kind, layout) in every_kind_and_layout() {
        let (queue, mut device) = ring(kind, layout, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        let mut sequence = 0;
        // Long enough for ring indices to pass the ring's end many times over.
        while sequence < 1000 {
            sender.pass(16);
            while let Some((id, pieces)) = device.take() {
                assert_eq!(inspector().inspect(&device.read(&pieces)), numbered(sequence), "{kind:?} {layout:?}");
                assert!(pieces.len() <= layout.pieces());
                device.give_back(id, 0);
                sequence += 1;
            }
            device.publish();
        }
        assert_eq!(sender.violations().total(), 0, "{kind:?} {layout:?}");
        assert_eq!(sender.counters().frames, sequence);
    }
}

#[test]
fn a_full_ring_takes_no_more_and_loses_nothing() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, Layout::Two, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        for _ in 0..10 {
            sender.pass(64);
        }
        assert_eq!((sender.next(), sender.is_full()), (u64::from(kind.size / 2), true), "{kind:?}");
        assert!(sender.counters().full_tries > 0);
        while let Some((id, _)) = device.take() {
            device.give_back(id, 0);
        }
        device.publish();
        sender.take_back();
        assert!(!sender.is_full());
    }
}

#[test]
fn what_the_device_writes_in_any_layout_is_what_is_received() {
    for (kind, layout) in every_kind_and_layout() {
        // Small buffers: most frames take several.
        let (queue, mut device) = ring(kind, layout, 256, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Full, true);
        receiver.queue_mut().publish();
        let mut streams = Streams::new(1);
        let (plan, mut frame) = (plan(), Vec::new());
        for sequence in 0..500 {
            plan.build(sequence, &mut frame);
            device.deliver(&frame);
            device.publish();
            assert_eq!(receiver.pass(64, &mut streams).0, 1, "{kind:?} {layout:?}");
        }
        let (_, account) = streams.accounts().next().unwrap();
        assert_eq!((account.received, account.lost, account.duplicated), (500, 0, 0), "{kind:?} {layout:?}");
        assert_eq!((receiver.counters().corrupt_total(), receiver.violations().total()), (0, 0), "{kind:?} {layout:?}");
        assert!(receiver.counters().merged > 0);
    }
}

#[test]
fn a_device_that_works_out_of_order_is_within_its_rights() {
    for (kind, layout) in every_kind_and_layout().filter(|(kind, _)| !kind.is_in_order()) {
        let (queue, mut device) = ring(kind, layout, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        let mut sequence = 0;
        for round in 0..50 {
            sender.pass(64);
            let mut taken: Vec<(u32, Vec<Piece>)> = std::iter::from_fn(|| device.take()).collect();
            for (_, pieces) in &taken {
                assert_eq!(inspector().inspect(&device.read(pieces)), numbered(sequence), "{kind:?} {layout:?}");
                sequence += 1;
            }
            let count = taken.len().max(1);
            taken.rotate_left(round % count);
            for (id, _) in taken {
                device.give_back(id, 0);
            }
            device.publish();
        }
        assert_eq!(sender.violations().total(), 0);
    }
}

#[test]
fn a_device_that_works_in_order_returns_whole_batches_at_once() {
    for (kind, layout) in every_kind_and_layout().filter(|(kind, _)| kind.is_in_order()) {
        let (queue, mut device) = ring(kind, layout, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        let mut sequence = 0;
        for round in 0..200 {
            sender.pass(64);
            let mut ids = Vec::new();
            for _ in 0..=round % 9 {
                let Some((id, pieces)) = device.take() else { break };
                assert_eq!(inspector().inspect(&device.read(&pieces)), numbered(sequence), "{kind:?} {layout:?}");
                sequence += 1;
                ids.push(id);
            }
            if !ids.is_empty() {
                device.give_back_batch(&ids, 0);
                device.publish();
            }
            sender.take_back();
            assert_eq!(sender.next() - sequence, sender.queue().posted() as u64, "{kind:?} {layout:?}");
        }
        assert_eq!(sender.violations().total(), 0, "{kind:?} {layout:?}");
    }
}

#[test]
fn a_batch_of_receive_buffers_was_filled_to_the_brim_but_for_the_last() {
    for kind in KINDS.into_iter().filter(|kind| kind.is_in_order()) {
        let (mut queue, mut device) = ring(kind, Layout::One, 256, true);
        for _ in 0..40 {
            while let Some(slot) = queue.take_free() {
                queue.post(slot, HEADER + 256);
            }
            queue.publish();
            let ids: Vec<u32> = (0..3).map(|_| device.take().unwrap().0).collect();
            device.give_back_batch(&ids, 77);
            device.publish();
            assert_eq!(queue.used_waiting(), 3);
            let back: Vec<(u16, usize)> = std::iter::from_fn(|| queue.take_used()).collect();
            let lens: Vec<usize> = back.iter().map(|(_, len)| *len).collect();
            assert_eq!(lens, [HEADER + 256, HEADER + 256, 77], "{kind:?}");
            for (slot, _) in back {
                queue.put_free(slot);
            }
        }
    }
}

#[test]
fn a_ring_that_was_reset_begins_anew() {
    for (kind, layout) in every_kind_and_layout() {
        let (queue, device) = ring(kind, layout, 1500, false);
        let place = queue.place();
        let mut sender = Sender::new(queue, plan(), false);
        sender.pass(7);
        assert_eq!(sender.queue_mut().restart(), 7, "what the device had is the driver's again");
        let mut device = Device::new(device.ram, place, kind.size, kind.features & features::RING_PACKED != 0);
        assert!(device.take().is_none());
        sender.pass(5);
        for sequence in 7..12 {
            let (id, pieces) = device.take().unwrap();
            assert_eq!(inspector().inspect(&device.read(&pieces)), numbered(sequence), "{kind:?} {layout:?}");
            device.give_back(id, 0);
        }
        device.publish();
        sender.take_back();
        assert_eq!((sender.queue().posted(), sender.violations().total()), (0, 0));
    }
}

#[test]
fn a_device_that_corrupts_loses_and_repeats_is_found_out() {
    for kind in KINDS {
        let (queue, mut device) = ring(kind, Layout::One, 2048, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Full, true);
        receiver.queue_mut().publish();
        let mut streams = Streams::new(1);
        let (plan, mut frame) = (plan(), Vec::new());
        for sequence in [0, 1, 3, 3, 4, 6, 5] {
            plan.build(sequence, &mut frame);
            if sequence == 4 {
                frame[60] ^= 1;
            }
            device.deliver(&frame);
        }
        device.publish();
        receiver.pass(64, &mut streams);
        let (_, account) = streams.accounts().next().unwrap();
        assert_eq!((account.received, account.lost, account.duplicated, account.reordered), (5, 2, 1, 1));
        assert_eq!(receiver.counters().corrupt_total(), 1);
    }
}

#[test]
fn a_device_that_breaks_its_split_ring_is_counted_and_never_trusted() {
    let (queue, mut device) = ring(SPLIT, Layout::Chain(3), 1500, false);
    let mut sender = Sender::new(queue, plan(), false);
    sender.pass(5);
    let (head, _) = device.take().unwrap();
    for id in [u32::MAX, u32::from(SPLIT.size), head + 1, head] {
        device.give_back(id, 0);
    }
    device.publish();
    sender.take_back();
    let violations = sender.violations();
    assert_eq!((violations.unknown_head, violations.head_not_posted), (3, 0));
    device.give_back(head, 0);
    device.publish();
    sender.take_back();
    assert_eq!(sender.violations().head_not_posted, 1);
    for _ in 0..30 {
        device.give_back(0, 0);
    }
    device.publish();
    sender.take_back();
    assert_eq!(sender.violations().used_index_jumped, 1);
}

#[test]
fn a_device_that_breaks_its_packed_ring_is_counted_and_never_trusted() {
    for kind in KINDS.into_iter().filter(|kind| kind.features & features::RING_PACKED != 0) {
        for id in [u32::from(u16::MAX), u32::from(kind.size), 5] {
            let (queue, mut device) = ring(kind, Layout::Chain(3), 1500, false);
            let mut sender = Sender::new(queue, plan(), false);
            sender.pass(5);
            let (first, _) = device.take().unwrap();
            device.give_back(first, 0);
            device.give_back(id, 0);
            device.publish();
            sender.take_back();
            assert_eq!(sender.violations().total(), 1, "{kind:?} {id}");
            sender.take_back();
            assert_eq!((sender.violations().total(), sender.queue().posted()), (1, 4), "{kind:?} {id}");
        }
        // The same buffer twice.
        let (queue, mut device) = ring(kind, Layout::One, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        sender.pass(5);
        let (first, _) = device.take().unwrap();
        device.give_back(first, 0);
        device.give_back(first, 0);
        device.publish();
        sender.take_back();
        assert_eq!((sender.violations().total(), sender.queue().posted()), (1, 4), "{kind:?}");
    }
}

#[test]
fn lengths_and_buffer_counts_that_cannot_be_are_counted() {
    for kind in KINDS {
        for (len, buffers) in [(5, 1_u16), (4000, 1), (100, 0), (100, 9)] {
            let (queue, mut device) = ring(kind, Layout::One, 2048, true);
            let mut receiver = Receiver::new(queue, inspector(), Check::Full, true);
            receiver.queue_mut().publish();
            let (id, pieces) = device.take().unwrap();
            device.window(Gpa(pieces[0].address + 10), 2).write(0, &buffers.to_le_bytes());
            device.give_back(id, len);
            device.publish();
            receiver.pass(64, &mut Streams::new(1));
            assert_eq!(receiver.violations().total(), 1, "{kind:?}: {len} bytes in {buffers} buffers");
        }
    }
}
