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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cores(cpus: &[(usize, u32)]) -> Vec<Core> {
        cpus.iter().map(|&(cpu, numa)| Core { cpu, numa }).collect()
    }

    fn rxqs(loads: &[u64]) -> Vec<Rxq> {
        let rxq = |(at, &load): (usize, &u64)| Rxq {
            port: PortId::try_from(at).unwrap(),
            queue: 0,
            load,
            numa: Some(0),
            pinned: None,
        };
        loads.iter().enumerate().map(rxq).collect()
    }

    #[test]
    fn cycles_walks_the_cores_up_and_down_heaviest_queue_first() {
        // The example of OVS's guide: 80 70 60 50 40 30 % over three cores.
        let answer = assign(&rxqs(&[80, 30, 60, 70, 50, 40]), &cores(&[(3, 0), (7, 0), (8, 0)]), Policy::Cycles, true);
        assert_eq!(answer.cpus, [3, 3, 8, 7, 8, 7]);
    }

    #[test]
    fn round_robin_does_not_look_at_loads() {
        let answer = assign(&rxqs(&[80, 30, 60, 70]), &cores(&[(3, 0), (7, 0), (8, 0)]), Policy::RoundRobin, true);
        assert_eq!(answer.cpus, [3, 7, 8, 3]);
    }

    #[test]
    fn group_gives_each_queue_to_the_core_that_has_least() {
        let answer = assign(&rxqs(&[10, 60, 20, 30, 0, 0]), &cores(&[(1, 0), (2, 0)]), Policy::Group, true);
        assert_eq!(answer.cpus, [2, 1, 2, 2, 1, 1]);
    }

    #[test]
    fn core_of_a_pinned_queue_is_its_own_unless_isolation_is_off() {
        let mut all = rxqs(&[0, 0, 0, 0]);
        all[1].pinned = Some(2);
        let two = cores(&[(1, 0), (2, 0)]);
        let isolated = assign(&all, &two, Policy::Cycles, true);
        assert_eq!(isolated.cpus, [1, 2, 1, 1]);
        assert_eq!(isolated.isolated, BTreeSet::from([2]));
        let shared = assign(&all, &two, Policy::Cycles, false);
        assert_eq!(shared.cpus, [1, 2, 2, 2]);
        assert!(shared.isolated.is_empty());
    }

    #[test]
    fn pin_to_a_core_without_a_thread_is_named_and_the_queue_is_polled() {
        let mut all = rxqs(&[0, 0]);
        all[0].pinned = Some(9);
        let answer = assign(&all, &cores(&[(1, 0)]), Policy::Cycles, true);
        assert_eq!((answer.cpus, answer.unpinned), (vec![1, 1], vec![0]));
    }

    #[test]
    fn no_queue_stays_without_a_core_when_every_core_is_isolated() {
        let mut all = rxqs(&[0, 0]);
        all[0].pinned = Some(1);
        let answer = assign(&all, &cores(&[(1, 0)]), Policy::Cycles, true);
        assert_eq!((answer.cpus, answer.crowded), (vec![1, 1], vec![1]));
    }

    #[test]
    fn queues_stay_on_their_guest_s_node() {
        let mut all = rxqs(&[40, 30, 20, 10, 5]);
        for (rxq, node) in all.iter_mut().zip([0, 1, 1, 0, 2]) {
            rxq.numa = Some(node);
        }
        let answer = assign(&all, &cores(&[(1, 0), (2, 0), (11, 1)]), Policy::Cycles, true);
        assert_eq!(answer.cpus[..4], [1, 11, 11, 2]);
        assert_eq!(answer.foreign, [4], "no core of node 2");
    }

    #[test]
    fn node_whose_cores_are_all_isolated_lends_from_another() {
        let mut all = rxqs(&[0, 0]);
        all[0].pinned = Some(1);
        let answer = assign(&all, &cores(&[(1, 0), (11, 1)]), Policy::Cycles, true);
        assert_eq!((answer.cpus, answer.foreign), (vec![1, 11], vec![1]));
    }

    #[test]
    fn one_more_queue_goes_where_there_is_least_and_moves_nobody() {
        let two = cores(&[(1, 0), (2, 0)]);
        let all = rxqs(&[50, 10, 10, 0]);
        let there = [(all[0], 1), (all[1], 2), (all[2], 2)];
        assert_eq!(place(&all[3], &there, &two, Policy::Cycles, true), Some(2), "20 beside 50");
        assert_eq!(place(&all[3], &there, &two, Policy::RoundRobin, true), Some(1), "one queue beside two");
        let pinned = Rxq { pinned: Some(1), ..all[3] };
        assert_eq!(place(&pinned, &there, &two, Policy::Cycles, true), Some(1));
        let isolated = [(Rxq { pinned: Some(2), ..all[1] }, 2), (all[0], 1)];
        assert_eq!(place(&all[3], &isolated, &two, Policy::Cycles, true), Some(1));
        assert_eq!(place(&all[3], &isolated, &two, Policy::Cycles, false), Some(2));
        assert_eq!(place(&all[3], &[], &[], Policy::Cycles, true), None);
    }

    #[test]
    fn improvement_is_the_share_of_the_variance_that_goes() {
        let (all, two) = (rxqs(&[45, 45, 10]), cores(&[(1, 0), (2, 0)]));
        let then = assign(&all, &two, Policy::Cycles, true);
        // 90 and 10 now, 45 and 55 then: variances 1600 and 25.
        assert_eq!(improvement(&all, &[1, 1, 2], &then, &two, 100), 98);
        assert_eq!(improvement(&all, &then.cpus.clone(), &then, &two, 100), 0);
    }

    fn any_rxqs() -> impl Strategy<Value = Vec<Rxq>> {
        let one = (0_u64..1000, proptest::option::of(0_u32..4), proptest::option::weighted(0.3, 0_usize..12));
        proptest::collection::vec(one, 0..40).prop_map(|all| {
            let rxq = |(at, (load, numa, pinned)): (usize, (u64, Option<u32>, Option<usize>))| Rxq {
                port: PortId::try_from(at / 3).unwrap(),
                queue: u16::try_from(at % 3).unwrap(),
                load,
                numa,
                pinned,
            };
            all.into_iter().enumerate().map(rxq).collect()
        })
    }

    fn any_cores() -> impl Strategy<Value = Vec<Core>> {
        proptest::collection::btree_map(0_usize..12, 0_u32..3, 1..8)
            .prop_map(|all| all.into_iter().map(|(cpu, numa)| Core { cpu, numa }).collect())
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        prop_oneof![Just(Policy::Cycles), Just(Policy::Group), Just(Policy::RoundRobin)]
    }

    proptest! {
        #[test]
        fn every_queue_gets_a_core_and_the_rules_hold(
            rxqs in any_rxqs(), cores in any_cores(), policy in any_policy(), isolate: bool,
        ) {
            let answer = assign(&rxqs, &cores, policy, isolate);
            prop_assert_eq!(answer.cpus.len(), rxqs.len());
            let has = |cpu: usize| cores.iter().any(|core| core.cpu == cpu);
            let node = |cpu: usize| cores.iter().find(|core| core.cpu == cpu).map(|core| core.numa);
            let pinned: BTreeSet<usize> = rxqs.iter().filter_map(|r| r.pinned).filter(|cpu| has(*cpu)).collect();
            prop_assert_eq!(&answer.isolated, &if isolate { pinned } else { BTreeSet::new() });
            for (at, (rxq, &cpu)) in rxqs.iter().zip(&answer.cpus).enumerate() {
                prop_assert!(has(cpu));
                match rxq.pinned {
                    Some(want) if has(want) => prop_assert_eq!(cpu, want),
                    other => {
                        prop_assert_eq!(other.is_some(), answer.unpinned.contains(&at));
                        prop_assert_eq!(answer.isolated.contains(&cpu), answer.crowded.contains(&at));
                        let open = |c: &&Core| answer.crowded.contains(&at) || !answer.isolated.contains(&c.cpu);
                        let home = cores.iter().filter(open).any(|c| Some(c.numa) == rxq.numa);
                        prop_assert_eq!(home && node(cpu) != rxq.numa, false, "a core of its node is free");
                        prop_assert_eq!(answer.foreign.contains(&at), rxq.numa.is_some() && node(cpu) != rxq.numa);
                    }
                }
            }
            prop_assert_eq!(&answer, &assign(&rxqs, &cores, policy, isolate), "asked again");
        }

        #[test]
        fn round_robin_counts_differ_by_one_at_most(count in 0_usize..60, cores in 1_usize..9) {
            let cores: Vec<Core> = (0..cores).map(|cpu| Core { cpu, numa: 0 }).collect();
            let answer = assign(&rxqs(&vec![7; count]), &cores, Policy::RoundRobin, true);
            let counts = cores.iter().map(|core| answer.cpus.iter().filter(|cpu| **cpu == core.cpu).count());
            prop_assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1);
        }

        #[test]
        fn group_leaves_no_core_further_behind_than_the_lightest_move(
            loads in proptest::collection::vec(1_u64..1000, 1..60), cores in 1_usize..9,
        ) {
            // Greedy, heaviest first: the fullest core without its last queue was the emptiest.
            let cores: Vec<Core> = (0..cores).map(|cpu| Core { cpu, numa: 0 }).collect();
            let answer = assign(&rxqs(&loads), &cores, Policy::Group, true);
            let on = |cpu: usize| loads.iter().zip(&answer.cpus).filter(move |(_, c)| **c == cpu).map(|(l, _)| *l);
            let least = cores.iter().map(|core| on(core.cpu).sum::<u64>()).min().unwrap();
            for core in &cores {
                let lightest = on(core.cpu).min().unwrap_or(0);
                prop_assert!(on(core.cpu).sum::<u64>() - lightest <= least);
            }
        }

        #[test]
        fn one_more_queue_keeps_the_rules(
            rxqs in any_rxqs(), cores in any_cores(), policy in any_policy(), isolate: bool,
        ) {
            let mut there: Vec<(Rxq, usize)> = Vec::new();
            for rxq in &rxqs {
                let cpu = place(rxq, &there, &cores, policy, isolate).unwrap();
                let pinned = rxq.pinned.filter(|cpu| cores.iter().any(|core| core.cpu == *cpu));
                let is_isolated = |cpu: usize| isolate && there.iter().any(|(r, _)| r.pinned == Some(cpu));
                prop_assert!(pinned.is_none_or(|want| want == cpu));
                if pinned.is_none() && is_isolated(cpu) {
                    prop_assert!(cores.iter().all(|core| is_isolated(core.cpu)));
                }
                there.push((*rxq, cpu));
            }
        }
    }
}
