//! Bonds: what they are to be, which links they have, and the thread that keeps their time.
//!
//! ```text
//!   a link's queues come, go ─▶ State::settle_bonds ─▶ links (pure) ─▶ view: admission, the bond's queues ─▶ topology
//!   a delay is over ─ thread bonds ─▶      │   ▲
//!                      ▲  ▲                │   └ who may carry ── lacp (pure) ◀── what links' letterboxes have
//!                      │  │                │                         └─▶ PDUs, which the thread has sent
//!                      │  └────────────────┼─────────────────────────────┘
//!                      │                   └─ another link is active ─▶ lesson: a RARP for each address learned elsewhere
//!                      └────────────────────────────────────────────────┘
//! ```
//!
//! A bond is a port of its bridge with an id of its own; its links are ports too, but of no bridge's: their counters and
//! devices are their own. Every topology is made after the bonds were settled, so a link that goes and the one that takes
//! over are one change.

mod balance;
mod config;
mod control;
mod keeper;
mod lacp;
mod lessons;
mod links;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

pub use config::{BondConfig, BondLink, BondMode, BondState};
pub use lacp::{LacpConfig, LacpLink, LacpPort, LacpStatus};

use balance::Balance;
use lacp::Lacp;
use links::{Change, Links};
use view::Ways;

use super::events::Allowance;
use crate::counters::QueueCounters;
use crate::frame::lacp::Pdu;
use crate::pmd::{LINKS_MAX, Letterbox, Loads};
use crate::switch::PortId;
use crate::switch::fdb::Key;

/// A bond as control knows it.
pub(super) struct Bond {
    pub bridge: String,
    pub id: PortId,
    config: BondConfig,
    links: Links,
    /// None where LACP is not spoken.
    lacp: Option<Lacp>,
    /// By link, where its LACP frames are left.
    letterboxes: BTreeMap<PortId, Arc<Letterbox>>,
    /// What LACP has to say over which link: the latest says it all.
    outbox: BTreeMap<PortId, Pdu>,
    /// Of what is sent to it while it has no link.
    counters: Arc<QueueCounters>,
    /// Which links carried what when that was looked at last.
    ways: Option<Ways>,
    /// Whoever is behind it shall learn that these are others now.
    has_lesson: bool,
    /// What is left of the lesson under way, in parts. It ends with the bond, whose number may be another port's then.
    lesson: VecDeque<Vec<Key>>,
    balance: Balance,
    loads: Arc<Loads>,
    rebalance_at: Instant,
    /// How many lines it may put into the log: its neighbours decide how often links change.
    allowance: Allowance,
}

impl Bond {
    fn new(bridge: &str, id: PortId, config: BondConfig) -> Self {
        let links = Links::new(config.last_active.clone());
        let lacp = config.lacp.clone().map(Lacp::new);
        let (balance, loads, now) = (Balance::default(), Arc::default(), Instant::now());
        let (rebalance_at, allowance) = (now + config.rebalance, Allowance::new(now));
        let (bridge, counters) = (bridge.to_owned(), Arc::default());
        let (ways, has_lesson, lesson) = (None, false, VecDeque::new());
        let (letterboxes, outbox) = (BTreeMap::new(), BTreeMap::new());
        Self {
            bridge,
            id,
            config,
            links,
            lacp,
            letterboxes,
            outbox,
            counters,
            ways,
            has_lesson,
            lesson,
            balance,
            loads,
            rebalance_at,
            allowance,
        }
    }

    /// Changes it live; its links stay.
    fn set_config(&mut self, config: BondConfig, now: Instant) {
        if let Some(primary) = config.primary.as_ref().filter(|_| config.primary != self.config.primary) {
            // A disabled one, or none: it will be when it can.
            let _ = self.links.activate(primary);
        }
        if self.config.rebalance != config.rebalance || self.config.mode != config.mode {
            self.rebalance_at = now + config.rebalance;
        }
        match (&mut self.lacp, &config.lacp) {
            (Some(lacp), Some(new)) => lacp.set_config(new.clone(), now),
            (lacp, new) => *lacp = new.clone().map(Lacp::new),
        }
        self.config = config;
        if let Some(lacp) = &mut self.lacp {
            for link in self.links.all() {
                lacp.set_link(link.id, self.config.lacp_port(link.id, &link.name), now);
            }
        }
    }

    /// The port whose number stands for the bond's where one is to be shown.
    pub(super) fn first_link(&self) -> Option<PortId> {
        self.links.all().first().map(|link| link.id)
    }

    pub(super) fn add_link(&mut self, id: PortId, name: &str) {
        self.links.add(id, name);
        self.letterboxes.insert(id, Arc::default());
        if let Some(lacp) = &mut self.lacp {
            lacp.set_link(id, self.config.lacp_port(id, name), Instant::now());
        }
    }

