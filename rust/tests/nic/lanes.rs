// SPDX-License-Identifier: Apache-2.0
//! Who may send without a copy, and what becomes of frames that are in flight when something changes under them: another
//! device keeps as many, memory comes and goes, a guest moves in.

use std::process::Command;
use std::time::Instant;

use ovsvhost::testing::frontend::Serve;
use ovsvhost::testing::memory::{Backing, Gpa, RegionSpec};
use ovsvhost::testing::netdev::FarEnd;
use ovsvhost::testing::wire::features::protocol;
use ovsvhost::vhost::EndpointKind;

use super::cable::{Cable, ip, join, wait_with_news, with_cable, with_queues_to_send};
use super::exchange::from_far;
use super::rig::{DEADLINE, Switch, wait};
use super::station::Station;
use super::zero_copy::{LEAST, bring_up, guest, introduce, joins, marked, not_copied, state, strand, wait_active};

/// Who is at the far end of the second cable.
const OTHER_FAR: [u8; 6] = [2, 0, 0, 0, 0, 0xfb];
/// Where memory that is plugged in lies.
const DIMM: Gpa = Gpa(2 << 32);

#[track_caller]
fn wait_state(switch: &Switch, name: &str, expected: &str) {
    let begun = Instant::now();
    while state(switch, name) != expected {
        assert!(begun.elapsed() < DEADLINE, "zero copy of {name}: {}", state(switch, name));
        switch.datapath().refresh_nic("n0").unwrap();
        std::thread::yield_now();
    }
}

/// Sends a frame that is not copied; it arrives as it is.
#[track_caller]
fn send_one(switch: &Switch, guest: &mut Station, cable: &mut Cable, mark: usize) {
    let (before, frame) = (not_copied(switch), marked(guest, 3000, mark));
    guest.send(&frame);
    assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == frame));
    guest.wait_sent();
    assert_eq!(not_copied(switch), before + 1);
}

/// Rows: A19, C1, L5.
#[test]
fn a_queue_that_nobody_has_is_a_guests_for_the_asking_and_too_few_are_named_with_the_cure() {
    if Command::new("ethtool").arg("--version").output().is_err() {
        eprintln!("skipped: no program 'ethtool' to change the number of a device's queues with");
        return;
    }
    let ethtool = |words: &str| {
        let output = Command::new("ethtool").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ethtool {words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    with_queues_to_send(9000, 4, move |mut cable| {
        ethtool("-L near tx 1");
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, |nic| nic.device.zc_min = LEAST as u32);
        let text = "Waiting(queue): every queue of near (1) is taken; give it more (ethtool -L near tx 2)";
        wait_state(&switch, "a", text);
        introduce(&cable, &mut guest);
        let frame = marked(&guest, 3000, 1);
        guest.send(&frame);
        assert_eq!((cable.next(), not_copied(&switch)), (frame, 0));
        ethtool("-L near tx 2");
        wait_state(&switch, "a", "Active: near queue 1");
        send_one(&switch, &mut guest, &mut cable, 2);
        for (queues, text) in
            [(0, "Waiting(queue): xdp-zc-queues of near is 0: remove it"), (128, "Active: near queue 1")]
        {
            switch.datapath().set_nic("n0", |device| device.zc_queues = queues).unwrap();
            wait_state(&switch, "a", text);
        }
        send_one(&switch, &mut guest, &mut cable, 3);
    });
    with_cable(9000, |_cable| {
        let mut switch = Switch::new();
        let _guest = guest(&mut switch, "a", 1, 64);
        join(&switch, |nic| nic.device.zc_min = LEAST as u32);
        wait_state(&switch, "a", "Waiting(queue): every queue of near (1) is taken, and it can have no more");
    });
}

/// A second cable beside the first, its near end a port too.
fn join_second(switch: &Switch) -> FarEnd {
    ip("link add near2 numtxqueues 4 numrxqueues 1 type veth peer name far2 numtxqueues 1 numrxqueues 4");
    for device in ["near2", "far2"] {
        ip(&format!("link set {device} addrgenmode none mtu 9000 up"));
    }
    join(switch, |nic| {
        joins(nic);
        (nic.name, nic.ofport) = ("n1".into(), 101);
        nic.device.netdev = "near2".into();
    });
    FarEnd::open("far2").unwrap()
}

/// A numbered frame to whoever is at the far end of the second cable.
fn to_other(guest: &Station, mark: usize) -> Vec<u8> {
    let mut frame = marked(guest, 1500, mark);
    frame[..6].copy_from_slice(&OTHER_FAR);
    frame
}

#[track_caller]
fn wait_at(far: &mut FarEnd, expected: &[u8]) {
    wait("a frame at the second far end", || far.receive().unwrap().is_some_and(|frame| frame == expected));
}

/// Says where one is, to another.
fn meet(from: &mut Station, to: &mut Station) {
    let hello = from.frame(to.mac, 60);
    from.send(&hello);
    while to.next() != hello {}
}

/// Takes the second link down and posts frames to its device until half of the ring of `guest`, which is `limit`, is away.
fn strand_at_second(switch: &Switch, guest: &mut Station, far: &mut FarEnd, limit: usize) -> Vec<Vec<u8>> {
    let kept = guest.outstanding();
    for _ in 0..10 {
        let resets = switch.port("n1").link_resets;
        ip("link set near2 down");
        let frames: Vec<_> = (0..limit).map(|n| to_other(guest, n)).collect();
        let posted = switch.count("n1", "tx_packets");
        guest.send_together(&frames);
        wait("every frame to be posted, or the link found down", || {
            switch.count("n1", "tx_packets") == posted + frames.len() as u64 || switch.port("n1").link_resets != resets
        });
        if switch.count("n1", "tx_packets") == posted + frames.len() as u64 {
            wait("what was copied to come back", || guest.outstanding() == limit);
            return frames;
        }
        ip("link set near2 up");
        wait_with_news(switch, "n1", "the link to be up", || switch.port("n1").link_up);
        wait("the second device to give everything back", || guest.outstanding() == kept);
        while far.receive().unwrap().is_some() {}
    }
    panic!("a link that is down was noticed ten times before {limit} frames were posted");
}

/// Rows: A20, A21.
#[test]
fn two_devices_that_give_nothing_back_have_half_of_a_ring_together_and_nobody_else_is_harmed() {
    const LIMIT: usize = 128;
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut a = guest(&mut switch, "a", 1, 256);
        let mut b = guest(&mut switch, "b", 2, 64);
        join(&switch, joins);
        let mut far = join_second(&switch);
        wait_state(&switch, "a", "Active: near queue 1, near2 queue 1");
        wait_state(&switch, "b", "Active: near queue 2, near2 queue 2");
        introduce(&cable, &mut a);
        let mut greeting = from_far(a.mac, 60, 0);
        greeting[6..12].copy_from_slice(&OTHER_FAR);
        wait("room in the far end's queue", || far.send(&greeting).unwrap());
        while a.next() != greeting {}
        meet(&mut a, &mut b);
        meet(&mut b, &mut a);

        // One keeps twelve: the other device, and the other guest, go on as if it were not there.
        let kept = strand(&switch, &mut a, &mut cable, 12, 1500);
        let before = switch.count("n1", "tx_zero_copy_packets");
        for round in 0..50 {
            let frames: Vec<_> = (0..8).map(|n| to_other(&a, 8 * round + n)).collect();
            a.send_together(&frames);
            for frame in &frames {
                wait_at(&mut far, frame);
            }
            let frame = to_other(&b, round);
            b.send(&frame);
            wait_at(&mut far, &frame);
        }
        wait("all but those that are kept to come back", || (a.outstanding(), b.outstanding()) == (12, 0));
        assert_eq!(switch.count("n1", "tx_zero_copy_packets"), before + 50 * 9, "none was copied");

        // Both keep all that they can get.
        let kept_by_other = strand_at_second(&switch, &mut a, &mut far, LIMIT);
        assert_eq!(switch.count("n0", "tx_inflight"), 2 * 12);
        for round in 0..300 {
            let frame = a.frame(b.mac, 60 + round);
            a.send(&frame);
            assert_eq!(b.next(), frame);
            let frame = b.frame(a.mac, 60 + round);
            b.send(&frame);
            assert_eq!(a.next(), frame);
        }
        wait("all but those that are kept to come back", || (a.outstanding(), b.outstanding()) == (LIMIT, 0));

        bring_up(&switch);
        ip("link set near2 up");
        wait_with_news(&switch, "n1", "the link to be up", || switch.port("n1").link_up);
        for frame in &kept {
            assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == *frame));
        }
        for frame in &kept_by_other {
            wait_at(&mut far, frame);
        }
        a.wait_sent();
        for (name, port) in [("n0", "near"), ("n1", "near2")] {
            wait(&format!("every descriptor of {port}"), || switch.count(name, "tx_inflight") == 0);
        }
    });
}

