// SPDX-License-Identifier: Apache-2.0
//! The driver's half of a virtqueue, over raw guest memory; no sockets, no threads.
//!
//! * [`SplitRing`], [`PackedRing`]: the rings themselves: indices or wrap counters, descriptors, notification
//!   arithmetic. They write what they are told, so that a hostile driver can be built on them. Behind [`RingFormat`]
//!   they look alike.
//! * [`SplitDriver`], [`PackedDriver`]: chains of any shape with a free list, for tests and benches;
//!   behind [`ChainDriver`] they look alike.
//! * [`SlotRing`]: fixed buffers over either format, for traffic at full rate; with split rings each slot has its
//!   descriptors written ahead.
//!
//! What the device writes (used index, flags, ids, lengths) is checked before it is used: a device that breaks the
//! rules is counted in [`Violations`], never trusted.

mod chains;
mod format;
mod in_order;
mod packed;
mod packed_descriptor;
mod packed_ring;
mod place;
mod round;
mod shape;
mod slot_ring;
mod slots;
mod split;
mod split_descriptor;
mod split_ring;
mod violations;

pub use chains::ChainDriver;
pub use format::{RingFormat, Segment};
pub use packed::PackedDriver;
pub use packed_descriptor::{Cursor, PackedDescriptor};
pub use packed_ring::PackedRing;
pub use place::RingPlace;
pub use round::RoundFormat;
pub use shape::{Layout, Shape};
pub use slot_ring::SlotRing;
pub(crate) use slot_ring::either;
pub use slots::{SlotRingConfig, Slots};
pub use split::{SplitDriver, Used};
pub use split_descriptor::Descriptor;
pub use split_ring::SplitRing;
pub use violations::Violations;

/// Descriptor flag: another one follows.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes it.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: it points to a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Descriptor flag, packed: the driver's wrap counter when it was made available.
pub const DESC_AVAILABLE: u16 = 0x80;
/// Descriptor flag, packed: the device's wrap counter when it was used.
pub const DESC_USED: u16 = 0x8000;
