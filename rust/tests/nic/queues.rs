// SPDX-License-Identifier: Apache-2.0
//! Devices of several queues, and what a queue knows of its descriptors.

use ovsvhost::testing::netdev::FarEnd;

use super::cable::{Cable, FAR, join, wait_up, wait_with_news, with_cable, with_wide_cable};
use super::rig::{Switch, wait};
use super::station::Station;

const FLOWS: u16 = 64;

/// A UDP datagram of that flow from the far end to `to`: the kernel chooses the queue by its addresses and ports.
fn datagram(to: [u8; 6], flow: u16) -> Vec<u8> {
    let mut frame = [to, FAR].concat();
    frame.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([(1000 + flow).to_be_bytes(), 9_u16.to_be_bytes(), 26_u16.to_be_bytes(), [0; 2]].concat());
    frame.extend([0xa5; 18]);
    frame
}

/// Frames that a queue received.
fn received(switch: &Switch, queue: usize) -> u64 {
    switch.count("n0", &format!("rx_q{queue}_good_packets"))
}

/// Sends one frame of each flow and says of each by which queue it came.
fn queues_of_flows(switch: &Switch, guest: &mut Station, cable: &mut Cable) -> Vec<usize> {
    let queue_of = |flow| {
        let frame = datagram(guest.mac, flow);
        let before = received(switch, 1);
        cable.send(&frame);
        assert_eq!(guest.next(), frame);
        wait("the count", || received(switch, 0) + received(switch, 1) == u64::from(flow) + 1);
        usize::from(received(switch, 1) > before)
    };
    (0..FLOWS).map(queue_of).collect()
}

/// Rows: A22.
#[test]
fn frames_come_in_on_every_queue_of_a_device_and_a_port_may_have_one_of_them_only() {
    with_wide_cable(1500, 2, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |nic| nic.device.n_rxq = 2);
        assert_eq!(switch.port("n0").status["n_rxq"], "2");
        let queues = queues_of_flows(&switch, &mut guest, &mut cable);
        let on_second = queues.iter().filter(|queue| **queue == 1).count();
        assert!((1..usize::from(FLOWS)).contains(&on_second), "the kernel spreads flows: {queues:?}");
        for flow in 0..FLOWS {
            let frame = guest.frame(FAR, 60 + usize::from(flow));
            guest.send(&frame);
            assert_eq!(cable.next(), frame);
        }
        switch.datapath().del_port("n0").unwrap();

        // The second queue only: what comes in on the first is the host's.
        let mut host = FarEnd::open("near").unwrap();
        join(&switch, |nic| nic.device.start_queue = 1);
        for flow in 0..FLOWS {
            let frame = datagram(guest.mac, flow);
            cable.send(&frame);
            if queues[usize::from(flow)] == 1 {
                assert_eq!(guest.next(), frame);
            } else {
                let mut seen = None;
                wait("the host to see it", || {
                    seen = host.receive().unwrap();
                    seen.is_some()
                });
                assert_eq!(seen.unwrap(), frame);
            }
        }
        assert_eq!(switch.count("n0", "rx_packets"), on_second as u64);
    });
}

/// Rows: A22, B5.
#[test]
fn queues_of_a_device_go_to_several_poll_threads_and_each_sends_on_its_own() {
    with_wide_cable(1500, 2, |mut cable| {
        let cpus = ovsvhost::sys::cpu::allowed_cpus().unwrap();
        let [first, second, ..] = cpus[..] else {
            return eprintln!("skipped: this process may use one core only");
        };
        let mut switch = Switch::new();
        switch.datapath().set_pmds(&[first, second]).unwrap();
        let mut guests = [Station::join(&mut switch, "a", 1), Station::join(&mut switch, "b", 2)];
        join(&switch, |nic| nic.device.n_rxq = 2);
        let polled: Vec<_> = switch.datapath().pmds().iter().map(|pmd| pmd.rxqs.len()).collect();
        assert_eq!(polled.iter().sum::<usize>(), 4, "{polled:?}");
        let [first, second] = &mut guests;
        let question = first.frame(FAR, 60);
        first.send(&question);
        // Nobody knows yet where that is.
        assert_eq!((cable.next(), second.next()), (question.clone(), question));
        let answer = datagram(first.mac, 0);
        cable.send(&answer);
        assert_eq!(first.next(), answer);
        for round in 0..100 {
            for guest in &mut guests {
                let frame = guest.frame(FAR, 60 + round);
                guest.send(&frame);
                assert_eq!(cable.next(), frame);
                let frame = datagram(guest.mac, 7 * round as u16);
                cable.send(&frame);
                assert_eq!(guest.next(), frame);
            }
        }
        let sent = [0, 1].map(|queue| switch.count("n0", &format!("tx_q{queue}_good_packets")));
        assert_eq!(sent, [101, 100], "each guest's queue is with a thread of its own");
    });
}

/// Rows: A22.
#[test]
fn a_device_is_polled_in_our_calls_where_that_is_asked_for() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        for (budget, in_force) in [(64, Some("64")), (0, None)] {
            join(&switch, |nic| nic.device.busy_budget = budget);
            let status = switch.port("n0").status;
            assert_eq!(status.get("xdp-busy-budget").map(String::as_str), in_force);
            for n in 0..100 {
                let frame = guest.frame(FAR, 60 + n);
                guest.send(&frame);
                assert_eq!(cable.next(), frame);
                let frame = datagram(guest.mac, n as u16);
                cable.send(&frame);
                assert_eq!(guest.next(), frame);
            }
            switch.datapath().del_port("n0").unwrap();
        }
    });
}

/// Rows: A20, A21.
#[test]
fn every_descriptor_that_came_back_is_timed_or_said_not_to_be_and_the_sum_outlives_the_device() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        join(&switch, |_| {});
        for round in 1..=2 {
            for n in 0..50 {
                let frame = guest.frame(FAR, 60 + n);
                guest.send(&frame);
                assert_eq!(cable.next(), frame);
            }
            let counted = || {
                let queue = switch.datapath().nic_queues("n0").unwrap()[0];
                (queue.completed, queue.latency.buckets.iter().sum::<u64>() + queue.latency.untimed)
            };
            wait("every descriptor to be counted", || counted() == (50 * round, 50 * round));
            let queue = switch.datapath().nic_queues("n0").unwrap()[0];
            assert!(queue.latency.buckets.iter().sum::<u64>() > 0, "{queue:?}");
            assert_eq!((queue.inflight, queue.abandoned), (0, 0));
            let before = switch.port("n0").status["if_index"].clone();
            cable.replace();
            wait_with_news(&switch, "n0", "the device of the same name", || {
                switch.port("n0").status.get("if_index").is_some_and(|index| *index != before)
            });
            wait_up(&switch, "n0");
        }
        let refused = switch.datapath().nic_queues("a").unwrap_err().to_string();
        assert_eq!(refused, "port a is a guest's, not a network device's");
    });
}