/// Rows: A9, A19.
#[test]
fn memory_is_plugged_in_and_pulled_out_while_frames_are_in_flight() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, joins);
        wait_active(&switch, "a");
        introduce(&cable, &mut guest);
        let dimm = RegionSpec { gpa: DIMM, size: 2 << 20, backing: Backing::Prealloc, file_offset: 0 };
        for round in 0..2 {
            strand(&switch, &mut guest, &mut cable, 12, 3000);
            guest.frontend.plug_memory(&dimm).unwrap();
            guest.wait_sent();
            bring_up(&switch);
            wait_active(&switch, "a");
            for _ in 0..12 {
                guest.add_send_slot(2);
            }
            send_one(&switch, &mut guest, &mut cable, 1000 + round);

            // Now they lie in what is taken away.
            strand(&switch, &mut guest, &mut cable, 12, 3000);
            guest.frontend.unplug_memory().unwrap();
            guest.wait_sent();
            guest.remove_send_slots(DIMM);
            bring_up(&switch);
            wait_active(&switch, "a");
            send_one(&switch, &mut guest, &mut cable, 2000 + round);
        }
    });
}

/// Rows: A16, A19.
#[test]
fn a_guest_that_moves_in_by_post_copy_is_copied_for_until_all_of_its_memory_is_there() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        switch.datapath().offer_postcopy().unwrap();
        let socket = switch.add_with("a", EndpointKind::Client, |port| port.zero_copy = true);
        let mut guest = Station::plug(&socket, 1, |config| {
            config.protocol |= protocol::PAGEFAULT;
            config.regions = RegionSpec::spread(2, 2 << 20, &Backing::Prealloc);
        });
        switch.wait_link("a", true);
        join(&switch, joins);
        wait_active(&switch, "a");
        introduce(&cable, &mut guest);
        let bases = guest.leave();
        let source = guest.arrive(&bases, |_, _| Serve::Now);
        switch.wait_link("a", true);
        wait("the reason", || state(&switch, "a").starts_with("Suspended(postcopy)"));
        let before = not_copied(&switch);
        for n in 0..40 {
            let frame = marked(&guest, 3000, n);
            guest.send(&frame);
            assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == frame));
            guest.wait_sent();
        }
        assert_eq!(not_copied(&switch), before);
        source.serve_all();
        guest.frontend.end_postcopy().unwrap();
        drop(source);
        wait_active(&switch, "a");
        for n in 0..40 {
            send_one(&switch, &mut guest, &mut cable, 1000 + n);
        }
    });
}
