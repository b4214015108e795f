// SPDX-License-Identifier: Apache-2.0
//! A poll thread by itself: what it owes a receiver whatever happened to a sender, and what resting means.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use ovsvhost::counters::QueueCounters;
use ovsvhost::frame::flow::FlowKey;
use ovsvhost::memory::{self, GuestMap};
use ovsvhost::pmd::{BridgeView, Message, OutletSlot, Pmd, PolledQueue, PortView, Topology};
use ovsvhost::ring::{Receiveq, Ring, RingConfig, Transmitq, feature};
use ovsvhost::switch::fdb::Fdb;
use ovsvhost::sys::cpu;
use ovsvhost::testing::driver::{RingPlace, Segment, SplitDriver};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec};

use super::rig::wait;

const SIZE: u16 = 16;

/// A guest with one ring, and the ring as the switch has it.
pub(super) struct Guest {
    ram: GuestRam,
    pub(super) driver: SplitDriver,
}

impl Guest {
    pub(super) fn new() -> (Self, Ring) {
        let mut ram = GuestRam::new(&RegionSpec::spread(1, 1 << 20, &Backing::Memfd)).unwrap();
        let place = RingPlace::alloc(&mut ram, 0, SIZE).unwrap();
        let driver = SplitDriver::new(&ram, place, SIZE, 0).unwrap();
        // A page of the file must be there, or the memory counts as private.
        ram.regions()[0].window().fill(0);
        let region = &ram.regions()[0];
        let spec = memory::RegionSpec {
            gpa: region.gpa().0,
            uva: region.user_address(),
            size: region.size() as u64,
            mmap_offset: region.file_offset(),
            file: region.file().try_clone().unwrap(),
        };
        let map = Arc::new(GuestMap::map(vec![spec], false).unwrap());
        let uva = |gpa| ram.user_address(gpa).unwrap();
        let config = RingConfig {
            size: u32::from(SIZE),
            desc_uva: uva(place.descriptors),
            avail_uva: uva(place.available),
            used_uva: uva(place.used),
            base: 0,
            features: feature::VERSION_1,
        };
        let ring = config.activate(&map, None, None).unwrap();
        (Self { ram, driver }, ring)
    }

    pub(super) fn post(&mut self, writable: bool) {
        let gpa = Gpa(512 << 10);
        if !writable {
            // A broadcast from somebody.
            self.ram.window(gpa, 12 + 14).unwrap().write(12, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
        }
        self.driver.add(&[Segment { gpa, len: 12 + 64, writable }]).unwrap();
        self.driver.publish();
    }

    pub(super) fn wait_used(&mut self) {
        wait("a buffer to come back", || self.driver.poll_used().is_some());
    }
}

/// A sender on port 0 and a receiver on port 1 of one bridge.
struct Pair {
    pmd: Pmd,
    sender: Guest,
    receiver: Guest,
    slot: Arc<OutletSlot>,
}

impl Pair {
    fn new() -> Self {
        let ((sender, sending), (receiver, receiving)) = (Guest::new(), Guest::new());
        let slot = Arc::new(OutletSlot::new(Receiveq::new(receiving), 1, 0, Arc::default(), 0));
        let port = |receiveqs| Some(PortView::new(0, Arc::default(), receiveqs));
        let fdb = Arc::new(Fdb::new(64, 300));
        let topology = Topology {
            ports: vec![port(Vec::new()), port(vec![Arc::clone(&slot)])],
            bridges: vec![Some(BridgeView { fdb, members: vec![0, 1], forward_bpdu: false })],
            flow_key: FlowKey::default(),
        };
        let cpu = cpu::allowed_cpus().unwrap()[0];
        let pmd = Pmd::spawn(cpu, 0, None, Instant::now(), channel().0).unwrap();
        let (done, passed) = channel();
        pmd.post(Message::Topology(Arc::new(topology), done));
        passed.recv().unwrap();
        let queue = PolledQueue::new(Transmitq::new(sending), 0, 1, Arc::<QueueCounters>::default(), 0);
        pmd.post(Message::Assign(Box::new(queue)));
        Self { pmd, sender, receiver, slot }
    }
}

#[test]
fn a_panic_over_one_senders_burst_costs_the_receiver_nothing() {
    let mut pair = Pair::new();
    let slot = Arc::clone(&pair.slot);
    let panicked = thread::spawn(move || {
        let _held = slot.queue.lock();
        panic!("as a bug would, while it delivers");
    });
    panicked.join().expect_err("it panicked with the receiver's lock");
    pair.receiver.post(true);
    pair.sender.post(false);
    pair.sender.wait_used();
    pair.receiver.wait_used();
    assert_eq!(pair.slot.counters.packets.read(), 1);
}

#[test]
fn a_thread_that_rests_takes_nothing_and_gives_its_queues_back() {
    let mut pair = Pair::new();
    for _ in 0..4 {
        pair.receiver.post(true);
    }
    pair.sender.post(false);
    pair.receiver.wait_used();
    let (done, rests) = channel();
    pair.pmd.post(Message::Rest(done));
    rests.recv().unwrap();
    for _ in 0..3 {
        pair.sender.post(false);
    }
    let queue = pair.pmd.release(0, 1, false, |late| panic!("{late}")).expect("it still has the queue");
    assert_eq!(queue.queue.into_ring().unwrap().next_index(), 1, "what was taken is settled, the rest is the guest's");
    pair.sender.wait_used();
    assert!(pair.sender.driver.poll_used().is_none() && pair.receiver.driver.poll_used().is_none());
}
