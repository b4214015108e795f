// SPDX-License-Identifier: Apache-2.0
//! Frames sent from where the guest put them: what arrives, when its buffers come back, and what is left when somebody goes.
//!
//! A device that is down takes nothing: what was posted to it stays where it is, and so do the guest's buffers.

use std::time::Instant;

use ovsvhost::datapath::{NicConfig, PortChange};
use ovsvhost::testing::frontend::FrontendConfig;
use ovsvhost::testing::memory::{Backing, RegionSpec};
use ovsvhost::testing::wire::features;
use ovsvhost::vhost::EndpointKind;

use super::cable::{Cable, FAR, ip, join, wait_carrier, wait_up, wait_with_news, with_queues_to_send};
use super::exchange::from_far;
use super::rig::{Switch, wait};
use super::station::Station;

/// Bytes of the shortest frame that is not copied. It is said, for on this device the kernel copies.
pub const LEAST: usize = ovsvhost::port::afxdp::ZERO_COPY_MIN as usize;
/// Bytes of a frame of which the head alone is copied.
const HEAD: usize = 64;

pub fn joins(nic: &mut NicConfig) {
    (nic.device.zc_queues, nic.device.zc_min) = (3, LEAST as u32);
}

/// A guest whose port wants no copies, with rings of `size`.
pub fn guest(switch: &mut Switch, name: &str, last: u8, size: u16) -> Station {
    let region = (usize::from(size) * (16 << 10)) + (2 << 20);
    guest_of(switch, name, last, size, &RegionSpec::spread(2, region, &Backing::Prealloc))
}

/// The same with this memory.
pub fn guest_of(switch: &mut Switch, name: &str, last: u8, size: u16, regions: &[RegionSpec]) -> Station {
    let socket = switch.add_with(name, EndpointKind::Client, |port| port.zero_copy = true);
    let guest = Station::plug(&socket, last, |config| {
        config.ring_size = size;
        config.regions = regions.to_vec();
    });
    switch.wait_link(name, true);
    guest
}

pub fn state(switch: &Switch, name: &str) -> String {
    switch.port(name).status.get("zero-copy").cloned().unwrap_or_default()
}

#[track_caller]
pub fn wait_active(switch: &Switch, name: &str) {
    let begun = Instant::now();
    while !state(switch, name).starts_with("Active") {
        assert!(begun.elapsed().as_secs() < 20, "zero copy of {name}: {}", state(switch, name));
        std::thread::yield_now();
    }
}

/// Lets the switch learn where the far end is: what it does not know it floods, and a frame to many is copied.
#[track_caller]
pub fn introduce(cable: &Cable, guest: &mut Station) {
    let greeting = from_far(guest.mac, 60, 0);
    cable.send(&greeting);
    while guest.next() != greeting {}
}

pub fn not_copied(switch: &Switch) -> u64 {
    switch.count("n0", "tx_zero_copy_packets")
}

/// A frame of `len` bytes to the far end that tells itself from others.
pub fn marked(guest: &Station, len: usize, mark: usize) -> Vec<u8> {
    let mut frame = guest.frame(FAR, len);
    frame[20..28].copy_from_slice(&(mark as u64).to_le_bytes());
    frame
}

/// Takes the link down and posts frames to the device that takes none, before the switch finds out. Gives those that the
/// device has now.
pub fn strand(switch: &Switch, guest: &mut Station, cable: &mut Cable, count: usize, len: usize) -> Vec<Vec<u8>> {
    for _ in 0..10 {
        let before = (not_copied(switch), switch.port("n0").link_resets);
        ip("link set near down");
        let frames: Vec<_> = (0..count).map(|n| marked(guest, len, n)).collect();
        guest.send_together(&frames);
        wait("the frames to be posted, or the link found down", || {
            not_copied(switch) == before.0 + count as u64 || switch.port("n0").link_resets != before.1
        });
        if not_copied(switch) == before.0 + count as u64 {
            return frames;
        }
        let some = (not_copied(switch) - before.0) as usize;
        bring_up(switch);
        for _ in 0..some {
            cable.next();
        }
        guest.wait_sent();
    }
    panic!("a link that is down was noticed ten times before {count} frames were posted");
}

