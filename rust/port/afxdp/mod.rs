//! A network device's queues as the poll threads use them: AF_XDP sockets of our own, on `libc` alone.
//!
//! ```text
//!              ┌──────────────── Area: frames of 4 KiB, the kernel's and ours ────────────────┐
//!              │ rx frames                          │ tx frames                               │
//!              └──▲──────────────────────────┬──────┴──▲───────────────────────────────┬──────┘
//!    fill ring ───┘ RxQueue: gather, commit  │ rx      │ TxQueue: deliver, flush        │ tx, kick
//!    (given back once every copy is made) ◀──┘         └── completion ring ◀── kernel ──┘
//! ```
//!
//! One socket a queue, and one area a socket; the rx and the tx side share nothing but the socket, so any two threads may
//! have them. [`Attachment`] is control's: it keeps the program on the device. The kernel's words are judged before they
//! are used: an index that ran ahead or an address outside its part stops the queue, so no lie of it reaches other memory.
//!
//! A [`Lane`] is a socket of its own kind: it sends a guest's frames from where they lie in the guest's memory.
//!
//! What goes out is whole: checksums are finished and frames segmented here, VLAN tags stay as they are. What comes in
//! carries no promise: nothing from a wire is handed on as partial or as verified.

mod attach;
mod frames;
mod lane;
mod latency;
mod ring;
mod rx;
mod tx;
mod xsk;

#[cfg(test)]
mod tests;

pub use attach::{Attachment, Mode, Plan, XdpMode};
pub use lane::{Lane, LaneGauges, LanePlan, ZERO_COPY_MIN, ZERO_COPY_MINS};
pub use latency::{LATENCY_BUCKETS, Latencies};
pub use rx::RxQueue;
pub use tx::TxQueue;
pub use xsk::Gauges;

/// Bytes of a frame's place: what the kernel takes as a chunk, and what one page holds.
const CHUNK: u32 = 4096;
/// Bytes that the kernel keeps in front of a received frame, and so the longest that one chunk can receive.
const SINGLE_MAX: u32 = CHUNK - 256;
/// Most descriptors of one frame: what the kernel makes of one at most (`MAX_SKB_FRAGS` and a head).
const PIECES_MAX: usize = 18;

/// Smallest and largest ring of a queue.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 64..=4096;
