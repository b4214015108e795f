// SPDX-License-Identifier: Apache-2.0
//! The switch as a process of its own that is killed without a word, again and again, under traffic.
//!
//! What a sender has back was delivered before: no frame is lost and none overtakes another. A burst that was delivered
//! and not yet given back may come twice; it is never more than one burst a death.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ovsvhost::burst::MAX_BURST;
use ovsvhost::datapath::PortConfig;
use ovsvhost::testing::traffic::LinkState;
use ovsvhost::vhost::EndpointKind;
use vmm_sys_util::tempdir::TempDir;

use super::process::{self, Process};
use super::rig::wait;
use super::traffic::{Crew, end};

fn socket(folder: &Path, port: &str) -> PathBuf {
    folder.join(port)
}

#[test]
#[ignore = "it is the switch that the other tests of this file start and kill"]
fn the_switch() {
    let (datapath, folder) = process::switch();
    for (name, ofport) in [("a", 1), ("b", 2)] {
        let config = PortConfig::new(name, EndpointKind::Client, ofport, socket(&folder, name));
        datapath.add_port("br0", PortConfig { mtu: 9_000, ..config }).unwrap();
    }
    process::serve(String::new);
}

const PACKED: &str = "RING_PACKED";
const PACKED_IN_ORDER: &str = "RING_PACKED+IN_ORDER";

/// Rows: A13, C3, C4.
#[test]
fn a_switch_that_is_killed_under_traffic_loses_nothing_it_took() {
    const DEATHS: u64 = 6;
    for (order, with) in [("qemu", ""), ("virtio-user", ""), ("qemu", PACKED), ("qemu", PACKED_IN_ORDER)] {
        let folder = TempDir::new_with_prefix("/dev/shm/ovsvhost-killed-").unwrap();
        let settings =
            [("order", order), ("sizes", "64+1500+9000"), ("layout", "two"), ("with", with), ("require", with)];
        let ends = (0..).zip(["a", "b"]);
        let ends =
            ends.map(|(index, port)| end(index, &socket(folder.as_path(), port), EndpointKind::Client, &settings));
        let mut crew = Crew { ends: ends.collect() };
        for death in 0..=DEATHS {
            let process = Process::start(folder.as_path());
            // The receiver first: a frame for a guest that is away would rightly be dropped.
            for index in [1, 0] {
                let end = &mut crew.ends[index];
                wait("an end to come back", || {
                    end.look_after(Instant::now());
                    end.link() == LinkState::Up
                });
            }
            let limit = crew.ends[0].sent() + 200 + 30 * death;
            crew.until("every number to arrive", |crew| {
                let (sent, arrived) = (crew.ends[0].sent(), crew.account(0, 1).received);
                crew.ends[0].send(16, 24_u64.saturating_sub(sent - arrived), limit);
                sent == limit && arrived == sent
            });
            if death < DEATHS {
                // Killed with frames in every stage of their way.
                crew.ends[0].send(20, 20, u64::MAX);
                drop(process);
                crew.until("both ends to notice", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Down));
            }
        }
        let (sent, account) = (crew.ends[0].sent(), crew.account(0, 1));
        assert_eq!((account.received, account.lost, account.reordered), (sent, 0, 0), "{order} {with}: {account:?}");
        assert!(account.duplicated <= DEATHS * MAX_BURST as u64, "{order} {with}: {account:?}");
        crew.assert_clean(1);
    }
}

/// Rows: A13.
#[test]
fn frames_wait_in_their_guests_ring_until_their_receiver_is_back_too() {
    for with in ["", PACKED] {
        let folder = TempDir::new_with_prefix("/dev/shm/ovsvhost-killed-").unwrap();
        let settings = [("with", with), ("require", with)];
        let ends = (0..).zip(["a", "b"]);
        let ends =
            ends.map(|(index, port)| end(index, &socket(folder.as_path(), port), EndpointKind::Client, &settings));
        let mut crew = Crew { ends: ends.collect() };
        let process = Process::start(folder.as_path());
        crew.until("both ends to come", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Up));
        crew.until("the first frames to arrive", |crew| {
            crew.ends[0].send(10, 10, 10);
            crew.account(0, 1).received > 0
        });
        // Whoever was not there in time for the first is of no account.
        crew.until("no frame to be under way", |crew| crew.ends[0].settle() == 0);
        // What was taken has arrived, but may not have been looked at.
        crew.step();
        let before = crew.account(0, 1);
        drop(process);
        crew.until("both ends to notice", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Down));

        let _process = Process::start(folder.as_path());
        let sender = &mut crew.ends[0];
        wait("the sender to come back", || {
            sender.look_after(Instant::now());
            sender.link() == LinkState::Up
        });
        let sent = sender.sent();
        wait("its frames to be posted", || {
            sender.look_after(Instant::now());
            sender.send(20, 20, sent + 20);
            sender.sent() == sent + 20
        });
        crew.until("every one of them to arrive", |crew| {
            let now = crew.account(0, 1);
            assert_eq!(now.lost, before.lost, "{with}: {now:?}");
            now.received == before.received + 20
        });
    }
}
