// SPDX-License-Identifier: Apache-2.0
//! Traffic: one or two ends on one thread, every frame accounted for.
//!
//! ```text
//!            ┌────────────── Runner (one pinned thread) ──────────────┐
//!            │  End a                               End b             │
//!            │  Frontend · Senders · Receivers      …                 │
//!            └──────┬────────────────────────────────────┬────────────┘
//!                   └──────────── the switch ────────────┘
//! ```
//! An [`End`] is one guest: a session, a [`Sender`] per transmitq and a [`Receiver`] per receiveq.
//! A [`Runner`] takes the ends through link, announcement, warm-up, measurement and drain, and
//! writes the report. A [`Crowd`] is any number of ends that only listen, an [`Arriving`] a guest whose memory is late, a [`Moving`] one
//! that changes its port.
//! Nothing on the packet path allocates, locks or asks the time more than once a pass.

mod arriving;
mod control;
mod counters;
mod crowd;
mod end;
mod governor;
mod latency;
mod link;
mod moving;
mod queues;
mod receiver;
mod report;
mod rings;
mod runner;
mod sender;
mod settings;
mod throughput;
mod transit;

pub use arriving::Arriving;
pub use control::Command;
pub use counters::{ReceiveCounters, SendCounters, Spread, Streams};
pub use crowd::Crowd;
pub use end::End;
pub use link::LinkState;
pub use moving::Moving;
pub use receiver::{Check, Receiver};
pub use report::Json;
pub use runner::Runner;
pub use sender::Sender;
pub(crate) use settings::seconds;
pub use settings::{EndSettings, Mode, Role, RunSettings};
