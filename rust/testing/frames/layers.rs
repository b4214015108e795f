// SPDX-License-Identifier: Apache-2.0
//! Where the layers of a received frame are: Ethernet, an 802.1Q tag, IPv4 or IPv6, UDP or TCP.
//!
//! Total over any bytes; a frame of anything else has no layers.

use std::ops::Range;

use super::{IPV4, IPV6, VLAN};

/// Next header of an IPv6 fragment.
pub(super) const FRAGMENT: u8 = 44;

/// Where a frame's layers are.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    pub(super) network_at: usize,
    pub(super) transport_at: usize,
    pub(super) protocol: u8,
    pub(super) addresses: Range<usize>,
    /// Bytes that the lengths claim, all headers included.
    pub(super) claimed: usize,
    pub(super) is_v4: bool,
}

impl Layers {
    /// Finds them; `None` for what is neither UDP nor TCP, nor an IPv6 fragment.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let network_at = if word(frame, 12)? == VLAN { 18 } else { 14 };
        let is_v4 = match word(frame, network_at - 2)? {
            IPV4 => true,
            IPV6 => false,
            _ => return None,
        };
        let layers = if is_v4 {
            Self {
                network_at,
                transport_at: network_at + 20,
                protocol: *frame.get(network_at + 9)?,
                addresses: network_at + 12..network_at + 20,
                claimed: network_at + usize::from(word(frame, network_at + 2)?),
                is_v4,
            }
        } else {
            Self {
                network_at,
                transport_at: network_at + 40,
                protocol: *frame.get(network_at + 6)?,
                addresses: network_at + 8..network_at + 40,
                claimed: network_at + 40 + usize::from(word(frame, network_at + 4)?),
                is_v4,
            }
        };
        matches!(layers.protocol, 6 | 17 | FRAGMENT).then_some(layers)
    }
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}