    fn remove_link(&mut self, id: PortId) {
        self.links.remove(id);
        self.letterboxes.remove(&id);
        self.outbox.remove(&id);
        if let Some(lacp) = &mut self.lacp {
            lacp.remove(id);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.links.all().len() >= LINKS_MAX
    }

    fn has_links(&self) -> bool {
        !self.links.all().is_empty()
    }

    fn enabled(&self) -> Vec<PortId> {
        self.links.all().iter().filter(|link| link.is_enabled).map(|link| link.id).collect()
    }

    /// Hears what came over the links, and leaves what is to be said in the outbox. True if anything came of it that others
    /// go by: then it is to be settled.
    fn negotiate(&mut self, now: Instant) -> bool {
        let letters: Vec<(PortId, Pdu)> =
            self.letterboxes.iter().filter_map(|(id, letterbox)| Some((*id, letterbox.take()?))).collect();
        let Some(lacp) = &mut self.lacp else { return false };
        let before = lacp.outcome();
        for (id, pdu) in letters {
            lacp.receive(id, &pdu, now);
        }
        self.outbox.extend(lacp.run(now));
        lacp.outcome() != before
    }

    /// Brings it up to date with what is seen of its links; gives what is worth telling, as far as the log can bear that.
    fn settle(&mut self, has_carrier: impl Fn(PortId) -> bool, now: Instant) -> Vec<String> {
        let ids: Vec<PortId> = self.links.all().iter().map(|link| link.id).collect();
        if let Some(lacp) = &mut self.lacp {
            for id in &ids {
                lacp.set_carrier(*id, has_carrier(*id), now);
            }
        }
        self.negotiate(now);
        for id in ids {
            let may_carry = self.lacp.as_ref().is_none_or(|lacp| lacp.may_enable(id));
            self.links.set_carrier(id, may_carry && has_carrier(id));
        }
        let mut news = self.rebalance(now);
        let changes = self.links.settle(&self.config.rules(), now);
        if !changes.is_empty() {
            self.balance.account(self.loads.read());
        }
        self.balance.fit(&self.enabled());
        let ways = self.ways();
        if ways != self.ways {
            // What is left of an older lesson is wrong by now.
            (self.has_lesson, self.lesson) = (ways.is_some(), VecDeque::new());
            self.ways = ways;
        }
        let name = &self.config.name;
        news.extend(changes.into_iter().map(|change| match change {
            Change::Enabled { link, is_enabled: true } => format!("bond {name}: member {link} is enabled"),
            Change::Enabled { link, is_enabled: false } => format!("bond {name}: member {link} is disabled"),
            Change::Active(Some(link)) => format!("bond {name}: active member is now {link}"),
            Change::Active(None) => format!("bond {name}: all members are disabled"),
        }));
        self.bearable(news, now)
    }

    /// The lines that the log can bear, and how many were left out before.
    fn bearable(&self, news: Vec<String>, now: Instant) -> Vec<String> {
        let name = &self.config.name;
        let mut told = Vec::new();
        for line in news {
            let Some(left_out) = self.allowance.take(now) else { continue };
            if left_out > 0 {
                told.push(format!(
                    "bond {name}: {left_out} lines are left out: its members change more often than the log can bear"
                ));
            }
            told.push(line);
        }
        told
    }

    /// Evens the loads out if it is time; gives what moved, in words.
    fn rebalance(&mut self, now: Instant) -> Vec<String> {
        let Some(every) = self.config.rebalances().filter(|_| now >= self.rebalance_at) else { return Vec::new() };
        self.rebalance_at = now + every;
        self.balance.account(self.loads.read());
        let moves = self.balance.rebalance(&self.enabled());
        let name_of = |id| self.links.all().iter().find(|link| link.id == id).map_or("", |link| link.name.as_str());
        let say = |moved: &balance::Move| {
            let balance::Move { bucket, from, to, load } = *moved;
            let (bond, from, to) = (&self.config.name, name_of(from), name_of(to));
            format!("bond {bond}: shift {}kB of load (with hash {bucket}) from {from} to {to}", load / 1024)
        };
        moves.iter().map(say).collect()
    }

    /// When it is to be settled next, if nothing happens before.
    fn due(&self) -> Option<Instant> {
        self.links.due().into_iter().chain(self.config.rebalances().map(|_| self.rebalance_at)).min()
    }

    fn state(&self, now: Instant) -> BondState {
        let BondConfig { name, mode, updelay, downdelay, primary, lacp, .. } = self.config.clone();
        let active = self.links.all().iter().find(|link| self.links.active() == Some(link.id));
        let links = self.links.all().iter().map(|link| BondLink {
            name: link.name.clone(),
            is_enabled: link.is_enabled,
            may_enable: link.has_carrier,
            due: link.due.map(|due| due.saturating_duration_since(now)),
            shares: self.balance.loads(link.id).collect(),
            lacp: self.lacp.as_ref().and_then(|lacp| lacp.link(link.id)),
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
            lacp,
            is_negotiated: self.lacp.as_ref().is_some_and(Lacp::is_negotiated),
            links: links.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Rows: C13.
    #[test]
    fn a_neighbour_whose_links_come_and_go_without_end_does_not_fill_the_log() {
        let config = BondConfig { name: "bond0".into(), ..BondConfig::default() };
        let (mut bond, begin) = (Bond::new("br0", 9, config), Instant::now());
        bond.add_link(1, "p0");
        let lines = |bond: &mut Bond, now: Instant| -> Vec<String> {
            [true, false].into_iter().flat_map(|is_up| bond.settle(|_| is_up, now)).collect()
        };
        let said = lines(&mut bond, begin);
        let expected =
            ["member p0 is enabled", "active member is now p0", "member p0 is disabled", "all members are disabled"];
        assert_eq!(said, expected.map(|line| format!("bond bond0: {line}")));
        // Ten times as many as a port may say at once, in a second.
        let said: usize =
            (0..2560).map(|n| lines(&mut bond, begin + Duration::from_millis(n * 1000 / 2560)).len()).sum();
        assert!(said < 1024 + 2 * 10, "{said} lines");
        let later = lines(&mut bond, begin + Duration::from_secs(60));
        assert!(later[0].contains("lines are left out") && later.len() == 5, "{later:?}");
    }
}
