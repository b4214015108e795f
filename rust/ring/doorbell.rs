//! The two eventfds of a vring: kicks come in on one, calls go out on the other.

use std::fs::File;

use super::RingFault;
use crate::error::Result;
use crate::sys::eventfd::{self, Notifier};

/// Kick and call descriptors of one ring.
#[derive(Debug)]
pub(super) struct Doorbell {
    kick: Option<File>,
    call: Option<Notifier>,
    /// The call descriptor's owner made a call hang.
    jammed: bool,
}

impl Doorbell {
    /// Checks both.
    ///
    /// # Errors
    /// `Peer`: a descriptor that is no eventfd.
    pub(super) fn new(kick: Option<File>, call: Option<File>) -> Result<Self> {
        Ok(Self {
            kick: kick.map(eventfd::checked).transpose()?,
            call: call.map(Notifier::new).transpose()?,
            jammed: false,
        })
    }

    /// The eventfd that kicks arrive on; awaited edge-triggered and never read. None: poll by timer.
    pub(super) fn kick(&self) -> Option<&File> {
        self.kick.as_ref()
    }

    /// Replaces the call descriptor and calls once: a call to the old one may be lost.
    pub(super) fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        self.greet();
    }

    /// The first call, which needs no reason: one before may be lost. A descriptor that would make it hang is spared.
    pub(super) fn greet(&mut self) {
        if self.call.as_ref().is_some_and(Notifier::is_ready) {
            self.call();
        }
    }

    /// Calls the driver.
    pub(super) fn call(&mut self) {
        if let Some(call) = &self.call
            && !self.jammed
            && !call.notify()
        {
            (self.call, self.jammed) = (None, true);
        }
    }

    /// A fault once a call hung.
    #[inline]
    pub(super) fn check(&self) -> std::result::Result<(), RingFault> {
        if self.jammed { Err(RingFault::CallJammed) } else { Ok(()) }
    }
}
