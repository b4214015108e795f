//! What control asks of bonds, and what the state does with them.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::super::Datapath;
use super::super::state::State;
use super::keeper::keep_bonds;
use super::{Bond, BondConfig, BondMode, BondState};
use crate::error::{Error, Result};
use crate::pmd::SHARES;
use crate::switch::PortId;

/// How often LACP frames are looked for that came: rarely enough that a neighbour who sends nothing else costs nobody
/// anything, often enough that two systems agree before somebody notices.
const LOOK: Duration = Duration::from_millis(50);

impl Datapath {
    /// Adds a bond without links: ports become links of it when they are added ([`NicConfig::bond`]).
    ///
    /// # Errors
    /// `Config` for a value out of range or a name in use; `Kernel` without a thread.
    pub fn add_bond(&self, bridge: &str, config: BondConfig) -> Result<()> {
        config.check()?;
        self.start_bonds()?;
        self.shared.change(|state| state.add_bond(bridge, config))
    }

    /// The thread that keeps bonds' time, unless it runs.
    fn start_bonds(&self) -> Result<()> {
        let mut bonds = self.shared.bonds.lock();
        if bonds.is_none() {
            let (tell, told) = channel();
            // As housekeeping, it holds no claim on the datapath.
            let shared = Arc::downgrade(&self.shared);
            std::thread::Builder::new()
                .name("bonds".into())
                .spawn(move || keep_bonds(&shared, &told))
                .map_err(|e| Error::kernel("no thread for bonds", e))?;
            *bonds = Some(tell);
        }
        Ok(())
    }

    /// Changes a bond live; its links stay. `last_active` counts when it is added and never after.
    ///
    /// # Errors
    /// `Config` for an unknown bond or a value out of range; nothing changed then.
    pub fn set_bond(&self, config: BondConfig) -> Result<()> {
        config.check()?;
        self.shared.change(|state| state.set_bond(config))
    }

    /// Deletes a bond whose links are gone.
    ///
    /// # Errors
    /// `Config` if there is none of that name, or it has links.
    pub fn del_bond(&self, name: &str) -> Result<()> {
        let id = self.shared.change(|state| state.remove_bond(name))?;
        // Nobody learns anything behind it any more.
        self.shared.state().free(id);
        Ok(())
    }

    /// Every bond, now.
    pub fn bonds(&self) -> Vec<BondState> {
        self.shared.state().bond_states(Instant::now())
    }

    /// Makes an enabled link of a bond its active one, until it is disabled. True if that is new.
    ///
    /// # Errors
    /// `Config` for an unknown bond or link, or one that is disabled.
    pub fn activate_link(&self, bond: &str, link: &str) -> Result<bool> {
        self.shared.change(|state| state.activate_link(bond, link))
    }

    /// Enables or disables a link of a bond at once, until its carrier changes.
    ///
    /// # Errors
    /// `Config` for an unknown bond or link.
    pub fn hold_link(&self, bond: &str, link: &str, is_enabled: bool) -> Result<()> {
        self.shared.change(|state| state.hold_link(bond, link, is_enabled))
    }

    /// Gives a share of a bond's frames to an enabled link, until that goes or loads are evened out.
    ///
    /// # Errors
    /// `Config` for an unknown bond, link or share, one that is disabled, or a bond that shares nothing out.
    pub fn give_share(&self, bond: &str, share: usize, link: &str) -> Result<()> {
        self.shared.change(|state| state.give_share(bond, share, link))
    }
}

/// What the state does with its bonds.
impl State {
    pub(in crate::datapath) fn add_bond(&mut self, bridge: &str, config: BondConfig) -> Result<()> {
        self.bridge(bridge)?;
        if self.bonds.contains_key(&config.name) {
            return Err(Error::Config(format!("a bond named {} exists already", config.name)));
        }
        let id = self.take_id(&config.name)?;
        self.bonds.insert(config.name.clone(), Bond::new(bridge, id, config));
        Ok(())
    }

    /// Takes a bond out; its id stays taken until [`Self::free`].
    pub(in crate::datapath) fn remove_bond(&mut self, name: &str) -> Result<PortId> {
        let bond = self.bonds.get(name).ok_or_else(|| Error::Config(format!("no bond named {name}")))?;
        if bond.has_links() {
            return Err(Error::Config(format!("bond {name} has links: delete them first")));
        }
        let id = bond.id;
        self.bonds.remove(name);
        Ok(id)
    }

    pub(in crate::datapath) fn bonds_of(&self, bridge: &str) -> Vec<String> {
        self.bonds.iter().filter(|(_, bond)| bond.bridge == bridge).map(|(name, _)| name.clone()).collect()
    }

