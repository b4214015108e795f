//! Guest memory: which regions a front-end shared, where they are mapped here, and how bytes move.
//!
//! ```text
//!   front-end ──fd──▶ Region (one mmap of one file) ─┐
//!   front-end ──fd──▶ Region                         ├─▶ GuestMap: immutable, shared by Arc; iova/gpa/uva → Span
//!   front-end ──fd──▶ Region ────────────────────────┘      ▲
//!   front-end ──UPDATE, INVALIDATE──▶ Iotlb ────────────────┘   of a guest with an IOMMU
//! ```
//!
//! Invariants: a [`Span`] comes only from a translation, so its bytes lie in one mapping of the `GuestMap` it came
//! from; whoever keeps a span keeps that map's `Arc`. No reference (`&`, `&mut`) into guest memory ever exists: the
//! guest writes there whenever it likes. A page that the front-end takes away (truncated or punched file) turns into
//! zeroes by `sigbus` and marks its map broken.

pub mod access;
mod area;
pub mod copy;
mod dirty_log;
mod incoming;
mod iotlb;
mod landing;
mod map;
mod mapping;
mod region;
mod residency;
pub mod sigbus;
mod tlb;
mod window;
mod words;

pub use area::Area;
pub use dirty_log::{DirtyLog, Logging, Marks};
pub use incoming::{Incoming, Progress};
pub use iotlb::{Access, Iotlb, MAPPINGS_MAX, Need};
pub use map::{GuestMap, Hint, Located, Place, RegionSpec, Span, Stretch, Unreachable};
pub use tlb::Tlb;
pub use window::{Places, Window};
pub use words::Words;

/// An address as the device is given it, in descriptors: guest-physical, unless the guest has an IOMMU before the device;
/// then it is what that translates, and ring addresses are so too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// An address in the guest's physical memory, as the memory table and the dirty log have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// An address in the front-end's own address space, as ring addresses are sent where there is no IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uva(pub u64);
