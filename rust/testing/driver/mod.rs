// SPDX-License-Identifier: Apache-2.0
//! The driver's half of a virtqueue, over raw guest memory; no sockets, no threads.
//!
//! * [`SplitRing`]: the ring itself: indices, descriptors, notification arithmetic. It writes what
//!   it is told, so that a hostile driver can be built on it.
//! * [`SplitDriver`]: chains of any shape with a free list, for tests, benches and fuzz targets.
//! * [`SlotRing`]: fixed buffers, each with its descriptors written ahead, for traffic at full rate.
//!
//! What the device writes (used index, ids, lengths) is checked before it is used: a device that
//! breaks the rules is counted in [`Violations`], never trusted.

mod shape;
mod slots;
mod split;
mod split_ring;
mod violations;

pub use shape::{Layout, Shape};
pub use slots::{SlotRing, SlotRingConfig};
pub use split::{Segment, SplitDriver, Used};
pub use split_ring::{Descriptor, RingPlace, SplitRing};
pub use violations::Violations;

/// Descriptor flag: another one follows.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes it.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: it points to a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
