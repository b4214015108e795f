//! Sessions over the real datapath: two guests on a bridge, driven by the `vhost` crate's front-end and a bare driver.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ovsvhost::datapath::{Datapath, PortConfig, PortState};
use ovsvhost::vhost::EndpointKind;
use rig::{Vm, eventually};
use vhost::VhostBackend;
use vmm_sys_util::tempdir::TempDir;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Bytes of the virtio header of a `VERSION_1` device.
const HEADER: usize = 12;

struct Bench {
    datapath: Datapath,
    dir: TempDir,
}

impl Bench {
    /// A bridge with two server ports, `v0` and `v1`.
    fn new() -> Self {
        let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
        let datapath = Datapath::new(&[], None).unwrap();
        datapath.add_bridge("br0").unwrap();
        let bench = Self { datapath, dir };
        for (name, ofport) in [("v0", 1), ("v1", 2)] {
            bench.add(name, ofport);
        }
        bench
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.as_path().join(name)
    }

    fn add(&self, name: &str, ofport: u16) {
        let config = PortConfig::new(name, EndpointKind::Server, ofport, self.socket(name));
        self.datapath.add_port("br0", config).unwrap();
    }

    fn guest(&self, name: &str) -> Vm {
        let mut vm = Vm::new(UnixStream::connect(self.socket(name)).unwrap());
        vm.start(1);
        assert!(self.port(name).link_up);
        vm
    }

    fn port(&self, name: &str) -> PortState {
        self.datapath.port(name).unwrap()
    }
}

/// A frame behind an empty virtio header.
fn frame(destination: [u8; 6], source: [u8; 6], fill: u8) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(destination);
    bytes.extend(source);
    bytes.extend([0x88, 0xb5]);
    bytes.extend([fill; 46]);
    bytes
}

/// Sends one frame from a guest's transmitq 0.
fn send(vm: &Vm, slot: u16, bytes: &[u8]) {
    vm.memory.post(1, slot, bytes, false);
    vm.kicks[1].write(1).unwrap();
}

/// Waits until a guest's vring shows `count` used buffers.
fn wait_used(vm: &Vm, at: usize, count: u16) {
    eventually(&format!("{count} used buffers in vring {at}"), || (vm.memory.used_index(at) == count).then_some(()));
}

#[test]
fn a_frame_goes_from_one_guest_to_the_other_byte_for_byte() {
    let bench = Bench::new();
    let (a, b) = (bench.guest("v0"), bench.guest("v1"));
    b.memory.post(0, 0, &[0; 1600], true);
    let sent = frame(BROADCAST, [2, 0, 0, 0, 0, 1], 0xa5);
    send(&a, 0, &sent);
    wait_used(&b, 0, 1);
    assert_eq!(b.memory.received(0, 0)[HEADER..], sent[HEADER..]);
    wait_used(&a, 1, 1);
    assert!(b.calls[0].read().unwrap() > 0);
}

#[test]
fn a_guest_that_breaks_its_ring_loses_that_ring_and_nobody_else_notices() {
    let bench = Bench::new();
    let (mut a, b) = (bench.guest("v0"), bench.guest("v1"));
    // More new buffers than the ring has entries: no driver can mean it.
    a.memory.set_available_index(1, rig::SIZE + 1);
    a.kicks[1].write(1).unwrap();
    let error = eventually("an error", || bench.port("v0").error);
    assert!(error.starts_with("transmitq 0: ") && error.contains("available index went"), "{error}");
    assert!(!bench.port("v0").link_up);
    eventually("the error descriptor", || a.errs[1].read().ok());
    assert_eq!(bench.port("v1").error, None);
    assert!(bench.port("v1").link_up);
    // The broken guest still receives: its receiveq is whole.
    a.memory.post(0, 0, &[0; 1600], true);
    send(&b, 0, &frame(BROADCAST, [2, 0, 0, 0, 0, 2], 1));
    wait_used(&a, 0, 1);
    // A driver that starts over is served again.
    a.frontend.get_vring_base(1).unwrap();
    a.memory.set_available_index(1, 0);
    a.set_up(1);
    a.enable(1, true);
    assert_eq!(bench.port("v0").error, None);
    assert!(bench.port("v0").link_up);
    b.memory.post(0, 0, &[0; 1600], true);
    send(&a, 0, &frame(BROADCAST, [2, 0, 0, 0, 0, 1], 2));
    wait_used(&b, 0, 1);
}

