//! The assignment by hand and by its rules, for any queues, cores and nodes.

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
