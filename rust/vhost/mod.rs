//! The vhost-user back-end of a port: the protocol, from the socket file to a started ring.
//!
//! ```text
//!   socket file ─▶ endpoint ─▶ session ─▶ wire ─▶ backend ─▶ handler ─▶ vring ─▶ PortLink
//!   (client: connects       (one      (bytes →  (request → (the one     (config →  (the datapath:
//!    server: listens)        stream)   request)  call)      state)       Ring)      polls, delivers)
//! ```
//!
//! One thread per port does all of it, so a front-end that stalls, floods or lies costs its own port only. The thread
//! never touches a packet. It owns every piece of protocol state; others see [`Endpoint::status`], a snapshot.
//!
//! Invariants: a vring is with the [`PortLink`] or here, never both; no mapping changes under a vring that is with the
//! `PortLink`; an offer never shrinks while the process lives.
//!
//! Must not know: bridges, PMDs, frames, Python.

pub mod features;
pub mod offer;
pub mod wire;

mod backend;
mod endpoint;
mod handler;
mod peer;
mod session;
mod status;
mod vring;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

pub use endpoint::{Endpoint, EndpointHandle};

use crate::error::{Error, Result};
use crate::memory::Incoming;
use crate::recovery::Recovery;
use crate::ring::Ring;
use crate::sys::process;
use offer::Offer;

/// Whether post-copy migration can be offered.
///
/// # Errors
/// `Kernel` if this process may not use userfaultfd, `Config` if its memory is locked; the text says what to set.
pub fn check_postcopy() -> Result<()> {
    // With mlockall(2) a mapping would have its pages before anybody could say that they are elsewhere.
    if process::locks_memory() {
        let text =
            "post-copy needs memory that is not locked: run the switch without mlockall (LimitMEMLOCK does no harm)";
        return Err(Error::Config(text.into()));
    }
    // One that is made and thrown away shows that they can be had.
    Incoming::new().map(drop)
}

/// Who makes the socket file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    /// The VMM does; we connect, and connect again (`dpdkvhostuserclient`).
    Client,
    /// We do (`dpdkvhostuser`).
    Server,
}

/// What a port's endpoint is made of.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// The port's name.
    pub name: String,
    /// Who makes the socket file.
    pub kind: EndpointKind,
    /// Absolute path of the socket, at most 107 bytes.
    pub socket: PathBuf,
    /// Permission bits of a socket we make.
    pub socket_mode: u32,
    /// Owner of a socket we make; None leaves it.
    pub socket_owner: Option<u32>,
    /// Group of a socket we make; None leaves it.
    pub socket_group: Option<u32>,
    /// Accept guest memory on disk files.
    pub allow_file_memory: bool,
    /// Offer post-copy migration; a server's socket never does.
    pub postcopy: bool,
    /// Serve a guest that has an IOMMU before the device; a server's socket never does.
    pub iommu: bool,
    /// What new front-ends are offered at most.
    pub offer: Arc<Offer>,
    /// Where each vring's place is written down.
    pub recovery: Arc<Recovery>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Expected.
    Info,
    /// Something the user may want to change.
    Warning,
    /// Something does not work.
    Error,
}

/// What a session asks of the datapath. Called from the port's own thread, except [`PortLink::mtu`].
///
/// Vrings are numbered as in the protocol: 2n is receiveq n (we write into it), 2n+1 is transmitq n (we read it).
pub trait PortLink: Send + Sync {
    /// The NUMA node of the rings that are started next.
    fn on_node(&self, _node: u32) {}
    /// Takes a vring that is started and enabled: a transmitq is polled from now on, a receiveq deliverable.
    fn start(&self, vring: usize, ring: Ring);
    /// Gives a vring back once nobody touches it any more, settled: available = used. None if it was not started.
    fn stop(&self, vring: usize) -> Option<Ring>;
    /// Returns when nobody uses any more what rings that are started were told before the call: whether they log.
    fn quiesce(&self) {}
    /// Returns when no burst is under way any more that was begun before the call.
    fn pass(&self) {}
    /// Asks for the mappings that the next buffers of started receiveqs lack, before a frame needs them.
    fn look_ahead(&self) {}
    /// Replaces the call descriptor of a started vring.
    fn set_call(&self, vring: usize, call: Option<File>);
    /// The link went up or down.
    fn link_changed(&self, up: bool);
    /// The guest moved here and cannot say so itself: announce `mac` from this port (`vhost-user: SEND_RARP`).
    /// Called only while the link is up.
    fn announce(&self, mac: [u8; 6]);
    /// What [`Endpoint::status`] or [`Endpoint::error`] say is different now. Not called for each page that a migration
    /// brings: how many there are is for whoever looks.
    fn state_changed(&self);
    /// One line for the log. `kind` is one of the stable words of the event stream.
    fn event(&self, level: Level, kind: &'static str, text: String);
    /// Guests that start get their buffers back in any order: `IN_ORDER` is not for them.
    fn wants_any_order(&self) -> bool {
        false
    }
    /// The port's configured MTU in bytes. Called from any thread; must not block.
    fn mtu(&self) -> u16;
}