#[test]
fn a_guest_that_comes_back_goes_on_where_its_rings_stand() {
    let bench = Bench::new();
    let (a, b) = (bench.guest("v0"), bench.guest("v1"));
    for slot in 0..3 {
        b.memory.post(0, slot, &[0; 1600], true);
        send(&a, slot, &frame(BROADCAST, [2, 0, 0, 0, 0, 1], 7));
    }
    wait_used(&b, 0, 3);
    wait_used(&a, 1, 3);
    let memory = a.memory;
    drop(a.frontend);
    eventually("the link to go down", || (!bench.port("v0").link_up).then_some(()));
    // The same memory and rings again, base 0 as virtio-user sends it.
    let stream = eventually("the port to listen", || UnixStream::connect(bench.socket("v0")).ok());
    let mut a = Vm::with(stream, memory);
    a.start(1);
    b.memory.post(0, 3, &[0; 1600], true);
    let sent = frame(BROADCAST, [2, 0, 0, 0, 0, 1], 8);
    send(&a, 3, &sent);
    wait_used(&b, 0, 4);
    assert_eq!(b.memory.received(0, 3)[HEADER..], sent[HEADER..]);
    assert_eq!(a.frontend.get_vring_base(1).unwrap(), 4);
    // Counters go on, too.
    assert_eq!(bench.port("v0").statistics["rx_packets"], 4);
}

#[test]
fn memory_that_is_plugged_in_under_traffic_is_used_at_once() {
    use std::os::fd::AsRawFd;
    use vhost::vhost_user::VhostUserFrontend;
    let bench = Bench::new();
    let (mut a, b) = (bench.guest("v0"), bench.guest("v1"));
    for slot in 0..8_u16 {
        b.memory.post(0, slot, &[0; 1600], true);
    }
    for slot in 0..8_u16 {
        if slot == 4 {
            let file = rig::memfd(rig::MEMORY);
            let mut more = a.memory.info();
            (more.guest_phys_addr, more.userspace_addr) = (rig::GPA + rig::MEMORY, a.memory.uva + (1 << 30));
            more.mmap_handle = file.as_raw_fd();
            a.frontend.add_mem_region(&more).unwrap();
        }
        send(&a, slot, &frame(BROADCAST, [2, 0, 0, 0, 0, 1], u8::try_from(slot).unwrap()));
    }
    wait_used(&b, 0, 8);
    for nth in 0..8 {
        assert_eq!(b.memory.received(0, nth)[HEADER + 14], u8::try_from(nth).unwrap());
    }
    // From the log's view, nothing came or went.
    let comings = bench.datapath.events().into_iter().filter(|event| matches!(event.kind, "added" | "removed")).count();
    assert_eq!(comings, 2);
}

#[test]
fn a_port_that_is_deleted_gives_its_guest_every_buffer_back() {
    let bench = Bench::new();
    let (a, b) = (bench.guest("v0"), bench.guest("v1"));
    // Nobody gave b room: the frame has nowhere to go.
    send(&a, 0, &frame(BROADCAST, [2, 0, 0, 0, 0, 1], 7));
    // A frame that nobody looked at yet may as well stay in its ring.
    wait_used(&a, 1, 1);
    bench.datapath.del_port("v0").unwrap();
    assert_eq!(a.memory.used_index(1), 1);
    assert!(bench.datapath.port("v0").is_err());
    assert!(!bench.socket("v0").exists());
    assert!(bench.port("v1").link_up);
    drop(b);
}
