// SPDX-License-Identifier: Apache-2.0
//! A dirty log that is swapped, cut short or refused while frames are written to the guest that it is about.

use std::fs::File;
use std::os::fd::AsRawFd;

use ovsvhost::testing::frontend::Logging;
use ovsvhost::testing::memory::{Backing, GuestRam, RegionSpec};
use ovsvhost::testing::wire::features::{LOG_ALL, protocol};
use ovsvhost::testing::wire::{Message, Request};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::station::Station;
use super::traffic::Crew;

const ROUNDS: usize = 120;
/// Guest memory that one byte of a log stands for.
const PER_BYTE: u64 = 8 << 12;

/// A file of shared memory.
fn shared(size: u64) -> File {
    let memory = GuestRam::new(&RegionSpec::spread(1, size as usize, &Backing::Memfd)).unwrap();
    memory.regions()[0].file().try_clone().unwrap()
}

/// Hands over a log; the back-end has turned to it when this returns, or has none.
fn share_log(station: &Station, file: &File, size: u64, offset: u64) {
    let channel = station.frontend.session().unwrap().channel();
    channel.send(&Message::new(Request::SET_LOG_BASE).words(&[size, offset]), &[file.as_raw_fd()]).unwrap();
    channel.reply(Request::SET_LOG_BASE).unwrap();
}

/// Rows: C7, C8, C13.
#[test]
fn a_log_that_is_swapped_cut_and_refused_under_traffic_harms_its_own_guest_at_most() {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &[]);
    let mut sender = Station::join(&mut switch, "sender", 8);
    let mut moving = Station::join_with(&mut switch, "moving", 9, |config| {
        config.log = Logging::On;
        config.protocol |= protocol::LOG_SHMFD;
        config.features |= LOG_ALL;
    });
    let end = moving.frontend.ram().regions().iter().map(|region| region.gpa().0 + region.size() as u64).max();
    let size = end.unwrap().div_ceil(PER_BYTE);
    for round in 0..ROUNDS {
        let file = shared(size);
        let held = file.metadata().unwrap().len();
        for _ in 0..8 {
            sender.send(&sender.frame(moving.mac, 200));
        }
        match round % 6 {
            0 => share_log(&moving, &file, size, 0),
            1 => share_log(&moving, &file, held, 1),
            2 => share_log(&moving, &file, u64::MAX - 4095, 8192),
            3 => share_log(&moving, &file, size / 2, 0),
            4 => share_log(&moving, &File::open("/dev/null").unwrap(), size, 0),
            _ => {
                share_log(&moving, &file, size, 0);
                sender.send(&sender.frame(moving.mac, 200));
                file.set_len(0).unwrap();
            }
        }
        sender.wait_sent();
        crew.send(0, 1, 10);
        while moving.receive().is_some() {}
    }
    // A whole one brings the guest back.
    let whole = shared(size);
    share_log(&moving, &whole, size, 0);
    wait("the guest to be back", || switch.port("moving").link_up && switch.port("moving").error.is_none());
    let frame = sender.frame(moving.mac, 300);
    sender.send(&frame);
    while moving.next() != frame {}
    crew.assert_exact(0, 1);
    for name in ["a", "b", "sender"] {
        assert_eq!(switch.port(name).error, None, "{name}");
    }
}
