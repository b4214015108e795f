// SPDX-License-Identifier: Apache-2.0
//! Guests that misbehave stop themselves and nobody else: an honest pair's frames are all counted meanwhile.

use std::thread;
use std::time::Duration;

use ovsvhost::datapath::SleepMax;
use ovsvhost::testing::driver::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use ovsvhost::testing::hostile::Case;
use ovsvhost::testing::traffic::EndSettings;
use ovsvhost::testing::wire::features;
use ovsvhost::vhost::EndpointKind;

use super::rig::{DEADLINE, Switch, wait};
use super::station::Station;
use super::traffic::Crew;

/// One way to misbehave on a transmitq, and what its port is to say of it.
struct Mischief {
    name: &'static str,
    said: &'static str,
    make: fn(&mut Station),
}

/// Posts one descriptor, whatever it says.
fn post(station: &mut Station, descriptor: Descriptor) {
    let ring = station.tx.ring_mut();
    ring.write_descriptor(0, descriptor);
    ring.put_available(0);
    ring.publish();
    station.kick(1);
}

fn descriptor(address: u64, len: u32, flags: u16) -> Descriptor {
    Descriptor { address, len, flags, next: 0 }
}

const ON_TRANSMITQ: &[Mischief] = &[
    Mischief {
        name: "index far ahead",
        said: "available index",
        make: |station| {
            let ring = station.tx.ring();
            ring.available().store_u16_release(2, ring.next_available().wrapping_add(3_000));
            station.kick(1);
        },
    },
    Mischief {
        name: "index gone back",
        said: "available index",
        make: |station| {
            let ring = station.tx.ring();
            ring.available().store_u16_release(2, ring.next_available().wrapping_sub(1));
            station.kick(1);
        },
    },
    Mischief {
        name: "head past the table",
        said: "points past the table",
        make: |station| {
            let ring = station.tx.ring_mut();
            ring.put_available(u16::MAX);
            ring.publish();
            station.kick(1);
        },
    },
    Mischief { name: "loop", said: "loops", make: |station| post(station, descriptor(0, 12, DESC_NEXT)) },
    Mischief {
        name: "address outside memory",
        said: "outside the memory table",
        make: |station| post(station, descriptor(0xdead_0000_0000, 100, 0)),
    },
    Mischief {
        name: "address that wraps around",
        said: "outside the memory table",
        make: |station| post(station, descriptor(u64::MAX - 10, 100, 0)),
    },
    Mischief {
        name: "every byte there is",
        said: "outside the memory table",
        make: |station| post(station, descriptor(0, u32::MAX, 0)),
    },
    Mischief {
        name: "writable buffer to send from",
        said: "wrong direction",
        make: |station| post(station, descriptor(0, 100, DESC_WRITE)),
    },
    Mischief {
        name: "half an indirect table",
        said: "indirect",
        make: |station| post(station, descriptor(0, 8, DESC_INDIRECT)),
    },
    Mischief {
        name: "indirect table that is its own entry",
        said: "indirect",
        make: |station| {
            let table = station.frontend.ram_mut().alloc(0, 16, 16).unwrap();
            let window = station.frontend.ram().window(table, 16).unwrap();
            descriptor(table.0, 16, DESC_INDIRECT).store(&window, 0);
            post(station, descriptor(table.0, 16, DESC_INDIRECT));
        },
    },
    Mischief { name: "no bytes", said: "too small", make: |station| post(station, descriptor(0, 0, 0)) },
    Mischief {
        name: "memory taken away",
        said: "taken away",
        make: |station| {
            station.cut_buffers();
            // The buffers are gone; the ring is not. The first frame meets it, the next burst is refused.
            let gpa = station.frontend.ram().regions()[1].gpa();
            post(station, descriptor(gpa.0, 100, 0));
            wait("the first frame to be taken", || station.tx.ring().used_index() == 1);
            post(station, descriptor(gpa.0, 100, 0));
        },
    },
];

/// Two honest guests on ports `a` and `b`.
fn honest(switch: &mut Switch) -> Crew {
    let settings = [("sizes", "mix"), ("layout", "indirect:2")];
    Crew::pair(switch, EndpointKind::Client, &settings)
}

