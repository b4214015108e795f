//! Live migration by pre-copy as a session sees it, over the real datapath: a log is turned on and off on rings that run,
//! and whoever lies about it harms itself.
//! Rows: C7.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ovsvhost::datapath::{Datapath, PortConfig};
use ovsvhost::vhost::EndpointKind;
use rig::{GPA, MEMORY, MRG_RXBUF, PROTOCOL_FEATURES, Raw, VERSION_1, Vm, eventfd, eventually, memfd};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::tempdir::TempDir;

const LOG_ALL: u64 = 1 << 26;
const FEATURES: u64 = VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES;
/// A log that ends where the guest's memory does.
const LOG: u64 = (GPA + MEMORY).div_ceil(8 << 12);
const A: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Two guests on a bridge; the first one's memory is copied to another host.
struct Bench {
    datapath: Datapath,
    dir: TempDir,
    moves: Vm,
    stays: Vm,
    sent: u16,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
        let datapath = Datapath::new(&[], None).unwrap();
        datapath.add_bridge("br0").unwrap();
        let guest = |name: &str, ofport| {
            let socket: PathBuf = dir.as_path().join(name);
            let config = PortConfig::new(name, EndpointKind::Server, ofport, socket.clone());
            datapath.add_port("br0", config).unwrap();
            let mut vm = Vm::new(UnixStream::connect(socket).unwrap());
            vm.start(1);
            vm
        };
        let (moves, stays) = (guest("v0", 1), guest("v1", 2));
        Self { datapath, dir, moves, stays, sent: 0 }
    }

    fn status(&self, key: &str) -> Option<String> {
        self.datapath.port("v0").unwrap().status.get(key).cloned()
    }

    fn error(&self) -> Option<String> {
        self.datapath.port("v0").unwrap().error
    }

    /// One frame from the guest that stays to the one that moves, which takes it.
    fn carry(&mut self) {
        let (nth, slot) = (self.sent, self.sent % 16);
        self.moves.memory.post(0, slot, &[0; 2048], true);
        let mut frame = vec![0; 12];
        frame.extend([[0xff; 6], A].concat());
        frame.extend([0x88; 48]);
        self.stays.memory.post(1, slot, &frame, false);
        self.stays.kicks[1].write(1).unwrap();
        self.sent += 1;
        eventually("the frame", || (self.moves.memory.used_index(0) == nth + 1).then_some(()));
    }

    /// Pages that the `nth` frame is written to, the used ring's first.
    fn pages_of(nth: u16) -> BTreeSet<u64> {
        // As the rig lays rings and buffers out.
        let used = GPA + 0x4000;
        let buffer = GPA + 0x8_0000 + 0x800 * u64::from(nth % 16);
        BTreeSet::from([used / 4096, buffer / 4096])
    }

    fn log(&self, on: bool) {
        let features = if on { FEATURES | LOG_ALL } else { FEATURES };
        self.moves.frontend.set_features(features).unwrap();
        for at in 0..2 {
            self.moves.frontend.set_vring_addr(at, &self.logged_vring(at, on)).unwrap();
        }
    }

    /// As QEMU describes a vring: the log's address is always there, the flag says whether it counts.
    fn logged_vring(&self, at: usize, on: bool) -> VringConfigData {
        let vring = self.moves.memory.vring(at);
        let used = vring.used_ring_addr - self.moves.memory.uva + GPA;
        VringConfigData { flags: u32::from(on), log_addr: Some(used), ..vring }
    }
}

fn region(file: &File, size: u64, offset: u64) -> VhostUserDirtyLogRegion {
    VhostUserDirtyLogRegion { mmap_size: size, mmap_offset: offset, mmap_handle: file.as_raw_fd() }
}

