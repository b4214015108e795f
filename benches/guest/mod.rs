//! Two guests in this process, for measuring the device's side of their rings alone.
//!
//! The driver's side is the project's own front-end's; its work is never inside a measurement. Memory is a memfd, mapped
//! once for the driver and once for the device, as between processes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to say")]
#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod way;

use std::sync::Arc;

use ovsvhost::memory::{Access, DirtyLog, GuestMap, Iotlb, Iova, Logging, RegionSpec, Uva};
use ovsvhost::ring::{Receiveq, RingConfig, Transmitq, feature};
use ovsvhost::testing::driver::{Layout, RingPlace, Shape, SlotRing, SlotRingConfig};
use ovsvhost::testing::frames::{Checksum, FramePlan, Mac, Network, PlanConfig, Transport};
use ovsvhost::testing::memory::{Backing, Gpa, GuestRam, RegionSpec as RamSpec};
use ovsvhost::testing::traffic::Sender;
use vmm_sys_util::eventfd::EventFd;

/// Descriptors in a ring.
pub(crate) const RING_SIZE: u16 = 1024;
/// Frames that one filling of a ring holds, whatever the layout, and that find room in a receiveq even at 9000 B.
pub(crate) const FRAMES: u16 = 128;
/// Bytes of frame in a receive buffer.
const ROOM: usize = 2048;
const HEADER_SIZE: usize = 12;
const PAGE: usize = 4096;
const FEATURES: u64 = feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// Address of the sending guest.
pub(crate) const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Address of the receiving guest.
pub(crate) const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// How a driver sets its rings up and posts frames in them.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// What the benchmarks call it.
    pub(crate) name: &'static str,
    layout: Layout,
    /// Features besides those that all have.
    features: u64,
    /// Addresses that frames go to in turn, [`RECEIVER`] and those after it.
    pub(crate) destinations: u32,
    /// Whether the receiver moves: what is written to it is marked in a dirty log.
    moves: bool,
    /// Bytes that the IOMMUs of both guests map at a time, if they have any.
    mappings: Option<usize>,
    /// Frames that come at once.
    pub(crate) together: u16,
}

const fn kind(name: &'static str, layout: Layout, features: u64) -> Kind {
    Kind { name, layout, features, destinations: 1, moves: false, mappings: None, together: FRAMES }
}

/// One buffer a frame in split rings.
pub(crate) const PLAIN: Kind = kind("one buffer", Layout::One, 0);
/// The layouts that drivers post, in split rings.
pub(crate) const LAYOUTS: [Kind; 3] =
    [PLAIN, kind("header and data", Layout::Two, 0), kind("indirect", Layout::Indirect(2), 0)];
/// The same in packed rings, and both in order.
pub(crate) const OTHERS: [Kind; 5] = [
    kind("packed, one buffer", Layout::One, feature::RING_PACKED),
    kind("packed, header and data", Layout::Two, feature::RING_PACKED),
    kind("packed, indirect", Layout::Indirect(2), feature::RING_PACKED),
    kind("in order, one buffer", Layout::One, feature::IN_ORDER),
    kind("packed in order, one buffer", Layout::One, feature::RING_PACKED | feature::IN_ORDER),
];

/// Each frame to another of very many addresses.
pub(crate) const MANY: Kind = Kind { name: "one buffer, 100 000 addresses", destinations: 100_000, ..PLAIN };

/// Frame by frame: each bears all that is done once a burst.
pub(crate) const ALONE: [Kind; 2] = [
    Kind { name: "one buffer, one by one", together: 1, ..PLAIN },
    Kind { name: "packed, one buffer, one by one", together: 1, ..OTHERS[0] },
];

/// To a guest that moves to another host.
pub(crate) const MOVES: [Kind; 2] = [
    Kind { name: "one buffer, logged", moves: true, ..PLAIN },
    Kind { name: "packed, one buffer, logged", moves: true, ..OTHERS[0] },
];

/// From and to guests with an IOMMU that maps huge pages, once for all.
pub(crate) const GUARDED: Kind = Kind { name: "one buffer, iommu", mappings: Some(2 << 20), ..PLAIN };

/// A guest that sends.
pub(crate) struct SendingGuest {
    sender: Sender,
    _ram: GuestRam,
}

impl SendingGuest {
    /// With frames of `size` bytes; and the switch's side of its transmitq.
    pub(crate) fn new(kind: Kind, size: usize) -> (Self, Transmitq) {
        let (mut ram, place) = memory(usize::from(RING_SIZE) * (size + 256));
        let plan = FramePlan::new(PlanConfig {
            source: Mac(SENDER),
            destination: Mac(RECEIVER),
            destinations: kind.destinations,
            network: Network::V4,
            transport: Transport::Udp,
            checksum: Checksum::Zero,
            flows: 1,
            sizes: vec![size],
            stream: 0,
            header_size: HEADER_SIZE,
            vlan: None,
            gso: None,
        })
        .unwrap();
        let buffers = ram.alloc(0, 0, PAGE).unwrap();
        let driver = slots(&mut ram, place, kind, size, false);
        let device = device(&ram, place, kind, &driver);
        let memory = guarded(map(&ram), &ram, buffers, kind, Access::READ);
        let mut sender = Sender::new(driver, plan, true);
        // Memory that nobody ever wrote is taken for private.
        sender.pass(1);
        let mut queue = Transmitq::new(device.activate(&memory, None, None).unwrap());
        queue.gather().unwrap();
        queue.commit();
        sender.take_back();
        (Self { sender, _ram: ram }, queue)
    }