/// Rows: C8, C13.
#[test]
fn a_sender_that_misbehaves_stops_only_itself() {
    let mut switch = Switch::new();
    let mut crew = honest(&mut switch);
    for mischief in ON_TRANSMITQ {
        let mut bad = Station::join(&mut switch, "bad", 9);
        crew.send(0, 1, 20);
        (mischief.make)(&mut bad);
        crew.send(1, 0, 20);
        wait(mischief.name, || switch.port("bad").error.is_some());
        let error = switch.port("bad").error.unwrap();
        assert!(error.contains(mischief.said), "{}: {error}", mischief.name);
        crew.send(0, 1, 20);
        drop(bad);
        switch.delete("bad");
    }
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    for (port, error) in ["a", "b"].map(|port| (port, switch.port(port).error)) {
        assert_eq!(error, None, "{port}");
    }
}

/// The same on a receiveq: broken when somebody sends there.
const ON_RECEIVEQ: &[Mischief] = &[
    Mischief {
        name: "index far ahead",
        said: "available index",
        make: |station| {
            let ring = station.rx.ring();
            ring.available().store_u16_release(2, ring.next_available().wrapping_add(30_000));
        },
    },
    Mischief {
        name: "read-only buffers",
        said: "wrong direction",
        make: |station| every_buffer(station, |old| Descriptor { flags: 0, ..old }),
    },
    Mischief {
        name: "buffers outside memory",
        said: "outside the memory table",
        make: |station| every_buffer(station, |old| Descriptor { address: 1 << 50, ..old }),
    },
    Mischief {
        name: "buffers that loop",
        said: "loops",
        make: |station| every_buffer(station, |old| Descriptor { flags: DESC_WRITE | DESC_NEXT, len: 1, ..old }),
    },
    Mischief {
        name: "buffers too small for a header",
        said: "too small",
        make: |station| every_buffer(station, |old| Descriptor { len: 3, ..old }),
    },
    Mischief { name: "memory taken away", said: "taken away", make: |station| station.cut_buffers() },
];

/// Changes every descriptor of the receiveq behind the switch's back.
fn every_buffer(station: &mut Station, change: impl Fn(Descriptor) -> Descriptor) {
    let ring = station.rx.ring();
    for index in 0..ring.size() {
        let old = Descriptor::load(ring.descriptors(), 16 * usize::from(index));
        let own_next = Descriptor { next: index, ..old };
        ring.write_descriptor(index, change(own_next));
    }
}

/// Rows: C8, C13.
#[test]
fn a_receiver_that_misbehaves_stops_only_itself() {
    let mut switch = Switch::new();
    let mut crew = honest(&mut switch);
    let mut sender = Station::join(&mut switch, "sender", 8);
    for mischief in ON_RECEIVEQ {
        let mut bad = Station::join(&mut switch, "bad", 9);
        bad.send(&bad.frame(sender.mac, 64));
        bad.wait_sent();
        wait("the address", || switch.behind(bad.mac).is_some());
        (mischief.make)(&mut bad);
        for _ in 0..3 {
            sender.send(&sender.frame(bad.mac, 200));
            sender.wait_sent();
        }
        crew.send(0, 1, 20);
        wait(mischief.name, || switch.port("bad").error.is_some());
        let error = switch.port("bad").error.unwrap();
        assert!(error.contains(mischief.said), "{}: {error}", mischief.name);
        // Whoever sent to it has its buffers back, and its own error is none.
        assert_eq!(switch.port("sender").error, None, "{}", mischief.name);
        crew.send(1, 0, 20);
        drop(bad);
        switch.delete("bad");
        while sender.receive().is_some() {}
    }
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
}

/// Rows: C8, C13.
#[test]
fn no_attack_costs_a_frame_that_is_on_its_way_meanwhile() {
    let mut switch = Switch::new();
    let mut crew = honest(&mut switch);
    let attacks = attack(&mut switch, Case::all().collect(), Duration::from_millis(10));
    while !attacks.is_finished() {
        crew.send(0, 1, 20);
        crew.send(1, 0, 20);
    }
    attacks.join().expect("every attack was made");
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    assert!(["a", "b"].iter().all(|name| switch.port(name).error.is_none()));
}