/// Takes the pages marked in a log, as a front-end does between two rounds.
fn take(file: &File) -> BTreeSet<u64> {
    let mut bytes = vec![0; usize::try_from(LOG).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    let is_marked = |page: &u64| bytes[usize::try_from(page / 8).unwrap()] >> (page % 8) & 1 == 1;
    (0..8 * LOG).filter(is_marked).collect()
}

#[test]
fn logging_comes_and_goes_while_rings_run_and_moves_no_index() {
    let mut bench = Bench::new();
    bench.carry();
    let log = memfd(LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.carry();
    assert_eq!((take(&log), bench.status("migration")), (BTreeSet::new(), None), "a log alone turns nothing on");
    for round in 1..3_u16 {
        bench.log(true);
        assert_eq!(bench.status("migration").as_deref(), Some("logging"));
        let first = bench.sent;
        bench.carry();
        bench.carry();
        let want: BTreeSet<u64> = (first..bench.sent).flat_map(Bench::pages_of).collect();
        // What the switch says to its drivers may be there besides: it lies in the used rings.
        let marked = take(&log);
        assert!(marked.is_superset(&want), "{want:x?} in {marked:x?}");
        let rings: BTreeSet<u64> = [GPA + 0x4000, GPA + 0x1_4000].map(|at| at / 4096).into();
        assert!(marked.is_subset(&want.union(&rings).copied().collect()), "{marked:x?}");
        bench.log(false);
        assert_eq!(bench.status("migration"), None);
        take(&log);
        bench.carry();
        assert_eq!(take(&log), BTreeSet::new(), "nothing is marked after the answer");
        assert_eq!(bench.moves.memory.used_index(0), 2 + 3 * round);
    }
    assert_eq!(bench.datapath.port("v0").unwrap().link_resets, 1, "the link was never down");
    assert_eq!(bench.moves.frontend.get_vring_base(0).unwrap(), u32::from(bench.sent));
}

#[test]
fn a_log_that_replaces_another_gets_everything_from_the_answer_on() {
    let mut bench = Bench::new();
    let (old, new) = (memfd(LOG), memfd(2 * LOG + 100));
    bench.moves.frontend.set_log_base(0, Some(region(&old, LOG, 0))).unwrap();
    bench.log(true);
    bench.carry();
    assert!(take(&old).is_superset(&Bench::pages_of(0)));
    bench.moves.frontend.set_log_base(0, Some(region(&new, LOG + 100, LOG))).unwrap();
    take(&old);
    bench.carry();
    assert_eq!(take(&old), BTreeSet::new());
    let mut bytes = vec![0; usize::try_from(LOG).unwrap()];
    new.read_exact_at(&mut bytes, LOG).unwrap();
    let is_marked = |page: &u64| bytes[usize::try_from(page / 8).unwrap()] >> (page % 8) & 1 == 1;
    assert!(Bench::pages_of(1).iter().all(is_marked));
}

#[test]
fn a_region_added_in_mid_migration_is_logged_once_the_log_holds_it() {
    let mut bench = Bench::new();
    let log = memfd(2 * LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.log(true);
    bench.carry();
    let more = memfd(MEMORY);
    let added = VhostUserMemoryRegionInfo {
        guest_phys_addr: GPA + MEMORY,
        memory_size: MEMORY,
        userspace_addr: bench.moves.memory.uva + (1 << 40),
        mmap_offset: 0,
        mmap_handle: more.as_raw_fd(),
    };
    bench.moves.frontend.add_mem_region(&added).unwrap();
    let waits = bench.status("waiting-for").unwrap();
    assert!(waits.contains("a larger dirty log") && waits.contains("0x40200000"), "{waits}");
    bench.moves.frontend.set_log_base(0, Some(region(&log, 2 * LOG, 0))).unwrap();
    assert_eq!(bench.status("waiting-for"), None);
    take(&log);
    bench.carry();
    assert!(take(&log).is_superset(&Bench::pages_of(1)));
}

/// QEMU starts rings before it sends the log when a device starts in mid-migration.
#[test]
fn rings_that_are_to_be_logged_wait_for_their_log() {
    let mut bench = Bench::new();
    bench.carry();
    bench.log(true);
    assert!(!bench.datapath.port("v0").unwrap().link_up);
    let waits = bench.status("waiting-for").unwrap();
    assert!(waits.contains("dirty log") && waits.contains("SET_LOG_BASE"), "{waits}");
    let log = memfd(LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.carry();
    assert!(take(&log).is_superset(&Bench::pages_of(1)));
}

#[test]
fn a_log_that_cannot_be_is_refused_and_the_session_goes_on() {
    let mut bench = Bench::new();
    let log = memfd(LOG);
    for (size, offset) in [(LOG, 1), (LOG + 1, 0), (u64::MAX, 2), (1, u64::MAX), (1 << 63, 1 << 63), (0, 0)] {
        // The answer is a log of nothing.
        bench.moves.frontend.set_log_base(0, Some(region(&log, size, offset))).unwrap_err();
        let error = bench.error().unwrap();
        assert!(error.starts_with("dirty log: "), "{error}");
    }
    for not_memory in [File::open("/dev/null").unwrap(), File::open("/proc/self/exe").unwrap()] {
        bench.moves.frontend.set_log_base(0, Some(region(&not_memory, 1, 0))).unwrap_err();
        assert!(bench.error().is_some());
    }
    bench.carry();
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    assert_eq!(bench.error(), None);
    bench.log(true);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 1))).unwrap_err();
    assert!(!bench.datapath.port("v0").unwrap().link_up, "the log it had is not the one it looks at");
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.carry();
}

#[test]
fn a_used_ring_outside_the_log_keeps_its_queue_from_running() {
    let mut bench = Bench::new();
    let log = memfd(LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.log(true);
    for outside in [GPA + MEMORY - 8, u64::MAX, u64::MAX - 2053] {
        let vring = VringConfigData { log_addr: Some(outside), ..bench.logged_vring(0, true) };
        bench.moves.frontend.set_vring_addr(0, &vring).unwrap();
        let waits = bench.status("waiting-for").unwrap();
        assert!(waits.contains("receiveq 0") && waits.contains("inside the dirty log"), "{waits}");
    }
    bench.log(true);
    bench.carry();
    assert!(take(&log).is_superset(&Bench::pages_of(0)));
}

#[test]
fn a_log_cut_short_stops_the_queue_that_meets_it_and_nobody_else() {
    let bench = Bench::new();
    let log = memfd(LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.log(true);
    log.set_len(0).unwrap();
    // The first write meets it, be it a frame or a word to the driver; the next group finds the log broken.
    for slot in 0..2 {
        bench.moves.memory.post(0, slot, &[0; 2048], true);
        bench.stays.memory.post(1, slot, &[[0; 12].as_slice(), &[0xff; 6], &A, &[0x88; 48]].concat(), false);
        bench.stays.kicks[1].write(1).unwrap();
        eventually("the sender's buffer", || (bench.stays.memory.used_index(1) == slot + 1).then_some(()));
    }
    // Whichever of its queues is looked at first.
    let error = eventually("an error", || bench.error());
    assert!(error.contains("dirty log was taken away"), "{error}");
    let stopped_at = bench.moves.memory.used_index(0);
    assert!(bench.datapath.port("v1").unwrap().link_up);
    // A log that is whole brings it back, at the index where it was.
    let whole = memfd(LOG);
    bench.moves.frontend.set_log_base(0, Some(region(&whole, LOG, 0))).unwrap();
    assert!(bench.datapath.port("v0").unwrap().link_up);
    assert_eq!(bench.error(), None);
    assert_eq!(bench.moves.memory.used_index(0), stopped_at);
}

#[test]
fn a_front_end_that_wants_to_hear_of_news_in_its_log_does() {
    let mut bench = Bench::new();
    let (log, news) = (memfd(LOG), eventfd());
    assert!(bench.moves.frontend.set_log_fd(log.as_raw_fd()).is_err(), "a log fd that is no eventfd");
    bench.moves.frontend.set_log_fd(news.as_raw_fd()).unwrap();
    bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0))).unwrap();
    bench.carry();
    bench.log(true);
    bench.carry();
    eventually("news", || news.read().ok());
    let later = bench.moves.frontend.set_log_base(0, Some(region(&log, LOG, 0)));
    assert!(later.is_ok());
}

/// QEMU waits for an answer to `SET_LOG_BASE` without asking for one, whatever the answer is.
#[test]
fn a_log_is_answered_whether_it_is_taken_or_not() {
    let bench = Bench::new();
    let socket = bench.dir.as_path().join("v2");
    let config = PortConfig::new("v2", EndpointKind::Server, 3, socket.clone());
    bench.datapath.add_port("br0", config).unwrap();
    let mut raw = Raw(UnixStream::connect(socket).unwrap());
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, VhostUserProtocolFeatures::LOG_SHMFD.bits());
    let log = memfd(64);
    for (size, taken) in [(64_u64, 64_u64), (65, 0)] {
        let body = |size: u64| [size.to_ne_bytes(), 0_u64.to_ne_bytes()].concat();
        raw.send_with(FrontendReq::SET_LOG_BASE, rig::PLAIN, &body(size), &[log.as_raw_fd()]);
        assert_eq!(raw.reply(), body(taken));
    }
}
