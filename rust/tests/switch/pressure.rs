// SPDX-License-Identifier: Apache-2.0
//! Guests that are short of buffers: `backpressure-us` makes their senders wait, for so long and no longer.

use std::time::{Duration, Instant};

use ovsvhost::datapath::PortChange;

use super::rig::{Switch, wait};
use super::station::Station;

/// Buffers of a station's receiveq.
const BUFFERS: usize = 64;
/// The longest that can be set.
const LONGEST_US: u32 = 100_000;

/// Guests a and b that know each other, and every buffer of b full; a's frames to b wait up to `backpressure_us`.
fn full_receiver(backpressure_us: u32) -> (Switch, Station, Station) {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join(&mut switch, "b", 2);
    let change = PortChange { backpressure_us: Some(backpressure_us), ..PortChange::default() };
    switch.datapath().set_port("b", &change).unwrap();
    b.send(&b.frame([0xff; 6], 64));
    a.next();
    for _ in 0..BUFFERS {
        a.send(&a.frame(b.mac, 64));
        a.wait_sent();
    }
    (switch, a, b)
}

fn frames(a: &Station, b: &Station, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| a.frame(b.mac, 100 + n)).collect()
}

/// A machine under load may overrun the longest wait; an attempt that it overran says so, and the next begins anew.
fn attempts(attempt: impl FnMut() -> bool) {
    let found = std::iter::repeat_with(attempt).take(50).any(|in_time| in_time);
    assert!(found, "this machine never got through in {LONGEST_US} microseconds");
}

/// Rows: B4.
#[test]
fn frames_wait_for_buffers_and_none_is_lost_or_out_of_order() {
    attempts(|| {
        let (switch, mut a, mut b) = full_receiver(LONGEST_US);
        let late = frames(&a, &b, 30);
        let sent = Instant::now();
        a.send_together(&late);
        wait("the frames to wait", || switch.count("b", "tx_q0_waits") == 1);
        let arrived: Vec<_> = (0..BUFFERS + late.len()).map_while(|_| take(&mut b, &switch)).collect();
        if sent.elapsed() >= Duration::from_micros(u64::from(LONGEST_US)) {
            return false;
        }
        assert_eq!(arrived[BUFFERS..], late, "in order, each once");
        a.wait_sent();
        assert_eq!((switch.count("b", "tx_dropped"), switch.count("a", "rx_packets")), (0, (BUFFERS + 30) as u64));
        true
    });
}

/// The next frame of `b`; None once frames for it were given up.
fn take(b: &mut Station, switch: &Switch) -> Option<Vec<u8>> {
    let mut frame = None;
    wait("a frame, or the end of waiting", || {
        frame = b.receive();
        frame.is_some() || switch.count("b", "tx_drop_backpressure") > 0
    });
    frame.map(|(_, frame)| frame)
}

/// Rows: B4, C8.
#[test]
fn a_guest_that_takes_nothing_delays_its_senders_once_and_the_rest_is_counted() {
    let (switch, mut a, mut b) = full_receiver(20_000);
    let begin = Instant::now();
    for n in 1..=3 {
        a.send_together(&frames(&a, &b, 10));
        a.wait_sent();
        wait("the counts", || switch.count("b", "tx_drop_backpressure") == 10 * n);
    }
    assert!(begin.elapsed() >= Duration::from_millis(20), "the first were not given up at once");
    assert_eq!(switch.count("b", "tx_q0_waits"), 1, "nobody waits again for a guest that does not move");
    assert_eq!(switch.count("b", "ovs_tx_failure_drops"), 30);
    // It takes frames again: so it is waited for again.
    for _ in 0..BUFFERS {
        b.next();
    }
    for _ in 0..BUFFERS {
        a.send(&a.frame(b.mac, 64));
        a.wait_sent();
    }
    a.send_together(&frames(&a, &b, 10));
    a.wait_sent();
    wait("the counts", || switch.count("b", "tx_drop_backpressure") == 40);
    assert_eq!(switch.count("b", "tx_q0_waits"), 2);
    assert_eq!(switch.count("a", "rx_packets"), switch.count("b", "tx_packets") + switch.count("b", "tx_dropped"));
}

/// Rows: B5.
#[test]
fn the_time_that_a_burst_waits_for_its_receiver_is_in_the_histogram() {
    const WAIT_US: u32 = 20_000;
    let (switch, mut a, b) = full_receiver(WAIT_US);
    a.send_together(&frames(&a, &b, 10));
    a.wait_sent();
    let read = || switch.datapath().pmds().remove(0);
    wait("every burst to be in it once", || {
        let since = read().since_clear;
        since.cycles_per_burst.iter().sum::<u64>() == since.bursts
    });
    let pmd = read();
    let waited = u64::from(WAIT_US) * pmd.cycles_per_us;
    let bucket = (u64::BITS - waited.leading_zeros()) as usize;
    let since = pmd.since_clear;
    assert!(since.cycles_per_burst[bucket..].iter().sum::<u64>() >= 1, "{since:?}");
}

/// Rows: B4, C8.
#[test]
fn others_go_on_while_one_burst_waits() {
    let (mut switch, mut a, b) = full_receiver(LONGEST_US);
    let mut c = Station::join(&mut switch, "c", 3);
    let mut d = Station::join(&mut switch, "d", 4);
    d.send(&d.frame([2, 0, 0, 0, 0, 9], 64));
    c.next();
    attempts(|| {
        let before = switch.count("b", "tx_q0_waits");
        let given_up = switch.count("b", "tx_drop_backpressure");
        a.send_together(&frames(&a, &b, 10));
        wait("the frames to wait or go", || {
            switch.count("b", "tx_q0_waits") > before || switch.count("b", "tx_drop_backpressure") > given_up
        });
        let frame = c.frame(d.mac, 200);
        c.send(&frame);
        while d.next() != frame {}
        let in_time = switch.count("b", "tx_drop_backpressure") == given_up;
        a.wait_sent();
        in_time
    });
}

/// Rows: B4, L6.
#[test]
fn a_sender_that_goes_while_its_frames_wait_has_its_buffers_back_and_the_frames_are_counted() {
    let (mut switch, mut a, b) = full_receiver(LONGEST_US);
    a.send_together(&frames(&a, &b, 30));
    wait("the frames to wait", || switch.count("b", "tx_q0_waits") == 1);
    switch.delete("a");
    a.wait_sent();
    let all = switch.statistics("b");
    assert_eq!((all["tx_packets"], all["tx_dropped"]), (BUFFERS as u64, 30));
}

/// Rows: L5.
#[test]
fn a_limit_out_of_range_is_refused_and_the_old_one_stays() {
    let (switch, mut a, b) = full_receiver(0);
    let change = PortChange { backpressure_us: Some(LONGEST_US + 1), mtu: Some(68), ..PortChange::default() };
    let refused = switch.datapath().set_port("b", &change).unwrap_err();
    assert!(refused.to_string().contains("b: backpressure-us 100001 is not in 0..100000"), "{refused}");
    a.send_together(&frames(&a, &b, 3));
    a.wait_sent();
    wait("the counts", || switch.count("b", "tx_drop_no_buffer") == 3);
    assert_eq!(switch.count("b", "ovs_tx_mtu_exceeded_drops"), 0, "nothing of the change is in force");
}
