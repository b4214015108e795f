//! Whatever a front-end says in whatever order, exactly those vrings run that may; and the handler keeps the contract of
//! the `vhost` crate's trait: the crate's own dispatcher drives it, its own front-end asks.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserLog, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags,
};
use vhost::vhost_user::{
    BackendReqHandler, Error as VhostError, Frontend, VhostUserBackendReqHandlerMut, VhostUserFrontend,
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::recovery::Recovery;
use crate::ring::{Ring, feature};
use crate::vhost::backend::Beside;
use crate::vhost::{EndpointConfig, EndpointKind};

const SIZE: usize = 1 << 16;

/// Holds the rings it is given.
struct Shelf {
    rings: Mutex<BTreeMap<usize, Ring>>,
    recovery: Arc<Recovery>,
    /// Vrings that were given while others were waited for.
    early: Mutex<Vec<usize>>,
    /// For each time that poll threads were waited for, how many rings they had.
    passages: Mutex<Vec<usize>>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self::new(Recovery::in_process())
    }
}

impl Shelf {
    fn new(recovery: Recovery) -> Self {
        Self {
            rings: Mutex::default(),
            recovery: Arc::new(recovery),
            early: Mutex::default(),
            passages: Mutex::default(),
        }
    }
}

impl PortLink for Shelf {
    fn start(&self, vring: usize, ring: Ring) {
        if self.recovery.hold_left().is_some() {
            self.early.lock().unwrap().push(vring);
        }
        assert!(self.rings.lock().unwrap().insert(vring, ring).is_none(), "vring {vring} was started twice");
    }
    fn stop(&self, vring: usize) -> Option<Ring> {
        self.rings.lock().unwrap().remove(&vring)
    }
    fn quiesce(&self) {
        self.passages.lock().unwrap().push(self.rings.lock().unwrap().len());
    }
    fn set_call(&self, _: usize, _: Option<File>) {}
    fn link_changed(&self, _: bool) {}
    fn state_changed(&self) {}
    fn announce(&self, _: [u8; 6]) {}
    fn event(&self, _: Level, _: &'static str, _: String) {}
    fn mtu(&self) -> u16 {
        1500
    }
}

fn handler(link: Arc<Shelf>, stream: &UnixStream) -> Handler {
    let config = EndpointConfig {
        name: "v0".into(),
        kind: EndpointKind::Client,
        socket: "/nowhere/v0".into(),
        socket_mode: 0o600,
        socket_owner: None,
        socket_group: None,
        allow_file_memory: false,
        postcopy: false,
        iommu: false,
        offer: Arc::default(),
        recovery: Arc::clone(&link.recovery),
    };
    Handler::new(Arc::new(Port::new(config, link)), Peer::of(stream).unwrap())
}

/// Shared memory as a guest has it: a file, mapped, written to.
fn memory() -> (File, MmapRegion<()>) {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open("/dev/shm").unwrap();
    file.set_len(SIZE as u64).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, &[1], 0x8000).unwrap();
    let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
    let flags = libc::MAP_SHARED;
    (file, MmapRegion::build(Some(mapped), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap())
}

/// A file for a dirty log of `size` bytes.
fn log_file(size: u64) -> File {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open("/dev/shm").unwrap();
    file.set_len(size).unwrap();
    file
}

#[test]
fn the_stock_dispatcher_drives_the_same_handler() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = Arc::new(Shelf::default());
    let handler = Arc::new(Mutex::new(handler(Arc::clone(&link), &ours)));
    let mut dispatcher = BackendReqHandler::from_stream(ours, Arc::clone(&handler));
    let served = thread::spawn(move || {
        loop {
            match dispatcher.handle_request() {
                // It has answered a refusal already.
                Ok(()) | Err(VhostError::ReqHandlerError(_)) => {}
                Err(VhostError::Disconnected) => return,
                Err(e) => panic!("{e}"),
            }
        }
    });

