// SPDX-License-Identifier: Apache-2.0
//! The switch as its guests see it: a `Datapath` in this process, and front-ends on real sockets with memory and rings
//! of their own.
//!
//! * `rig`: a switch with one bridge, and where its sockets are.
//! * `traffic`: ends that send numbered frames and judge every byte of what arrives.
//! * `station`: one guest, frame by frame, honest or not.
//! * `incoming`: memory that a migration brings, without a switch.
#![allow(unreachable_pub, reason = "a test has no users: what is pub is for its other rooms")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected ends, and its numbers are small"
)]

mod bridge;
mod checksum;
mod crowd;
mod hostile;
mod incoming;
mod iommu;
mod iommu_rings;
mod iommu_waits;
mod killed;
mod life;
mod logs;
mod matrix;
mod memory;
mod offloads;
mod pmds;
mod poll;
mod postcopy;
mod pressure;
mod published;
mod queues;
mod reset;
mod rig;
mod station;
mod statistics;
mod steering;
mod traffic;
mod waiting;
