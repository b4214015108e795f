//! Bonds: what they are to be, which links they have, and the thread that keeps their time.
//!
//! ```text
//!   a link's queues come, go ─▶ State::settle_bonds ─▶ links (pure) ─▶ topology: admission, the bond's queues
//!   a delay is over ─ thread bonds ─▶      │
//!                            ▲            └─ another link is active ─▶ lesson: a RARP for each address learned elsewhere
//!                            └────────────────────────────────────────────┘
//! ```
//!
//! A bond is a port of its bridge with an id of its own; its links are ports too, but of no bridge's: their counters and
//! devices are their own. Every topology is made after the bonds were settled, so a link that goes and the one that takes
//! over are one change.

mod balance;
mod keeper;
mod lessons;
mod links;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use balance::Balance;
use keeper::keep_bonds;
use links::{Change, Links, Rules};

use super::Datapath;
use super::state::State;
use crate::counters::QueueCounters;
use crate::error::{Error, Result};
use crate::pmd::{
    Admission, Bonding, Credit, LINKS_MAX, Loads, Membership, PortView, SHARES, Shares, Steering, Topology,
};
use crate::switch::PortId;
use crate::switch::fdb::Key;

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
}

impl BondMode {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::ActiveBackup, Self::BalanceSlb].into_iter().find(|mode| mode.name() == name)
    }

    /// `bond_mode`, as in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::ActiveBackup => "active-backup",
            Self::BalanceSlb => "balance-slb",
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
        }
    }
}

impl BondConfig {
    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self) -> Result<()> {
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
        Ok(())
    }

    /// How often, if at all.
    fn rebalances(&self) -> Option<Duration> {
        let every = self.rebalance.max(REBALANCE_MIN);
        (self.mode == BondMode::BalanceSlb && !self.rebalance.is_zero()).then_some(every)
    }

    fn rules(&self) -> Rules {
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
    /// It has a carrier: nothing but a delay, or somebody's word, keeps it from that.
    pub may_enable: bool,
    /// How long until its delay is over, if it has one.
    pub due: Option<Duration>,
    /// The shares that it carries, of those that carried something of late: number and bytes.
    pub shares: Vec<(usize, u64)>,
}

/// A bond as control knows it.
pub(super) struct Bond {
    pub bridge: String,
    pub id: PortId,
    config: BondConfig,
    links: Links,
    /// Of what is sent to it while it has no link.
    counters: Arc<QueueCounters>,
    /// Whoever is behind it shall learn that another link is used.
    has_lesson: bool,
    /// What is left of the lesson under way, in parts. It ends with the bond, whose number may be another port's then.
    lesson: VecDeque<Vec<Key>>,
    balance: Balance,
    loads: Arc<Loads>,
    rebalance_at: Instant,
}

impl Bond {
    pub(super) fn new(bridge: &str, id: PortId, config: BondConfig) -> Self {
        let links = Links::new(config.last_active.clone());
        let (balance, loads, rebalance_at) = (Balance::default(), Arc::default(), Instant::now() + config.rebalance);
        let (bridge, counters, has_lesson, lesson) = (bridge.to_owned(), Arc::default(), false, VecDeque::new());
        Self { bridge, id, config, links, counters, has_lesson, lesson, balance, loads, rebalance_at }
    }

    /// The port whose number stands for the bond's where one is to be shown.
    pub(super) fn first_link(&self) -> Option<PortId> {
        self.links.all().first().map(|link| link.id)
    }

    pub(super) fn add_link(&mut self, id: PortId, name: &str) {
        self.links.add(id, name);
    }

    pub(super) fn is_full(&self) -> bool {
        self.links.all().len() >= LINKS_MAX
    }

    pub(super) fn has_links(&self) -> bool {
        !self.links.all().is_empty()
    }

