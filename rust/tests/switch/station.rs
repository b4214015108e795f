// SPDX-License-Identifier: Apache-2.0
//! One guest with one queue pair, frame by frame: it sends any bytes and sees every header, and it need not be honest.
//! Its rings are split ([`Station`]) or packed.

use std::collections::HashMap;
use std::path::Path;

use ovsvhost::testing::driver::{ChainDriver, RingPlace, Segment, SplitDriver};
use ovsvhost::testing::frames::vnet_header_size;
use ovsvhost::testing::frontend::{Frontend, FrontendConfig, Migration, Serve, Side};
use ovsvhost::testing::memory::{Backing, Gpa, RegionSpec};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};

/// Descriptors of either ring, and buffers in it, unless a test says otherwise.
const SIZE: u16 = 64;
const RECEIVE: u32 = 2_048;
const SEND: usize = 16 << 10;
/// Rings lie in the first region, buffers in the second.
const BUFFERS: usize = 1;

pub type Station = StationOf<SplitDriver>;

pub struct StationOf<D> {
    pub frontend: Frontend,
    pub rx: D,
    pub tx: D,
    pub mac: [u8; 6],
    places: Vec<RingPlace>,
    header: usize,
    receive_buffers: HashMap<u16, Gpa>,
    send_slots: Vec<Gpa>,
    in_flight: HashMap<u16, Gpa>,
}

impl<D: ChainDriver> StationOf<D> {
    /// Adds port `name` to the switch, plugs a guest into it and waits for the link. `last` is the last byte of its
    /// address.
    pub fn join(switch: &mut Switch, name: &str, last: u8) -> Self {
        Self::join_with(switch, name, last, |_| {})
    }

    pub fn join_with(switch: &mut Switch, name: &str, last: u8, change: impl FnOnce(&mut FrontendConfig)) -> Self {
        let socket = switch.add(name, EndpointKind::Client);
        let station = Self::plug(&socket, last, change);
        switch.wait_link(name, true);
        station
    }

    /// A guest on the socket of a client port.
    pub fn plug(socket: &Path, last: u8, change: impl FnOnce(&mut FrontendConfig)) -> Self {
        let mut config = FrontendConfig::new(socket, Side::Listen);
        config.ring_size = SIZE;
        config.regions = RegionSpec::spread(2, 2 << 20, &Backing::Memfd);
        change(&mut config);
        let size = config.ring_size;
        let mut frontend = Frontend::new(config).unwrap();
        wait("the switch to connect", || frontend.try_connect().unwrap());
        let agreed = frontend.session().unwrap().features();
        let mut drivers = Vec::new();
        let mut places = Vec::new();
        for _ in 0..2 {
            let place = RingPlace::alloc_agreed(frontend.ram_mut(), 0, size, agreed).unwrap();
            let mut driver = D::over(frontend.ram(), place, size, agreed).unwrap();
            driver.want_calls(false);
            places.push(place);
            drivers.push(driver);
        }
        let (tx, mut rx) = (drivers.pop().unwrap(), drivers.pop().unwrap());
        let mut receive_buffers = HashMap::new();
        for _ in 0..size {
            let gpa = frontend.ram_mut().alloc(BUFFERS, RECEIVE as usize, 64).unwrap();
            receive_buffers.insert(rx.add(&[receive(gpa)]).unwrap(), gpa);
        }
        rx.publish();
        let send_slots = (0..size / 4 * 3).map(|_| frontend.ram_mut().alloc(BUFFERS, SEND, 64).unwrap()).collect();
        let bases = vec![D::first_base(); places.len()];
        frontend.start(&places, &bases, 1).unwrap();
        Self {
            frontend,
            rx,
            tx,
            mac: [2, 0, 0, 0, 0, last],
            places,
            header: vnet_header_size(agreed),
            receive_buffers,
            send_slots,
            in_flight: HashMap::new(),
        }
    }

    /// A frame of `len` bytes from this station to `to`.
    pub fn frame(&self, to: [u8; 6], len: usize) -> Vec<u8> {
        let mut frame = [to, self.mac].concat();
        frame.extend([0x88, 0xb5]);
        frame.extend((0..len.saturating_sub(14)).map(|at| (at % 251) as u8));
        frame.truncate(len);
        frame
    }

