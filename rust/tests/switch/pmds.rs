// SPDX-License-Identifier: Apache-2.0
//! Many poll threads: queues move between them and threads come and go, and every frame is counted all the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ovsvhost::datapath::{Datapath, PmdView, Sharing};
use ovsvhost::pmd::assign::Policy;
use ovsvhost::pmd::balance::AutoLb;
use ovsvhost::sys::cpu;
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::Crew;

/// Two cores of this machine, if it has them.
fn two_cores() -> Option<[usize; 2]> {
    let cpus = cpu::allowed_cpus().unwrap();
    let two = cpus.first_chunk::<2>().copied();
    if two.is_none() {
        eprintln!("skipped: this process may use one core only, and queues need two to move between");
    }
    two
}

fn two_pairs(switch: &mut Switch) -> Crew {
    Crew::pair(switch, EndpointKind::Client, &[("pairs", "2"), ("sizes", "64+1500")])
}

/// Cores of the enabled queues, by port and number.
fn places(datapath: &Datapath) -> BTreeMap<(String, u16), usize> {
    let pmds = datapath.pmds();
    let places = pmds.iter().flat_map(|pmd| {
        pmd.rxqs.iter().filter(|rxq| rxq.is_enabled).map(|rxq| ((rxq.port.clone(), rxq.queue), pmd.cpu))
    });
    places.collect()
}

fn cores(datapath: &Datapath) -> Vec<usize> {
    datapath.pmds().iter().map(|pmd| pmd.cpu).collect()
}

/// Sends both ways, again and again, while another hand does `disturb` without a pause; then every frame arrived once, in
/// order and unchanged.
fn send_while(switch: &Switch, crew: &mut Crew, disturb: impl Fn(&Datapath, usize) + Sync) {
    let over = AtomicBool::new(false);
    let turns = thread::scope(|scope| {
        let hand = scope.spawn(|| {
            let mut turns = 0;
            while !over.load(Ordering::Relaxed) {
                disturb(switch.datapath(), turns);
                turns += 1;
            }
            turns
        });
        for _ in 0..6 {
            crew.send(0, 1, 100);
            crew.send(1, 0, 100);
        }
        over.store(true, Ordering::Relaxed);
        hand.join().unwrap()
    });
    assert!(turns > 3, "only {turns} turns");
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    for (sender, receiver) in [("a", "b"), ("b", "a")] {
        assert_eq!(switch.count(sender, "rx_dropped") + switch.count(receiver, "tx_dropped"), 0);
        assert_eq!(switch.count(sender, "rx_packets"), switch.count(receiver, "tx_packets"), "one writer a counter");
    }
}

/// Rows: B5.
#[test]
fn queues_move_between_threads_under_traffic_and_lose_nothing() {
    let Some([one, two]) = two_cores() else { return };
    let mut switch = Switch::new();
    switch.datapath().set_pmds(&[one, two]).unwrap();
    let mut crew = two_pairs(&mut switch);
    send_while(&switch, &mut crew, |datapath, turn| {
        let pins = BTreeMap::from([(0, [one, two][turn % 2]), (1, [one, two][turn / 2 % 2])]);
        datapath.set_affinity(["a", "b"][turn / 4 % 2], &pins).unwrap();
    });
    let polled = switch.datapath().pmds();
    assert!(polled.iter().all(|pmd| pmd.since_clear.packets > 0), "both threads took part: {polled:?}");
}

/// Rows: B5.
#[test]
fn threads_come_and_go_under_traffic_and_lose_nothing() {
    let Some([one, two]) = two_cores() else { return };
    let mut switch = Switch::new();
    let mut crew = two_pairs(&mut switch);
    send_while(&switch, &mut crew, |datapath, turn| {
        let cpus = [vec![one, two], vec![two], vec![one]][turn % 3].clone();
        datapath.set_pmds(&cpus).unwrap();
        assert_eq!(cores(datapath), cpus);
        assert!(places(datapath).values().all(|cpu| cpus.contains(cpu)));
    });
}

