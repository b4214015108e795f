// SPDX-License-Identifier: Apache-2.0
//! A running guest that can lie in its rings.
//!
//! Rings lie in the first memory region, frames and indirect tables in the second, so that either
//! can be taken away alone. Ring 0 is the receiveq, ring 1 the transmitq. Split or packed: an honest
//! start is the same, the lies are not.

use std::time::{Duration, Instant};

use super::{Reaction, watch};
use crate::testing::driver::{
    ChainDriver, Descriptor, PackedDescriptor, PackedDriver, RingFormat, RingPlace, Segment, SplitDriver,
};
use crate::testing::frames::{Mac, announcement, vnet_header_size};
use crate::testing::frontend::Frontend;
use crate::testing::memory::Gpa;
use crate::testing::traffic::Json;
use crate::testing::{Error, Result};

/// Bytes set aside for each frame or buffer.
const CELL: usize = 4096;
const CELLS: usize = 256;
const RECEIVE_BUFFERS: usize = 64;
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_millis(20);

/// A guest with one queue pair.
#[derive(Debug)]
pub(super) struct Guest<D> {
    frontend: Frontend,
    receiveq: D,
    transmitq: D,
    cells: Gpa,
    mac: Mac,
    header_size: usize,
    /// Ring memory is gone: looking at it would end this process, too.
    blind: bool,
}

impl<D: ChainDriver> Guest<D> {
    /// Starts rings honestly and announces the guest's address.
    pub(super) fn start(mut frontend: Frontend, mac: Option<Mac>) -> Result<Self> {
        let agreed = frontend.session().map_or(0, crate::testing::frontend::Session::features);
        let size = frontend.config().ring_size;
        let ram = frontend.ram_mut();
        let places = [RingPlace::alloc_agreed(ram, 0, size, agreed)?, RingPlace::alloc_agreed(ram, 0, size, agreed)?];
        let [receiveq, transmitq] = places.map(|place| D::over(ram, place, size, agreed));
        let cells = ram.alloc(1, CELL * CELLS, CELL)?;
        let mut guest = Self {
            receiveq: receiveq?,
            transmitq: transmitq?,
            cells,
            mac: mac.unwrap_or(Mac([2, 0, 0, 0, 0, 3])),
            header_size: vnet_header_size(agreed),
            blind: false,
            frontend,
        };
        guest.frontend.start(&places, &[D::first_base(); 2], 1)?;
        guest.announce()?;
        Ok(guest)
    }

