// SPDX-License-Identifier: Apache-2.0
//! Numbered, patterned frames: built, recognised, verified.
//!
//! ```text
//!  vnet header │ ethernet │ IPv4 or IPv6 │ UDP or TCP │ sequence u64 │ stream u16 │ pattern …
//! ```
//! A frame says everything needed to judge it: which stream it is of, its place in the stream, and
//! by its place every byte of its payload. So a receiver in another process can verify it, and no
//! two frames of a run are alike.
//!
//! Frames to be cut (TSO, USO) hold a number and a pattern in every piece, so that pieces and whole frames are judged
//! alike; datagrams to be fragmented (UFO) are put together first.
//!
//! * [`FramePlan`] builds them. * [`Inspector`] judges them. * [`Tracker`] keeps account of a stream.

pub mod checksum;
pub mod pattern;

mod cut;
mod fragments;
mod headers;
mod inspect;
mod layers;
mod mac;
mod plan;
mod sequence;

pub use cut::{Gso, GsoKind};
pub use fragments::{Arrival, Reassembly};
pub use inspect::{Corruption, Inspector, Verdict, inspect_number};
pub use mac::Mac;
pub use plan::{Checksum, FramePlan, Network, PlanConfig, Transport, announcement};
pub use sequence::{Account, Tracker};

/// The destination port of numbered frames.
pub const NUMBERED_PORT: u16 = 0xaa55;
/// The destination port of frames that have a number in every piece.
pub const CUT_PORT: u16 = 0xaa56;
/// Bytes of sequence and stream number.
pub const NUMBER_SIZE: usize = 10;

/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// `EtherType` of RARP, which announces an address.
pub const RARP: u16 = 0x8035;

/// vnet header flag: the checksum is partial, to be completed.
pub const VNET_NEEDS_CSUM: u8 = 1;
/// vnet header flag: the checksum was verified.
pub const VNET_DATA_VALID: u8 = 2;

/// Bytes of the vnet header: 12 with `VERSION_1` or `MRG_RXBUF`, else 10.
pub fn vnet_header_size(features: u64) -> usize {
    use super::wire::features::{MRG_RXBUF, VERSION_1};
    if features & (VERSION_1 | MRG_RXBUF) == 0 { 10 } else { 12 }
}
