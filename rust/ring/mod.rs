//! Virtqueues, device side, on raw host addresses (virtio 1.2 §2.6, §2.7, §2.8).
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
//! cursor says it all: between bursts the next available index equals the used index. Only those of a transmitq that a
//! device reads from are given back later and in any order ([`Held`]). Knows no socket, no thread, no switch.

mod chain;
mod doorbell;
mod held;
mod journal;
mod kind;
mod layout;
mod log;
mod notify;
mod offload;
mod packed;
mod receiveq;
mod split;
mod transmitq;

use std::fs::File;
use std::sync::Arc;

pub use held::{HELD_MAX, Held, Obstacle};
pub use journal::{Cursor, Element, Intent, Journal, Past};
pub use kind::Ring;
pub use receiveq::{Delivery, Receiveq};
pub(crate) use transmitq::TakenBack;
pub use transmitq::Transmitq;

use crate::error::{Error, Result};
use crate::memory::{GuestMap, Span, Unreachable, Uva};
use doorbell::Doorbell;
use kind::Kind;
use packed::PackedRing;
use split::SplitRing;

/// Feature bits that change how a ring or its buffers are read (virtio 1.2 §5.1.3, §6).
pub mod feature {
    /// `VIRTIO_NET_F_CSUM`: the driver may leave checksums to us.
    pub const CSUM: u64 = 1 << 0;
    /// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `VIRTIO_NET_F_GSO`: of legacy drivers, `HOST_TSO4`, `HOST_TSO6`, `HOST_ECN` and `HOST_UFO` in one bit.
    pub const GSO: u64 = 1 << 6;
    /// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes TCP over IPv4 longer than its MTU.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// `VIRTIO_NET_F_GUEST_TSO6`: the same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// `VIRTIO_NET_F_GUEST_ECN`: the same with congestion notification.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// `VIRTIO_NET_F_GUEST_UFO`: the driver takes UDP longer than its MTU, meant to be fragmented.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// `VIRTIO_NET_F_HOST_TSO4`: the driver may leave segmentation of TCP over IPv4 to us.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// `VIRTIO_NET_F_HOST_TSO6`: the same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// `VIRTIO_NET_F_HOST_ECN`: the same with congestion notification.
    pub const HOST_ECN: u64 = 1 << 13;
    /// `VIRTIO_NET_F_HOST_UFO`: the driver may leave fragmentation of UDP to us.
    pub const HOST_UFO: u64 = 1 << 14;
    /// `VIRTIO_NET_F_MRG_RXBUF`: a frame may span several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `VIRTIO_RING_F_INDIRECT_DESC`.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_ACCESS_PLATFORM`: addresses are those of the guest's IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// `VIRTIO_F_RING_PACKED`.
    pub const RING_PACKED: u64 = 1 << 34;
    /// `VIRTIO_F_IN_ORDER`: buffers come back in the order in which they were made available.
    pub const IN_ORDER: u64 = 1 << 35;
    /// `VIRTIO_NET_F_GUEST_USO4`: the driver takes UDP over IPv4 meant to be cut into datagrams.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// `VIRTIO_NET_F_GUEST_USO6`: the same over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// `VIRTIO_NET_F_HOST_USO`: the driver may leave cutting UDP into datagrams to us.
    pub const HOST_USO: u64 = 1 << 56;
}

/// What a front-end said about one vring before it started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Elements, as sent: judged by `activate`.
    pub size: u32,
    /// Descriptor table or ring, in the front-end's own addresses.
    pub desc_uva: u64,
    /// Available ring, or the driver's event area of a packed ring, likewise.
    pub avail_uva: u64,
    /// Used ring, or the device's event area of a packed ring, likewise.
    pub used_uva: u64,
    /// Where to start (`vhost-user: SET_VRING_BASE`): the available index, or the descriptor with its wrap counter in bit
    /// 15 of a packed ring.
    pub base: u16,
    /// Virtio features acknowledged.
    pub features: u64,
}

impl RingConfig {
    /// False while a migration still has to bring pages of the ring; they are asked for then.
    pub fn is_here(&self, memory: &GuestMap) -> bool {
        let areas = area_sizes(self.size, self.features);
        let uvas = [self.desc_uva, self.avail_uva, self.used_uva];
        // Every area is asked for, not only the first that is missing.
        !memory.is_incoming()
            || uvas.into_iter().zip(areas).fold(true, |all, (uva, size)| memory.is_here_at(Uva(uva), size) && all)
    }

