//! What the front-end said about one vring, and what it still has to say before the vring can start.
//!
//! ```text
//!   size ─┐
//!   addr ─┼─ + memory + features ─▶ ready ── kick ──▶ started ── enabled ──▶ live: with the PortLink
//!   base ─┘                                  ◀─ GET_VRING_BASE ──
//! ```

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringAddrFlags};

use super::features::{LOG_ALL, PROTOCOL_FEATURES};
use crate::error::{Error, Result};
use crate::memory::{Gpa, GuestMap, Logging, Uva};
use crate::recovery::Identity;
use crate::ring::{Past, Ring, RingConfig, area_sizes};
use crate::sys::{eventfd::Notifier, file, socket};

/// Whether the vring is started, and how we learn that the driver added buffers.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not started.
    #[default]
    Stopped,
    /// Started without a descriptor: look now and then.
    Timer,
    /// Started; an eventfd tells.
    Eventfd(File),
}

/// One vring as configured.
#[derive(Default)]
pub(super) struct Vring {
    /// Elements, 0 until told.
    pub(super) size: u32,
    pub(super) addr: Option<VhostUserVringAddr>,
    /// Where its descriptors, available and used ring are: that, translated if the guest has an IOMMU. None before all of it
    /// is known.
    pub(super) areas: Option<[Uva; 3]>,
    /// Where to start; after a stop, where it stopped.
    pub(super) base: u16,
    pub(super) kick: Kick,
    pub(super) call: Option<File>,
    pub(super) err: Option<File>,
    /// What `SET_VRING_ENABLE` said, if it was sent.
    pub(super) enable: Option<bool>,
    /// The `PortLink` has it.
    pub(super) live: bool,
    /// It was live when the log was last told.
    pub(super) reported: bool,
    /// Why it cannot run until the front-end sets it up anew.
    pub(super) fault: Option<String>,
}

/// `receiveq 0` for vring 0, `transmitq 0` for vring 1, and so on.
pub(super) fn name(vring: usize) -> String {
    let kind = if is_receiveq(vring) { "receiveq" } else { "transmitq" };
    format!("{kind} {}", vring / 2)
}

/// True for a queue that the guest receives from.
pub(super) fn is_receiveq(vring: usize) -> bool {
    vring.is_multiple_of(2)
}

/// Takes a descriptor that must be an eventfd.
///
/// # Errors
/// `Peer` for any other kind: waiting on it or writing to it could block or surprise a poll thread.
pub(super) fn eventfd(what: &str, vring: usize, file: Option<File>) -> Result<Option<File>> {
    match file {
        Some(file) if !file::is_eventfd(&file) => {
            let name = name(vring);
            Err(Error::Peer(format!("{name}: its {what} descriptor is not an eventfd; the front-end must send one")))
        }
        file => Ok(file),
    }
}

impl Vring {
    /// The message that has to come before the vring is started; None once it is.
    pub(super) fn missing(&self) -> Option<&'static str> {
        if self.size == 0 {
            Some("SET_VRING_NUM")
        } else if self.addr.is_none() {
            Some("SET_VRING_ADDR")
        } else if matches!(self.kick, Kick::Stopped) {
            Some("SET_VRING_KICK")
        } else {
            None
        }
    }

    /// True if the vring may be processed once started. Without protocol features there is no message to enable it.
    pub(super) fn is_enabled(&self, features: u64) -> bool {
        self.enable.unwrap_or(features & PROTOCOL_FEATURES == 0)
    }

    /// Which ring this is, whatever process looks at it. None while its memory is not all there.
    pub(super) fn identity(&self, at: usize, socket: &Path, memory: &GuestMap, features: u64) -> Option<Identity> {
        let [desc, avail, used] = self.areas?;
        let area = |uva| memory.place_of(uva);
        Some(Identity {
            socket: socket.to_owned(),
            vring: u16::try_from(at).ok()?,
            size: self.size,
            // These come and go while a ring runs.
            features: features & !(PROTOCOL_FEATURES | LOG_ALL),
            areas: [area(desc)?, area(avail)?, area(used)?],
        })
    }

    /// What the ring is made of; None before it has addresses.
    pub(super) fn config(&self, features: u64) -> Option<RingConfig> {
        let [desc, avail, used] = self.areas?;
        Some(RingConfig {
            size: self.size,
            desc_uva: desc.0,
            avail_uva: avail.0,
            used_uva: used.0,
            base: self.base,
            features,
        })
    }

    /// Its areas as the front-end sent them: where each begins, and bytes. None before it has addresses and a size.
    pub(super) fn told(&self, features: u64) -> Option<[(u64, u32); 3]> {
        let addr = self.addr.as_ref().filter(|_| self.size > 0)?;
        let [desc, avail, used] = area_sizes(self.size, features);
        Some([(addr.descriptor, desc), (addr.available, avail), (addr.used, used)])
    }

    /// Makes the ring, with descriptors of its own. It goes on where `past` knows it stood; what is wrong with that is
    /// told beside it.
    pub(super) fn activate(
        &self,
        memory: &Arc<GuestMap>,
        features: u64,
        past: Option<Past>,
        logging: &Arc<Logging>,
    ) -> Result<(Ring, Option<String>)> {
        let config = self.config(features);
        let config = config.ok_or_else(|| Error::Bug("a vring without addresses was started".into()))?;
        let kick = match &self.kick {
            Kick::Eventfd(file) => Some(duplicate(file)?),
            Kick::Timer | Kick::Stopped => None,
        };
        let call = self.call.as_ref().map(duplicate).transpose()?;
        let is_taken_over = past.as_ref().is_some_and(|past| past.is_known);
        let (mut ring, note) = config.resume(memory, kick, call, past)?;
        // Of a guest with an IOMMU it is no guest-physical address (QEMU sends what the ring has); where the ring is, is known.
        let log = self.addr.as_ref().and_then(log_address).filter(|_| !memory.is_guarded());
        ring.log_to(logging, log, is_taken_over);
        Ok((ring, note))
    }

    /// Tells the front-end through the error descriptor, if it gave one, that the vring broke.
    pub(super) fn signal_error(&self) {
        let Some(err) = &self.err else { return };
        // A peer can make the write block by filling the counter: one that is full already tells.
        let writable = socket::wait_for(err, libc::POLLOUT, std::time::Duration::ZERO);
        if let (Ok(true), Ok(notifier)) = (writable, duplicate(err).and_then(Notifier::new)) {
            notifier.notify();
        }
    }
}

/// Where the used ring is in the dirty log, if the front-end said so (`vhost-user: VHOST_VRING_F_LOG`).
pub(super) fn log_address(addr: &VhostUserVringAddr) -> Option<Gpa> {
    let flags = VhostUserVringAddrFlags::from_bits_truncate(addr.flags);
    flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(Gpa(addr.log))
}

/// A second descriptor of the same eventfd.
pub(super) fn duplicate(file: &File) -> Result<File> {
    file.try_clone().map_err(|e| {
        let what = "cannot duplicate a kick, call or err descriptor; raise RLIMIT_NOFILE (ulimit -n)";
        Error::kernel(what, e)
    })
}