    let mut vm = Frontend::from_stream(theirs, 256);
    vm.set_owner().unwrap();
    assert_eq!(vm.get_features().unwrap(), features::VIRTIO);
    // The stock dispatcher looks for the feature that allows them before it passes protocol features on.
    let without_log = features::VIRTIO & !features::LOG_ALL;
    vm.set_features(without_log).unwrap();
    let protocol = vm.get_protocol_features().unwrap();
    vm.set_protocol_features(protocol).unwrap();
    vm.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(vm.get_queue_num().unwrap(), features::QUEUE_PAIRS);
    assert_eq!(vm.get_max_mem_slots().unwrap(), features::MEM_SLOTS);

    let (file, mapping) = memory();
    let uva = mapping.as_ptr() as u64;
    vm.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: SIZE as u64,
        userspace_addr: uva,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }])
    .unwrap();
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    for vring in 0..2 {
        let at = uva + 0x2000 * vring as u64;
        vm.set_vring_num(vring, 64).unwrap();
        // Packed rings begin in lap 1.
        vm.set_vring_base(vring, 0x8000).unwrap();
        let addresses = VringConfigData {
            queue_max_size: 64,
            queue_size: 64,
            flags: 0,
            desc_table_addr: at,
            avail_ring_addr: at + 0x800,
            used_ring_addr: at + 0x1000,
            log_addr: None,
        };
        vm.set_vring_addr(vring, &addresses).unwrap();
        vm.set_vring_call(vring, &eventfd).unwrap();
        vm.set_vring_kick(vring, &eventfd).unwrap();
        vm.set_vring_enable(vring, true).unwrap();
    }
    assert!(handler.lock().unwrap().state().link_up);
    let log = log_file(2);
    let region = VhostUserDirtyLogRegion { mmap_size: 2, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    vm.set_log_base(0, Some(region)).unwrap();
    vm.set_log_base(0, Some(region)).unwrap();
    for (wanted, is_logging) in [(features::VIRTIO, true), (without_log, false)] {
        vm.set_features(wanted).unwrap();
        let state = handler.lock().unwrap().state();
        assert_eq!((state.link_up, state.is_logging), (true, is_logging));
    }
    assert_eq!(vm.get_vring_base(1).unwrap(), 0x8000_8000);
    assert!(!handler.lock().unwrap().state().link_up);
    assert!(vm.set_features(1 << 40).is_err());
    assert!(handler.lock().unwrap().state().problem.unwrap().ends_with("not offered: RING_RESET"));
    drop(vm);
    served.join().unwrap();
    handler.lock().unwrap().end();
    assert!(link.rings.lock().unwrap().is_empty());
}

/// A handler whose front-end shared memory and started two vrings of 64 under `features`, at `base`; the memory too.
fn started(features: u64, base: u32) -> (Handler, Arc<Shelf>, MmapRegion<()>, UnixStream) {
    started_on(Shelf::default(), features, base)
}

fn started_on(shelf: Shelf, features: u64, base: u32) -> (Handler, Arc<Shelf>, MmapRegion<()>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (file, mapping) = memory();
    let link = Arc::new(shelf);
    let mut handler = handler(Arc::clone(&link), &ours);
    handler.set_features(features).unwrap();
    let uva = mapping.as_ptr() as u64;
    handler.set_mem_table(&[VhostUserMemoryRegion::new(0, SIZE as u64, uva, 0)], vec![file], None).unwrap();
    for vring in 0..2 {
        handler.set_vring_num(vring, 64).unwrap();
        handler.set_vring_base(vring, base).unwrap();
        start_at(&mut handler, vring, uva + 0x2000 * u64::from(vring));
    }
    (handler, link, mapping, theirs)
}

/// The rest of what starts a vring whose size and base are known.
fn start_at(handler: &mut Handler, vring: u32, at: u64) {
    let flags = VhostUserVringAddrFlags::empty();
    handler.set_vring_addr(vring, flags, at, at + 0x1000, at + 0x800, 0).unwrap();
    handler.set_vring_kick(u8::try_from(vring).unwrap(), None).unwrap();
    handler.set_vring_enable(vring, true).unwrap();
}

