// SPDX-License-Identifier: Apache-2.0
//! A switch with the bridge `br0`, and a folder for its sockets that goes with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ovsvhost::datapath::{Datapath, PortConfig, PortState};
use ovsvhost::vhost::EndpointKind;

/// The longest wait for anything that must happen: long, for the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A datapath that can be taken away and made anew on the same sockets.
pub struct Switch {
    datapath: Option<Datapath>,
    folder: PathBuf,
    ports: Vec<PortConfig>,
}

impl Switch {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("ovsvhost-switch-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut switch = Self { datapath: None, folder, ports: Vec::new() };
        switch.start();
        switch
    }

    /// Makes the datapath, with every port it had before.
    pub fn start(&mut self) {
        assert!(self.datapath.is_none());
        let datapath = Datapath::new(&[], None).unwrap();
        datapath.add_bridge("br0").unwrap();
        for port in &self.ports {
            datapath.add_port("br0", port.clone()).unwrap();
        }
        self.datapath = Some(datapath);
    }

    /// Takes the datapath away.
    pub fn stop(&mut self) {
        self.datapath = None;
    }

    /// Adds a port; gives the path of its socket.
    pub fn add(&mut self, name: &str, kind: EndpointKind) -> PathBuf {
        self.add_with(name, kind, |_| {})
    }

    pub fn add_with(&mut self, name: &str, kind: EndpointKind, change: impl FnOnce(&mut PortConfig)) -> PathBuf {
        let socket = self.folder.join(name);
        let ofport = (1..=u16::MAX).find(|n| self.ports.iter().all(|p| p.ofport != *n)).unwrap();
        let mut config = PortConfig { mtu: 9_000, ..PortConfig::new(name, kind, ofport, socket.clone()) };
        change(&mut config);
        self.datapath().add_port("br0", config.clone()).unwrap();
        self.ports.push(config);
        socket
    }

    pub fn delete(&mut self, name: &str) {
        self.datapath().del_port(name).unwrap();
        self.ports.retain(|port| port.name != name);
    }

    pub fn datapath(&self) -> &Datapath {
        self.datapath.as_ref().expect("the switch runs")
    }

    pub fn port(&self, name: &str) -> PortState {
        self.datapath().port(name).unwrap()
    }

    pub fn statistics(&self, name: &str) -> BTreeMap<String, u64> {
        self.port(name).statistics
    }

    /// One number of a port; 0 if it was never counted.
    pub fn count(&self, name: &str, key: &str) -> u64 {
        self.statistics(name).get(key).copied().unwrap_or(0)
    }

    /// The port behind which an address is known.
    pub fn behind(&self, mac: [u8; 6]) -> Option<u16> {
        let mac = ovsvhost::frame::ethernet::Mac::from_bytes(mac);
        let entries = self.datapath().fdb("br0").unwrap();
        entries.iter().find(|entry| entry.learned.key.mac() == mac).map(|entry| entry.ofport)
    }

    pub fn wait_link(&self, name: &str, up: bool) {
        wait(&format!("port {name} to be {}", if up { "up" } else { "down" }), || self.port(name).link_up == up);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until something is true.
///
/// # Panics
/// When it is not by the deadline.
#[track_caller]
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        // Nothing tells us: look again in a moment.
        thread::park_timeout(Duration::from_millis(1));
    }
}