/// Rows: B5.
#[test]
fn a_core_out_of_reach_is_refused_by_number_and_the_threads_stay() {
    let switch = Switch::new();
    let before = cores(switch.datapath());
    let refusal = switch.datapath().set_pmds(&[4000]).unwrap_err().to_string();
    assert!(refusal.contains("core 4000") && refusal.contains("pmd-cpu-mask"), "{refusal}");
    assert_eq!(cores(switch.datapath()), before);
}

/// Rows: B5.
#[test]
fn a_pinned_queue_has_its_core_for_itself_until_it_is_free_again() {
    let Some([one, two]) = two_cores() else { return };
    let mut switch = Switch::new();
    switch.datapath().set_pmds(&[one, two]).unwrap();
    let crew = two_pairs(&mut switch);
    wait("four queues", || places(switch.datapath()).len() == 4);
    switch.datapath().set_affinity("a", &BTreeMap::from([(1, two)])).unwrap();
    let pinned = ("a".to_owned(), 1);
    for (queue, cpu) in places(switch.datapath()) {
        assert_eq!(cpu, if queue == pinned { two } else { one }, "{queue:?}");
    }
    let isolated: Vec<bool> = switch.datapath().pmds().iter().map(|pmd| pmd.is_isolated).collect();
    assert_eq!(isolated, [false, true]);
    switch.datapath().set_affinity("a", &BTreeMap::new()).unwrap();
    assert_eq!(places(switch.datapath()).values().filter(|cpu| **cpu == two).count(), 2, "shared out evenly again");
    // A core without a thread: named, and the queue is polled elsewhere.
    switch.datapath().events();
    switch.datapath().set_affinity("a", &BTreeMap::from([(0, 4000)])).unwrap();
    let said = switch.datapath().events().into_iter().map(|event| event.text).collect::<Vec<_>>().join("\n");
    assert!(said.contains("Core 4000 cannot be pinned with port 'a' rx queue 0. Use pmd-cpu-mask"), "{said}");
    assert_eq!(places(switch.datapath()).len(), 4);
    drop(crew);
}

/// Rows: B5.
#[test]
fn an_overloaded_thread_is_relieved_when_that_helps() {
    let Some([one, two]) = two_cores() else { return };
    let mut switch = Switch::new();
    switch.datapath().set_pmds(&[one, two]).unwrap();
    let mut crew = two_pairs(&mut switch);
    wait("four queues", || places(switch.datapath()).len() == 4);
    // The other guest's queues are pinned to one core and leave the sender's together on the other.
    switch.datapath().set_affinity("b", &BTreeMap::from([(0, two), (1, two)])).unwrap();
    let auto_lb = Some(AutoLb { load_pct: 0, ..AutoLb::default() });
    switch.datapath().set_sharing(Sharing { policy: Policy::Group, isolate: false, auto_lb });
    let of_a = |switch: &Switch| [0, 1].map(|queue| places(switch.datapath())[&("a".to_owned(), queue)]);
    assert_eq!(of_a(&switch), [one, one]);
    assert!(!switch.datapath().rebalance_if_worth_it(), "nothing was measured yet");
    for _ in 0..12 {
        crew.send(0, 1, 200);
        switch.datapath().end_interval();
    }
    let usage = |pmds: Vec<PmdView>| pmds[0].rxqs.iter().map(|rxq| rxq.usage.unwrap()).sum::<f64>();
    assert!(usage(switch.datapath().pmds()) > 0.0);
    assert!(switch.datapath().rebalance_if_worth_it(), "{:?}", switch.datapath().pmds());
    let mut there = of_a(&switch);
    there.sort_unstable();
    assert_eq!(there, [one, two], "one each");
    assert!(!switch.datapath().rebalance_if_worth_it(), "as good as it gets");
    crew.assert_exact(0, 1);
}