const PACKED: u64 = feature::RING_PACKED | feature::VERSION_1;

#[test]
fn a_packed_ring_starts_at_the_low_half_of_its_base_and_answers_both() {
    // As QEMU sends it, and as virtio-user does; a fresh ring, and one that stood in its second lap.
    for (base, answer) in [(0x8000, 0x8000_8000_u32), (0x8000_8000, 0x8000_8000), (0x0011_0011, 0x0011_0011)] {
        let (mut handler, link, _mapping, _stream) = started(PACKED, base);
        assert_eq!(link.rings.lock().unwrap().len(), 2, "{:?}", handler.state());
        assert_eq!({ handler.get_vring_base(0).unwrap().num }, answer);
        // Asked again while it stands still.
        assert_eq!({ handler.get_vring_base(0).unwrap().num }, answer);
        handler.end();
    }
}

#[test]
fn a_base_outside_a_packed_ring_is_named() {
    let (mut handler, link, _mapping, _stream) = started(PACKED, 64);
    assert!(link.rings.lock().unwrap().is_empty());
    let problem = handler.state().problem.unwrap();
    assert!(problem.contains("a base of 0x40 is descriptor 64 of a packed ring of 64"), "{problem}");
    handler.end();
}

#[test]
fn the_size_of_a_ring_is_judged_by_its_layout() {
    for (features, sizes, refused) in
        [(0, &[1, 256, 32_768][..], &[0, 3, 65_536][..]), (PACKED, &[1, 3, 32_767], &[0, 32_769])]
    {
        let (mut handler, _link, _mapping, _stream) = started(features, 0);
        for &size in sizes {
            handler.set_vring_num(0, size).unwrap();
        }
        for &size in refused {
            let error = handler.set_vring_num(0, size).unwrap_err().to_string();
            assert!(error.contains(&format!("receiveq 0: a size of {size} is not")), "{error}");
        }
        handler.end();
    }
}

/// How a front-end carries out `VIRTIO_F_RING_RESET`: it stops the one vring and starts it anew, elsewhere, empty, of
/// another size (virtio 1.2 §2.6.1).
#[test]
fn one_vring_is_reset_while_the_other_runs() {
    for features in [feature::VERSION_1, PACKED] {
        let fresh = if features == PACKED { 0x8000 } else { 0 };
        let (mut handler, link, mapping, _stream) = started(features, fresh);
        let uva = mapping.as_ptr() as u64;
        for size in [16, 32] {
            handler.get_vring_base(1).unwrap();
            assert_eq!(link.rings.lock().unwrap().keys().collect::<Vec<_>>(), [&0], "the other runs");
            handler.set_vring_enable(1, false).unwrap();
            handler.set_vring_num(1, size).unwrap();
            handler.set_vring_base(1, fresh).unwrap();
            start_at(&mut handler, 1, uva + 0x8000 + 0x100 * u64::from(size));
            let rings = link.rings.lock().unwrap();
            let stands: Vec<_> = rings.values().map(|ring| (ring.size(), u32::from(ring.next_index()))).collect();
            assert_eq!(stands, [(64, fresh), (size, fresh)]);
        }
        handler.end();
    }
}

/// Rows: A13.
#[test]
fn after_a_crash_senders_wait_until_a_receiver_is_where_frames_can_reach_it() {
    let rundir = TempDir::new_with_prefix("/dev/shm/ovsvhost-test-").unwrap();
    let open = || Shelf::new(Recovery::open(rundir.as_path(), Duration::from_secs(3600)).unwrap());
    let (handler, link, ..) = started_on(open(), feature::VERSION_1, 0);
    assert!(handler.state().link_up && link.early.lock().unwrap().is_empty());
    // It dies with both rings live.
    drop((handler, link));
    let (mut handler, link, ..) = started_on(open(), feature::VERSION_1, 0);
    assert_eq!(*link.early.lock().unwrap(), [0], "the hold lasts until the receiveq is given, and no longer");
    assert!(handler.state().link_up);
    handler.end();
}

