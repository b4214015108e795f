// SPDX-License-Identifier: Apache-2.0
//! The first stage of a session: who is there, and what both sides can do.
//!
//! QEMU asks for protocol features before it takes ownership, virtio-user the other way round.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

use super::{Bases, FrontendConfig, Order, Session};
use crate::testing::wire::features::{self, VIRTIO, protocol};
use crate::testing::wire::{Channel, Message, Request};
use crate::testing::{Error, Result};

pub(super) fn negotiate(
    config: &FrontendConfig,
    settled: Option<u64>,
    calls: &[EventFd],
    channel: Channel,
) -> Result<Session> {
    let mut session = Session {
        channel,
        offered: 0,
        features: 0,
        protocol: 0,
        queue_pairs: 1,
        acknowledged: false,
        started: false,
        listening: false,
        bases: Bases::default(),
        iommu: None,
    };
    if config.order == Order::VirtioUser {
        session.channel.send(&Message::new(Request::SET_OWNER), &[])?;
    }
    session.offered = session.channel.ask(&Message::new(Request::GET_FEATURES))?.number()?;
    session.features = agree(config, settled, session.offered)?;
    if session.features & features::PROTOCOL_FEATURES != 0 {
        negotiate_protocol(config, &mut session)?;
    }
    if config.pairs > 1 && session.queue_pairs < u64::from(config.pairs) {
        return Err(Error::Peer(format!(
            "the back-end takes {} queue pairs, {} are asked for",
            session.queue_pairs, config.pairs
        )));
    }
    if config.order == Order::Qemu {
        session.channel.send(&Message::new(Request::SET_OWNER), &[])?;
        // QEMU asks again for each virtio device it binds.
        session.channel.ask(&Message::new(Request::GET_FEATURES))?;
    }
    for (index, call) in (0_u64..).zip(calls) {
        let message = Message::number(Request::SET_VRING_CALL, index);
        session.channel.send(&message, &[call.as_raw_fd()])?;
    }
    set_mtu(config, &session)?;
    Ok(session)
}

fn agree(config: &FrontendConfig, settled: Option<u64>, offered: u64) -> Result<u64> {
    let wanted = settled.unwrap_or(config.features);
    let required = settled.unwrap_or(config.required);
    let missing = required & !offered;
    if missing != 0 {
        return Err(Error::Peer(format!(
            "the back-end does not offer {} ({missing:#x})",
            features::names(VIRTIO, missing)
        )));
    }
    Ok(wanted & offered)
}

fn negotiate_protocol(config: &FrontendConfig, session: &mut Session) -> Result<()> {
    let offered = session.channel.ask(&Message::new(Request::GET_PROTOCOL_FEATURES))?.number()?;
    session.protocol = offered & config.protocol;
    let message = Message::number(Request::SET_PROTOCOL_FEATURES, session.protocol);
    session.channel.send(&message, &[])?;
    session.acknowledged = session.protocol & protocol::REPLY_ACK != 0;
    if session.protocol & protocol::MQ != 0 {
        session.queue_pairs = session.channel.ask(&Message::new(Request::GET_QUEUE_NUM))?.number()?;
    }
    if session.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
        let slots = session.channel.ask(&Message::new(Request::GET_MAX_MEM_SLOTS))?.number()?;
        if slots < config.regions.len() as u64 {
            return Err(Error::Peer(format!(
                "the back-end takes {slots} memory regions, there are {}",
                config.regions.len()
            )));
        }
    }
    Ok(())
}

fn set_mtu(config: &FrontendConfig, session: &Session) -> Result<()> {
    let agreed = session.protocol & protocol::MTU != 0 && session.features & features::MTU != 0;
    match config.mtu {
        Some(mtu) if agreed => {
            let message = Message::number(Request::NET_SET_MTU, u64::from(mtu));
            super::start::set(session, message, &[])
        }
        _ => Ok(()),
    }
}
