// SPDX-License-Identifier: Apache-2.0
//! The second stage of a session: memory, rings, enable; and the way back.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::{DirtyLog, FrontendConfig, MemoryMessage, Order, Session};
use crate::testing::driver::RingPlace;
use crate::testing::memory::{Gpa, GuestRam};
use crate::testing::wire::features::{LOG_ALL, protocol};
use crate::testing::wire::{self, Message, RegionEntry, Request, VringAddresses};
use crate::testing::{Error, Result};

const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;

pub(super) struct Rings<'a> {
    pub(super) places: &'a [RingPlace],
    pub(super) bases: &'a [u32],
    pub(super) enabled: u16,
    pub(super) kicks: &'a [EventFd],
    pub(super) calls: &'a [EventFd],
}

pub(super) fn start(config: &FrontendConfig, ram: &GuestRam, session: &Session, rings: &Rings<'_>) -> Result<()> {
    match config.order {
        Order::Qemu => {
            // QEMU 7.2 enables before the back-end knows features or rings.
            enable(session, rings)?;
            set_features(session)?;
            set_memory(config, ram, session)?;
            set_rings(config, ram, session, rings)?;
            set_status(session, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)?;
        }
        Order::VirtioUser => {
            for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
                set_status(session, status)?;
            }
            set_features(session)?;
            set_status(session, ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
            set_memory(config, ram, session)?;
            set_rings(config, ram, session, rings)?;
            enable(session, rings)?;
            set_status(session, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)?;
        }
    }
    Ok(())
}

/// Sends a message that has no answer of its own, and waits for the acknowledgement where
/// `REPLY_ACK` was agreed on.
pub(super) fn set(session: &Session, message: Message, fds: &[RawFd]) -> Result<()> {
    let request = message.request;
    if !session.acknowledged {
        return session.channel.send(&message, fds);
    }
    session.channel.send(&message.need_reply(), fds)?;
    match session.channel.reply(request)?.number()? {
        0 => Ok(()),
        code => Err(Error::Peer(format!("the back-end refused {} ({code})", request.name()))),
    }
}

/// Shares the dirty log. Back-ends answer this one whether they are asked to or not, and as they like.
pub(super) fn set_log(session: &Session, log: &DirtyLog) -> Result<()> {
    let (message, fds) = log.message();
    session.channel.send(&message, &fds)?;
    session.channel.reply(message.request).map(drop)
}

fn set_features(session: &Session) -> Result<()> {
    set(session, Message::number(Request::SET_FEATURES, session.features), &[])
}

fn set_status(session: &Session, status: u64) -> Result<()> {
    if session.protocol & protocol::STATUS == 0 {
        return Ok(());
    }
    session.channel.ask(&Message::new(Request::GET_STATUS))?.number()?;
    set(session, Message::number(Request::SET_STATUS, status), &[])
}

fn enable(session: &Session, rings: &Rings<'_>) -> Result<()> {
    for index in 0..rings.places.len() {
        let on = u32::from(index / 2 < usize::from(rings.enabled));
        let message = Message::vring(Request::SET_VRING_ENABLE, vring(index), on);
        set(session, message, &[])?;
    }
    Ok(())
}

/// The regions of guest memory as they go on the wire.
pub fn region_entries(ram: &GuestRam) -> Vec<RegionEntry> {
    ram.regions()
        .iter()
        .map(|region| RegionEntry {
            gpa: region.gpa(),
            size: region.size() as u64,
            user_address: region.user_address(),
            file_offset: region.file_offset(),
        })
        .collect()
}