pub fn bring_up(switch: &Switch) {
    ip("link set near up");
    wait_carrier();
    wait_with_news(switch, "n0", "the link to be up", || switch.port("n0").link_up);
}

/// Rows: A19, A21, A22.
#[test]
fn frames_of_any_size_arrive_as_they_were_and_long_ones_are_not_copied() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        assert!(state(&switch, "a").starts_with("Waiting(device)"), "{}", state(&switch, "a"));
        join(&switch, joins);
        wait_active(&switch, "a");
        assert_eq!(state(&switch, "a"), "Active: near queue 1");
        introduce(&cable, &mut guest);
        let mut long = 0;
        for size in [60, 64, 65, 128, LEAST - 1, LEAST, LEAST + 1, 1500, 4095, 4096, 4097, 8191, 8193, 9014] {
            let frame = marked(&guest, size, size);
            guest.send(&frame);
            assert_eq!(cable.next(), frame, "{size} bytes");
            guest.wait_sent();
            long += u64::from(size >= LEAST);
            assert_eq!(not_copied(&switch), long, "{size} bytes");
            let answer = from_far(guest.mac, size.min(1500), size);
            cable.send(&answer);
            assert_eq!(guest.next(), answer);
        }
        // As long as they are in flight their order is that in which they were sent, copied or not.
        for round in 0..40 {
            let frames: Vec<_> =
                (0..32).map(|n| marked(&guest, [60, 2000, LEAST, 500][n % 4], 32 * round + n)).collect();
            guest.send_together(&frames);
            for frame in &frames {
                assert_eq!(&cable.next(), frame);
            }
            guest.wait_sent();
        }
        wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
        assert_eq!(switch.count("n0", "tx_packets"), 14 + 40 * 32);
    });
}

/// Rows: A19.
#[test]
fn where_the_kernel_copies_we_copy_and_say_so_until_somebody_says_which_frames_not_to() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, |_| {});
        introduce(&cable, &mut guest);
        let mut expected = 0;
        for least in [0, 3000, 0, 65, 0] {
            switch.datapath().set_nic("n0", |device| device.zc_min = least).unwrap();
            let (state_then, least_then) = match least {
                0 => ("Suspended(copy): the kernel copies what near sends (xdp-mode native)", "none".to_owned()),
                _ => ("Active: near queue 1", least.to_string()),
            };
            wait("the state", || state(&switch, "a").starts_with(state_then));
            wait("the size", || switch.port("n0").status["xdp-zc-min"] == least_then);
            for size in [64, 65, 2999, 3000, 9014] {
                let frame = marked(&guest, size, size);
                guest.send(&frame);
                assert_eq!(cable.next(), frame, "{size} bytes, from {least} on");
                guest.wait_sent();
                expected += u64::from(least > 0 && size >= least as usize);
                assert_eq!(not_copied(&switch), expected, "{size} bytes, from {least} on");
            }
        }
    });
}

/// Rows: A19.
#[test]
fn a_frame_in_as_many_buffers_as_a_device_takes_is_not_copied_and_one_in_more_is() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, joins);
        wait_active(&switch, "a");
        introduce(&cable, &mut guest);
        for buffers in 1..=24 {
            for len in [1100, 3999, 4000] {
                let (before, frame) = (not_copied(&switch), marked(&guest, len, buffers));
                guest.send_cut(&frame, buffers);
                assert_eq!(cable.next(), frame, "{len} bytes in {buffers} buffers");
                guest.wait_sent();
                // Buffers that the head does not cover.
                let tails = (1..=buffers).filter(|n| len * n / buffers > HEAD).count();
                assert_eq!(not_copied(&switch) == before, tails > 17, "{len} bytes in {buffers} buffers");
            }
        }
    });
}