/// Rows: C7.
#[test]
fn a_ring_that_has_to_stop_for_want_of_a_log_marks_the_one_before_to_the_end() {
    let (mut handler, link, ..) = started(feature::VERSION_1, 0);
    handler.set_protocol_features(VhostUserProtocolFeatures::LOG_SHMFD.bits()).unwrap();
    handler.set_log_base(&VhostUserLog::new(4096, 0), log_file(4096)).unwrap();
    handler.set_features(feature::VERSION_1 | features::LOG_ALL).unwrap();
    assert!(handler.is_logging() && handler.state().link_up);
    let passed = link.passages.lock().unwrap().clone();
    assert_eq!(passed.last(), Some(&2), "rings that run turn to the log");
    // Shorter than it says: nothing to mark in.
    assert!(handler.set_log_base(&VhostUserLog::new(4096, 0), log_file(4)).is_err());
    assert!(link.rings.lock().unwrap().is_empty() && !handler.is_logging());
    assert_eq!(*link.passages.lock().unwrap(), passed, "no ring ran without a log");
    handler.end();
}

/// Rows: C13.
#[test]
fn what_was_found_of_a_ring_ends_with_it_and_hits_no_other() {
    let (mut handler, ..) = started(feature::VERSION_1, 0);
    for vring in [0, 1] {
        handler.port.note_fault(vring, "a descriptor chain loops".into());
    }
    handler.stop(0);
    assert_eq!(handler.port.take_faults(), [(1, "a descriptor chain loops".into())]);
    handler.end();
}

