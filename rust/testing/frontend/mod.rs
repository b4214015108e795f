// SPDX-License-Identifier: Apache-2.0
//! One vhost-user session from the front-end's side, and all that outlives it.
//!
//! ```text
//!  Frontend ── ram, ring places, kick and call eventfds        kept over a reconnect
//!     └── Session ── channel, negotiated features              gone with the socket
//!
//!  try_connect() ─▶ negotiated ─▶ (rings are built) ─▶ start(bases) ─▶ up ─▶ stop() | lost
//! ```
//! Two stages, because the layout of rings and buffers depends on the features, as in a real guest:
//! the driver acknowledges features before it sets queues up.
//!
//! Invariant: features once negotiated are asked for again after a reconnect; a back-end that
//! offers less is refused, as QEMU does.

mod config;
mod hotplug;
pub mod iommu;
mod log;
mod negotiate;
mod postcopy;
mod start;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use config::{FrontendConfig, Logging, MemoryMessage, Order, Side};
pub use iommu::{Answer, Iommu, IommuConfig};
pub use log::DirtyLog;
use postcopy::Bases;
pub use postcopy::{Migration, Serve};
pub use start::region_entries;

use super::driver::RingPlace;
use super::memory::GuestRam;
use super::wire::features::IOMMU_PLATFORM;
use super::wire::{Channel, Message, Request};
use super::{Error, Result, sys};

/// What one connection agreed on.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    offered: u64,
    features: u64,
    protocol: u64,
    /// Queue pairs the back-end takes.
    queue_pairs: u64,
    acknowledged: bool,
    started: bool,
    /// `POSTCOPY_LISTEN` was said: memory is made known in the post-copy forms.
    listening: bool,
    /// Where the back-end mapped each region, as it answered then.
    bases: Bases,
    /// Answers for the guest's IOMMU.
    iommu: Option<Iommu>,
}

impl Session {
    /// The socket.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Feature bits the back-end offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Feature bits agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol feature bits agreed on.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Queue pairs the back-end says it takes.
    pub fn queue_pairs(&self) -> u64 {
        self.queue_pairs
    }
}

/// A vhost-user front-end: socket, memory, notification fds and, when connected, a session.
#[derive(Debug)]
pub struct Frontend {
    config: FrontendConfig,
    ram: GuestRam,
    /// Where the back-end marks what it writes, if it is to.
    log: Option<DirtyLog>,
    listener: Option<UnixListener>,
    session: Option<Session>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    /// Features of the first session; later ones must agree to the same.
    settled: Option<u64>,
    sessions: u64,
}

impl Frontend {
    /// Maps the memory and, on the listening side, makes the socket.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Kernel` when memory or socket cannot be had.
    pub fn new(config: FrontendConfig) -> Result<Self> {
        config.check()?;
        let ram = GuestRam::new(&config.regions)?;
        let log = if config.log == Logging::Never { None } else { Some(DirtyLog::of(&ram)?) };
        let listener = match config.side {
            Side::Listen => Some(listen(&config)?),
            Side::Connect => None,
        };
        let vrings = usize::from(config.pairs) * 2;
        let eventfds = || -> Result<Vec<EventFd>> {
            (0..vrings).map(|_| EventFd::new(EFD_NONBLOCK).map_err(Error::kernel("cannot make an eventfd"))).collect()
        };
        let (kicks, calls) = (eventfds()?, eventfds()?);
        Ok(Self { config, ram, log, listener, session: None, kicks, calls, settled: None, sessions: 0 })
    }

    /// The settings.
    pub fn config(&self) -> &FrontendConfig {
        &self.config
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Guest memory, to take rings and buffers from.
    pub fn ram_mut(&mut self) -> &mut GuestRam {
        &mut self.ram
    }

    /// Its dirty log, if it has one.
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    /// The session, while there is one.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Sessions that were started so far.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// The eventfd that wakes the device for vring `index`.
    pub fn kick(&self, index: usize) -> Option<&EventFd> {
        self.kicks.get(index)
    }

    /// The eventfd by which the device calls for vring `index`.
    pub fn call(&self, index: usize) -> Option<&EventFd> {
        self.calls.get(index)
    }

    /// Connects or accepts without blocking, then negotiates (blocking up to the configured
    /// deadline per reply). `false` when nobody is there yet.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses, hangs up or offers too little; the socket is closed then.
    pub fn try_connect(&mut self) -> Result<bool> {
        let Some(stream) = self.try_stream()? else { return Ok(false) };
        let mut channel = Channel::new(stream, self.config.deadline)?;
        channel.hang_up_at(self.config.hang_up_at);
        let mut session = negotiate::negotiate(&self.config, self.settled, &self.calls, channel)?;
        if let Some(iommu) = self.config.iommu.filter(|_| session.features & IOMMU_PLATFORM != 0) {
            session.iommu = Some(Iommu::begin(iommu, &self.ram, &session)?);
        }
        self.settled = Some(session.features);
        self.session = Some(session);
        Ok(true)
    }

    /// Connects or accepts without blocking, and says nothing: for callers that speak for
    /// themselves. `None` when nobody is there yet.
    ///
    /// # Errors
    /// `Kernel` when the socket fails.
    pub fn connect_raw(&self) -> Result<Option<Channel>> {
        self.try_stream()?.map(|stream| Channel::new(stream, self.config.deadline)).transpose()
    }

    /// Hands memory and rings to the back-end and enables the first `enabled` queue pairs.
    /// `bases` has one per vring: an index; with packed rings those of available and used descriptors, each with its
    /// wrap counter in bit 15, used in the upper half.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up.
    pub fn start(&mut self, places: &[RingPlace], bases: &[u32], enabled: u16) -> Result<()> {
        let Some(session) = self.session.as_mut() else { return Err(no_session()) };
        let rings = start::Rings { places, bases, enabled, kicks: &self.kicks, calls: &self.calls };
        if let Some(log) = &self.log {
            start::set_log(session, log)?;
        }
        start::start(&self.config, &self.ram, session, &rings)?;
        if self.config.log == Logging::OffAgain {
            start::end_logging(&self.ram, session, places)?;
        }
        session.started = true;
        self.sessions += 1;
        Ok(())
    }

    /// Has the back-end announce `mac` from this port, for a guest that moved here and cannot.
    ///
    /// # Errors
    /// `Peer` when the back-end hung up; `Config` without a session.
    pub fn send_rarp(&self, mac: [u8; 6]) -> Result<()> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        let mut message = Message::number(Request::SEND_RARP, 0);
        message.payload = [mac.as_slice(), &[0; 2]].concat();
        start::set(session, message, &[])
    }

