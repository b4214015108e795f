// SPDX-License-Identifier: Apache-2.0
//! Memory that comes and goes while rings run, as QEMU says it where `CONFIGURE_MEM_SLOTS` was agreed on.

use std::os::fd::AsRawFd;

use super::{Frontend, no_session, start};
use crate::testing::memory::RegionSpec;
use crate::testing::wire::{self, Request};
use crate::testing::{Error, Result};

impl Frontend {
    /// Gives the guest a region more, behind those it has.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hung up, `Config` without a session, `Kernel` without memory.
    pub fn plug_memory(&mut self, spec: &RegionSpec) -> Result<()> {
        self.ram.add(spec)?;
        self.tell_of_last(Request::ADD_MEM_REG)
    }

    /// Takes the last region away: from the back-end first, and when that has answered from the guest.
    ///
    /// # Errors
    /// As [`Self::plug_memory`].
    pub fn unplug_memory(&mut self) -> Result<()> {
        self.tell_of_last(Request::REM_MEM_REG)?;
        self.ram.remove_last();
        Ok(())
    }

    fn tell_of_last(&self, request: Request) -> Result<()> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        let (Some(entry), Some(region)) = (start::region_entries(&self.ram).pop(), self.ram.regions().last()) else {
            return Err(Error::Config("the guest has no memory".into()));
        };
        start::set(session, wire::mem_region(request, entry), &[region.as_raw_fd()])
    }
}
