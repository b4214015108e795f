//! What the session tests stand on: a front-end with guest memory of its own (the `vhost` crate's `Frontend`, or bare
//! bytes), and a `PortLink` that keeps what it is given and writes down what it is told.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod guest;
mod raw;

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use guest::*;
use ovsvhost::recovery::Recovery;
use ovsvhost::ring::Ring;
use ovsvhost::vhost::{Endpoint, EndpointConfig, EndpointKind, Level, PortLink};
pub(crate) use raw::*;
use vmm_sys_util::tempdir::TempDir;

/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

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
    changes: usize,
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

    /// How often the endpoint said that its state changed.
    pub(crate) fn changes(&self) -> usize {
        self.record().changes
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

    fn state_changed(&self) {
        self.note(|record| record.changes += 1);
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
        postcopy: false,
        iommu: false,
        offer: Arc::default(),
        recovery: Arc::new(Recovery::in_process()),
    }
}

impl Port {
    pub(crate) fn new(kind: EndpointKind) -> Self {
        let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
        let socket = dir.as_path().join("v0");
        Self::with(config(kind, &socket), dir)
    }

    pub(crate) fn with(config: EndpointConfig, dir: TempDir) -> Self {
        let recorder = Arc::new(Recorder::default());
        let socket = config.socket.clone();
        let endpoint = Endpoint::spawn(config, Arc::clone(&recorder) as Arc<dyn PortLink>).unwrap();
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

/// What a VMM in server mode does: makes the socket and waits for the back-end.
pub(crate) fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let stream = eventually("a connection", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}
