// SPDX-License-Identifier: Apache-2.0
//! Comings and goings: guests, ports and the switch itself, in any order, under traffic.

use ovsvhost::testing::driver::RingPlace;
use ovsvhost::testing::frontend::{Frontend, FrontendConfig, Side};
use ovsvhost::testing::traffic::{EndSettings, LinkState, Moving};
use ovsvhost::vhost::EndpointKind;

use super::rig::{DEADLINE, Switch, wait};
use super::station::Station;
use super::traffic::{Crew, end};

const BOTH: [EndpointKind; 2] = [EndpointKind::Client, EndpointKind::Server];

/// Rows: A13, C4.
#[test]
fn a_switch_made_anew_under_traffic_loses_nothing_and_keeps_the_order() {
    for kind in BOTH {
        for order in ["qemu", "virtio-user"] {
            let mut switch = Switch::new();
            let settings = [("order", order), ("sizes", "64+1500+200"), ("layout", "two")];
            let mut crew = Crew::pair(&mut switch, kind, &settings);
            crew.send(0, 1, 300);
            for _ in 0..3 {
                // Frames are on the way when it goes, and more are posted while it is away.
                crew.ends[0].send(40, 40, u64::MAX);
                switch.stop();
                crew.ends[0].send(40, 40, u64::MAX);
                crew.until("both ends to notice", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Down));
                switch.start();
                // The receiver first: frames for a guest that is away would rightly be dropped.
                let (first, second) = crew.ends.split_at_mut(1);
                wait("the receiver to come back", || {
                    second[0].look_after(std::time::Instant::now());
                    second[0].link() == LinkState::Up
                });
                switch.wait_link("b", true);
                wait("the sender to come back", || {
                    first[0].look_after(std::time::Instant::now());
                    first[0].link() == LinkState::Up
                });
                let sent = crew.ends[0].sent();
                crew.until("every frame", |crew| crew.ends[1].numbered() >= sent);
            }
            crew.introduce(&switch);
            crew.send(0, 1, 300);
            crew.assert_exact(0, 1);
        }
    }
}

/// Rows: L6.
#[test]
fn a_port_deleted_under_traffic_goes_cleanly_and_comes_back() {
    for kind in BOTH {
        let mut switch = Switch::new();
        let mut crew = Crew::pair(&mut switch, kind, &[("sizes", "64+1500")]);
        for _ in 0..3 {
            crew.ends[0].send(60, 60, u64::MAX);
            let socket = switch.port("b").name;
            switch.delete(&socket);
            crew.until("the receiver to notice", |crew| crew.ends[1].link() == LinkState::Down);
            assert!(switch.port("a").link_up, "the other port does not notice");
            assert_eq!(switch.behind(crew.ends[1].mac().0), None, "nobody is behind a port that is gone");
            // The sender gets every buffer back: what nobody takes is dropped and counted.
            crew.ends[0].send(60, 60, u64::MAX);
            crew.until("the sender's buffers", |crew| crew.ends[0].settle() == 0);
            let path = switch.add("b", kind);
            assert_eq!(path, crew.ends[1].frontend().config().socket);
            crew.until("the receiver to come back", |crew| crew.ends[1].link() == LinkState::Up);
            switch.wait_link("b", true);
            crew.introduce(&switch);
        }
        crew.assert_clean(1);
        let account = crew.account(0, 1);
        assert_eq!((account.duplicated, account.reordered), (0, 0));
        let (sent, before) = (crew.ends[0].sent(), account.received);
        crew.send(0, 1, 200);
        assert_eq!(crew.account(0, 1).received - before, crew.ends[0].sent() - sent);
    }
}

/// Rows: L6.
#[test]
fn a_port_that_sends_can_be_deleted_as_well() {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &[("sizes", "64+9000")]);
    for _ in 0..3 {
        crew.ends[0].send(60, 60, u64::MAX);
        switch.delete("a");
        crew.until("the sender to notice", |crew| crew.ends[0].link() == LinkState::Down);
        // What it had posted and the switch did not take is still in its ring, and goes out when it is back.
        switch.add("a", EndpointKind::Client);
        crew.until("the sender to come back", |crew| crew.ends[0].link() == LinkState::Up);
        // Taken, not counted: what was dropped while the port went away is in counters that went with it.
        crew.until("every frame to be taken", |crew| crew.ends[0].settle() == 0);
    }
    crew.assert_clean(1);
    assert_eq!(crew.account(0, 1).duplicated, 0);
}

