// SPDX-License-Identifier: Apache-2.0
//! The headers of numbered frames: where they are, and what they say.
#![expect(
    clippy::cast_possible_truncation,
    reason = "frame sizes are checked against 16-bit length fields when a plan is made"
)]

use std::ops::Range;

use super::cut::{self, GsoKind};
use super::plan::{Checksum, Network, PlanConfig, Transport};
use super::{CUT_PORT, IPV4, IPV6, Mac, NUMBERED_PORT, VLAN, VNET_NEEDS_CSUM, checksum};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Where the headers of a plan's frames are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers {
    pub(super) network_at: usize,
    pub(super) transport_at: usize,
    pub(super) protocol: u8,
    transport_size: usize,
    network: Network,
    by_piece: bool,
}

impl Headers {
    pub(super) fn new(config: &PlanConfig) -> Self {
        let network_at = if config.vlan.is_some() { 18 } else { 14 };
        let network_size = match config.network {
            Network::V4 => 20,
            Network::V6 => 40,
        };
        let by_piece = config.gso.is_some_and(|gso| gso.kind != GsoKind::Fragments);
        let (protocol, transport_size) = match config.transport {
            Transport::Udp => (UDP, 8),
            // Frames to be cut have timestamps, as Linux's do.
            Transport::Tcp if by_piece => (TCP, 20 + cut::TIMESTAMPS.len()),
            Transport::Tcp => (TCP, 20),
        };
        let transport_at = network_at + network_size;
        Self { network_at, transport_at, protocol, transport_size, network: config.network, by_piece }
    }

    /// Bytes of all headers.
    pub(super) fn size(&self) -> usize {
        self.transport_at + self.transport_size
    }

    pub(super) fn is_numbered_by_piece(&self) -> bool {
        self.by_piece
    }

    /// The largest frame whose lengths can be told: IPv4 counts its header in, IPv6 does not.
    pub(super) fn largest_frame(&self) -> usize {
        let counted_from = match self.network {
            Network::V4 => self.network_at,
            Network::V6 => self.transport_at,
        };
        counted_from + usize::from(u16::MAX)
    }

    pub(super) fn checksum_at(&self) -> usize {
        self.transport_at + if self.protocol == UDP { 6 } else { 16 }
    }

    pub(super) fn addresses(&self) -> Range<usize> {
        match self.network {
            Network::V4 => self.network_at + 12..self.network_at + 20,
            Network::V6 => self.network_at + 8..self.network_at + 40,
        }
    }

    /// vnet header and headers of a frame of `size` bytes; the transport's checksum is left zero.
    pub(super) fn template(&self, config: &PlanConfig, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; config.header_size];
        if config.checksum == Checksum::Partial {
            bytes[0] = VNET_NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&(self.transport_at as u16).to_le_bytes());
            let offset = (self.checksum_at() - self.transport_at) as u16;
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        let payload = size - self.size();
        let cut = config.gso.filter(|gso| payload > usize::from(gso.size));
        if let Some(gso) = cut {
            bytes[1] = gso.number(config.network);
            bytes[2..4].copy_from_slice(&(self.size() as u16).to_le_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        bytes.extend(config.destination.0);
        bytes.extend(config.source.0);
        if let Some(id) = config.vlan {
            bytes.extend(VLAN.to_be_bytes());
            bytes.extend((id & 0xfff).to_be_bytes());
        }
        match config.network {
            Network::V4 => {
                bytes.extend(IPV4.to_be_bytes());
                bytes.extend(self.ipv4_header(config, size - self.network_at));
            }
            Network::V6 => {
                bytes.extend(IPV6.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(((size - self.transport_at) as u16).to_be_bytes());
                bytes.extend([self.protocol, 64]);
                bytes.extend(ipv6_address(config.source));
                bytes.extend(ipv6_address(config.destination));
            }
        }
        bytes.extend(1024_u16.to_be_bytes());
        bytes.extend(if self.by_piece { CUT_PORT } else { NUMBERED_PORT }.to_be_bytes());
        match config.transport {
            Transport::Udp => {
                bytes.extend(((size - self.transport_at) as u16).to_be_bytes());
                bytes.extend([0; 2]);
            }
            Transport::Tcp if self.by_piece => bytes.extend(cut::tcp_header(cut.is_some_and(|gso| gso.ecn))),
            // Sequence and acknowledgement 1, header of 5 words, ACK, a full window.
            Transport::Tcp => bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]),
        }
        bytes
    }

    fn ipv4_header(&self, config: &PlanConfig, total: usize) -> [u8; 20] {
        let [high, low] = (total as u16).to_be_bytes();
        // What is to be fragmented must allow it.
        let fragments = config.gso.is_some_and(|gso| gso.kind == GsoKind::Fragments);
        let allowed = if fragments { 0 } else { 0x40 };
        let [id, id_low] = if self.by_piece { cut::FIRST_ID.to_be_bytes() } else { [0, 0] };
        let mut header =
            [0x45, 0, high, low, id, id_low, allowed, 0, 64, self.protocol, 0, 0, 10, 0, 0, 0, 10, 0, 0, 0];
        header[13..16].copy_from_slice(&config.source.0[3..]);
        header[17..20].copy_from_slice(&config.destination.0[3..]);
        let sum = !checksum::sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }
}

fn ipv6_address(mac: Mac) -> [u8; 16] {
    let mut address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    address[8..11].copy_from_slice(&mac.0[..3]);
    address[13..].copy_from_slice(&mac.0[3..]);
    address
}