    /// Puts the bond into a topology that has its links.
    pub(super) fn join(&self, topology: &mut Topology, bridge: usize) -> PortView {
        let mut view: Option<PortView> = None;
        for link in self.links.all() {
            let is_active = self.links.active() == Some(link.id);
            let (carries, admission) = match self.config.mode {
                BondMode::ActiveBackup => (is_active, if is_active { Admission::All } else { Admission::Nothing }),
                BondMode::BalanceSlb => (link.is_enabled, Admission::Unreflected { takes_groups: is_active }),
            };
            let port = topology.ports.get_mut(usize::from(link.id)).and_then(Option::as_mut);
            if let Some(port) = port {
                let receiveqs = if carries { port.receiveqs.clone() } else { Vec::new() };
                match &mut view {
                    Some(view) if carries && !view.receiveqs.is_empty() => {
                        view.receiveqs.extend(receiveqs);
                        view.mtu = view.mtu.min(port.mtu);
                    }
                    Some(_) if !carries => {}
                    _ => view = Some(PortView { receiveqs, ..port.clone() }),
                }
                port.bonding = Bonding::Member(Membership { bond: self.id, admission });
            }
        }
        if self.config.mode == BondMode::BalanceSlb
            && let Some(view) = &mut view
        {
            (view.steering, view.bonding) = (Steering::Hash, Bonding::Shares(Arc::new(self.shares())));
        }
        view.unwrap_or_else(|| PortView {
            bridge,
            mtu: 0,
            admin_up: true,
            retries: 0,
            backpressure_us: 0,
            steering: Steering::Thread,
            counters: Arc::clone(&self.counters),
            credit: Arc::new(Credit::of_receiver()),
            receiveqs: Vec::new(),
            bonding: Bonding::None,
        })
    }

    fn enabled(&self) -> Vec<PortId> {
        self.links.all().iter().filter(|link| link.is_enabled).map(|link| link.id).collect()
    }

    fn shares(&self) -> Shares {
        let links = self.enabled();
        let place = |link: PortId| links.iter().position(|other| *other == link);
        let mut buckets = [0; SHARES];
        for (bucket, link) in buckets.iter_mut().zip(self.balance.links()) {
            *bucket = link.and_then(place).and_then(|at| u8::try_from(at).ok()).unwrap_or(0);
        }
        Shares { buckets, links, loads: Arc::clone(&self.loads) }
    }

    /// Evens the loads out if it is time; gives what moved, in words.
    fn rebalance(&mut self, now: Instant) -> Vec<String> {
        let Some(every) = self.config.rebalances().filter(|_| now >= self.rebalance_at) else { return Vec::new() };
        self.rebalance_at = now + every;
        self.balance.account(self.loads.read());
        let moves = self.balance.rebalance(&self.enabled());
        self.has_lesson |= !moves.is_empty();
        let name_of = |id| self.links.all().iter().find(|link| link.id == id).map_or("", |link| link.name.as_str());
        let say = |moved: &balance::Move| {
            let balance::Move { bucket, from, to, load } = *moved;
            let (bond, from, to) = (&self.config.name, name_of(from), name_of(to));
            format!("bond {bond}: shift {}kB of load (with hash {bucket}) from {from} to {to}", load / 1024)
        };
        moves.iter().map(say).collect()
    }

