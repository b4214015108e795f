// SPDX-License-Identifier: Apache-2.0
//! A namespace with a veth pair in it: `near` is the switch's, `far` ours.

use std::process::Command;
use std::time::{Duration, Instant};

use ovsvhost::datapath::{NicConfig, NicDevice};
use ovsvhost::port::afxdp::XdpMode;
use ovsvhost::sys::netdev::Asker;
use ovsvhost::sys::xdp::Socket;
use ovsvhost::testing::netdev::{FarEnd, in_own_namespace};

use super::rig::{DEADLINE, Switch, wait};

/// The device's address as stations see it: nobody has it, frames to it are the far end's.
pub const FAR: [u8; 6] = [2, 0, 0, 0, 0, 0xfa];

/// Runs a test in a namespace of its own, unless this machine cannot.
pub fn with_cable(mtu: u32, test: impl FnOnce(Cable) + Send + 'static) {
    with_shape(mtu, [1, 1], test);
}

/// The same with devices of several queues. A frame arrives at the queue of the number of that it was sent from.
pub fn with_wide_cable(mtu: u32, queues: u32, test: impl FnOnce(Cable) + Send + 'static) {
    with_shape(mtu, [queues, queues], test);
}

/// The same with several queues for the switch to send on, and one where all arrives.
pub fn with_queues_to_send(mtu: u32, queues: u32, test: impl FnOnce(Cable) + Send + 'static) {
    with_shape(mtu, [queues, 1], test);
}

/// `queues` are those that the near device sends and receives on.
fn with_shape(mtu: u32, queues: [u32; 2], test: impl FnOnce(Cable) + Send + 'static) {
    if let Err(e) = Socket::new() {
        eprintln!("skipped: no AF_XDP socket ({e}): it needs root and CONFIG_XDP_SOCKETS");
        return;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        eprintln!("skipped: no program 'ip' (iproute2) to make devices with");
        return;
    }
    let run = in_own_namespace(move || test(Cable::new(mtu, queues)));
    if let Err(e) = run {
        eprintln!("skipped: {e}: it needs root");
    }
}

/// The far end's device and the near one's names.
pub struct Cable {
    pub far: FarEnd,
    mtu: u32,
    queues: [u32; 2],
}

impl Cable {
    fn new(mtu: u32, queues: [u32; 2]) -> Self {
        plug(mtu, queues);
        Self { far: FarEnd::open("far").unwrap(), mtu, queues }
    }

    /// Takes the pair away and makes another of the same name.
    pub fn replace(&mut self) {
        ip("link del near");
        self.plug_in();
    }

    /// Makes the pair anew.
    pub fn plug_in(&mut self) {
        plug(self.mtu, self.queues);
        self.far = FarEnd::open("far").unwrap();
    }

    /// Sends a frame; waits for room.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        wait("room in the far end's queue", || self.far.send(frame).unwrap());
    }

    /// The next frame that came over the cable.
    #[track_caller]
    pub fn next(&mut self) -> Vec<u8> {
        let mut frame = None;
        wait("a frame at the far end", || {
            frame = self.far.receive().unwrap();
            frame.is_some()
        });
        frame.unwrap()
    }
}

fn plug(mtu: u32, queues: [u32; 2]) {
    let [out, back] = queues;
    let (near, far) =
        (format!("numtxqueues {out} numrxqueues {back}"), format!("numtxqueues {back} numrxqueues {out}"));
    ip(&format!("link add near {near} type veth peer name far {far}"));
    for device in ["near", "far"] {
        // No address of its own: then the kernel has nothing to say.
        ip(&format!("link set {device} addrgenmode none mtu {mtu} up"));
    }
    wait_carrier();
}

/// Runs `ip` with these words.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A NIC port on `near` with nothing else set.
pub fn nic(ofport: u16) -> NicConfig {
    let device = NicDevice { mode: XdpMode::Native, ..NicDevice::new("near") };
    NicConfig { name: "n0".into(), ofport, device, mtu: None, retries: 8, bond: None }
}

/// Adds the port to the switch and waits for its link.
pub fn join(switch: &Switch, change: impl FnOnce(&mut NicConfig)) {
    let mut config = nic(100);
    change(&mut config);
    let name = config.name.clone();
    switch.datapath().add_nic("br0", config).unwrap();
    wait_up(switch, &name);
}

/// Waits for a NIC's link; says what is in the way if it does not come.
#[track_caller]
pub fn wait_up(switch: &Switch, name: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !switch.port(name).link_up {
        assert!(Instant::now() < deadline, "{name} is not up: {:?}", switch.port(name).error);
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Waits, and is what a watch over the links of a host is to the switch meanwhile: it says that there is news.
#[track_caller]
pub fn wait_with_news(switch: &Switch, name: &str, what: &str, mut done: impl FnMut() -> bool) {
    wait(what, || {
        switch.datapath().refresh_nic(name).unwrap();
        done()
    });
}

/// Waits until the kernel has made up its mind about the cable, which it does behind our back.
pub fn wait_carrier() {
    let asker = Asker::new().unwrap();
    let has_carrier = |name| asker.find(name).unwrap().is_some_and(|device| device.has_carrier);
    wait("the carrier", || has_carrier("near") && has_carrier("far"));
}
