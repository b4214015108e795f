//! The handler keeps the contract of the `vhost` crate's trait: the crate's own dispatcher drives it, its own front-end
//! asks.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::ring::Ring;
use crate::vhost::{EndpointConfig, EndpointKind};

const SIZE: usize = 1 << 16;

/// Holds the rings it is given.
#[derive(Default)]
struct Shelf(Mutex<BTreeMap<usize, Ring>>);

impl PortLink for Shelf {
    fn start(&self, vring: usize, ring: Ring) {
        self.0.lock().unwrap().insert(vring, ring);
    }
    fn stop(&self, vring: usize) -> Option<Ring> {
        self.0.lock().unwrap().remove(&vring)
    }
    fn set_call(&self, _: usize, _: Option<File>) {}
    fn link_changed(&self, _: bool) {}
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
    vm.set_features(features::VIRTIO).unwrap();
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
        vm.set_vring_base(vring, 0).unwrap();
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
    assert_eq!(vm.get_vring_base(1).unwrap(), 0);
    assert!(!handler.lock().unwrap().state().link_up);
    assert!(vm.set_features(1 << 40).is_err());
    assert!(handler.lock().unwrap().state().problem.unwrap().ends_with("not offered: RING_RESET"));
    drop(vm);
    served.join().unwrap();
    handler.lock().unwrap().end();
    assert!(link.0.lock().unwrap().is_empty());
}
