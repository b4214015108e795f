// SPDX-License-Identifier: Apache-2.0
//! An honest start with one lie in it.
//!
//! The messages are QEMU's; each is acknowledged where the back-end can do that, else a question is
//! asked after it, so that the reaction belongs to the message.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::{Reaction, watch};
use crate::testing::driver::RingPlace;
use crate::testing::frontend::{Frontend, Session, region_entries};
use crate::testing::wire::features::protocol;
use crate::testing::wire::{self, Channel, Message, RegionEntry, Request, VringAddresses};
use crate::testing::{Error, Result, sys};

/// What to say instead of the truth; the default says the truth.
#[derive(Debug, Default)]
pub(super) struct Tamper {
    /// Regions to describe.
    pub(super) entries: Option<Vec<RegionEntry>>,
    /// The region count to claim.
    pub(super) region_count: Option<u32>,
    /// An fd in place of each region's.
    pub(super) memory_fd: Option<OwnedFd>,
    /// Fewer fds than regions.
    pub(super) fds_withheld: bool,
    /// The size told by `SET_VRING_NUM`.
    pub(super) ring_size: Option<u32>,
    /// The index told by `SET_VRING_BASE`.
    pub(super) base: Option<u32>,
    /// Bends the ring's addresses.
    pub(super) bend: Option<fn(VringAddresses) -> VringAddresses>,
    /// Where all parts of every ring are said to be.
    pub(super) all_rings_at: Option<u64>,
    /// An fd in place of the kick eventfd.
    pub(super) kick_fd: Option<OwnedFd>,
    /// An fd in place of the call eventfd.
    pub(super) call_fd: Option<OwnedFd>,
    /// The vring index to name.
    pub(super) vring: Option<u32>,
    /// Rings are described before the memory they lie in.
    pub(super) rings_first: bool,
}

impl Tamper {
    /// Starts the session; ends at the first message that the back-end does not take, else watches
    /// for `hold`.
    pub(super) fn start(&self, frontend: &mut Frontend, hold: Duration) -> Result<Reaction> {
        let places = ring_places(frontend)?;
        let Some(session) = frontend.session() else {
            return Err(Error::Config("the session ended before the attack".into()));
        };
        for (message, fds) in self.script(frontend, session, &places)? {
            let reaction = deliver(session, message, &fds);
            if reaction != Reaction::Alive {
                // The socket stays open for as long as asked, so that others can see what is made of it.
                watch(session.channel(), hold);
                return Ok(reaction);
            }
        }
        Ok(watch(session.channel(), hold))
    }

    fn script(
        &self,
        frontend: &Frontend,
        session: &Session,
        places: &[RingPlace],
    ) -> Result<Vec<(Message, Vec<RawFd>)>> {
        let features = Message::number(Request::SET_FEATURES, session.features());
        let mut script = vec![(features, Vec::new())];
        let memory = self.memory(frontend);
        let mut rings = Vec::new();
        for (index, place) in (0..).zip(places) {
            self.ring(frontend, index, *place, &mut rings)?;
        }
        if self.rings_first {
            script.extend(rings);
            script.push(memory);
        } else {
            script.push(memory);
            script.extend(rings);
        }
        for index in 0..places.len() {
            let index = self.vring.unwrap_or(u32::try_from(index).unwrap_or(u32::MAX));
            script.push((Message::vring(Request::SET_VRING_ENABLE, index, 1), Vec::new()));
        }
        Ok(script)
    }

    fn memory(&self, frontend: &Frontend) -> (Message, Vec<RawFd>) {
        let entries = self.entries.clone().unwrap_or_else(|| region_entries(frontend.ram()));
        let mut message = wire::mem_table(&entries);
        if let Some(count) = self.region_count {
            for (byte, claimed) in message.payload.iter_mut().zip(count.to_le_bytes()) {
                *byte = claimed;
            }
        }
        let regions = frontend.ram().regions();
        let mut fds: Vec<RawFd> = (0..entries.len())
            .filter_map(|index| {
                let own = regions.get(index % regions.len()).map(AsRawFd::as_raw_fd);
                self.memory_fd.as_ref().map(AsRawFd::as_raw_fd).or(own)
            })
            .collect();
        if self.fds_withheld {
            fds.pop();
        }
        (message, fds)
    }

