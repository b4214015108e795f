//! Which core polls which transmitq: pure functions, the same answer to the same question.
//!
//! ```text
//!   rxqs (load, node, pin) ─┐
//!   cores (node) ───────────┼─▶ assign ─▶ a core per rxq ─▶ improvement(now, then) ─▶ worth it?
//!   policy, isolate ────────┘
//! ```
//!
//! The rules are Open vSwitch's (`ovs-vswitchd.conf.db(5)`: pmd-rxq-assign, pmd-rxq-isolate; its guide "PMD threads"):
//! pinned queues first; then the others on cores that are not isolated, of the guest's node where there are any. One
//! thing is different: where every core is isolated OVS leaves a queue unpolled; here it is polled beside pinned ones, and
//! named.
//!
//! Invariant: every rxq gets a core of the list, as long as there is one. Must not know threads, clocks or names.

use std::collections::{BTreeMap, BTreeSet};

use crate::switch::PortId;

/// `pmd-rxq-assign`: how queues that are not pinned are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Heaviest first, walking the cores up and down.
    #[default]
    Cycles,
    /// Heaviest first, each to the core that has least.
    Group,
    /// In order of ports, walking the cores round and round; measures nothing.
    RoundRobin,
}

impl Policy {
    /// By its name in `pmd-rxq-assign`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Cycles, Self::Group, Self::RoundRobin].into_iter().find(|policy| policy.name() == name)
    }

    /// Its name there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Group => "group",
            Self::RoundRobin => "roundrobin",
        }
    }
}

/// A core with a poll thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Core {
    /// Its number.
    pub cpu: usize,
    /// Its NUMA node.
    pub numa: u32,
}

/// A transmitq that wants a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rxq {
    /// Whose.
    pub port: PortId,
    /// Its number among the port's.
    pub queue: u16,
    /// TSC cycles it took lately.
    pub load: u64,
    /// The node its guest is on, if that is known.
    pub numa: Option<u32>,
    /// The core that `pmd-rxq-affinity` names.
    pub pinned: Option<usize>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    /// Core numbers, in the order of the rxqs asked about.
    pub cpus: Vec<usize>,
    /// Cores that are pinned queues' own.
    pub isolated: BTreeSet<usize>,
    /// Rxqs (by index) whose pin names a core without a poll thread.
    pub unpinned: Vec<usize>,
    /// Rxqs (by index) that are polled on another node than their guest's.
    pub foreign: Vec<usize>,
    /// Rxqs (by index) that share a pinned queue's core because there was no other.
    pub crowded: Vec<usize>,
}

/// What a core has so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    load: u64,
    count: usize,
}

/// Shares queues out.
///
/// Queues come in the order of ports and queue numbers; cores need none. Costs a sort and a walk.
pub fn assign(rxqs: &[Rxq], cores: &[Core], policy: Policy, isolate: bool) -> Assignment {
    let mut answer = Assignment { cpus: vec![0; rxqs.len()], ..Assignment::default() };
    let mut shares: BTreeMap<usize, Share> = cores.iter().map(|core| (core.cpu, Share::default())).collect();
    let mut others = Vec::new();
    for (at, rxq) in rxqs.iter().enumerate() {
        match rxq.pinned.map(|cpu| (cpu, shares.contains_key(&cpu))) {
            Some((cpu, true)) => {
                if isolate {
                    answer.isolated.insert(cpu);
                }
                answer.give(&mut shares, at, rxq, cpu);
            }
            Some((_, false)) => {
                answer.unpinned.push(at);
                others.push((at, rxq));
            }
            None => others.push((at, rxq)),
        }
    }
    if policy != Policy::RoundRobin {
        // A stable sort: equal loads stay in the order of ports and queues.
        others.sort_by_key(|(_, rxq)| std::cmp::Reverse(rxq.load));
    }
    let all_isolated = cores.iter().all(|core| answer.isolated.contains(&core.cpu));
    let mut nodes = nodes(cores.iter().filter(|core| all_isolated || !answer.isolated.contains(&core.cpu)));
    let mut next_foreign = 0;
    for (at, rxq) in others {
        let home = rxq.numa.filter(|node| nodes.contains_key(node));
        let node = home.or_else(|| {
            // Any node will do: one after the other.
            let node = nodes.keys().nth(next_foreign % nodes.len().max(1)).copied();
            next_foreign += 1;
            node
        });
        let Some(node) = node.and_then(|node| nodes.get_mut(&node)) else { continue };
        let cpu = match policy {
            Policy::Cycles => node.step(true),
            Policy::RoundRobin => node.step(false),
            Policy::Group => node.lowest(&shares, rxq.load > 0),
        };
        let Some(cpu) = cpu else { continue };
        answer.give(&mut shares, at, rxq, cpu);
        if rxq.numa.is_some() && home.is_none() {
            answer.foreign.push(at);
        }
        if all_isolated {
            answer.crowded.push(at);
        }
    }
    answer
}

impl Assignment {
    fn give(&mut self, shares: &mut BTreeMap<usize, Share>, at: usize, rxq: &Rxq, cpu: usize) {
        let share = shares.entry(cpu).or_default();
        *share = Share { load: share.load.saturating_add(rxq.load), count: share.count + 1 };
        if let Some(place) = self.cpus.get_mut(at) {
            *place = cpu;
        }
    }
}

