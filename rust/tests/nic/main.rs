// SPDX-License-Identifier: Apache-2.0
//! The switch with a network device among its ports: a veth pair in a namespace of each test's own, a guest on one side of
//! the switch, a packet socket at the far end of the cable. Every frame is counted and compared byte by byte.
//!
//! * `bond`: two cables that are one port.
//! * `cable`: the namespace, the pair, the far end; what is missing for that is named and skips.
//! * `exchange`: frames both ways, every size, every way they can lie.
//! * `lacp`: a bond and a neighbour that agrees to it, or does not.
//! * `memory`: what memory a device is shown, and what is said of other.
//! * `offloads`: checksums and segments that the device gets finished.
//! * `queues`: devices of several queues; the device polled in our calls; how long it has our frames.
//! * `tags`: VLAN tags, and what the device is told to leave alone.
//! * `zero_copy`: frames sent from where the guest put them. `lanes`: who gets a way to do that, and what changes under frames
//!   that are in flight. `restarts`: who does not wait for a guest's. `killed`: a switch that is killed while they are.
//! * `life`: devices that go down, away and come back; rings that are full.
#![allow(unreachable_pub, dead_code, reason = "rooms shared with the switch's tests, of which this one uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected ends, and its numbers are small"
)]

mod bond;
mod cable;
mod exchange;
mod killed;
mod lacp;
mod lanes;
mod life;
mod memory;
mod offloads;
#[path = "../switch/process.rs"]
mod process;
mod queues;
mod restarts;
#[path = "../switch/rig.rs"]
mod rig;
#[path = "../switch/station.rs"]
mod station;
mod tags;
mod zero_copy;
