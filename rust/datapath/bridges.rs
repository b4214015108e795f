//! Bridges, and what they have learned.

use super::Datapath;
use crate::error::Result;
use crate::switch::fdb::Learned;

/// One learned address, with the port's number on its bridge.
#[derive(Debug, Clone, Copy)]
pub struct FdbEntry {
    /// `OpenFlow` port number.
    pub ofport: u16,
    /// What was learned.
    pub learned: Learned,
}

impl Datapath {
    /// Adds a bridge without ports.
    ///
    /// # Errors
    /// `Config` if the name is taken.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        self.shared.change(|state| state.add_bridge(name))
    }

    /// Changes a bridge live.
    ///
    /// # Errors
    /// `Config` for an unknown bridge or a value out of range; nothing changed then.
    pub fn set_bridge(&self, name: &str, aging_s: u32, table_size: usize, forward_bpdu: bool) -> Result<()> {
        let now_s = self.shared.now_s();
        self.shared.change(|state| state.set_bridge(name, aging_s, table_size, forward_bpdu, now_s))
    }

    /// Deletes a bridge, its ports and its bonds.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn del_bridge(&self, name: &str) -> Result<()> {
        let (ports, bonds) = {
            let state = self.shared.state();
            (state.ports_of(name)?, state.bonds_of(name))
        };
        for port in ports {
            // Somebody else may have deleted it meanwhile: then it is gone, which is what was asked for.
            let _ = self.del_port(&port);
        }
        for bond in bonds {
            // Likewise.
            let _ = self.del_bond(&bond);
        }
        self.shared.change(|state| state.del_bridge(name))
    }

    /// What a bridge has learned.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn fdb(&self, bridge: &str) -> Result<Vec<FdbEntry>> {
        self.shared.state().fdb(bridge, self.shared.now_s())
    }

    /// What became of the addresses a bridge has met, by name: learned, expired, evicted, moved.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn fdb_stats(&self, bridge: &str) -> Result<[(&'static str, u64); 4]> {
        self.shared.state().fdb_stats(bridge)
    }

    /// Forgets what a bridge has learned.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn flush_fdb(&self, bridge: &str) -> Result<()> {
        self.shared.state().flush_fdb(bridge)
    }
}