/// One node's cores while queues are shared out.
#[derive(Debug)]
struct Node {
    /// Ascending.
    cpus: Vec<usize>,
    at: usize,
    upwards: bool,
}

fn nodes<'a>(cores: impl Iterator<Item = &'a Core>) -> BTreeMap<u32, Node> {
    let mut nodes: BTreeMap<u32, Node> = BTreeMap::new();
    for core in cores {
        let node = nodes.entry(core.numa).or_insert_with(|| Node { cpus: Vec::new(), at: 0, upwards: true });
        node.cpus.push(core.cpu);
    }
    for node in nodes.values_mut() {
        node.cpus.sort_unstable();
    }
    nodes
}

impl Node {
    /// The next core of a walk up and down (1 2 3 3 2 1 1 …) or round (1 2 3 1 …).
    fn step(&mut self, up_and_down: bool) -> Option<usize> {
        let cpu = self.cpus.get(self.at).copied();
        let is_last = self.at + 1 >= self.cpus.len();
        match (self.upwards, is_last) {
            (true, false) => self.at += 1,
            (true, true) if up_and_down => self.upwards = false,
            (true, true) => self.at = 0,
            (false, _) if self.at == 0 => self.upwards = true,
            (false, _) => self.at -= 1,
        }
        cpu
    }

    /// The core with the least load; among queues without a load, with the fewest queues.
    fn lowest(&self, shares: &BTreeMap<usize, Share>, has_load: bool) -> Option<usize> {
        let share = |cpu: &usize| shares.get(cpu).copied().unwrap_or_default();
        let weight = |cpu: &&usize| if has_load { share(cpu).load } else { share(cpu).count as u64 };
        self.cpus.iter().min_by_key(weight).copied()
    }
}

/// Where one more queue goes while all the others stay: its pin, else the core with the least of its node, else of all.
/// `others` are the rxqs there are and where. None if there is no core.
pub fn place(new: &Rxq, others: &[(Rxq, usize)], cores: &[Core], policy: Policy, isolate: bool) -> Option<usize> {
    if let Some(pinned) = new.pinned.filter(|cpu| cores.iter().any(|core| core.cpu == *cpu)) {
        return Some(pinned);
    }
    let is_isolated = |core: &&Core| isolate && others.iter().any(|(rxq, _)| rxq.pinned == Some(core.cpu));
    let share = |core: &&Core| {
        let here = others.iter().filter(|(_, cpu)| *cpu == core.cpu);
        let load = here.clone().map(|(rxq, _)| rxq.load).sum::<u64>();
        (if policy == Policy::RoundRobin { 0 } else { load }, here.count(), core.cpu)
    };
    let lowest = |cores: Vec<&Core>| cores.into_iter().min_by_key(share).map(|core| core.cpu);
    let open = || cores.iter().filter(|core| !is_isolated(core));
    lowest(open().filter(|core| Some(core.numa) == new.numa).collect())
        .or_else(|| lowest(open().collect()))
        .or_else(|| lowest(cores.iter().collect()))
}

/// How much evener the cores' loads would be, in percent of today's variance: the best of all nodes, isolated cores left
/// out. `now` holds each rxq's core; `capacity` the cycles that a core had in the time over which loads were measured.
///
/// 0 where nothing would be better, or where a queue would be polled on a foreign node: loads there are not comparable.
pub fn improvement(rxqs: &[Rxq], now: &[usize], then: &Assignment, cores: &[Core], capacity: u64) -> u64 {
    let node_count = cores.iter().map(|core| core.numa).collect::<BTreeSet<_>>().len();
    if node_count > 1 && !then.foreign.is_empty() {
        return 0;
    }
    let variance_of = |cpus: &[usize], node: u32| {
        let mut loads: BTreeMap<usize, u64> = cores
            .iter()
            .filter(|core| core.numa == node && !then.isolated.contains(&core.cpu))
            .map(|core| (core.cpu, 0))
            .collect();
        for (rxq, cpu) in rxqs.iter().zip(cpus) {
            if let Some(load) = loads.get_mut(cpu) {
                *load = load.saturating_add(rxq.load);
            }
        }
        // Hundredths of a percent: whole ones hide what an idle machine would gain.
        variance(&loads.values().map(|load| load.saturating_mul(10_000) / capacity.max(1)).collect::<Vec<_>>())
    };
    let nodes: BTreeSet<u32> = cores.iter().map(|core| core.numa).collect();
    let gain = nodes.into_iter().map(|node| {
        let (today, tomorrow) = (variance_of(now, node), variance_of(&then.cpus, node));
        today.saturating_sub(tomorrow).saturating_mul(100).checked_div(today).unwrap_or(0)
    });
    gain.max().unwrap_or(0)
}

fn variance(values: &[u64]) -> u64 {
    let count = values.len() as u64;
    let Some(mean) = values.iter().sum::<u64>().checked_div(count) else { return 0 };
    let squares = values.iter().map(|v| v.abs_diff(mean).saturating_mul(v.abs_diff(mean)));
    squares.fold(0, u64::saturating_add) / count
}

#[cfg(test)]
mod tests;