/// Something a front-end, or a poll thread, may do; vrings by number.
#[derive(Debug, Clone)]
enum Act {
    Features(u64),
    Protocol(u64),
    /// A log of so many bytes, one for each 32 KiB.
    LogBase(u64),
    /// Where the used ring is in it.
    LogAddress(u32, u64),
    MemTable,
    EmptyMemTable,
    AddRegion,
    RemoveRegion,
    Num(u32, u32),
    Addr(u32, bool),
    Base(u32, u32),
    Kick(u8, u8),
    Call(u8, bool),
    Enable(u32, bool),
    Stop(u32),
    Reset,
    ResetOwner,
    DeviceStatus(u64),
    Break(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let vring = || 0..4_u32;
    prop_oneof![
        2 => prop_oneof![Just(0), Just(features::VIRTIO), Just(features::VIRTIO & !features::LOG_ALL)]
            .prop_map(Act::Features),
        2 => prop_oneof![Just(0), Just(features::PROTOCOL.bits())].prop_map(Act::Protocol),
        2 => (0..6_u64).prop_map(Act::LogBase),
        1 => (vring(), prop_oneof![0..0x2_0000_u64, Just(u64::MAX)]).prop_map(|(at, log)| Act::LogAddress(at, log)),
        2 => Just(Act::MemTable),
        1 => Just(Act::EmptyMemTable),
        1 => Just(Act::AddRegion),
        1 => Just(Act::RemoveRegion),
        4 => (vring(), prop_oneof![4 => Just(64_u32), 1 => 0..70_000_u32]).prop_map(|(at, num)| Act::Num(at, num)),
        4 => (vring(), prop::bool::weighted(0.9)).prop_map(|(at, good)| Act::Addr(at, good)),
        2 => (vring(), 0..70_000_u32).prop_map(|(at, base)| Act::Base(at, base)),
        5 => (0..4_u8, 0..6_u8).prop_map(|(at, kind)| Act::Kick(at, kind)),
        1 => (0..4_u8, any::<bool>()).prop_map(|(at, good)| Act::Call(at, good)),
        4 => (vring(), prop::bool::weighted(0.8)).prop_map(|(at, enable)| Act::Enable(at, enable)),
        1 => vring().prop_map(Act::Stop),
        1 => Just(Act::Reset),
        1 => Just(Act::ResetOwner),
        1 => (0..16_u64).prop_map(Act::DeviceStatus),
        1 => (0..6_usize).prop_map(Act::Break),
    ]
}

/// Does it; what is refused is refused.
fn perform(handler: &mut Handler, act: &Act, file: &File, uva: u64) {
    let size = SIZE as u64;
    let table = [VhostUserMemoryRegion::new(0, size, uva, 0)];
    let more = VhostUserSingleMemoryRegion::new(size, size, uva + (1 << 40), 0);
    let flags = VhostUserVringAddrFlags::empty();
    let at = |vring: u32| uva + 0x2000 * u64::from(vring);
    let _ = match *act {
        Act::Features(features) => handler.set_features(features).is_ok(),
        Act::Protocol(protocol) => handler.set_protocol_features(protocol).is_ok(),
        Act::LogBase(size) => handler.set_log_base(&VhostUserLog::new(size, 0), log_file(4)).is_ok(),
        Act::LogAddress(vring, log) => {
            let (base, flags) = (at(vring), VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
            handler.set_vring_addr(vring, flags, base, base + 0x1000, base + 0x800, log).is_ok()
        }
        Act::MemTable => handler.set_mem_table(&table, vec![file.try_clone().unwrap()], None).is_ok(),
        Act::EmptyMemTable => handler.set_mem_table(&[], vec![], None).is_ok(),
        Act::AddRegion => handler.add_mem_region(&more, file.try_clone().unwrap(), None).is_ok(),
        Act::RemoveRegion => handler.remove_mem_region(&more).is_ok(),
        Act::Num(vring, num) => handler.set_vring_num(vring, num).is_ok(),
        Act::Addr(vring, good) => {
            let base = if good { at(vring) } else { uva + size };
            handler.set_vring_addr(vring, flags, base, base + 0x1000, base + 0x800, 0).is_ok()
        }
        Act::Base(vring, base) => handler.set_vring_base(vring, base).is_ok(),
        Act::Kick(vring, 0) => handler.set_vring_kick(vring, Some(file.try_clone().unwrap())).is_ok(),
        Act::Kick(vring, _) => handler.set_vring_kick(vring, None).is_ok(),
        Act::Call(vring, good) => handler.set_vring_call(vring, (!good).then(|| file.try_clone().unwrap())).is_ok(),
        Act::Enable(vring, enable) => handler.set_vring_enable(vring, enable).is_ok(),
        Act::Stop(vring) => handler.get_vring_base(vring).is_ok(),
        Act::Reset => handler.reset_device().is_ok(),
        Act::ResetOwner => handler.reset_owner().is_ok(),
        Act::DeviceStatus(status) => handler.set_status(status).is_ok(),
        Act::Break(vring) => {
            handler.fail_vring(vring, "a descriptor chain loops");
            true
        }
    };
}

proptest! {
    #[test]
    fn exactly_those_vrings_run_that_may(acts in prop::collection::vec(act(), 0..120)) {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (file, mapping) = memory();
        let link = Arc::new(Shelf::default());
        let mut handler = handler(Arc::clone(&link), &ours);
        for act in &acts {
            perform(&mut handler, act, &file, mapping.as_ptr() as u64);
            for (at, vring) in handler.vrings.iter().enumerate() {
                prop_assert_eq!(vring.live, link.rings.lock().unwrap().contains_key(&at), "vring {} after {:?}", at, act);
                prop_assert_eq!(vring.live, handler.may_run(at), "vring {} after {:?}", at, act);
            }
            let is_live = handler.vrings.iter().any(|vring| vring.live);
            prop_assert!(!is_live || handler.is_logging() == handler.wants_log(), "after {:?}", act);
            let up = (0..2).all(|at| link.rings.lock().unwrap().contains_key(&at));
            let state = handler.state();
            prop_assert_eq!(state.link_up, up);
            prop_assert_eq!(state.waiting_for.is_none(), up, "{:?}", state.waiting_for);
        }
        handler.end();
        prop_assert!(link.rings.lock().unwrap().is_empty());
        prop_assert!(!handler.state().link_up);
    }
}
