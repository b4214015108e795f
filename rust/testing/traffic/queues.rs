// SPDX-License-Identifier: Apache-2.0
//! The queues of an end, made once its features are settled.

use super::receiver::{Check, Receiver};
use super::sender::Sender;
use super::settings::{EndSettings, Role};
use crate::testing::Result;
use crate::testing::driver::{RingPlace, Shape, SlotRing, SlotRingConfig};
use crate::testing::frames::{Checksum, FramePlan, Inspector, Mac, PlanConfig, vnet_header_size};
use crate::testing::memory::GuestRam;
use crate::testing::wire::features;

const JUMBO: usize = 9018;
/// The largest frame a receiver that takes them uncut may get (virtio 1.2 §5.1.6.3.1), without its vnet header.
const UNCUT: usize = 65_550;
const UNCUT_FEATURES: u64 =
    features::GUEST_TSO4 | features::GUEST_TSO6 | features::GUEST_UFO | features::GUEST_USO4 | features::GUEST_USO6;
const HEADROOM: usize = 1 << 20;

/// An end's own address: the one set, or one made from its index.
pub(super) fn own_address(index: u8, settings: &EndSettings) -> Mac {
    settings.mac.unwrap_or(Mac([2, 0, 0, 0, 0, index + 1]))
}

/// Rings with what runs on them; one of each per queue pair, places in the order of vrings.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) places: Vec<RingPlace>,
    pub(super) senders: Vec<Sender>,
    pub(super) receivers: Vec<Receiver>,
}

/// What queues are made from.
#[derive(Debug)]
pub(super) struct QueueMaker<'a> {
    pub(super) index: u8,
    pub(super) settings: &'a EndSettings,
    /// Features agreed on.
    pub(super) agreed: u64,
}

impl QueueMaker<'_> {
    /// Takes rings and buffers out of `ram` and posts all receive buffers.
    pub(super) fn make(&self, ram: &mut GuestRam) -> Result<Queues> {
        let mut queues = Queues { places: Vec::new(), senders: Vec::new(), receivers: Vec::new() };
        for pair in 0..self.settings.frontend.pairs {
            let region = usize::from(pair) % ram.regions().len();
            queues.receivers.push(self.receiver(ram, region)?);
            queues.senders.push(self.sender(ram, region, pair)?);
        }
        let pairs = queues.receivers.iter().zip(&queues.senders);
        queues.places =
            pairs.flat_map(|(receiver, sender)| [receiver.queue(), sender.queue()]).map(SlotRing::place).collect();
        Ok(queues)
    }

    fn receiver(&self, ram: &mut GuestRam, region: usize) -> Result<Receiver> {
        let mergeable = self.agreed & features::MRG_RXBUF != 0;
        let shape = Shape {
            layout: self.settings.rx_layout,
            header_size: vnet_header_size(self.agreed),
            room: receive_room(self.settings, self.agreed),
            gap: self.gap(),
        };
        let queue = self.ring(ram, region, shape, true)?;
        let inspector = Inspector {
            station: own_address(self.index, self.settings),
            stations: self.settings.addresses,
            header_size: shape.header_size,
            agreed: self.agreed,
        };
        let mut receiver = Receiver::new(queue, inspector, self.settings.check, mergeable);
        receiver.queue_mut().publish();
        Ok(receiver)
    }

    fn sender(&self, ram: &mut GuestRam, region: usize, pair: u16) -> Result<Sender> {
        let header_size = vnet_header_size(self.agreed);
        let plan = FramePlan::new(self.plan(pair, header_size))?;
        let echo_room = if self.settings.role == Some(Role::Echo) { JUMBO } else { 64 };
        let room = plan.largest().max(echo_room);
        let shape = Shape { layout: self.settings.layout, header_size, room, gap: self.gap() };
        let queue = self.ring(ram, region, shape, false)?;
        Ok(Sender::new(queue, plan, self.settings.check != Check::Full))
    }

    fn ring(&self, ram: &mut GuestRam, region: usize, shape: Shape, writable: bool) -> Result<SlotRing> {
        let size = self.settings.frontend.ring_size;
        let config = SlotRingConfig {
            place: RingPlace::alloc_agreed(ram, region, size, self.agreed)?,
            size,
            agreed: self.agreed,
            shape,
            writable,
            rewrite: self.settings.rewrite && !writable,
        };
        let mut queue = SlotRing::new(ram, config)?;
        queue.want_calls(false);
        Ok(queue)
    }

    fn plan(&self, pair: u16, header_size: usize) -> PlanConfig {
        let light = self.settings.check != Check::Full;
        let fallback = if light { Checksum::Zero } else { Checksum::Good };
        let partner = Mac([2, 0, 0, 0, 0, 2 - self.index.min(1)]);
        PlanConfig {
            source: own_address(self.index, self.settings),
            destination: self.settings.to.unwrap_or(partner),
            destinations: self.settings.destinations,
            network: self.settings.network,
            transport: self.settings.transport,
            checksum: self.settings.checksum.unwrap_or(fallback),
            flows: self.settings.flows,
            sizes: self.settings.sizes.clone(),
            stream: u16::from(self.index) << 8 | pair,
            header_size,
            vlan: self.settings.vlan,
            gso: self.settings.gso,
        }
    }

    fn gap(&self) -> usize {
        let fallback = if self.settings.check == Check::Full { 64 } else { 0 };
        self.settings.gap.unwrap_or(fallback)
    }
}

fn receive_room(settings: &EndSettings, agreed: u64) -> usize {
    let fallback = if agreed & features::MRG_RXBUF != 0 {
        2048
    } else if agreed & UNCUT_FEATURES != 0 {
        UNCUT
    } else {
        JUMBO
    };
    settings.buffer.unwrap_or(fallback)
}

/// Bytes per region that rings and buffers of these settings take, whatever is negotiated.
pub(super) fn memory_need(settings: &EndSettings) -> usize {
    let ring = usize::from(settings.frontend.ring_size);
    let largest = settings.sizes.iter().copied().max().unwrap_or(64).max(64);
    let largest = if settings.role == Some(Role::Echo) { largest.max(JUMBO) } else { largest };
    // An unmergeable session may come of a mergeable wish; half the slots of that size would do.
    let rooms = [(settings.layout, largest), (settings.rx_layout, receive_room(settings, settings.frontend.features))];
    let per_pair: usize = rooms
        .into_iter()
        .map(|(layout, room)| {
            let gap = settings.gap.unwrap_or(64);
            let stride = Shape { layout, header_size: 12, room, gap }.stride();
            let slots = (ring / layout.ring_descriptors()).max(1);
            let tables = 16 * layout.pieces() * slots;
            tables + slots.div_ceil(settings.regions.max(1)) * stride + 2 * 4096
        })
        .sum();
    let pairs = usize::from(settings.frontend.pairs);
    pairs * (per_pair + 2 * 26 * ring + 4 * 4096) + HEADROOM
}
