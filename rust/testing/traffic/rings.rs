// SPDX-License-Identifier: Apache-2.0
//! How an end's rings start, stop, go on and are reset.
//!
//! Where a ring begins depends on who is imitated: QEMU and DPDK differ when a back-end died without saying where it
//! stopped.

use super::end::End;
use super::receiver::Receiver;
use super::sender::Sender;
use crate::testing::driver::SlotRing;
use crate::testing::frontend::Order;
use crate::testing::{Error, Result};

impl End {
    /// Starts the rings of the session: where the back-end said they stopped, else where the front-end that is imitated
    /// would.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up.
    pub fn start_rings(&mut self) -> Result<()> {
        let config = self.frontend.config();
        let enabled = self.settings.enabled_pairs.unwrap_or(config.pairs);
        let bases = match self.resume_at.take() {
            Some(bases) => bases,
            None => self.rings().map(|ring| self.base_of(ring)).collect(),
        };
        self.frontend.start(&self.places, &bases, enabled)
    }

    /// Stops the rings, as a virtual machine that is paused does; a later start goes on where the back-end stopped, over
    /// a new session too.
    ///
    /// # Errors
    /// `Peer` when the back-end does not answer.
    pub fn stop_rings(&mut self) -> Result<()> {
        let bases = self.frontend.stop_rings()?;
        self.resume_at = (!bases.is_empty()).then_some(bases);
        Ok(())
    }

    /// Resets both rings of a queue pair, each while all others run, and starts them anew.
    ///
    /// # Errors
    /// As [`Frontend::reset_ring`]; `Config` when there is no such pair.
    pub fn reset_pair(&mut self, pair: u16) -> Result<()> {
        let first = 2 * usize::from(pair);
        let queues = self.receivers.get_mut(usize::from(pair)).zip(self.senders.get_mut(usize::from(pair)));
        let Some((receiver, sender)) = queues else {
            return Err(Error::Config(format!("end {} has no queue pair {pair}", self.name)));
        };
        self.frontend.reset_ring(first)?;
        receiver.restart();
        self.frontend.restart_ring(first, receiver.queue().place(), receiver.queue().first_base())?;
        self.frontend.reset_ring(first + 1)?;
        sender.restart();
        self.frontend.restart_ring(first + 1, sender.queue().place(), sender.queue().first_base())
    }

    /// DPDK's virtio-user begins packed rings anew with every session; what the device had is given up.
    pub(super) fn restart_packed(&mut self) {
        let packed = |queue: &SlotRing| queue.split().is_none();
        self.receivers.iter_mut().filter(|receiver| packed(receiver.queue())).for_each(Receiver::restart);
        self.senders.iter_mut().filter(|sender| packed(sender.queue())).for_each(Sender::restart);
    }

    /// Where a ring is said to begin.
    fn base_of(&self, ring: &SlotRing) -> u32 {
        match self.frontend.config().order {
            // QEMU lost the back-end's own index with it: of a split ring it takes what the used ring says.
            Order::Qemu if self.frontend.sessions() > 0 => ring.base_of_qemu(),
            // DPDK sends where a ring begins, whatever became of it since.
            Order::Qemu | Order::VirtioUser => ring.first_base(),
        }
    }

    /// Enables or disables a queue pair.
    ///
    /// # Errors
    /// As [`Frontend::enable_pair`].
    pub fn enable_pair(&mut self, pair: u16, enabled: bool) -> Result<()> {
        if pair >= self.frontend.config().pairs {
            return Err(Error::Config(format!("end {} has no queue pair {pair}", self.name)));
        }
        self.frontend.enable_pair(pair, enabled)
    }
}