    /// Sends a frame without any offload.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; 12], frame);
    }

    /// Sends frames that become visible to the switch all at once.
    pub fn send_together(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.post(&[0; 12], frame);
        }
        self.publish();
    }

    /// Sends a frame that lies in so many buffers, of which the virtio header is none.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn send_cut(&mut self, frame: &[u8], buffers: usize) {
        self.reclaim();
        let gpa = self.send_slots.pop().expect("the switch gives transmit buffers back");
        let bytes = [&[0; 12][..self.header], frame].concat();
        self.frontend.ram().window(gpa, bytes.len()).unwrap().write(0, &bytes);
        let cut = |n: usize| (self.header + frame.len() * n / buffers) as u32;
        let mut segments = vec![Segment { gpa, len: self.header as u32, writable: false }];
        segments.extend((0..buffers).map(|n| {
            let (from, to) = (cut(n), cut(n + 1));
            Segment { gpa: gpa.plus(from.into()), len: to - from, writable: false }
        }));
        self.in_flight.insert(self.tx.add(&segments).unwrap(), gpa);
        self.publish();
    }

    /// Sends a frame behind this header.
    pub fn send_with(&mut self, header: &[u8; 12], frame: &[u8]) {
        self.post(header, frame);
        self.publish();
    }

    fn post(&mut self, header: &[u8; 12], frame: &[u8]) {
        self.reclaim();
        let gpa = self.send_slots.pop().expect("the switch gives transmit buffers back");
        let bytes = [&header[..self.header], frame].concat();
        self.frontend.ram().window(gpa, bytes.len()).unwrap().write(0, &bytes);
        let segment = Segment { gpa, len: bytes.len() as u32, writable: false };
        self.in_flight.insert(self.tx.add(&[segment]).unwrap(), gpa);
    }

    fn publish(&mut self) {
        if self.tx.publish() {
            self.kick(1);
        }
    }

    /// Takes back what was sent.
    fn reclaim(&mut self) {
        while let Some(used) = self.tx.poll_used() {
            self.send_slots.push(self.in_flight.remove(&used.head).unwrap());
        }
    }

    /// Waits until the switch has taken everything that was sent.
    #[track_caller]
    pub fn wait_sent(&mut self) {
        wait("the switch to take every frame", || {
            self.reclaim();
            self.in_flight.is_empty()
        });
    }

    /// Frames that the switch has not given back.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn outstanding(&mut self) -> usize {
        self.reclaim();
        self.in_flight.len()
    }

    /// Frames that can be sent before one must come back.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn room(&mut self) -> usize {
        self.reclaim();
        self.send_slots.len()
    }

    /// Writes over every buffer that was sent and did not come back, as a guest that breaks the rules does.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn scribble(&mut self, byte: u8) {
        self.reclaim();
        for gpa in self.in_flight.values() {
            self.frontend.ram().window(*gpa, SEND).unwrap().fill(byte);
        }
    }

    /// Sends from this place next: `SEND` bytes of guest memory.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn add_send_slot(&mut self, region: usize) {
        let gpa = self.frontend.ram_mut().alloc(region, SEND, 64).unwrap();
        self.send_slots.push(gpa);
    }

    /// Sends from no place any more from `first` on; there is nothing in flight.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn remove_send_slots(&mut self, first: Gpa) {
        assert!(self.in_flight.is_empty());
        self.send_slots.retain(|gpa| *gpa < first);
    }

    /// Takes one frame that arrived, header first.
    pub fn receive(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut bytes = self.take_buffer()?;
        if self.header == 12 {
            for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                bytes.extend(self.take_buffer().expect("the buffers of a frame are given back together"));
            }
        }
        if self.rx.publish() {
            self.kick(0);
        }
        let frame = bytes.split_off(self.header);
        Some((bytes, frame))
    }

    /// Waits for the next frame.
    #[track_caller]
    pub fn next(&mut self) -> Vec<u8> {
        let mut frame = None;
        wait("a frame", || {
            frame = self.receive();
            frame.is_some()
        });
        frame.unwrap().1
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let used = self.rx.poll_used()?;
        let gpa = self.receive_buffers.remove(&used.head).unwrap();
        let mut bytes = vec![0; used.len as usize];
        self.frontend.ram().window(gpa, bytes.len()).unwrap().read(0, &mut bytes);
        self.receive_buffers.insert(self.rx.add(&[receive(gpa)]).unwrap(), gpa);
        Some(bytes)
    }

    pub fn kick(&self, vring: usize) {
        // A full counter has woken the switch already.
        let _ = self.frontend.kick(vring).unwrap().write(1);
    }

    /// Makes holes where the buffers are, as `madvise(2)` with `MADV_REMOVE` does: the file has its size, and no pages.
    pub fn punch_buffers(&self) {
        self.frontend.ram().regions()[BUFFERS].punch().unwrap();
    }

    /// Takes the buffers of the ring out of guest memory: the pages are gone for everybody.
    pub fn cut_buffers(&self) {
        self.frontend.ram().regions()[BUFFERS].file().set_len(0).unwrap();
    }

    /// Stops the rings and hangs up, as a virtual machine that is about to move does; gives where they stopped.
    pub fn leave(&mut self) -> Vec<u32> {
        self.frontend.stop().unwrap()
    }

    /// Comes back by post-copy: none of its memory is here, and each page comes as `policy` says of its region and place.
    pub fn arrive(&mut self, bases: &[u32], policy: impl FnMut(usize, usize) -> Serve + Send + 'static) -> Migration {
        let pages = self.frontend.ram().take_away().unwrap();
        self.reconnect();
        let backend = self.frontend.postcopy().unwrap();
        self.frontend.start(&self.places, bases, 1).unwrap();
        self.frontend.serve(pages, backend, policy).unwrap()
    }

    /// Waits for a session.
    pub fn reconnect(&mut self) {
        wait("the switch to connect", || self.frontend.try_connect().unwrap());
    }

    /// Sets memory and rings up in this session, to go on from `bases`.
    pub fn resume(&mut self, bases: &[u32]) {
        self.frontend.start(&self.places, bases, 1).unwrap();
    }
}

impl Station {
    /// Sets rings and memory up anew with the switch, as a driver that was reset does; the rings are those there are.
    pub fn restart(&mut self) {
        wait("the switch to connect", || self.frontend.try_connect().unwrap());
        let bases = [&self.rx, &self.tx].map(|driver| driver.ring().used_index().into());
        self.frontend.start(&self.places, &bases, 1).unwrap();
    }
}

fn receive(gpa: Gpa) -> Segment {
    Segment { gpa, len: RECEIVE, writable: true }
}