    fn state(&self, now: Instant) -> BondState {
        let BondConfig { name, mode, updelay, downdelay, primary, .. } = self.config.clone();
        let active = self.links.all().iter().find(|link| self.links.active() == Some(link.id));
        let links = self.links.all().iter().map(|link| BondLink {
            name: link.name.clone(),
            is_enabled: link.is_enabled,
            may_enable: link.has_carrier,
            due: link.due.map(|due| due.saturating_duration_since(now)),
            shares: self.balance.loads(link.id).collect(),
        });
        BondState {
            name,
            bridge: self.bridge.clone(),
            mode,
            updelay,
            downdelay,
            primary,
            active: active.map(|link| link.name.clone()),
            rebalance: self.config.rebalances().map(|_| self.rebalance_at.saturating_duration_since(now)),
            links: links.collect(),
        }
    }
}

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
    pub(super) fn add_bond(&mut self, bridge: &str, config: BondConfig) -> Result<()> {
        self.bridge(bridge)?;
        if self.bonds.contains_key(&config.name) {
            return Err(Error::Config(format!("a bond named {} exists already", config.name)));
        }
        let id = self.take_id(&config.name)?;
        self.bonds.insert(config.name.clone(), Bond::new(bridge, id, config));
        Ok(())
    }

    /// Takes a bond out; its id stays taken until [`Self::free`].
    pub(super) fn remove_bond(&mut self, name: &str) -> Result<PortId> {
        let bond = self.bonds.get(name).ok_or_else(|| Error::Config(format!("no bond named {name}")))?;
        if bond.has_links() {
            return Err(Error::Config(format!("bond {name} has links: delete them first")));
        }
        let id = bond.id;
        self.bonds.remove(name);
        Ok(id)
    }

    pub(super) fn bonds_of(&self, bridge: &str) -> Vec<String> {
        self.bonds.iter().filter(|(_, bond)| bond.bridge == bridge).map(|(name, _)| name.clone()).collect()
    }

    /// Changes a bond live; its links and its bridge stay.
    pub(super) fn set_bond(&mut self, config: BondConfig) -> Result<()> {
        let bond = self.bond_mut(&config.name)?;
        if let Some(primary) = config.primary.as_ref().filter(|_| config.primary != bond.config.primary) {
            // A disabled one, or none: it will be when it can.
            let _ = bond.links.activate(primary);
            bond.has_lesson = true;
        }
        if bond.config.rebalance != config.rebalance || bond.config.mode != config.mode {
            bond.rebalance_at = Instant::now() + config.rebalance;
        }
        bond.config = config;
        Ok(())
    }

    fn bond_mut(&mut self, name: &str) -> Result<&mut Bond> {
        self.bonds.get_mut(name).ok_or_else(|| Error::Config(format!("no bond named {name}")))
    }

    /// Brings every bond up to date with what is seen of its links; gives what is worth telling.
    pub(super) fn settle_bonds(&mut self, now: Instant) -> Vec<String> {
        let mut news = Vec::new();
        for bond in self.bonds.values_mut() {
            let ids: Vec<PortId> = bond.links.all().iter().map(|link| link.id).collect();
            for id in ids {
                let has_carrier = self.receiveqs.range((id, 0)..=(id, u16::MAX)).next().is_some();
                bond.links.set_carrier(id, has_carrier);
            }
            news.extend(bond.rebalance(now));
            let changes = bond.links.settle(&bond.config.rules(), now);
            if !changes.is_empty() {
                bond.balance.account(bond.loads.read());
            }
            bond.balance.fit(&bond.enabled());
            bond.has_lesson |= !changes.is_empty() && bond.config.mode == BondMode::BalanceSlb;
            let name = &bond.config.name;
            for change in changes {
                news.push(match change {
                    Change::Enabled { link, is_enabled: true } => format!("bond {name}: member {link} is enabled"),
                    Change::Enabled { link, is_enabled: false } => format!("bond {name}: member {link} is disabled"),
                    Change::Active(Some(link)) => {
                        bond.has_lesson = true;
                        format!("bond {name}: active member is now {link}")
                    }
                    Change::Active(None) => format!("bond {name}: all members are disabled"),
                });
            }
        }
        news
    }

    /// When a bond has something to do next.
    pub(super) fn bonds_due(&self) -> Option<Instant> {
        let of =
            |bond: &Bond| bond.links.due().into_iter().chain(bond.config.rebalances().map(|_| bond.rebalance_at)).min();
        self.bonds.values().filter_map(of).min()
    }

    /// Makes an enabled link of a bond its active one (`bond/set-active-member`); true if that is new.
    pub(super) fn activate_link(&mut self, bond: &str, link: &str) -> Result<bool> {
        let found = self.bond_mut(bond)?;
        let before = found.links.active();
        match found.links.activate(link) {
            None => Err(Error::Config(format!("bond {bond} has no member named {link}"))),
            Some(false) => Err(Error::Config(format!("member {link} of bond {bond} is disabled: enable it first"))),
            Some(true) => {
                let is_new = found.links.active() != before;
                found.has_lesson |= is_new;
                Ok(is_new)
            }
        }
    }

    /// Enables or disables a link of a bond until its carrier changes (`bond/enable-member`, `bond/disable-member`).
    pub(super) fn hold_link(&mut self, bond: &str, link: &str, is_enabled: bool) -> Result<()> {
        if !self.bond_mut(bond)?.links.hold(link, is_enabled) {
            return Err(Error::Config(format!("bond {bond} has no member named {link}")));
        }
        Ok(())
    }

    /// Gives a share of a bond's frames to an enabled link, until that goes or loads are evened out (`bond/migrate`).
    pub(super) fn give_share(&mut self, bond: &str, share: usize, link: &str) -> Result<()> {
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
        found.has_lesson = true;
        Ok(())
    }

    /// Every bond, by name.
    pub(super) fn bond_states(&self, now: Instant) -> Vec<BondState> {
        self.bonds.values().map(|bond| bond.state(now)).collect()
    }

    /// A link is gone.
    pub(super) fn leave_bond(&mut self, id: PortId) {
        for bond in self.bonds.values_mut() {
            bond.links.remove(id);
        }
    }
}
