// SPDX-License-Identifier: Apache-2.0
//! Rings of both layouts proved against a naive driver: `Transmitq` and `Receiveq` on one side, plain loops on the other.
//!
//! ```text
//!   naive driver A ─▶ Transmitq ─ Burst ─▶ Receiveq ─▶ naive driver B
//!        │                                                 │
//!        └── image of A's memory before ── must equal ──── └── image of B's memory before, plus exactly what a
//!            the one after, used ring aside                     plain reading of the standard says is written
//! ```
//!
//! Every byte of both guests' memory is compared after every step, so a byte written outside a buffer shows at once.
//! Nothing here uses the crate's own ring arithmetic.
#![allow(unreachable_pub, reason = "a test has no users: what is pub is for its other rooms")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected ends, and its numbers are small"
)]

mod checksum;
mod crash;
mod dice;
mod driver;
mod garbage;
mod guest;
mod held;
mod honest;
mod hostile;
mod lies;
mod log;
mod lost;
mod notify;
mod packet;
mod pipe;
mod read_once;
mod segment;
mod wake;