    /// Makes `count` frames available, at most [`FRAMES`].
    pub(crate) fn fill(&mut self, count: u16) {
        self.sender.take_back();
        let mut left = usize::from(count);
        while left > 0 {
            let (sent, _) = self.sender.pass(left);
            assert!(sent > 0, "the transmitq holds fewer than {count} frames");
            left -= sent;
        }
    }
}

/// A guest that receives.
pub(crate) struct ReceivingGuest {
    driver: SlotRing,
    _ram: GuestRam,
}

impl ReceivingGuest {
    /// With buffers of 2 KiB, each in one piece, in rings as `kind` has them; and the switch's side of its receiveq.
    pub(crate) fn new(kind: Kind) -> (Self, Receiveq) {
        let kind = Kind { layout: Layout::One, ..kind };
        let (mut ram, place) = memory(usize::from(RING_SIZE) * (ROOM + 256));
        let buffers = ram.alloc(0, 0, PAGE).unwrap();
        let mut driver = slots(&mut ram, place, kind, ROOM, true);
        let device = device(&ram, place, kind, &driver);
        while let Some(slot) = driver.take_free() {
            driver.post(slot, HEADER_SIZE + ROOM);
        }
        driver.publish();
        let memory = guarded(map(&ram), &ram, buffers, kind, Access::WRITE);
        let mut ring = device.activate(&memory, None, None).unwrap();
        ring.log_to(&if kind.moves { log() } else { Arc::default() }, None, false);
        (Self { driver, _ram: ram }, Receiveq::new(ring))
    }

    /// Gives every buffer back that the switch filled; gives how many those were.
    pub(crate) fn empty(&mut self) -> usize {
        let mut count = 0;
        if self.driver.used_waiting() > 0 {
            while let Some((slot, _)) = self.driver.take_used() {
                self.driver.post(slot, HEADER_SIZE + ROOM);
                count += 1;
            }
            self.driver.publish();
        }
        assert_eq!(self.driver.violations().total(), 0, "the switch broke the receiveq");
        count
    }
}

/// A dirty log of memory from 0 on, turned on.
fn log() -> Arc<Logging> {
    let bytes = 1 << 16;
    let memory = GuestRam::new(&RamSpec::spread(1, bytes, &Backing::Memfd)).unwrap();
    let file = memory.regions()[0].file().try_clone().unwrap();
    let logging = Arc::<Logging>::default();
    logging.turn(Some(&Arc::new(DirtyLog::map(file, 0, bytes as u64, false).unwrap())));
    logging
}

/// The device's view of guest memory in `count` regions of `size` bytes, and the regions' owner.
pub(crate) fn regions(count: usize, size: usize) -> (GuestRam, Arc<GuestMap>) {
    let ram = GuestRam::new(&RamSpec::spread(count, size, &Backing::Memfd)).unwrap();
    let map = map(&ram);
    (ram, map)
}

fn memory(size: usize) -> (GuestRam, RingPlace) {
    let size = (size + (1 << 20)).next_multiple_of(1 << 21);
    let mut ram = GuestRam::new(&RamSpec::spread(1, size, &Backing::Memfd)).unwrap();
    let place = RingPlace::alloc(&mut ram, 0, RING_SIZE).unwrap();
    (ram, place)
}

fn slots(ram: &mut GuestRam, place: RingPlace, kind: Kind, room: usize, writable: bool) -> SlotRing {
    let shape = Shape { layout: kind.layout, header_size: HEADER_SIZE, room, gap: 0 };
    let config =
        SlotRingConfig { place, size: RING_SIZE, agreed: FEATURES | kind.features, shape, writable, rewrite: true };
    SlotRing::new(ram, config).unwrap()
}

fn map(ram: &GuestRam) -> Arc<GuestMap> {
    let specs = ram.regions().iter().map(|region| RegionSpec {
        gpa: region.gpa().0,
        uva: region.user_address(),
        size: region.size() as u64,
        mmap_offset: region.file_offset(),
        file: region.file().try_clone().unwrap(),
    });
    Arc::new(GuestMap::map(specs.collect(), false).unwrap())
}

/// The same memory, its buffers mapped as `kind` has it. Rings are found once, and not here.
fn guarded(map: Arc<GuestMap>, ram: &GuestRam, buffers: Gpa, kind: Kind, access: Access) -> Arc<GuestMap> {
    let Some(size) = kind.mappings else { return map };
    let map = map.guarded_by(Some(Iotlb::new(EventFd::new(0).unwrap())));
    let (end, step) = (ram.regions()[0].size() as u64, size as u64);
    for (number, at) in (buffers.0..end).step_by(size).enumerate() {
        // Neighbours that allow the same would be one mapping.
        let access = if number % 2 == 0 { Access::BOTH } else { access };
        map.map_iova(Iova(at), step.min(end - at), Uva(ram.user_address(Gpa(at)).unwrap()), access).unwrap();
    }
    Arc::new(map)
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is the base")]
fn device(ram: &GuestRam, place: RingPlace, kind: Kind, driver: &SlotRing) -> RingConfig {
    RingConfig {
        size: RING_SIZE.into(),
        desc_uva: ram.user_address(place.descriptors).unwrap(),
        avail_uva: ram.user_address(place.available).unwrap(),
        used_uva: ram.user_address(place.used).unwrap(),
        base: driver.first_base() as u16,
        features: FEATURES | kind.features,
    }
}