/// Rows: C4.
#[test]
fn a_guest_that_stops_gets_the_index_at_which_nothing_is_left() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join(&mut switch, "b", 2);
    for _ in 0..10 {
        a.send(&a.frame([0xff; 6], 200));
        b.next();
    }
    a.wait_sent();
    let bases = a.frontend.stop().unwrap();
    let used = [&a.rx, &a.tx].map(|driver| u32::from(driver.ring().used_index()));
    assert_eq!(bases, used, "what is answered is what stands in the ring");
    assert_eq!(bases[1], u32::from(a.tx.ring().next_available()), "and every frame was taken");
    let bases = b.frontend.stop().unwrap();
    assert_eq!(bases, [u32::from(b.rx.ring().used_index()), 0]);
    assert_eq!(bases[0], 10);
    switch.wait_link("a", false);
    // The same guests start their drivers again where they were.
    a.restart();
    b.restart();
    switch.wait_link("a", true);
    switch.wait_link("b", true);
    let frame = a.frame([0xff; 6], 300);
    a.send(&frame);
    assert_eq!(b.next(), frame);
}

#[test]
fn a_guest_that_stops_in_mid_stream_has_every_frame_delivered_or_still_its_own() {
    for _ in 0..5 {
        let mut switch = Switch::new();
        let mut a = Station::join(&mut switch, "a", 1);
        let mut b = Station::join(&mut switch, "b", 2);
        for _ in 0..30 {
            a.send(&a.frame([0xff; 6], 64));
        }
        let bases = a.frontend.stop().unwrap();
        assert_eq!(bases[1], u32::from(a.tx.ring().used_index()));
        let mut arrived = 0;
        wait("what was taken", || {
            arrived += u32::from(b.receive().is_some());
            arrived == bases[1]
        });
        assert!(b.receive().is_none(), "and not one more");
    }
}

/// Rows: L2.
#[test]
fn guest_first_and_port_first_both_work_for_both_kinds() {
    for kind in BOTH {
        let mut switch = Switch::new();
        let socket = switch.add("a", kind);
        switch.delete("a");
        // The guest is there and waits; for a client port it owns the socket by now.
        let mut crew = Crew { ends: vec![end(0, &socket, kind, &[])] };
        crew.step();
        assert_eq!(crew.ends[0].link(), LinkState::Down);
        assert_eq!(switch.add("a", kind), socket);
        crew.until("the link", |crew| crew.ends[0].link() == LinkState::Up);
        switch.wait_link("a", true);
    }
}

/// Rows: C10.
#[test]
fn a_switch_with_nothing_to_do_sleeps_until_a_guest_sends() {
    let mut switch = Switch::new();
    let mut a = Station::join(&mut switch, "a", 1);
    let mut b = Station::join(&mut switch, "b", 2);
    let stats = std::sync::Arc::clone(&switch.datapath().pmds()[0].stats);
    let looks = || stats.idle_cycles.read();
    let mut slept = 0;
    for _ in 0..5 {
        // Asleep since the last frame: its clock of idle looks stands still.
        let (mut last, mut still) = (looks(), 0);
        wait("the poll thread to sleep", || {
            let now = looks();
            still = if now == last { still + 1 } else { 0 };
            last = now;
            still >= 20 && stats.sleeps.read() > slept
        });
        slept = stats.sleeps.read();
        let frame = a.frame([0xff; 6], 64);
        a.send(&frame);
        assert_eq!(b.next(), frame, "the kick wakes it");
    }
}

/// Rows: A13, L2.
#[test]
fn a_guest_that_comes_the_moment_another_left_is_not_turned_away() {
    let mut switch = Switch::new();
    let socket = switch.add("a", EndpointKind::Server);
    let mut frontend = Frontend::new(FrontendConfig::new(&socket, Side::Connect)).unwrap();
    let places = [(); 2].map(|()| RingPlace::alloc(frontend.ram_mut(), 0, 256).unwrap());
    for place in places {
        // What the guest never wrote would count as private memory.
        frontend.ram().window(place.used, 4).unwrap().fill(0);
    }
    for round in 0..200 {
        match frontend.try_connect().and_then(|there| Ok((there, frontend.start(&places, &[0, 0], 1)?))) {
            Ok((there, ())) => assert!(there, "round {round}: the switch listens all the time"),
            Err(error) => panic!("round {round}: {error}"),
        }
        frontend.hang_up();
    }
}

/// What it misses on a quiet machine is measured (`benches/peers`); here a second would be a start that waits for something.
///
/// Rows: C7.
#[test]
fn a_guest_that_changes_its_port_under_traffic_gets_its_frames_there() {
    for order in ["qemu", "virtio-user"] {
        let mut switch = Switch::new();
        let ends = ["sender", "here", "there"].map(|name| {
            let socket = switch.add(name, EndpointKind::Client);
            let mut settings = EndSettings::default();
            settings.set("socket", socket.to_str().unwrap()).unwrap();
            settings.set("order", order).unwrap();
            settings
        });
        let rate = 20_000;
        let report = Moving::join(ends, DEADLINE).unwrap().go(rate).unwrap();
        assert!(report.count("missing") < rate, "{report}");
        assert!(switch.count("there", "tx_packets") > 0);
    }
}