    fn announce(&mut self) -> Result<()> {
        let segment = self.frame(&announcement(self.mac, self.header_size))?;
        self.transmitq.add(&[segment])?;
        self.transmitq.publish();
        self.kick(1);
        let deadline = Instant::now() + ANNOUNCE_TIMEOUT;
        while self.transmitq.poll_used().is_none() {
            if Instant::now() > deadline {
                return Err(Error::Peer("the back-end does not take an honest frame".into()));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// The transmitq.
    pub(super) fn transmitq(&mut self) -> &mut D {
        &mut self.transmitq
    }

    /// The receiveq.
    pub(super) fn receiveq(&mut self) -> &mut D {
        &mut self.receiveq
    }

    /// The front-end, for its memory.
    pub(super) fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// Bytes of the vnet header.
    pub(super) fn header_size(&self) -> usize {
        self.header_size
    }

    /// The guest's address.
    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// From now on ring memory is not looked at.
    pub(super) fn go_blind(&mut self) {
        self.blind = true;
    }

    /// Guest address of frame or buffer number `index`.
    pub(super) fn cell(&self, index: usize) -> Gpa {
        self.cells.plus((CELL * (index % CELLS)) as u64)
    }

    /// Writes `bytes` into the first cell, and those after it if it takes more.
    pub(super) fn frame(&self, bytes: &[u8]) -> Result<Segment> {
        let gpa = self.cell(0);
        self.frontend.ram().window(gpa, bytes.len().max(CELL))?.write(0, bytes);
        let len = u32::try_from(bytes.len()).map_err(|_| Error::Config("a frame past 4 GiB".into()))?;
        Ok(Segment { gpa, len, writable: false })
    }

    /// An honest broadcast frame in the first cell.
    pub(super) fn honest_frame(&self) -> Result<Segment> {
        self.frame(&announcement(self.mac, self.header_size))
    }

    /// A frame from the guest to itself: a switch has work with it, and nobody else gets it.
    pub(super) fn frame_to_itself(&self) -> Result<Segment> {
        let mut bytes = announcement(self.mac, self.header_size);
        if let Some(destination) = bytes.get_mut(self.header_size..self.header_size + 6) {
            destination.copy_from_slice(&self.mac.0);
        }
        self.frame(&bytes)
    }

    /// Posts receive buffers as an honest guest does.
    pub(super) fn receive_honestly(&mut self) -> Result<()> {
        for index in 0..RECEIVE_BUFFERS {
            let gpa = self.cell(1 + index);
            self.receiveq.add(&[Segment { gpa, len: 2048, writable: true }])?;
        }
        self.receiveq.publish();
        self.kick(0);
        Ok(())
    }

    /// Waits until the device gave a transmit buffer back, or is taken not to.
    pub(super) fn wait_for_used(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.transmitq.poll_used().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Wakes the device, whether it asked for it or not.
    pub(super) fn kick(&self, vring: usize) {
        if let Some(kick) = self.frontend.kick(vring) {
            // Only a counter at its limit refuses, and then the device is awake already.
            let _ = kick.write(1);
        }
    }

    /// Watches for `hold` what the back-end does, then asks it a question, then stops the rings.
    pub(super) fn watch(mut self, hold: Duration) -> Json {
        let Some(session) = self.frontend.session() else { return Reaction::HungUp.json() };
        let mut reaction = watch(session.channel(), hold);
        let used = (!self.blind).then(|| {
            [&mut self.receiveq, &mut self.transmitq].map(|queue| Json::Count(queue.device_position().into()))
        });
        let stopped = if reaction == Reaction::Alive { self.frontend.stop() } else { Ok(Vec::new()) };
        if reaction == Reaction::Alive && stopped.is_err() {
            reaction = Reaction::Silent;
        }
        let bases = stopped.unwrap_or_default().into_iter().map(|base| Json::Count(base.into()));
        Json::object([
            ("reaction", Json::text(reaction.name())),
            ("used", used.map_or(Json::Null, |used| Json::List(used.to_vec()))),
            ("stopped_at", Json::List(bases.collect())),
        ])
    }
}

impl Guest<SplitDriver> {
    /// Writes descriptors into the transmitq's table as they are, and offers the one at `head`.
    pub(super) fn offer(&mut self, descriptors: &[(u16, Descriptor)], head: u16) {
        offer(&mut self.transmitq, descriptors, head);
        self.kick(1);
    }

    /// Offers one descriptor again if the device keeps up; an index that runs away would be another attack.
    pub(super) fn offer_again(&mut self, descriptor: Descriptor) {
        let ring = self.transmitq.ring();
        if ring.next_available().wrapping_sub(ring.used_index()) < ring.size() / 2 {
            self.offer(&[(0, descriptor)], 0);
        }
    }

    /// Offers the same descriptors as a receive buffer, as often as there is room.
    pub(super) fn offer_receive(&mut self, descriptors: &[(u16, Descriptor)], head: u16) {
        for _ in 0..RECEIVE_BUFFERS {
            offer(&mut self.receiveq, descriptors, head);
        }
        self.kick(0);
    }

    /// Writes an indirect table into the second cell and offers a descriptor of `len` bytes for it.
    pub(super) fn offer_table(&mut self, entries: &[Descriptor], len: u32) -> Result<()> {
        let gpa = self.cell(1);
        let window = self.frontend.ram().window(gpa, CELL * (CELLS - 1))?;
        for (index, entry) in entries.iter().enumerate() {
            entry.store(&window, 16 * index);
        }
        self.offer(&[(0, Descriptor { address: gpa.0, len, flags: 4, next: 0 })], 0);
        Ok(())
    }
}

impl Guest<PackedDriver> {
    /// Makes descriptors available in the transmitq as they are: `address`, `len`, `id`, and flags besides those that
    /// make them available.
    pub(super) fn push(&mut self, descriptors: &[PackedDescriptor]) {
        push(&mut self.transmitq, descriptors);
        self.kick(1);
    }

    /// The same in the receiveq, as often as there is room for.
    pub(super) fn push_receive(&mut self, descriptors: &[PackedDescriptor]) {
        for _ in 0..RECEIVE_BUFFERS {
            push(&mut self.receiveq, descriptors);
        }
        self.kick(0);
    }

    /// Writes descriptors into the transmitq with these very flags, from the next place on.
    pub(super) fn write(&mut self, descriptors: &[PackedDescriptor]) {
        let ring = self.transmitq.ring();
        let first = usize::from(ring.next_available().index);
        let size = ring.descriptors().size() / 16;
        // The first one last, as an honest driver does.
        for (place, descriptor) in descriptors.iter().enumerate().rev() {
            descriptor.store(ring.descriptors(), 16 * ((first + place) % size));
        }
        self.kick(1);
    }

    /// Writes an indirect table into the second cell and offers a descriptor of `len` bytes for it.
    pub(super) fn push_table(&mut self, entries: &[PackedDescriptor], len: u32, flags: u16) -> Result<()> {
        let gpa = self.cell(1);
        let window = self.frontend.ram().window(gpa, CELL * (CELLS - 1))?;
        for (index, entry) in entries.iter().enumerate() {
            entry.store(&window, 16 * index);
        }
        self.push(&[PackedDescriptor { address: gpa.0, len, id: 0, flags: 4 | flags }]);
        Ok(())
    }
}

fn push(queue: &mut PackedDriver, descriptors: &[PackedDescriptor]) {
    let ring = queue.ring_mut();
    for descriptor in descriptors {
        ring.push(descriptor.address, descriptor.len, descriptor.id, descriptor.flags);
    }
    RingFormat::publish(ring);
}

fn offer(queue: &mut SplitDriver, descriptors: &[(u16, Descriptor)], head: u16) {
    let ring = queue.ring_mut();
    for (index, descriptor) in descriptors {
        ring.write_descriptor(*index, *descriptor);
    }
    ring.put_available(head);
    ring.publish();
}