    /// Checks everything and makes the ring usable.
    ///
    /// # Errors
    /// `Peer`: a size outside 1..=32768 or, of a split ring, no power of two; an address outside the memory table or
    /// misaligned, memory that the VMM keeps private, a base outside a packed ring, a kick or call descriptor that is no
    /// eventfd.
    pub fn activate(&self, memory: &Arc<GuestMap>, kick: Option<File>, call: Option<File>) -> Result<Ring> {
        check_size(self.size, self.features)?;
        if memory.is_private_at(Uva(self.desc_uva)) {
            return Err(Error::Peer(
                "guest memory is private to the VMM: what the guest writes never reaches this process; add share=on to \
                 its memory backend (libvirt: memAccess='shared')"
                    .into(),
            ));
        }
        let doorbell = Doorbell::new(kick, call)?;
        let kind = if self.features & feature::RING_PACKED == 0 {
            Kind::Split(SplitRing::new(self, memory, doorbell)?)
        } else {
            Kind::Packed(PackedRing::new(self, memory, doorbell)?)
        };
        Ok(Ring(kind))
    }

    /// As [`Self::activate`]; the ring writes down how far it is in the journal of `past`, and goes on where that knows it
    /// stood, if the ring agrees. What is in the way of going on is told beside the ring.
    ///
    /// # Errors
    /// As [`Self::activate`]; and `Peer` for a packed ring in use of which nobody knows where it stands.
    pub fn resume(
        &self,
        memory: &Arc<GuestMap>,
        kick: Option<File>,
        call: Option<File>,
        past: Option<Past>,
    ) -> Result<(Ring, Option<String>)> {
        let mut ring = self.activate(memory, kick, call)?;
        let note = past.map(|past| ring.take_up(past)).transpose()?.flatten();
        Ok((ring, note))
    }
}

/// Bytes of a ring's three areas under these features, as `SET_VRING_ADDR` names them: descriptors, available ring or driver
/// area, used ring or device area.
pub fn area_sizes(size: u32, features: u64) -> [u32; 3] {
    if features & feature::RING_PACKED != 0 { packed::sizes(size) } else { split::sizes(size) }
}

/// What a vring may have for a size under these features (virtio 1.2 §2.7, §2.8).
///
/// # Errors
/// `Peer`: it is outside 1..=32768 or, of a split ring, no power of two.
pub fn check_size(size: u32, features: u64) -> Result<()> {
    let is_packed = features & feature::RING_PACKED != 0;
    if (1..=32_768).contains(&size) && (is_packed || size.is_power_of_two()) {
        return Ok(());
    }
    let wanted = if is_packed { "in 1..32768" } else { "a power of two in 1..32768" };
    Err(Error::Peer(format!("a size of {size} is not {wanted}")))
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
    /// A head or next index points past the descriptor table, or a buffer id past the ring size.
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
    /// A descriptor changed between two looks at it.
    Changed,
    /// A page of guest memory went away.
    MemoryLost,
    /// A page of the dirty log went away.
    LogLost,
    /// The owner of its call descriptor made a call hang.
    CallJammed,
    /// Nobody's mistake: a page is still on its way here and was asked for. Try again when it came; nothing stops.
    Absent,
    /// Likewise: the guest's IOMMU was asked what an address means.
    Unmapped,
}

impl RingFault {
    /// True if nothing is wrong, and it has to be tried again.
    pub fn is_wait(self) -> bool {
        matches!(self, Self::Absent | Self::Unmapped)
    }
}

impl From<Unreachable> for RingFault {
    fn from(why: Unreachable) -> Self {
        match why {
            Unreachable::Outside => Self::Address,
            Unreachable::Absent => Self::Absent,
            Unreachable::Unmapped => Self::Unmapped,
        }
    }
}

impl std::fmt::Display for RingFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IndexJump => "its available index went back, or ahead by more than the ring size",
            Self::IndexRange => "a descriptor index or buffer id points past the table",
            Self::ChainLoop => "a descriptor chain loops",
            Self::BadIndirect => "an indirect descriptor table is malformed",
            Self::WrongDirection => "a buffer has the wrong direction",
            Self::Address => "a buffer lies outside the memory table",
            Self::ShortChain => "a buffer is too small for the virtio header",
            Self::LongChain => "a descriptor chain is longer than any frame",
            Self::Changed => "a descriptor was changed after it was made available",
            Self::Absent => "a page of guest memory is still on its way",
            Self::Unmapped => "an address that the guest's IOMMU has not translated yet",
            Self::CallJammed => "its call eventfd was made to block by whoever shares it",
            Self::LogLost => {
                "a page of its dirty log was taken away (its file was truncated or punched): a migration would lose \
                 what it receives"
            }
            Self::MemoryLost => "a page of guest memory was taken away (its file was truncated or punched)",
        })
    }
}