/// Makes attacks on a new port `bad`, one after the other, each watched for `hold` or until the switch hangs up.
fn attack(switch: &mut Switch, cases: Vec<Case>, hold: Duration) -> thread::JoinHandle<()> {
    let socket = switch.add("bad", EndpointKind::Server);
    let mut settings = EndSettings::default();
    settings.set("side", "connect").unwrap();
    settings.set("socket", socket.to_str().unwrap()).unwrap();
    settings.set("mac", "02:00:00:00:00:99").unwrap();
    thread::spawn(move || {
        for case in cases {
            case.run(&settings, hold).unwrap_or_else(|error| panic!("{}: {error}", case.name()));
        }
    })
}

/// Rows: C13.
#[test]
fn rings_whose_memory_is_taken_away_are_named_though_they_read_as_empty() {
    // A thread that sleeps looks before it does; one that never sleeps, now and then.
    for sleep in [None, Some(0)] {
        for name in ["truncate-rings", "packed-truncate-rings"] {
            let mut switch = Switch::new();
            switch.datapath().set_sleep(SleepMax { default: sleep, ..SleepMax::default() });
            let attacker = attack(&mut switch, vec![Case::find(name).unwrap()], DEADLINE);
            wait(name, || switch.port("bad").error.is_some());
            let error = switch.port("bad").error.unwrap();
            assert!(error.contains("guest memory was taken away"), "{name}: {error}");
            switch.delete("bad");
            attacker.join().expect("the attack was made");
        }
    }
}

/// In an indirect table of a packed ring only WRITE is valid, and the device ignores other flags (virtio 1.2 §2.8.7): an
/// entry that claims to be a table is a buffer like any other, and there is nothing to name.
///
/// Rows: C13.
#[test]
fn a_table_in_a_table_of_a_packed_ring_is_a_buffer() {
    let mut switch = Switch::new();
    let attacker = attack(&mut switch, vec![Case::find("packed-indirect-nested").unwrap()], DEADLINE);
    // The announcement, and what the table holds.
    wait("two frames", || switch.count("bad", "rx_packets") + switch.count("bad", "rx_dropped") == 2);
    let port = switch.port("bad");
    assert_eq!((port.error, port.link_up), (None, true));
    switch.delete("bad");
    attacker.join().expect("the attack was made");
}

#[test]
fn a_guest_that_breaks_its_ring_comes_back_by_setting_it_up_anew() {
    let mut switch = Switch::new();
    let mut good = Station::join(&mut switch, "good", 1);
    let mut bad = Station::join(&mut switch, "bad", 2);
    let index = bad.tx.ring().next_available();
    bad.tx.ring().available().store_u16_release(2, index.wrapping_add(1_000));
    bad.kick(1);
    wait("the fault", || switch.port("bad").error.is_some());
    // A driver that is reset starts where the used index stands.
    bad.frontend.stop().unwrap();
    bad.tx.ring().available().store_u16_release(2, index);
    bad.restart();
    switch.wait_link("bad", true);
    wait("the error to go", || switch.port("bad").error.is_none());
    let frame = bad.frame([0xff; 6], 100);
    bad.send(&frame);
    assert_eq!(good.next(), frame);
}

/// Rows: C8.
#[test]
fn a_guest_that_never_takes_a_frame_back_costs_nobody_else_one() {
    let mut switch = Switch::new();
    let settings = [("sizes", "64"), ("to", "ff:ff:ff:ff:ff:ff")];
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
    let _deaf = Station::join_with(&mut switch, "deaf", 9, |config| config.features &= !features::EVENT_IDX);
    crew.send(0, 1, 500);
    crew.assert_exact(0, 1);
    wait("the counts", || switch.count("deaf", "tx_packets") + switch.count("deaf", "tx_dropped") == 500);
    assert_eq!(switch.count("deaf", "tx_packets"), 64, "as many as it had buffers for");
}
