// SPDX-License-Identifier: Apache-2.0
//! Queue pairs come and go while frames run: the count follows the guest, and no frame is lost for it.

use ovsvhost::testing::traffic::Sender;
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::traffic::{Crew, end};

fn two_pairs(switch: &mut Switch) -> Crew {
    Crew::pair(
        switch,
        EndpointKind::Client,
        &[("pairs", "2"), ("sizes", "64+1500"), ("layout", "two"), ("flows", "64")],
    )
}

fn wait_count(switch: &Switch, name: &str, count: &str) {
    for key in ["n_rxq", "n_txq"] {
        wait(&format!("{name} to have {count} queues"), || {
            switch.port(name).status.get(key).map(String::as_str) == Some(count)
        });
    }
}

/// Rows: A10, L3.
#[test]
fn queue_counts_follow_the_guest() {
    let mut switch = Switch::new();
    let mut crew = two_pairs(&mut switch);
    wait_count(&switch, "b", "2");
    crew.ends[1].enable_pair(1, false).unwrap();
    wait_count(&switch, "b", "1");
    assert!(switch.port("b").link_up, "one pair is a link");
    // Both of a's queues now end in the one that b has.
    crew.send(0, 1, 200);
    crew.assert_exact(0, 1);
    assert_eq!(crew.ends[1].receivers()[1].counters().frames, foreign_of(&crew, 1));
    crew.ends[1].enable_pair(1, true).unwrap();
    wait_count(&switch, "b", "2");
    crew.send(0, 1, 200);
    crew.assert_exact(0, 1);
    assert!(crew.ends[1].receivers()[1].counters().frames > foreign_of(&crew, 1), "the second queue is used again");
}

/// Announcements that came in on a queue pair.
fn foreign_of(crew: &Crew, pair: usize) -> u64 {
    crew.ends[1].receivers()[pair].counters().foreign
}

/// Rows: A10, L3.
#[test]
fn frames_on_a_disabled_queue_wait_until_it_is_enabled() {
    let mut switch = Switch::new();
    let mut crew = two_pairs(&mut switch);
    crew.ends[0].enable_pair(1, false).unwrap();
    wait_count(&switch, "a", "1");
    crew.ends[0].send(10, 20, 10);
    crew.until("the first queue's frames", |crew| crew.ends[1].numbered() == 10);
    assert_eq!(crew.ends[0].senders()[1].queue().posted(), 10, "the second queue's frames stay the guest's");
    crew.ends[0].enable_pair(1, true).unwrap();
    crew.until("the second queue's frames", |crew| crew.ends[1].numbered() == 20);
    crew.assert_exact(0, 1);
}

/// Rows: A10, L3.
#[test]
fn pairs_flap_under_traffic_and_lose_nothing() {
    let mut switch = Switch::new();
    let mut crew = two_pairs(&mut switch);
    for round in 0..20 {
        // Half-way through: frames are in both rings.
        crew.ends[0].send(8, 16, u64::MAX);
        crew.ends[round % 2].enable_pair(1, round / 2 % 2 == 1).unwrap();
        crew.step();
    }
    for end in &mut crew.ends {
        end.enable_pair(1, true).unwrap();
    }
    wait_count(&switch, "a", "2");
    wait_count(&switch, "b", "2");
    let sent = crew.ends[0].sent();
    // What was sent on a queue that was off, or towards one, arrived, waits, or was counted.
    crew.until("every frame to be accounted for", |crew| {
        crew.ends[1].numbered() + switch.count("b", "tx_dropped") + switch.count("a", "rx_dropped") == sent
    });
    crew.assert_clean(1);
}

/// Rows: A10, L3.
#[test]
fn a_guest_with_128_queue_pairs_uses_them_all() {
    let mut switch = Switch::new();
    let settings =
        [("pairs", "128"), ("ring-size", "32"), ("without", "mrg_rxbuf"), ("buffer", "1600"), ("flows", "8")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    wait_count(&switch, "b", "128");
    crew.send(0, 1, 16);
    crew.assert_exact(0, 1);
    assert_eq!(crew.ends[0].senders().iter().map(Sender::next).min(), Some(16));
    // Half of them go, as with ethtool -L.
    for pair in 64..128 {
        crew.ends[0].enable_pair(pair, false).unwrap();
        crew.ends[1].enable_pair(pair, false).unwrap();
    }
    wait_count(&switch, "a", "64");
    wait_count(&switch, "b", "64");
    let before: Vec<u64> = crew.ends[1].receivers().iter().map(|receiver| receiver.counters().frames).collect();
    crew.send_on(0, 1, 64, 8);
    let after = crew.ends[1].receivers().iter().map(|receiver| receiver.counters().frames);
    let grown: Vec<u64> = after.zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!((grown[..64].iter().sum::<u64>(), grown[64..].iter().sum::<u64>()), (64 * 8, 0));
    crew.assert_exact(0, 1);
}

/// Rows: A10.
#[test]
fn a_flow_stays_on_its_queue_while_the_queues_stay() {
    for network in ["ipv4", "ipv6"] {
        let mut switch = Switch::new();
        let settings = [("pairs", "4"), ("flows", "32"), ("network", network), ("sizes", "84")];
        let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
        crew.send(0, 1, 320);
        crew.assert_exact(0, 1);
        let spread: Vec<_> = (0..4).flat_map(|stream| crew.ends[1].streams().spread(stream)).collect();
        assert_eq!(spread.len(), 4 * 32);
        assert!(spread.iter().all(|flow| flow.moves == 0 && flow.queues.is_power_of_two()), "{network}: {spread:?}");
        let queues = spread.iter().fold(0, |queues, flow| queues | flow.queues);
        assert_eq!(queues, 0b1111, "{network}: every queue has some of the flows");
    }
}

/// While frames move, queues that were silent for long are looked at more seldom, but never forgotten.
#[test]
fn a_guest_that_was_silent_is_heard_while_others_never_pause() {
    let mut switch = Switch::new();
    let sockets = ["a", "b", "c"].map(|name| switch.add(name, EndpointKind::Client));
    let to_b = [("to", "02:00:00:00:00:02")];
    let ends = (0..).zip(&sockets).map(|(index, socket)| end(index, socket, EndpointKind::Client, &to_b));
    let mut crew = Crew::assemble(ends.collect(), &switch);
    crew.send(0, 1, 3000);
    let spoken = crew.ends[2].sent();
    crew.until("the silent one's frame", |crew| {
        crew.ends[0].send(16, 16, u64::MAX);
        let more = spoken + 1 - crew.ends[2].sent();
        crew.ends[2].send(1, more, u64::MAX);
        crew.account(2, 1).received > 0
    });
    crew.assert_clean(1);
}
