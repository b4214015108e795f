//! Poll-mode-driver threads: who polls which transmitq, when to sleep, how control reaches them.
//!
//! ```text
//!   control ──Message──▶ mailbox ─▶ ┌ thread pmd-c<core> ─────────────────────────────────────┐
//!                                   │ mailbox → poll owned transmitqs → account → maybe sleep │
//!   OutletSlot ◀─── deliver ────────┘      (poll: gather → classify → output → commit)        │
//! ```
//!
//! A transmitq belongs to one thread and moves by message, whole: cursor, counters, caches, and a burst that waits. Only
//! one that stops is settled first. Which thread it shall be says [`assign`], from what [`load`] measured. The topology is
//! immutable and swapped whole: the answer to the message that carries it means that the thread no longer uses the one
//! before. A sleeping thread is woken by its mailbox. The loop allocates nothing, waits for no lock and logs nothing; its
//! system calls while it moves frames are calls to guests that asked for them, and a word to the fault thread of a port
//! whose memory post-copy brings.

pub mod assign;
pub mod balance;
pub mod load;

mod bond;
mod credit;
mod deliver;
mod doze;
mod ends;
mod letterbox;
mod mailbox;
mod output;
mod patience;
mod poll;
mod sleep;
mod stats;
mod thread;
mod topology;
mod wait;
mod zero_copy;

pub use bond::{Admission, Basis, Bonding, LINKS_MAX, Loads, Membership, SHARES, Shares};
pub use credit::Credit;
pub use ends::{Inlet, Outlet};
pub use letterbox::Letterbox;
pub use mailbox::Message;
pub use poll::{Forwarder, PolledQueue};
pub use stats::{BUCKETS, PmdStats, Readings};
pub use thread::{Pmd, Sleep};
pub use topology::{BridgeView, OutletSlot, PortView, Steering, Topology};
pub use zero_copy::{Lane, ZeroCopy};

use std::sync::atomic;

use crate::ring::RingFault;
use crate::switch::PortId;

/// Most addresses of one [`Message::Teach`].
pub const LESSON_LEN: usize = crate::burst::MAX_BURST;

/// A queue that a poll thread had to stop.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whose.
    pub port: PortId,
    /// Vring index: even = receiveq, odd = transmitq.
    pub vring: u16,
    /// Which start of the vring broke.
    pub run: u64,
    /// What was wrong.
    pub cause: FaultCause,
}

/// Who is to blame.
#[derive(Debug, Clone)]
pub enum FaultCause {
    /// The guest or its front-end.
    Ring(RingFault),
    /// Us: the text of a panic.
    Panic(String),
}
