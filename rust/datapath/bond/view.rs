//! A bond in a topology: what comes in over which link, and which queues what is sent to it goes out on.

use std::sync::Arc;

use super::lacp::Lacp;
use super::links::Link;
use super::{Bond, BondMode};
use crate::pmd::{Admission, Basis, Bonding, Membership, PortView, SHARES, Shares, Steering, Topology};
use crate::switch::PortId;

/// Which links carry what, as somebody sees it to whom they are several cables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ways {
    active: PortId,
    /// By share, its link; empty where nothing is shared out.
    shares: Vec<Option<PortId>>,
}

/// What a bond does with its links as things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// Nothing: LACP was asked for, or the mode needs it, and nobody answers.
    Nothing,
    /// The active one carries everything.
    One,
    /// All that are enabled carry their share.
    Shared(Basis),
}

impl Bond {
    /// Open vSwitch's rules (`ovs-vswitchd.conf.db(5)`: `bond_mode`, `lacp`, `lacp-fallback-ab`).
    pub(super) fn usage(&self) -> Usage {
        match (self.config.mode, self.lacp.as_ref().map(Lacp::is_negotiated)) {
            (_, Some(false)) if self.lacp.as_ref().is_some_and(|lacp| lacp.config().falls_back) => Usage::One,
            (_, Some(false)) | (BondMode::BalanceTcp, None) => Usage::Nothing,
            (BondMode::ActiveBackup, _) => Usage::One,
            (BondMode::BalanceSlb, _) => Usage::Shared(Basis::Station),
            (BondMode::BalanceTcp, Some(true)) => Usage::Shared(Basis::Flow),
        }
    }

    /// A neighbour that agreed to the bond over LACP knows where to send by itself.
    fn is_agreed(&self) -> bool {
        self.lacp.as_ref().is_some_and(Lacp::is_negotiated)
    }

    /// What the neighbour has to be told when it changes; None while nothing is carried, or he knows by himself.
    pub(super) fn ways(&self) -> Option<Ways> {
        let active = self.links.active().filter(|_| !self.is_agreed())?;
        match self.usage() {
            Usage::Nothing => None,
            Usage::One => Some(Ways { active, shares: Vec::new() }),
            Usage::Shared(_) => Some(Ways { active, shares: self.balance.links().collect() }),
        }
    }

    /// Puts the bond into a topology that has its links.
    pub(in crate::datapath) fn join(&self, topology: &mut Topology, bridge: usize) -> PortView {
        let usage = self.usage();
        let mut view: Option<PortView> = None;
        for link in self.links.all() {
            let is_active = self.links.active() == Some(link.id);
            let carries = match usage {
                Usage::Nothing => false,
                Usage::One => is_active,
                Usage::Shared(_) => link.is_enabled,
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
                let admission = self.admission(link, is_active, usage);
                let letterbox = self.letterboxes.get(&link.id).filter(|_| self.lacp.is_some()).cloned();
                port.bonding = Bonding::Member(Membership { bond: self.id, admission, letterbox });
            }
        }
        if let (Usage::Shared(basis), Some(view)) = (usage, &mut view) {
            (view.steering, view.bonding) = (Steering::Hash, Bonding::Shares(Arc::new(self.shares(basis))));
        }
        view.unwrap_or_else(|| PortView::new(bridge, Arc::clone(&self.counters), Vec::new()))
    }

    fn admission(&self, link: &Link, is_active: bool, usage: Usage) -> Admission {
        let takes_all = match usage {
            // He sends each frame once, and over a link that he may use before we have waited out its delay.
            _ if self.is_agreed() => link.is_enabled || link.has_carrier,
            Usage::Shared(_) => return Admission::Unreflected { takes_groups: is_active },
            Usage::One => is_active,
            Usage::Nothing => false,
        };
        if takes_all { Admission::All } else { Admission::Nothing }
    }

    fn shares(&self, basis: Basis) -> Shares {
        let links = self.enabled();
        let place = |link: PortId| links.iter().position(|other| *other == link);
        let mut buckets = [0; SHARES];
        for (bucket, link) in buckets.iter_mut().zip(self.balance.links()) {
            *bucket = link.and_then(place).and_then(|at| u8::try_from(at).ok()).unwrap_or(0);
        }
        Shares { basis, buckets, links, loads: Arc::clone(&self.loads) }
    }
}
