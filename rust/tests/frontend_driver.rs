// SPDX-License-Identifier: Apache-2.0
//! The front-end's driver rings against a device that is written as the specification reads: slowly, one chain at a
//! time, and honest or not as a test wants it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ovsvhost::testing::driver::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, Layout, RingPlace, Shape, SlotRing, SlotRingConfig,
};
use ovsvhost::testing::frames::{Checksum, FramePlan, Inspector, Mac, Network, PlanConfig, Transport, Verdict};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec, Window};
use ovsvhost::testing::traffic::{Check, Receiver, Sender, Streams};

const HEADER: usize = 12;
const SIZE: u16 = 64;
const LAYOUTS: [Layout; 6] =
    [Layout::One, Layout::Two, Layout::Chain(3), Layout::Chain(7), Layout::Indirect(2), Layout::Indirect(5)];

/// A device for one split ring.
struct Device {
    ram: GuestRam,
    place: RingPlace,
    taken: u16,
    returned: u16,
}

impl Device {
    fn new(ram: GuestRam, place: RingPlace) -> Self {
        Self { ram, place, taken: 0, returned: 0 }
    }

    fn window(&self, gpa: Gpa, size: usize) -> Window {
        self.ram.window(gpa, size).unwrap()
    }

    /// The next available head and the buffers of its chain.
    fn take(&mut self) -> Option<(u16, Vec<Descriptor>)> {
        let available = self.window(self.place.available, 6 + 2 * usize::from(SIZE));
        if available.load_u16_acquire(2) == self.taken {
            return None;
        }
        let head = available.load_u16(4 + 2 * usize::from(self.taken % SIZE));
        self.taken = self.taken.wrapping_add(1);
        let table = self.window(self.place.descriptors, 16 * usize::from(SIZE));
        let first = Descriptor::load(&table, 16 * usize::from(head));
        if first.flags & DESC_INDIRECT == 0 {
            return Some((head, chain(&table, head)));
        }
        let table = self.window(Gpa(first.address), usize::try_from(first.len).unwrap());
        Some((head, chain(&table, 0)))
    }

    fn give_back(&mut self, id: u32, len: usize) {
        let used = self.window(self.place.used, 6 + 8 * usize::from(SIZE));
        let at = 4 + 8 * usize::from(self.returned % SIZE);
        used.store_u32(at, id);
        used.store_u32(at + 4, u32::try_from(len).unwrap());
        self.returned = self.returned.wrapping_add(1);
    }

    fn publish(&self) {
        self.window(self.place.used, 6 + 8 * usize::from(SIZE)).store_u16_release(2, self.returned);
    }

    fn read(&self, buffers: &[Descriptor]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for buffer in buffers {
            assert_eq!(buffer.flags & DESC_WRITE, 0);
            let mut piece = vec![0; usize::try_from(buffer.len).unwrap()];
            self.window(Gpa(buffer.address), piece.len()).read(0, &mut piece);
            bytes.extend(piece);
        }
        bytes
    }

    /// Writes as much as the buffers hold; gives the rest.
    fn write<'a>(&self, buffers: &[Descriptor], bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        for buffer in buffers {
            assert_ne!(buffer.flags & DESC_WRITE, 0);
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(buffer.len).unwrap()));
            self.window(Gpa(buffer.address), now.len()).write(0, now);
            rest = later;
        }
        rest
    }

    /// Delivers vnet header and frame into as many buffers as it takes.
    fn deliver(&mut self, frame: &[u8]) {
        let mut rest = frame;
        let mut first = None;
        let mut count = 0_u16;
        while !rest.is_empty() {
            let (head, buffers) = self.take().unwrap();
            first.get_or_insert(buffers[0].address);
            let left = self.write(&buffers, rest);
            self.give_back(u32::from(head), rest.len() - left.len());
            (rest, count) = (left, count + 1);
        }
        self.window(Gpa(first.unwrap() + 10), 2).write(0, &count.to_le_bytes());
    }
}

fn chain(table: &Window, head: u16) -> Vec<Descriptor> {
    let mut buffers = Vec::new();
    let mut index = head;
    loop {
        let buffer = Descriptor::load(table, 16 * usize::from(index));
        assert_eq!(buffer.flags & DESC_INDIRECT, 0);
        assert_ne!(buffer.len, 0);
        buffers.push(buffer);
        if buffer.flags & DESC_NEXT == 0 {
            return buffers;
        }
        index = buffer.next;
    }
}

/// A ring over two regions, and the device for it.
fn ring(layout: Layout, room: usize, writable: bool) -> (SlotRing, Device) {
    let mut ram = GuestRam::new(&RegionSpec::spread(2, 4 << 20, &Backing::Memfd)).unwrap();
    let place = RingPlace::alloc(&mut ram, 0, SIZE).unwrap();
    let shape = Shape { layout, header_size: HEADER, room, gap: 64 };
    let config = SlotRingConfig { place, size: SIZE, event_idx: false, shape, writable, rewrite: false };
    let queue = SlotRing::new(&mut ram, config).unwrap();
    (queue, Device::new(ram, place))
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
    })
    .unwrap()
}

