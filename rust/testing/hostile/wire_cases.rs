// SPDX-License-Identifier: Apache-2.0
//! Bad bytes on a fresh connection.

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

use super::{Attack, Case};
use crate::testing::memory::{Backing, GuestRam, RegionSpec};
use crate::testing::wire::features::protocol;
use crate::testing::wire::{Channel, Message, Request, VERSION};
use crate::testing::{Error, Result};

const FLOOD: usize = 5000;

macro_rules! cases {
    ($($name:literal, $what:literal, $attack:expr;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: $name, what: $what, needs: 0, attack: Attack::Wire($attack) }),*];
    };
}

cases! {
    "silence", "connects and says nothing", |_| Ok(());
    "garbage", "sends 4 KiB that are no message", |channel| channel.send_bytes(&noise(4096), &[]);
    "half-header", "stops after 5 bytes of a header",
        |channel| channel.send_bytes(&head(&Message::new(Request::GET_FEATURES), 5), &[]);
    "half-message", "stops in the middle of a payload",
        |channel| channel.send_bytes(&head(&Message::number(Request::SET_FEATURES, 0), 15), &[]);
    "half-message-hang-up", "hangs up in the middle of a payload", |channel| {
        channel.send_bytes(&head(&Message::number(Request::SET_FEATURES, 0), 15), &[])?;
        channel.stream().shutdown(std::net::Shutdown::Both).map_err(Error::kernel("cannot shut down"))
    };
    "oversize-claimed", "a message that claims 4 GiB of payload", |channel| claim(channel, u32::MAX);
    "oversize-sent", "a message with 64 KiB of payload", |channel| {
        let mut message = Message::new(Request::SET_FEATURES);
        message.payload = noise(65_536);
        channel.send(&message, &[])
    };
    "undersize", "SET_FEATURES with 4 bytes of payload",
        |channel| channel.send(&Message::new(Request::SET_FEATURES).halves(&[1]), &[]);
    "no-payload", "SET_MEM_TABLE without payload",
        |channel| channel.send(&Message::new(Request::SET_MEM_TABLE), &[]);
    "wrong-version", "a message of protocol version 2", |channel| {
        let mut message = Message::new(Request::GET_FEATURES);
        message.flags = 2;
        channel.send(&message, &[])
    };
    "reply-flag", "a request that is marked as a reply", |channel| {
        let mut message = Message::new(Request::GET_FEATURES);
        message.flags = VERSION | 4;
        channel.send(&message, &[])
    };
    "unknown-request", "a request number that nobody knows",
        |channel| channel.send(&Message::new(Request(0x7fff_ffff)), &[]);
    "request-zero", "request number 0", |channel| channel.send(&Message::new(Request(0)), &[]);
    "surplus-fds", "GET_FEATURES with 32 fds beside it", |channel| {
        let event = eventfd()?;
        channel.send(&Message::new(Request::GET_FEATURES), &[event.as_raw_fd(); 32])
    };
    "kick-many-fds", "SET_VRING_KICK with 3 fds beside it", |channel| {
        let event = eventfd()?;
        channel.send(&Message::number(Request::SET_VRING_KICK, 0), &[event.as_raw_fd(); 3])
    };
    "kick-without-fd", "SET_VRING_KICK that promises an fd and brings none",
        |channel| channel.send(&Message::number(Request::SET_VRING_KICK, 0), &[]);
    "vring-out-of-range", "SET_VRING_NUM for vring 99999",
        |channel| channel.send(&Message::vring(Request::SET_VRING_NUM, 99_999, 256), &[]);
    "kick-out-of-range", "SET_VRING_KICK for vring 255", |channel| {
        let event = eventfd()?;
        channel.send(&Message::number(Request::SET_VRING_KICK, 255), &[event.as_raw_fd()])
    };
    "base-before-rings", "GET_VRING_BASE of a ring that was never set up",
        |channel| channel.send(&Message::vring(Request::GET_VRING_BASE, 0, 0), &[]);
    "enable-before-rings", "SET_VRING_ENABLE of rings that were never set up",
        |channel| channel.send(&Message::vring(Request::SET_VRING_ENABLE, 1, 1), &[]);
    "call-flood", "5000 SET_VRING_CALL with an fd each", |channel| {
        let event = eventfd()?;
        for _ in 0..FLOOD {
            channel.send(&Message::number(Request::SET_VRING_CALL, 0), &[event.as_raw_fd()])?;
        }
        Ok(())
    };
    "deaf", "5000 questions whose answers are never read", |channel| {
        for _ in 0..FLOOD {
            channel.send(&Message::new(Request::GET_FEATURES), &[])?;
        }
        Ok(())
    };
    "fds-with-everything", "every known request with 8 fds beside it, again and again", |channel| {
        let event = eventfd()?;
        for _ in 0..20 {
            for request in Request::all() {
                channel.send(&Message::number(request, 0), &[event.as_raw_fd(); 8])?;
            }
        }
        Ok(())
    };
    "inflight-fds", "inflight regions with 8 fds beside each message", |channel| {
        let event = eventfd()?;
        for _ in 0..100 {
            for request in [Request::GET_INFLIGHT_FD, Request::SET_INFLIGHT_FD] {
                channel.send(&inflight(request, 4096, 1), &[event.as_raw_fd(); 8])?;
            }
        }
        Ok(())
    };
    "inflight-asked-often", "5000 questions for an inflight region", |channel| {
        for _ in 0..FLOOD {
            channel.send(&inflight(Request::GET_INFLIGHT_FD, 0, 1), &[])?;
        }
        Ok(())
    };
    "inflight-queues-huge", "an inflight region for 65535 queues in 4 KiB", |channel| {
        let event = eventfd()?;
        channel.send(&inflight(Request::SET_INFLIGHT_FD, 4096, u16::MAX), &[event.as_raw_fd()])
    };
    "log-wraps", "a dirty log whose size and offset wrap", |channel| {
        let memory = GuestRam::new(&RegionSpec::spread(1, 8192, &Backing::Memfd))?;
        let fds: Vec<_> = memory.regions().iter().map(AsRawFd::as_raw_fd).collect();
        channel.send(&Message::number(Request::SET_PROTOCOL_FEATURES, protocol::LOG_SHMFD), &[])?;
        channel.send(&Message::new(Request::SET_LOG_BASE).words(&[u64::MAX - 4095, 8192]), &fds)
    };
    "vring-index-past-16-bits", "SET_VRING_NUM, SET_VRING_BASE and SET_VRING_ADDR for vring 65536", |channel| {
        for request in [Request::SET_VRING_NUM, Request::SET_VRING_BASE] {
            channel.send(&Message::vring(request, 65_536, 256), &[])?;
        }
        channel.send(&Message::new(Request::SET_VRING_ADDR).halves(&[65_536, 0]).words(&[0; 4]), &[])
    };
    "every-request-empty", "every known request without payload, one after the other", |channel| {
        Request::all().try_for_each(|request| channel.send(&Message::new(request), &[]))
    };
}

fn head(message: &Message, size: usize) -> Vec<u8> {
    let bytes = message.encode();
    bytes.get(..size).unwrap_or(&bytes).to_vec()
}

fn claim(channel: &Channel, size: u32) -> Result<()> {
    let mut message = Message::number(Request::SET_FEATURES, 0);
    message.claimed_size = Some(size);
    channel.send(&message, &[])
}

/// `GET_INFLIGHT_FD` or `SET_INFLIGHT_FD`: bytes to map, offset, queues, their size.
fn inflight(request: Request, size: u64, queues: u16) -> Message {
    Message::new(request).words(&[size, 0]).halves(&[u32::from(queues) | 256 << 16])
}

fn eventfd() -> Result<EventFd> {
    EventFd::new(0).map_err(Error::kernel("cannot make an eventfd"))
}

/// Bytes that look like nothing, the same every time.
fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    crate::testing::frames::pattern::fill(0x5eed, &mut bytes);
    bytes
}
