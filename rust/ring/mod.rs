//! Virtqueues, device side, on raw host addresses (virtio 1.2 §2.6, §2.7).
//!
//! ```text
//!   RingConfig ──activate()──▶ Ring ──▶ Transmitq   gather a burst from the guest, commit it back
//!   (what the session heard)       └──▶ Receiveq    deliver packets of a burst to the guest
//!                                        │
//!                                        └── Layout: what both ask of a ring, of either kind
//! ```
//!
//! Invariants: a ring's addresses were translated by the map whose `Arc` it holds. Everything the driver wrote is read
//! once into locals, then judged; a lie is a [`RingFault`] that stops this queue only. Buffers complete in order, so one
//! cursor says it all: between bursts the next available index equals the used index. Knows no socket, no thread, no
//! switch.

mod chain;
mod doorbell;
mod journal;
mod kind;
mod layout;
mod notify;
mod receiveq;
mod split;
mod transmitq;

use std::fs::File;
use std::sync::Arc;

pub use journal::{Cursor, Element, Intent, Journal, Past};
pub use kind::Ring;
pub use receiveq::{Delivery, Receiveq};
pub use transmitq::Transmitq;

use crate::error::{Error, Result};
use crate::memory::{GuestMap, Span, Uva};
use doorbell::Doorbell;
use kind::Kind;
use split::SplitRing;

/// Feature bits that change how a ring or its buffers are read (virtio 1.2 §5.1.3, §6).
pub mod feature {
    /// `VIRTIO_NET_F_CSUM`: the driver may leave checksums to us.
    pub const CSUM: u64 = 1 << 0;
    /// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `VIRTIO_NET_F_MRG_RXBUF`: a frame may span several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `VIRTIO_RING_F_INDIRECT_DESC`.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_RING_PACKED`.
    pub const RING_PACKED: u64 = 1 << 34;
}

/// What a front-end said about one vring before it started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Elements, as sent: judged by `activate`.
    pub size: u32,
    /// Descriptor table, in the front-end's own addresses.
    pub desc_uva: u64,
    /// Available ring, likewise.
    pub avail_uva: u64,
    /// Used ring, likewise.
    pub used_uva: u64,
    /// Available index to start at (`vhost-user: SET_VRING_BASE`).
    pub base: u16,
    /// Virtio features acknowledged.
    pub features: u64,
}

impl RingConfig {
    /// Checks everything and makes the ring usable.
    ///
    /// # Errors
    /// `Peer`: a size that is no power of two in 1..=32768, an address outside the memory table or misaligned, memory
    /// that the VMM keeps private, a kick or call descriptor that is no eventfd.
    pub fn activate(&self, memory: &Arc<GuestMap>, kick: Option<File>, call: Option<File>) -> Result<Ring> {
        if !self.size.is_power_of_two() || self.size > 32_768 {
            return Err(Error::Peer(format!("ring size {} is not a power of two in 1..32768", self.size)));
        }
        if memory.is_private_at(Uva(self.desc_uva)) {
            return Err(Error::Peer(
                "guest memory is private to the VMM: what the guest writes never reaches this process; add share=on to \
                 its memory backend (libvirt: memAccess='shared')"
                    .into(),
            ));
        }
        SplitRing::new(self, memory, Doorbell::new(kick, call)?).map(|ring| Ring(Kind::Split(ring)))
    }

    /// As [`Self::activate`]; the ring writes down how far it is in the journal of `past`, and goes on where that knows it
    /// stood. What is in the way of going on is told beside the ring.
    ///
    /// # Errors
    /// As [`Self::activate`].
    pub fn resume(
        &self,
        memory: &Arc<GuestMap>,
        kick: Option<File>,
        call: Option<File>,
        past: Option<Past>,
    ) -> Result<(Ring, Option<String>)> {
        let mut ring = self.activate(memory, kick, call)?;
        let note = past.and_then(|past| ring.take_up(past));
        Ok((ring, note))
    }
}

/// Translates one of a ring's areas, `bytes` bytes at the front-end's address `uva`.
fn area(memory: &GuestMap, name: &str, uva: u64, bytes: u32, align: u64) -> Result<Span> {
    if !uva.is_multiple_of(align) {
        return Err(Error::Peer(format!("{name} at {uva:#x} is not aligned to {align} bytes")));
    }
    let span = memory.translate_uva(Uva(uva), bytes);
    let span =
        span.ok_or_else(|| Error::Peer(format!("{name} at {uva:#x} ({bytes} bytes) is outside the memory table")))?;
    // A region may be mapped at an odd place, by its address or its offset: indices are atomics here.
    if !(span.start.addr() as u64).is_multiple_of(align) {
        return Err(Error::Peer(format!("{name} at {uva:#x} lies in a region that is not page-aligned")));
    }
    Ok(span)
}

/// How a driver broke its ring. Stops the queue until the front-end sets it up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFault {
    /// The available index ran ahead by more than the ring holds, or went back.
    IndexJump,
    /// A head or next index points past the descriptor table.
    IndexRange,
    /// A chain is longer than its table: it loops.
    ChainLoop,
    /// An indirect table with a bad length, nested, or combined with `NEXT`.
    BadIndirect,
    /// A buffer that the other side would have to write, or a read-only one to receive into.
    WrongDirection,
    /// A buffer outside the memory table.
    Address,
    /// A chain too small for the virtio header.
    ShortChain,
    /// A chain with more pieces or bytes than any frame has.
    LongChain,
    /// A page of guest memory went away.
    MemoryLost,
    /// The owner of its call descriptor made a call hang.
    CallJammed,
}

impl std::fmt::Display for RingFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IndexJump => "its available index went back, or ahead by more than the ring size",
            Self::IndexRange => "a descriptor index points past the table",
            Self::ChainLoop => "a descriptor chain loops",
            Self::BadIndirect => "an indirect descriptor table is malformed",
            Self::WrongDirection => "a buffer has the wrong direction",
            Self::Address => "a buffer lies outside the memory table",
            Self::ShortChain => "a buffer is too small for the virtio header",
            Self::LongChain => "a descriptor chain is longer than any frame",
            Self::CallJammed => "its call eventfd was made to block by whoever shares it",
            Self::MemoryLost => "a page of guest memory was taken away (its file was truncated or punched)",
        })
    }
}