fn inspector() -> Inspector {
    Inspector { station: Mac([2, 0, 0, 0, 0, 2]), stations: 1, header_size: HEADER, partial_allowed: false }
}

#[test]
fn what_is_sent_in_any_layout_is_what_the_device_reads() {
    for layout in LAYOUTS {
        let (queue, mut device) = ring(layout, 1500, false);
        let mut sender = Sender::new(queue, plan(), false);
        let mut sequence = 0;
        // Long enough for ring indices to pass the ring's end many times over.
        while sequence < 1000 {
            sender.pass(16);
            while let Some((head, buffers)) = device.take() {
                let expected = Verdict::Numbered { stream: 0, sequence };
                assert_eq!(inspector().inspect(&device.read(&buffers)), expected, "{layout:?}");
                assert!(buffers.len() <= layout.pieces());
                device.give_back(u32::from(head), 0);
                sequence += 1;
            }
            device.publish();
        }
        assert_eq!(sender.violations().total(), 0);
        assert_eq!(sender.counters().frames, sequence);
    }
}

#[test]
fn a_full_ring_takes_no_more_and_loses_nothing() {
    let (queue, mut device) = ring(Layout::Two, 1500, false);
    let mut sender = Sender::new(queue, plan(), false);
    for _ in 0..10 {
        sender.pass(64);
    }
    assert_eq!((sender.next(), sender.is_full()), (32, true));
    assert!(sender.counters().full_tries > 0);
    while let Some((head, _)) = device.take() {
        device.give_back(u32::from(head), 0);
    }
    device.publish();
    sender.take_back();
    assert!(!sender.is_full());
}

#[test]
fn what_the_device_writes_in_any_layout_is_what_is_received() {
    for layout in LAYOUTS {
        // Small buffers: most frames take several.
        let (queue, mut device) = ring(layout, 256, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Full, true);
        receiver.queue_mut().publish();
        let mut streams = Streams::new(1);
        let (plan, mut frame) = (plan(), Vec::new());
        for sequence in 0..500 {
            plan.build(sequence, &mut frame);
            device.deliver(&frame);
            device.publish();
            assert_eq!(receiver.pass(64, &mut streams).0, 1, "{layout:?}");
        }
        let (_, account) = streams.accounts().next().unwrap();
        assert_eq!((account.received, account.lost, account.duplicated), (500, 0, 0), "{layout:?}");
        assert_eq!((receiver.counters().corrupt_total(), receiver.violations().total()), (0, 0), "{layout:?}");
        assert!(receiver.counters().merged > 0);
    }
}

#[test]
fn a_device_that_works_out_of_order_is_within_its_rights() {
    let (queue, mut device) = ring(Layout::One, 1500, false);
    let mut sender = Sender::new(queue, plan(), false);
    let mut sequence = 0;
    for round in 0..50 {
        sender.pass(64);
        let mut taken: Vec<(u16, Vec<Descriptor>)> = std::iter::from_fn(|| device.take()).collect();
        for (_, buffers) in &taken {
            assert_eq!(inspector().inspect(&device.read(buffers)), Verdict::Numbered { stream: 0, sequence });
            sequence += 1;
        }
        let count = taken.len().max(1);
        taken.rotate_left(round % count);
        for (head, _) in taken {
            device.give_back(u32::from(head), 0);
        }
        device.publish();
    }
    assert_eq!(sender.violations().total(), 0);
}

#[test]
fn a_device_that_corrupts_loses_and_repeats_is_found_out() {
    let (queue, mut device) = ring(Layout::One, 2048, true);
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

#[test]
fn a_device_that_breaks_its_ring_is_counted_and_never_trusted() {
    let (queue, mut device) = ring(Layout::Chain(3), 1500, false);
    let mut sender = Sender::new(queue, plan(), false);
    sender.pass(4);
    let (head, _) = device.take().unwrap();
    for id in [u32::MAX, u32::from(SIZE), u32::from(head) + 1, u32::from(head)] {
        device.give_back(id, 0);
    }
    device.publish();
    sender.take_back();
    let violations = sender.violations();
    assert_eq!((violations.unknown_head, violations.head_not_posted), (3, 0));
    device.give_back(u32::from(head), 0);
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
fn lengths_and_buffer_counts_that_cannot_be_are_counted() {
    for (len, buffers) in [(5, 1_u16), (4000, 1), (100, 0), (100, 9)] {
        let (queue, mut device) = ring(Layout::One, 2048, true);
        let mut receiver = Receiver::new(queue, inspector(), Check::Full, true);
        receiver.queue_mut().publish();
        let (head, chain) = device.take().unwrap();
        device.window(Gpa(chain[0].address + 10), 2).write(0, &buffers.to_le_bytes());
        device.give_back(u32::from(head), len);
        device.publish();
        receiver.pass(64, &mut Streams::new(1));
        assert_eq!(receiver.violations().total(), 1, "{len} bytes in {buffers} buffers");
    }
}
