//! What a bond is to be, and what is told of one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::lacp::{LacpConfig, LacpLink, LacpPort};
use super::links::Rules;
use crate::error::{Error, Result};
use crate::frame::ethernet::Mac;
use crate::switch::PortId;

/// Longest `bond_updelay` and `bond_downdelay`.
const DELAY_MAX: Duration = Duration::from_secs(3600);
/// Shortest `bond-rebalance-interval` but for 0, which is never.
const REBALANCE_MIN: Duration = Duration::from_secs(1);
/// `bond-rebalance-interval` where nothing is said.
const REBALANCE: Duration = Duration::from_secs(10);

/// How a bond uses its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BondMode {
    /// One carries everything, the others wait for it to fail.
    #[default]
    ActiveBackup,
    /// Each station's frames, by address and VLAN, have their link.
    BalanceSlb,
    /// Each flow has its link; for neighbours that agree to that over LACP only.
    BalanceTcp,
}

impl BondMode {
    const ALL: [Self; 3] = [Self::ActiveBackup, Self::BalanceSlb, Self::BalanceTcp];

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// `bond_mode`, as in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::ActiveBackup => "active-backup",
            Self::BalanceSlb => "balance-slb",
            Self::BalanceTcp => "balance-tcp",
        }
    }
}

/// What a bond is to be.
#[derive(Debug, Clone)]
pub struct BondConfig {
    /// Unique among the bonds of the datapath.
    pub name: String,
    /// `bond_mode`.
    pub mode: BondMode,
    /// How long a link's carrier must be there until it is used; at most an hour.
    pub updelay: Duration,
    /// How long it must be gone until another link is used; likewise.
    pub downdelay: Duration,
    /// The link that is active whenever it can be (`other_config:bond-primary`).
    pub primary: Option<String>,
    /// The link that was active before this datapath was: preferred while nothing else decides.
    pub last_active: Option<String>,
    /// How often links' loads are evened out (`other_config:bond-rebalance-interval`): 0 is never, else a second at least.
    pub rebalance: Duration,
    /// Who we are to LACP; None does not speak it.
    pub lacp: Option<LacpConfig>,
    /// The same of its links, by name.
    pub lacp_ports: BTreeMap<String, LacpPort>,
}

impl Default for BondConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            mode: BondMode::default(),
            updelay: Duration::ZERO,
            downdelay: Duration::ZERO,
            primary: None,
            last_active: None,
            rebalance: REBALANCE,
            lacp: None,
            lacp_ports: BTreeMap::new(),
        }
    }
}

impl BondConfig {
    /// # Errors
    /// `Config` naming what is out of range.
    pub(in crate::datapath) fn check(&self) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::Config("a bond needs a name".into()));
        }
        let rebalance = ("bond-rebalance-interval", self.rebalance);
        for (name, delay) in [("bond_updelay", self.updelay), ("bond_downdelay", self.downdelay), rebalance] {
            if delay > DELAY_MAX {
                let (ms, most) = (delay.as_millis(), DELAY_MAX.as_millis());
                return Err(Error::Config(format!("bond {}: {name} {ms} is not in 0..{most}", self.name)));
            }
        }
        match &self.lacp {
            Some(lacp) if lacp.system == Mac(0) || lacp.system.is_group() => {
                let text = format!("bond {}: lacp-system-id {} is no system's own address", self.name, lacp.system);
                Err(Error::Config(text))
            }
            _ => Ok(()),
        }
    }

    /// How often, if at all.
    pub(super) fn rebalances(&self) -> Option<Duration> {
        let every = self.rebalance.max(REBALANCE_MIN);
        (self.mode != BondMode::ActiveBackup && !self.rebalance.is_zero()).then_some(every)
    }

    /// Of one of its links, of which nothing need have been said.
    pub(super) fn lacp_port(&self, id: PortId, name: &str) -> LacpPort {
        let port = id.saturating_add(1);
        self.lacp_ports.get(name).copied().unwrap_or(LacpPort { port, port_priority: u16::MAX, key: 0 })
    }

    pub(super) fn rules(&self) -> Rules {
        Rules { updelay: self.updelay, downdelay: self.downdelay, primary: self.primary.clone() }
    }
}

/// One bond at one moment.
#[derive(Debug, Clone)]
pub struct BondState {
    /// Its name.
    pub name: String,
    /// Its bridge's.
    pub bridge: String,
    /// How it uses its links.
    pub mode: BondMode,
    /// As in [`BondConfig`].
    pub updelay: Duration,
    /// Likewise.
    pub downdelay: Duration,
    /// Likewise.
    pub primary: Option<String>,
    /// The link that is active.
    pub active: Option<String>,
    /// How long until loads are evened out, where they are.
    pub rebalance: Option<Duration>,
    /// Who we are to LACP, where that is spoken.
    pub lacp: Option<LacpConfig>,
    /// Somebody at another end wants to be one with us.
    pub is_negotiated: bool,
    /// Its links, by name.
    pub links: Vec<BondLink>,
}

/// One link of a bond at one moment.
#[derive(Debug, Clone)]
pub struct BondLink {
    /// The port's name.
    pub name: String,
    /// It may carry frames.
    pub is_enabled: bool,
    /// It has a carrier, and LACP if that is spoken: nothing but a delay, or somebody's word, keeps it from that.
    pub may_enable: bool,
    /// How long until its delay is over, if it has one.
    pub due: Option<Duration>,
    /// The shares that it carries, of those that carried something of late: number and bytes.
    pub shares: Vec<(usize, u64)>,
    /// What LACP has of it, where that is spoken.
    pub lacp: Option<LacpLink>,
}