/// Rows: A19, A21.
#[test]
fn the_used_ring_moves_when_the_device_is_done_and_what_was_judged_is_what_is_sent() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, joins);
        wait_active(&switch, "a");
        introduce(&cable, &mut guest);
        let frames = strand(&switch, &mut guest, &mut cable, 12, 3000);
        // Whatever is sent meanwhile comes back; those do not.
        for n in 0..200 {
            guest.send(&marked(&guest, 60, n));
            wait("a short frame to come back", || guest.outstanding() == 12);
        }
        guest.scribble(0xee);
        bring_up(&switch);
        for frame in &frames {
            let arrived = std::iter::repeat_with(|| cable.next()).find(|frame| frame.len() == 3000).unwrap();
            assert_eq!(arrived[..HEAD], frame[..HEAD], "the head is the one that was judged");
            assert!(arrived[HEAD..].iter().all(|byte| *byte == 0xee), "the rest is the guest's to spoil");
        }
        guest.wait_sent();
        wait("every descriptor to come back", || switch.count("n0", "tx_inflight") == 0);
    });
}

/// Rows: A20, A21.
#[test]
fn a_ring_goes_on_however_long_a_device_keeps_its_half() {
    for n_txq_desc in [64, 128, 256, 512, 2048] {
        for size in [256, 1024] {
            with_queues_to_send(9000, 4, move |mut cable| {
                let mut switch = Switch::new();
                let mut guest = guest(&mut switch, "a", 1, size);
                join(&switch, |nic| {
                    joins(nic);
                    nic.device.n_txq_desc = n_txq_desc;
                });
                wait_active(&switch, "a");
                introduce(&cable, &mut guest);
                strand(&switch, &mut guest, &mut cable, 8, 1200);
                for n in 0..4 * usize::from(size) {
                    wait("room in the guest's ring", || guest.room() > 0);
                    guest.send(&marked(&guest, 1200, n));
                }
                let limit = 256.min(usize::from(size) / 2).min(n_txq_desc as usize / 2);
                wait("all that is not with the device to come back", || guest.outstanding() <= limit);
                assert!(guest.outstanding() >= 8 && switch.count("n0", "tx_inflight") >= 16);
                bring_up(&switch);
                guest.wait_sent();
                let sent = marked(&guest, 1300, 1);
                guest.send(&sent);
                assert!(std::iter::repeat_with(|| cable.next()).any(|frame| frame == sent));
            });
        }
    }
}

/// Rows: A19.
#[test]
fn no_buffer_is_lost_whoever_goes_while_frames_are_in_flight() {
    type Going = fn(&Switch, &mut Station);
    let ways: [(&str, Going); 6] = [
        ("the ring is disabled", |_, guest| guest.frontend.enable_pair(0, false).unwrap()),
        ("the ring is stopped", |_, guest| drop(guest.frontend.stop_rings().unwrap())),
        ("the guest hangs up", |_, guest| guest.frontend.hang_up()),
        ("the option is taken back", |switch, _| {
            let change = PortChange { zero_copy: Some(false), ..PortChange::default() };
            switch.datapath().set_port("a", &change).unwrap();
        }),
        ("the device's port is deleted", |switch, _| switch.datapath().del_port("n0").unwrap()),
        ("the device is deleted", |switch, _| {
            ip("link del near");
            switch.datapath().refresh_nic("n0").unwrap();
        }),
    ];
    for (what, go) in ways {
        with_queues_to_send(9000, 4, move |mut cable| {
            let mut switch = Switch::new();
            let mut guest = guest(&mut switch, "a", 1, 64);
            join(&switch, joins);
            wait_active(&switch, "a");
            introduce(&cable, &mut guest);
            strand(&switch, &mut guest, &mut cable, 12, 3000);
            assert_eq!(guest.outstanding(), 12, "{what}");
            go(&switch, &mut guest);
            guest.wait_sent();
        });
    }
}

