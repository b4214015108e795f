//! A virtual machine as far as vhost-user sees it: shared memory, rings in it, and the `vhost` crate's front-end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of guest memory.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Where the guest's memory starts, guest-physical.
pub(crate) const GPA: u64 = 0x4000_0000;
/// Elements of a ring.
pub(crate) const SIZE: u16 = 256;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A file of shared memory that nobody else sees.
pub(crate) fn memfd(size: u64) -> File {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open("/dev/shm").unwrap();
    file.set_len(size).unwrap();
    file
}

/// A guest's memory, mapped shared or private.
pub(crate) struct Memory {
    pub(crate) file: File,
    pub(crate) map: GuestMemoryMmap,
    pub(crate) uva: u64,
}

impl Memory {
    pub(crate) fn new(flags: i32) -> Self {
        Self::on(memfd(MEMORY), flags)
    }

    pub(crate) fn on(file: File, flags: i32) -> Self {
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let size = usize::try_from(MEMORY).unwrap();
        let region = MmapRegion::build(Some(offset), size, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap();
        let uva = region.as_ptr() as u64;
        let region = GuestRegionMmap::new(region, GuestAddress(GPA)).unwrap();
        let map = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        // A guest that got as far as its driver has written to its memory.
        map.write_obj(0x1234_u16, GuestAddress(GPA + MEMORY - 2)).unwrap();
        Self { file, map, uva }
    }

    pub(crate) fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GPA,
            memory_size: MEMORY,
            userspace_addr: self.uva,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Where vring `at` has its descriptors, available and used ring, from the start of memory.
    fn places(at: usize) -> [u64; 3] {
        let base = 0x1_0000 * u64::try_from(at).unwrap();
        [base, base + 0x2000, base + 0x4000]
    }

    pub(crate) fn vring(&self, at: usize) -> VringConfigData {
        let [desc, avail, used] = Self::places(at).map(|place| self.uva + place);
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        }
    }

    fn write<T: vm_memory::ByteValued>(&self, place: u64, value: T) {
        self.map.write_obj(value, GuestAddress(GPA + place)).unwrap();
    }

    /// Offers buffer `slot` of vring `at` to the device, which may read or write it; `data` is what it holds.
    pub(crate) fn post(&self, at: usize, slot: u16, data: &[u8], writable: bool) {
        let [desc, avail, _] = Self::places(at);
        let buffer = Self::buffer(at, slot);
        self.map.write_slice(data, GuestAddress(buffer)).unwrap();
        let entry = desc + 16 * u64::from(slot);
        self.write(entry, buffer);
        self.write(entry + 8, u32::try_from(data.len()).unwrap());
        self.write(entry + 12, if writable { 2_u16 } else { 0 });
        let index: u16 = self.map.read_obj(GuestAddress(GPA + avail + 2)).unwrap();
        self.write(avail + 4 + 2 * u64::from(index % SIZE), slot);
        self.set_available_index(at, index.wrapping_add(1));
    }

    /// Where buffer `slot` of vring `at` is, guest-physical.
    fn buffer(at: usize, slot: u16) -> u64 {
        GPA + 0x8_0000 + 0x1_0000 * u64::try_from(at).unwrap() + 0x800 * u64::from(slot)
    }

    pub(crate) fn set_available_index(&self, at: usize, index: u16) {
        let [_, avail, _] = Self::places(at);
        self.map.store(index, GuestAddress(GPA + avail + 2), Ordering::Release).unwrap();
    }

    pub(crate) fn used_index(&self, at: usize) -> u16 {
        let [_, _, used] = Self::places(at);
        self.map.load(GuestAddress(GPA + used + 2), Ordering::Acquire).unwrap()
    }

    /// What the device wrote into the buffer it used `nth`.
    pub(crate) fn received(&self, at: usize, nth: u16) -> Vec<u8> {
        let [_, _, used] = Self::places(at);
        let entry = GPA + used + 4 + 8 * u64::from(nth % SIZE);
        let slot: u32 = self.map.read_obj(GuestAddress(entry)).unwrap();
        let size: u32 = self.map.read_obj(GuestAddress(entry + 4)).unwrap();
        let mut data = vec![0; usize::try_from(size).unwrap()];
        self.map.read_slice(&mut data, GuestAddress(Self::buffer(at, slot.try_into().unwrap()))).unwrap();
        data
    }

    pub(crate) fn set_used_index(&self, at: usize, index: u16) {
        let [_, _, used] = Self::places(at);
        self.map.write_obj(index, GuestAddress(GPA + used + 2)).unwrap();
    }
}

pub(crate) fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// A virtual machine as far as the protocol sees it.
pub(crate) struct Vm {
    pub(crate) frontend: Frontend,
    pub(crate) memory: Memory,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) calls: Vec<EventFd>,
    pub(crate) errs: Vec<EventFd>,
}

pub(crate) const ALL_PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::STATUS)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::RARP);

impl Vm {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self::with(stream, Memory::new(libc::MAP_SHARED))
    }

    pub(crate) fn with(stream: UnixStream, memory: Memory) -> Self {
        let mut frontend = Frontend::from_stream(stream, 256);
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(ALL_PROTOCOL).unwrap();
        // Every message is answered from here on, so each call returns when its effect is there.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES).unwrap();
        let fds = || (0..4).map(|_| eventfd()).collect();
        Self { frontend, memory, kicks: fds(), calls: fds(), errs: fds() }
    }

    pub(crate) fn set_up(&self, at: usize) {
        self.frontend.set_vring_num(at, SIZE).unwrap();
        self.frontend.set_vring_base(at, 0).unwrap();
        self.frontend.set_vring_addr(at, &self.memory.vring(at)).unwrap();
        self.frontend.set_vring_call(at, &self.calls[at]).unwrap();
        self.frontend.set_vring_err(at, &self.errs[at]).unwrap();
        self.frontend.set_vring_kick(at, &self.kicks[at]).unwrap();
    }

    pub(crate) fn enable(&mut self, at: usize, enable: bool) {
        self.frontend.set_vring_enable(at, enable).unwrap();
    }

    pub(crate) fn share_memory(&self) {
        self.frontend.set_mem_table(&[self.memory.info()]).unwrap();
    }

    /// Brings the first `pairs` queue pairs up.
    pub(crate) fn start(&mut self, pairs: usize) {
        self.share_memory();
        for at in 0..2 * pairs {
            self.set_up(at);
            self.enable(at, true);
        }
    }
}
