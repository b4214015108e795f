// SPDX-License-Identifier: Apache-2.0
//! Which of a guest's receiveqs a frame goes to, and that its flow stays in order.

use ovsvhost::datapath::PortChange;
use ovsvhost::pmd::Steering;
use ovsvhost::testing::traffic::Receiver;
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::{Crew, end};

/// Numbered frames that arrived on each receiveq of end `of`.
fn by_queue(crew: &Crew, of: usize) -> Vec<u64> {
    let counters = crew.ends[of].receivers().iter().map(Receiver::counters);
    counters.map(|counters| counters.frames - counters.foreign).collect()
}

/// Rows: A10.
#[test]
fn flows_spread_over_the_receivers_queues_and_each_stays_in_order() {
    for (network, transport) in [("ipv4", "udp"), ("ipv4", "tcp"), ("ipv6", "udp"), ("ipv6", "tcp")] {
        let mut switch = Switch::new();
        let sockets = ["a", "b"].map(|name| switch.add(name, EndpointKind::Client));
        let common = [("network", network), ("transport", transport), ("flows", "256"), ("sizes", "128+1500")];
        let ends = [("1", 0), ("4", 1)].map(|(pairs, index)| {
            let settings = [&common[..], &[("pairs", pairs)]].concat();
            end(index, &sockets[usize::from(index)], EndpointKind::Client, &settings)
        });
        let mut crew = Crew::assemble(ends.into(), &switch);
        crew.send(0, 1, 1024);
        crew.assert_exact(0, 1);
        let queues = by_queue(&crew, 1);
        assert_eq!(queues.iter().sum::<u64>(), 1024);
        // 64 flows of four frames each are expected on a queue; one in 10¹² runs has fewer than 16 somewhere.
        assert!(queues.iter().all(|&frames| frames >= 64 && frames % 4 == 0), "{network} {transport}: {queues:?}");
    }
}

/// Rows: A10, L3.
#[test]
fn only_enabled_queues_get_flows() {
    let mut switch = Switch::new();
    let settings = [("pairs", "4"), ("flows", "64"), ("sizes", "64")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    crew.ends[1].enable_pair(2, false).unwrap();
    wait("b to have three queues", || switch.port("b").status.get("n_txq").map(String::as_str) == Some("3"));
    let before = by_queue(&crew, 1);
    crew.send(0, 1, 64);
    crew.assert_exact(0, 1);
    let grown: Vec<u64> = by_queue(&crew, 1).iter().zip(before).map(|(now, then)| now - then).collect();
    assert_eq!(grown[2], 0);
    assert_eq!(grown.iter().sum::<u64>(), 256);
    assert!([0, 1, 3].iter().all(|&queue| grown[queue] > 0), "{grown:?}");
}

/// Rows: A10, L5.
#[test]
fn steering_by_thread_uses_one_queue_a_thread_and_changes_live() {
    let mut switch = Switch::new();
    let settings = [("pairs", "4"), ("flows", "64"), ("sizes", "64")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    let used = |crew: &mut Crew| {
        let before = by_queue(crew, 1);
        crew.send(0, 1, 64);
        crew.assert_exact(0, 1);
        by_queue(crew, 1).iter().zip(before).filter(|(now, then)| **now > *then).count()
    };
    assert_eq!(used(&mut crew), 4);
    let steer = |steering| {
        switch.datapath().set_port("b", &PortChange { steering: Some(steering), ..PortChange::default() }).unwrap();
    };
    steer(Steering::Thread);
    assert_eq!(used(&mut crew), 1);
    steer(Steering::Hash);
    assert_eq!(used(&mut crew), 4);
}

/// Rows: A10.
#[test]
fn a_guest_has_up_to_128_queue_pairs_and_all_of_them_work() {
    let mut switch = Switch::new();
    let sockets = ["a", "b"].map(|name| switch.add(name, EndpointKind::Client));
    let common = [("flows", "4096"), ("sizes", "64"), ("ring-size", "64")];
    let ends = [("1", 0), ("128", 1)].map(|(pairs, index)| {
        let settings = [&common[..], &[("pairs", pairs)]].concat();
        end(index, &sockets[usize::from(index)], EndpointKind::Client, &settings)
    });
    let mut crew = Crew::assemble(ends.into(), &switch);
    wait("every queue", || switch.port("b").status.get("n_txq").map(String::as_str) == Some("128"));
    crew.send(0, 1, 8192);
    crew.assert_exact(0, 1);
    let queues = by_queue(&crew, 1);
    assert!(queues.iter().all(|&frames| frames > 0), "{queues:?}");
    // And from each of its transmitqs.
    crew.send(1, 0, 4);
    crew.assert_exact(1, 0);
    let all = switch.statistics("b");
    assert!((0..128).all(|queue| all[&format!("rx_q{queue}_good_packets")] >= 4));
}
