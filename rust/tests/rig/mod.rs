//! What the session tests stand on: a front-end with guest memory of its own (the `vhost` crate's `Frontend`, or bare
//! bytes), and a `PortLink` that keeps what it is given and writes down what it is told.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ovsvhost::ring::Ring;
use ovsvhost::vhost::{Endpoint, EndpointConfig, EndpointKind, Level, PortLink};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempdir::TempDir;

/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of guest memory.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Where the guest's memory starts, guest-physical.
pub(crate) const GPA: u64 = 0x4000_0000;
/// Elements of a ring.
pub(crate) const SIZE: u16 = 256;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What a `PortLink` was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Start(usize),
    Stop(usize),
    SetCall(usize, bool),
    Link(bool),
    Announce([u8; 6]),
}

#[derive(Default)]
struct Record {
    told: Vec<Told>,
    events: Vec<(Level, &'static str, String)>,
    rings: std::collections::BTreeMap<usize, Ring>,
}

/// Keeps rings as the datapath would, and remembers every call.
#[derive(Default)]
pub(crate) struct Recorder {
    record: Mutex<Record>,
    changed: Condvar,
}

impl Recorder {
    /// Also after a test panicked, so that the endpoint ends in peace.
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record());
        self.changed.notify_all();
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.record().told.clone()
    }

    pub(crate) fn forget(&self) {
        self.note(|record| {
            record.told.clear();
            record.events.clear();
        });
    }

    pub(crate) fn events(&self) -> Vec<(Level, &'static str, String)> {
        self.record().events.clone()
    }

    pub(crate) fn holds(&self, vring: usize) -> bool {
        self.record().rings.contains_key(&vring)
    }

    fn wait(&self, what: &str, mut is_there: impl FnMut(&Record) -> bool) {
        let record = self.record();
        let (record, _) = self.changed.wait_timeout_while(record, DEADLINE, |record| !is_there(record)).unwrap();
        assert!(is_there(&record), "no {what}; told {:?}, events {:#?}", record.told, record.events);
    }

    pub(crate) fn wait_told(&self, what: &Told) {
        self.wait(&format!("{what:?}"), |record| record.told.contains(what));
    }

    /// Waits for an event of this kind whose text contains `part`, and gives the text.
    pub(crate) fn wait_event(&self, kind: &str, part: &str) -> String {
        let find = |record: &Record| {
            let mut all = record.events.iter();
            all.find(|(_, k, text)| *k == kind && text.contains(part)).map(|(_, _, text)| text.clone())
        };
        self.wait(&format!("event {kind} with '{part}'"), |record| find(record).is_some());
        find(&self.record()).unwrap()
    }
}

impl PortLink for Recorder {
    fn start(&self, vring: usize, ring: Ring) {
        self.note(|record| {
            record.told.push(Told::Start(vring));
            assert!(record.rings.insert(vring, ring).is_none(), "vring {vring} was started twice");
        });
    }

    fn stop(&self, vring: usize) -> Option<Ring> {
        let mut ring = None;
        self.note(|record| {
            record.told.push(Told::Stop(vring));
            ring = record.rings.remove(&vring);
        });
        ring
    }

    fn set_call(&self, vring: usize, call: Option<File>) {
        self.note(|record| record.told.push(Told::SetCall(vring, call.is_some())));
    }

    fn link_changed(&self, up: bool) {
        self.note(|record| record.told.push(Told::Link(up)));
    }

    fn announce(&self, mac: [u8; 6]) {
        self.note(|record| record.told.push(Told::Announce(mac)));
    }

    fn event(&self, level: Level, kind: &'static str, text: String) {
        self.note(|record| record.events.push((level, kind, text)));
    }

    fn mtu(&self) -> u16 {
        1500
    }
}

/// A port under test: its endpoint, its recorder, a directory for its socket.
pub(crate) struct Port {
    pub(crate) endpoint: Endpoint,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) socket: PathBuf,
    pub(crate) dir: TempDir,
}

pub(crate) fn config(kind: EndpointKind, socket: &Path) -> EndpointConfig {
    EndpointConfig {
        name: "v0".into(),
        kind,
        socket: socket.to_owned(),
        socket_mode: 0o600,
        socket_owner: None,
        socket_group: None,
        allow_file_memory: false,
    }
}

impl Port {
    pub(crate) fn new(kind: EndpointKind) -> Self {
        let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
        let socket = dir.as_path().join("v0");
        let recorder = Arc::new(Recorder::default());
        let endpoint = Endpoint::spawn(config(kind, &socket), Arc::clone(&recorder) as Arc<dyn PortLink>).unwrap();
        Self { endpoint, recorder, socket, dir }
    }

    /// A server port and a stream to it.
    pub(crate) fn connected() -> (Self, UnixStream) {
        let port = Self::new(EndpointKind::Server);
        let stream = UnixStream::connect(&port.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (port, stream)
    }

    /// Waits until the endpoint's error contains `part`.
    pub(crate) fn wait_error(&self, part: &str) -> String {
        eventually(&format!("an error with '{part}'"), || self.endpoint.error().filter(|text| text.contains(part)))
    }

    /// Waits until `status[key]` is `value`.
    pub(crate) fn wait_status(&self, key: &str, value: &str) {
        eventually(&format!("status {key}={value}"), || {
            (self.endpoint.status().get(key).map(String::as_str) == Some(value)).then_some(())
        });
    }
}

/// Asks again and again, yielding, until there is an answer or the deadline is over.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "never came: {what}");
        std::thread::yield_now();
    }
}

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

/// A message as bytes.
pub(crate) fn message(request: FrontendReq, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request.into(), flags, u32::try_from(body.len()).unwrap()] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) const PLAIN: u32 = 1;
pub(crate) const NEED_REPLY: u32 = 9;

/// A front-end that speaks in bare bytes.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn send(&mut self, request: FrontendReq, body: &[u8]) {
        self.0.write_all(&message(request, PLAIN, body)).unwrap();
    }

    pub(crate) fn send_number(&mut self, request: FrontendReq, value: u64) {
        self.send(request, &value.to_ne_bytes());
    }

    pub(crate) fn send_vring(&mut self, request: FrontendReq, index: u32, num: u32) {
        let mut body = index.to_ne_bytes().to_vec();
        body.extend_from_slice(&num.to_ne_bytes());
        self.send(request, &body);
    }

    pub(crate) fn send_with(&mut self, request: FrontendReq, flags: u32, body: &[u8], fds: &[RawFd]) {
        self.0.send_with_fds(&[message(request, flags, body).as_slice()], fds).unwrap();
    }

    /// The payload of the next reply.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_ne_bytes(head[8..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(size).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    pub(crate) fn reply_number(&mut self) -> u64 {
        u64::from_ne_bytes(self.reply().try_into().unwrap())
    }

    /// Asks something, so that everything sent before has been handled when this returns.
    pub(crate) fn settle(&mut self) {
        self.send(FrontendReq::GET_FEATURES, &[]);
        self.reply();
    }

    /// Waits until the back-end hangs up.
    pub(crate) fn wait_hang_up(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
    }
}

/// What a VMM in server mode does: makes the socket and waits for the back-end.
pub(crate) fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let stream = eventually("a connection", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}
