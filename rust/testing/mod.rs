// SPDX-License-Identifier: Apache-2.0
//! The other side of the wire: a vhost-user front-end with its own memory and driver rings.
//!
//! It plays the guest. It owns guest memory, fills transmitqs, posts receive buffers, and speaks the
//! front-end half of vhost-user. Nothing here uses the crate's own rings, memory or session code: a
//! mistake in the switch must not be repeated in the thing that judges it. For the same reason it
//! runs against other back-ends (OVS-DPDK, testpmd) unchanged.
//!
//! ```text
//!  cli ──▶ traffic ──▶ frontend ──▶ wire ──▶ socket
//!             │           │
//!             ├──▶ frames └──▶ memory (GuestRam, Window)
//!             └──▶ driver ─────▶  ▲
//!  hostile ──▶ frontend, driver, wire
//! ```
//!
//! * [`memory`]: guest RAM out of memfd, hugetlbfs or worse, and raw access to it.
//! * [`driver`]: the driver's half of a virtqueue, honest or not, usable without any socket.
//! * [`frames`]: numbered, patterned frames: built, recognised, verified; sequence accounting.
//! * [`wire`]: vhost-user messages as bytes, well-formed or not.
//! * [`frontend`]: one session, in the message orders of QEMU and of virtio-user.
//! * [`traffic`]: ends that send and check at full rate, latency, reports.
//! * [`netdev`]: the far end of a network device's cable, in a namespace of its own.
//! * [`hostile`]: named attacks on a back-end.
//! * [`allocations`]: an allocator that counts, for who claims to need none.
//!
//! `unsafe` lives in [`memory`], [`netdev`], [`allocations`] and `sys` only.

pub mod allocations;
pub mod cli;
pub mod driver;
pub mod error;
pub mod frames;
pub mod frontend;
pub mod hostile;
pub mod memory;
pub mod netdev;
mod sys;
pub mod traffic;
pub mod wire;

pub use error::{Error, Result};
pub use sys::become_nobody;
