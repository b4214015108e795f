// SPDX-License-Identifier: Apache-2.0
//! The switch as a process of its own that is killed without a word while a device has frames of a guest.
//!
//! What the device had then is sent again, at least once, and every buffer comes back once.

use ovsvhost::datapath::PortConfig;
use ovsvhost::testing::memory::{Backing, RegionSpec};
use ovsvhost::vhost::EndpointKind;
use vmm_sys_util::tempdir::TempDir;

use super::cable::{Cable, ip, nic, wait_carrier, with_queues_to_send};
use super::exchange::from_far;
use super::process::{self, Process};
use super::rig::wait;
use super::station::Station;
use super::zero_copy::{joins, marked};

/// Frames that the device has when the switch is killed.
const KEPT: u64 = 12;

#[test]
#[ignore = "it is the switch that the other test of this file starts and kills"]
fn the_switch() {
    let (datapath, folder) = process::switch();
    let mut device = nic(100);
    joins(&mut device);
    datapath.add_nic("br0", device).unwrap();
    let config = PortConfig::new("a", EndpointKind::Client, 1, folder.join("a"));
    datapath.add_port("br0", PortConfig { mtu: 9_000, zero_copy: true, ..config }).unwrap();
    process::serve(|| {
        let (guest, device) = (datapath.port("a").unwrap(), datapath.port("n0").unwrap());
        let state = guest.status.get("zero-copy").cloned().unwrap_or_default();
        let posted = device.statistics.get("tx_zero_copy_packets").copied().unwrap_or(0);
        format!("{posted} {} {state}", device.link_resets)
    });
}

/// What the switch says of itself.
struct News {
    /// Frames that were not copied, in this life.
    posted: u64,
    resets: u64,
    state: String,
}

impl News {
    fn of(switch: &mut Process) -> Self {
        let answer = switch.ask();
        let mut words = answer.splitn(3, ' ');
        let mut number = || words.next().unwrap().parse().unwrap();
        let (posted, resets) = (number(), number());
        Self { posted, resets, state: words.next().unwrap().to_owned() }
    }
}

/// Takes the link down and posts frames before the switch finds out.
fn strand(switch: &mut Process, guest: &mut Station, cable: &mut Cable) -> Vec<Vec<u8>> {
    for _ in 0..10 {
        let before = News::of(switch);
        ip("link set near down");
        let frames: Vec<_> = (0..KEPT as usize).map(|n| marked(guest, 3000, n)).collect();
        guest.send_together(&frames);
        let mut now = News::of(switch);
        wait("the frames to be posted, or the link found down", || {
            now = News::of(switch);
            now.posted == before.posted + KEPT || now.resets != before.resets
        });
        if now.posted == before.posted + KEPT {
            return frames;
        }
        ip("link set near up");
        wait_carrier();
        guest.wait_sent();
        wait("the link to be up", || News::of(switch).resets != now.resets);
        while cable.far.receive().unwrap().is_some() {}
    }
    panic!("a link that is down was noticed ten times before {KEPT} frames were posted");
}

/// Rows: A13, A19, A21, C4.
#[test]
fn what_a_device_had_when_the_switch_was_killed_is_sent_again_and_every_buffer_comes_back_once() {
    with_queues_to_send(9000, 4, |mut cable| {
        let folder = TempDir::new_with_prefix("/dev/shm/ovsvhost-killed-").unwrap();
        let mut switch = Process::start(folder.as_path());
        let mut guest = Station::plug(&folder.as_path().join("a"), 1, |config| {
            config.regions = RegionSpec::spread(2, 2 << 20, &Backing::Prealloc);
        });
        for death in 0..5 {
            wait("zero copy", || News::of(&mut switch).state == "Active: near queue 1");
            let greeting = from_far(guest.mac, 60, death);
            cable.send(&greeting);
            while guest.next() != greeting {}
            let frame = marked(&guest, 3000, 100 + death);
            guest.send(&frame);
            assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == frame));
            guest.wait_sent();
            let frames = strand(&mut switch, &mut guest, &mut cable);
            // Short ones come back before and after those that are kept.
            guest.send(&marked(&guest, 60, 0));
            wait("all but those that are kept to come back", || guest.outstanding() == KEPT as usize);
            drop(switch);
            wait("the guest to notice", || guest.frontend.lost());
            assert_eq!(guest.outstanding(), KEPT as usize, "nobody gave back what was not sent");
            ip("link set near up");
            wait_carrier();
            switch = Process::start(folder.as_path());
            guest.restart();
            for frame in &frames {
                assert!(std::iter::repeat_with(|| cable.next()).any(|arrived| arrived == *frame), "death {death}");
            }
            guest.wait_sent();
        }
    });
}