    /// Changes a bond live; its links and its bridge stay.
    fn set_bond(&mut self, config: BondConfig) -> Result<()> {
        self.bond_mut(&config.name)?.set_config(config, Instant::now());
        Ok(())
    }

    pub(super) fn bond_mut(&mut self, name: &str) -> Result<&mut Bond> {
        self.bonds.get_mut(name).ok_or_else(|| Error::Config(format!("no bond named {name}")))
    }

    /// Brings every bond up to date with what is seen of its links; gives what is worth telling.
    pub(in crate::datapath) fn settle_bonds(&mut self, now: Instant) -> Vec<String> {
        let receiveqs = &self.receiveqs;
        let has_carrier = |id: PortId| receiveqs.range((id, 0)..=(id, u16::MAX)).next().is_some();
        self.bonds.values_mut().flat_map(|bond| bond.settle(has_carrier, now)).collect()
    }

    /// When a bond is to be settled next, if nothing happens before.
    pub(super) fn bonds_due(&self) -> Option<Instant> {
        self.bonds.values().filter_map(Bond::due).min()
    }

    /// Hears and speaks LACP; true if bonds are to be settled for it.
    pub(super) fn negotiate_bonds(&mut self, now: Instant) -> bool {
        // Every one of them, also after the first that has news.
        self.bonds.values_mut().filter_map(|bond| bond.negotiate(now).then_some(())).count() > 0
    }

    /// When LACP has something to say next, if it hears nothing before; None where it is not spoken.
    pub(super) fn lacp_due(&self, now: Instant) -> Option<Instant> {
        let of = |bond: &Bond| bond.lacp.as_ref().map(|lacp| lacp.due().map_or(now + LOOK, |due| due.min(now + LOOK)));
        self.bonds.values().filter_map(of).min()
    }

    /// What LACP has to say, each with the link that it goes out on.
    pub(super) fn take_pdus(&mut self) -> Vec<(PortId, [u8; 64])> {
        let said: Vec<_> = self.bonds.values_mut().flat_map(|bond| std::mem::take(&mut bond.outbox)).collect();
        said.into_iter().map(|(id, pdu)| (id, pdu.head(self.address_of(id)))).collect()
    }

    /// Makes an enabled link of a bond its active one (`bond/set-active-member`); true if that is new.
    fn activate_link(&mut self, bond: &str, link: &str) -> Result<bool> {
        let found = self.bond_mut(bond)?;
        let before = found.links.active();
        match found.links.activate(link) {
            None => Err(Error::Config(format!("bond {bond} has no member named {link}"))),
            Some(false) => Err(Error::Config(format!("member {link} of bond {bond} is disabled: enable it first"))),
            Some(true) => Ok(found.links.active() != before),
        }
    }

    /// Enables or disables a link of a bond until its carrier changes (`bond/enable-member`, `bond/disable-member`).
    fn hold_link(&mut self, bond: &str, link: &str, is_enabled: bool) -> Result<()> {
        if !self.bond_mut(bond)?.links.hold(link, is_enabled) {
            return Err(Error::Config(format!("bond {bond} has no member named {link}")));
        }
        Ok(())
    }

    /// Gives a share of a bond's frames to an enabled link, until that goes or loads are evened out (`bond/migrate`).
    fn give_share(&mut self, bond: &str, share: usize, link: &str) -> Result<()> {
        let found = self.bond_mut(bond)?;
        if found.config.mode != BondMode::BalanceSlb {
            return Err(Error::Config(format!(
                "bond {bond} is of mode {}: only balance-slb has shares",
                found.config.mode.name()
            )));
        }
        let Some(to) = found.links.all().iter().find(|other| other.name == link) else {
            return Err(Error::Config(format!("bond {bond} has no member named {link}")));
        };
        if !to.is_enabled {
            return Err(Error::Config(format!("member {link} of bond {bond} is disabled: enable it first")));
        }
        let id = to.id;
        if !found.balance.give(share, id) {
            return Err(Error::Config(format!("hash {share} is not in 0..{}", SHARES - 1)));
        }
        Ok(())
    }

    /// Every bond, by name.
    fn bond_states(&self, now: Instant) -> Vec<BondState> {
        self.bonds.values().map(|bond| bond.state(now)).collect()
    }

    /// A link is gone.
    pub(in crate::datapath) fn leave_bond(&mut self, id: PortId) {
        for bond in self.bonds.values_mut() {
            bond.remove_link(id);
        }
    }
}