fn set_memory(config: &FrontendConfig, ram: &GuestRam, session: &Session) -> Result<()> {
    let mut entries = region_entries(ram);
    if let Some(iommu) = config.iommu.filter(|_| session.iommu.is_some()) {
        for entry in &mut entries {
            entry.gpa = entry.gpa.plus(iommu.offset);
        }
    }
    if session.listening {
        return super::postcopy::set_memory(config, ram, session, &entries);
    }
    match config.memory_message {
        MemoryMessage::Table => {
            let fds: Vec<RawFd> = ram.regions().iter().map(AsRawFd::as_raw_fd).collect();
            set(session, wire::mem_table(&entries), &fds)
        }
        MemoryMessage::Regions if session.protocol & protocol::CONFIGURE_MEM_SLOTS == 0 => {
            Err(Error::Peer("the back-end does not offer configure_mem_slots".into()))
        }
        MemoryMessage::Regions => {
            for (entry, region) in entries.into_iter().zip(ram.regions()) {
                let message = wire::mem_region(Request::ADD_MEM_REG, entry);
                set(session, message, &[region.as_raw_fd()])?;
            }
            Ok(())
        }
    }
}

fn set_rings(config: &FrontendConfig, ram: &GuestRam, session: &Session, rings: &Rings<'_>) -> Result<()> {
    let fds = rings.kicks.iter().zip(rings.calls);
    let places = rings.places.iter().zip(rings.bases);
    for (index, ((place, &base), (kick, call))) in places.zip(fds).enumerate() {
        set_ring(config, ram, session, &Ring { index: vring(index), place: *place, base, kick, call })?;
    }
    Ok(())
}

pub(super) struct Ring<'a> {
    pub(super) index: u32,
    pub(super) place: RingPlace,
    pub(super) base: u32,
    pub(super) kick: &'a EventFd,
    pub(super) call: &'a EventFd,
}

/// Describes and starts one ring.
pub(super) fn set_ring(config: &FrontendConfig, ram: &GuestRam, session: &Session, ring: &Ring<'_>) -> Result<()> {
    let Ring { index, place, base, kick, call } = *ring;
    set(session, Message::vring(Request::SET_VRING_NUM, index, config.ring_size.into()), &[])?;
    set(session, Message::vring(Request::SET_VRING_BASE, index, base), &[])?;
    set_addresses(ram, session, index, place, session.features & LOG_ALL != 0)?;
    let number = u64::from(index);
    set(session, Message::number(Request::SET_VRING_KICK, number), &[kick.as_raw_fd()])?;
    set(session, Message::number(Request::SET_VRING_CALL, number), &[call.as_raw_fd()])
}

fn set_addresses(ram: &GuestRam, session: &Session, index: u32, place: RingPlace, is_logged: bool) -> Result<()> {
    // As QEMU: those of a guest with an IOMMU go as they are.
    let address = |gpa: Gpa| if session.iommu.is_some() { Ok(gpa.0) } else { ram.user_address(gpa) };
    let addresses = VringAddresses {
        descriptors: address(place.descriptors)?,
        used: address(place.used)?,
        available: address(place.available)?,
        log: place.used.0,
        flags: u32::from(is_logged),
    };
    set(session, wire::vring_addresses(index, addresses), &[])
}

/// Says of rings that run that nothing is to be marked any more, as QEMU does.
pub(super) fn end_logging(ram: &GuestRam, session: &Session, places: &[RingPlace]) -> Result<()> {
    set(session, Message::number(Request::SET_FEATURES, session.features & !LOG_ALL), &[])?;
    for (index, place) in places.iter().enumerate() {
        set_addresses(ram, session, vring(index), *place, false)?;
    }
    Ok(())
}

/// Stops one ring; gives where.
pub(super) fn stop_ring(session: &Session, index: u32) -> Result<u32> {
    let (answered, base) = session.channel.ask(&Message::vring(Request::GET_VRING_BASE, index, 0))?.vring()?;
    if answered == index {
        return Ok(base);
    }
    Err(Error::Peer(format!("the back-end answered GET_VRING_BASE of ring {index} for ring {answered}")))
}

pub(super) fn stop(config: &FrontendConfig, session: &Session) -> Result<Vec<u32>> {
    let vrings = u32::from(config.pairs) * 2;
    let bases = (0..vrings).map(|index| stop_ring(session, index)).collect::<Result<_>>()?;
    for index in 0..vrings {
        set(session, Message::vring(Request::SET_VRING_ENABLE, index, 0), &[])?;
    }
    set_status(session, 0)?;
    Ok(bases)
}

fn vring(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