    fn ring(
        &self,
        frontend: &Frontend,
        index: u32,
        place: RingPlace,
        script: &mut Vec<(Message, Vec<RawFd>)>,
    ) -> Result<()> {
        let vring = self.vring.unwrap_or(index);
        let size = self.ring_size.unwrap_or(frontend.config().ring_size.into());
        let base = self.base.unwrap_or(0);
        let ram = frontend.ram();
        let honest = VringAddresses {
            descriptors: ram.user_address(place.descriptors)?,
            used: ram.user_address(place.used)?,
            available: ram.user_address(place.available)?,
            log: place.used.0,
            flags: 0,
        };
        let mut addresses = self.bend.map_or(honest, |bend| bend(honest));
        if let Some(at) = self.all_rings_at {
            (addresses.descriptors, addresses.used, addresses.available) = (at, at, at);
        }
        let own = |event: Option<&vmm_sys_util::eventfd::EventFd>| event.map(AsRawFd::as_raw_fd);
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let kick = self.kick_fd.as_ref().map(AsRawFd::as_raw_fd).or(own(frontend.kick(at)));
        let call = self.call_fd.as_ref().map(AsRawFd::as_raw_fd).or(own(frontend.call(at)));
        let number = u64::from(vring);
        script.extend([
            (Message::vring(Request::SET_VRING_NUM, vring, size), Vec::new()),
            (Message::vring(Request::SET_VRING_BASE, vring, base), Vec::new()),
            (wire::vring_addresses(vring, addresses), Vec::new()),
            (Message::number(Request::SET_VRING_KICK, number), kick.into_iter().collect()),
            (Message::number(Request::SET_VRING_CALL, number), call.into_iter().collect()),
        ]);
        Ok(())
    }
}

/// Room for the rings, where an honest guest would have them.
pub(super) fn ring_places(frontend: &mut Frontend) -> Result<Vec<RingPlace>> {
    let size = frontend.config().ring_size;
    let vrings = 2 * usize::from(frontend.config().pairs);
    let ram = frontend.ram_mut();
    (0..vrings).map(|_| RingPlace::alloc(ram, 0, size)).collect()
}

/// Sends one message and finds out what the back-end made of it.
fn deliver(session: &Session, message: Message, fds: &[RawFd]) -> Reaction {
    let channel = session.channel();
    let request = message.request;
    let answer = if session.protocol() & protocol::REPLY_ACK == 0 {
        channel.send(&message, fds).and_then(|()| channel.ask(&Message::new(Request::GET_FEATURES))).map(|_| 0)
    } else {
        channel.send(&message.need_reply(), fds).and_then(|()| channel.reply(request)?.number())
    };
    match answer {
        Ok(0) => Reaction::Alive,
        Ok(code) => Reaction::Refused(code),
        Err(_) if gone(channel) => Reaction::HungUp,
        Err(_) => Reaction::Silent,
    }
}

fn gone(channel: &Channel) -> bool {
    sys::hung_up(channel.as_raw_fd())
}

/// The reading end of a pipe whose writing end is closed.
pub(super) fn pipe() -> Result<OwnedFd> {
    let (reader, _) = std::io::pipe().map_err(Error::kernel("cannot make a pipe"))?;
    Ok(reader.into())
}

/// An unlinked file of `size` bytes on a disk file system.
pub(super) fn disk_file(size: u64) -> Result<OwnedFd> {
    let file: File = vmm_sys_util::tempfile::TempFile::new_in(std::path::Path::new("/var/tmp"))
        .map_err(|error| {
            Error::Kernel("cannot make a file in /var/tmp".into(), std::io::Error::from_raw_os_error(error.errno()))
        })?
        .into_file();
    file.set_len(size).map_err(Error::kernel("cannot size a file in /var/tmp"))?;
    Ok(file.into())
}