    /// Enables or disables both vrings of queue pair `pair`.
    ///
    /// # Errors
    /// `Peer` when the back-end hung up; `Config` without a session.
    pub fn enable_pair(&self, pair: u16, enabled: bool) -> Result<()> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        for index in [2 * u32::from(pair), 2 * u32::from(pair) + 1] {
            let message = Message::vring(Request::SET_VRING_ENABLE, index, u32::from(enabled));
            start::set(session, message, &[])?;
        }
        Ok(())
    }

    /// Stops all rings as a guest that shuts down does, and hangs up; gives the index at which the
    /// back-end stopped, per vring.
    ///
    /// # Errors
    /// `Peer` when the back-end does not answer; the socket is closed all the same.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        let stopped = self.stop_rings();
        self.session = None;
        stopped
    }

    /// Stops all rings as a virtual machine that is paused does; the session stays, for [`start`](Self::start). Gives the
    /// base of every vring, to go on from.
    ///
    /// # Errors
    /// `Peer` when the back-end does not answer.
    pub fn stop_rings(&mut self) -> Result<Vec<u32>> {
        match self.session.as_mut() {
            Some(session) if session.started => {
                session.started = false;
                start::stop(&self.config, session)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Stops one vring while the others run, for a driver that resets its queue; gives where it stopped. To the back-end
    /// this is one ring that stops and starts: it need not have offered `RING_RESET`.
    ///
    /// # Errors
    /// `Peer` when the back-end does not answer.
    pub fn reset_ring(&self, vring: usize) -> Result<u32> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        start::stop_ring(session, u32::try_from(vring).unwrap_or(u32::MAX))
    }

    /// Starts one vring that was reset, at `base`; whether it is enabled is as before.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up.
    pub fn restart_ring(&self, vring: usize, place: RingPlace, base: u32) -> Result<()> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        let (Some(kick), Some(call)) = (self.kicks.get(vring), self.calls.get(vring)) else {
            return Err(Error::Config(format!("there is no vring {vring}")));
        };
        let index = u32::try_from(vring).unwrap_or(u32::MAX);
        start::set_ring(&self.config, &self.ram, session, &start::Ring { index, place, base, kick, call })
    }

    /// Closes the socket at once, as a front-end that dies does.
    pub fn hang_up(&mut self) {
        self.session = None;
    }

    /// Whether the back-end closed the socket; forgets the session then.
    pub fn lost(&mut self) -> bool {
        let lost = self.session.as_ref().is_some_and(|session| sys::hung_up(session.channel.as_raw_fd()));
        if lost {
            self.session = None;
        }
        lost
    }

    fn try_stream(&self) -> Result<Option<UnixStream>> {
        let path = self.config.socket.display();
        let (attempt, what) = match &self.listener {
            Some(listener) => (listener.accept().map(|(stream, _)| stream), "accept on"),
            None => (UnixStream::connect(&self.config.socket), "connect to"),
        };
        match attempt {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(Error::Kernel(format!("cannot {what} {path}"), error)),
            },
        }
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        if self.listener.is_some() {
            // The side that made the socket removes it; it may be gone already.
            let _ = fs::remove_file(&self.config.socket);
        }
    }
}

fn no_session() -> Error {
    Error::Config("the front-end is not connected".into())
}

fn listen(config: &FrontendConfig) -> Result<UnixListener> {
    let path = &config.socket;
    // A socket left behind by a front-end that was killed; anything else is not ours to remove.
    if fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket()) {
        fs::remove_file(path).map_err(Error::kernel(format!("cannot replace {}", path.display())))?;
    }
    let listener = UnixListener::bind(path).map_err(Error::kernel(format!("cannot listen on {}", path.display())))?;
    listener.set_nonblocking(true).map_err(Error::kernel(format!("cannot listen on {}", path.display())))?;
    Ok(listener)
}