/// Rows: A19, L6.
#[test]
fn lanes_come_and_go_with_frames_on_their_way_and_every_one_carries() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = guest(&mut switch, "a", 1, 64);
        join(&switch, joins);
        for round in 0..100 {
            wait_active(&switch, "a");
            introduce(&cable, &mut guest);
            let frame = marked(&guest, 2000 + round, round);
            let before = not_copied(&switch);
            guest.send(&frame);
            assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == frame));
            assert_eq!(not_copied(&switch), before + 1, "round {round}");
            for n in 0..16 {
                guest.send(&marked(&guest, 1500, n));
            }
            match round % 4 {
                0 => {
                    switch.datapath().del_port("n0").unwrap();
                    join(&switch, joins);
                }
                1 => {
                    let bases = guest.frontend.stop_rings().unwrap();
                    guest.resume(&bases);
                }
                2 => {
                    switch.datapath().set_nic("n0", |device| device.n_txq_desc = 64 << (round % 3)).unwrap();
                    wait("the new ring", || switch.port("n0").status["n_txq_desc"] == (64 << (round % 3)).to_string());
                    wait_up(&switch, "n0");
                }
                _ => {
                    for on in [false, true] {
                        let change = PortChange { zero_copy: Some(on), ..PortChange::default() };
                        switch.datapath().set_port("a", &change).unwrap();
                    }
                }
            }
            guest.wait_sent();
        }
    });
}

/// Rows: A19.
#[test]
fn two_guests_have_a_queue_each_and_one_too_many_copies_and_says_so() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let mut guests: Vec<_> = (1..=3).map(|n| guest(&mut switch, &format!("g{n}"), n, 64)).collect();
        join(&switch, |nic| {
            joins(nic);
            nic.device.zc_queues = 2;
        });
        wait("every guest's state", || {
            (1..=3).all(|n| !state(&switch, &format!("g{n}")).starts_with("Waiting(device)"))
        });
        let states: Vec<_> = (1..=3).map(|n| state(&switch, &format!("g{n}"))).collect();
        assert_eq!(states[..2], ["Active: near queue 1", "Active: near queue 2"]);
        assert_eq!(states[2], "Waiting(queue): every queue of near is taken; raise its xdp-zc-queues");
        for guest in &mut guests {
            introduce(&cable, guest);
            let frame = marked(guest, 1500, 7);
            guest.send(&frame);
            assert_eq!(cable.next(), frame);
            guest.wait_sent();
        }
        assert_eq!(not_copied(&switch), 2);
        switch.datapath().set_nic("n0", |device| device.zc_queues = 3).unwrap();
        wait_active(&switch, "g3");
    });
}

/// Rows: A19.
#[test]
fn drivers_that_want_buffers_back_in_order_are_copied_for_and_it_says_so() {
    with_queues_to_send(9000, 4, |mut cable| {
        let mut switch = Switch::new();
        let socket = switch.add("a", EndpointKind::Client);
        let in_order = |config: &mut FrontendConfig| {
            config.features |= features::IN_ORDER;
            config.regions = RegionSpec::spread(2, 2 << 20, &Backing::Prealloc);
        };
        let mut guest = Station::plug(&socket, 1, in_order);
        switch.wait_link("a", true);
        let change = PortChange { zero_copy: Some(true), ..PortChange::default() };
        switch.datapath().set_port("a", &change).unwrap();
        join(&switch, joins);
        wait("the reason", || state(&switch, "a").starts_with("Waiting(in_order)"));
        let frame = marked(&guest, 1500, 1);
        guest.send(&frame);
        assert_eq!(cable.next(), frame);
        guest.wait_sent();
        assert_eq!(not_copied(&switch), 0);
        let refused = ovsvhost::datapath::PortConfig {
            zero_copy: true,
            ..ovsvhost::datapath::PortConfig::new("s", EndpointKind::Server, 9, socket.with_extension("server"))
        };
        let text = switch.datapath().add_port("br0", refused).unwrap_err().to_string();
        assert!(text.starts_with("s: dq-zero-copy is for client ports"), "{text}");
        // The option was there first: one that starts now is not offered an order.
        let socket = switch.add_with("b", EndpointKind::Client, |port| port.zero_copy = true);
        let guest = Station::plug(&socket, 2, in_order);
        switch.wait_link("b", true);
        assert_eq!(guest.frontend.session().unwrap().offered() & features::IN_ORDER, 0);
        wait_active(&switch, "b");
    });
}
