// SPDX-License-Identifier: Apache-2.0
//! Building numbered frames.
//!
//! Invariant: the bytes of a frame follow from the plan and its sequence number alone.
#![expect(
    clippy::cast_possible_truncation,
    reason = "frame sizes are checked against 16-bit length fields at construction"
)]

use super::{IPV4, IPV6, Mac, NUMBER_SIZE, NUMBERED_PORT, RARP, VNET_NEEDS_CSUM};
use super::{checksum, pattern};
use crate::testing::memory::Window;
use crate::testing::{Error, Result};

const ETHERNET_SIZE: usize = 14;
const LARGEST: usize = 65_535;

/// Which network header frames have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// 20 bytes.
    V4,
    /// 40 bytes.
    V6,
}

/// Which transport header frames have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// 8 bytes.
    Udp,
    /// 20 bytes.
    Tcp,
}

/// What stands in the transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The right sum.
    Good,
    /// The pseudo-header's sum, with the vnet header asking to complete it (needs `CSUM`).
    Partial,
    /// Zero: "none" for UDP over IPv4.
    Zero,
}

/// What frames are to be like.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// Source address.
    pub source: Mac,
    /// Destination address.
    pub destination: Mac,
    /// Addresses from `destination` on that frames go to in turn; at least 1.
    pub destinations: u32,
    /// Network header.
    pub network: Network,
    /// Transport header.
    pub transport: Transport,
    /// Transport checksum.
    pub checksum: Checksum,
    /// Flows, told apart by source port; 1 to 32768.
    pub flows: u16,
    /// Frame sizes in bytes without FCS, taken in turn.
    pub sizes: Vec<usize>,
    /// The stream number.
    pub stream: u16,
    /// Bytes of the vnet header.
    pub header_size: usize,
}

/// A checked plan for the frames of one stream.
#[derive(Clone, Debug)]
pub struct FramePlan {
    config: PlanConfig,
    transport_at: usize,
    number_at: usize,
    /// vnet header and all headers of a frame, one per size; lengths and IPv4 sum are final.
    templates: Vec<Vec<u8>>,
    lines: Option<Vec<[u8; 64]>>,
}

impl FramePlan {
    /// Checks sizes and flows, and prepares the headers.
    ///
    /// # Errors
    /// `Config` when a size does not hold the headers and the number, or flows are out of range.
    pub fn new(config: PlanConfig) -> Result<Self> {
        let network = match config.network {
            Network::V4 => 20,
            Network::V6 => 40,
        };
        let transport = match config.transport {
            Transport::Udp => 8,
            Transport::Tcp => 20,
        };
        let transport_at = ETHERNET_SIZE + network;
        let number_at = transport_at + transport;
        let smallest = number_at + NUMBER_SIZE;
        if config.sizes.is_empty() || !(1..=32_768).contains(&config.flows) {
            return Err(Error::Config("a plan needs a frame size and 1 to 32768 flows".into()));
        }
        if let Some(size) = config.sizes.iter().find(|&&size| !(smallest..LARGEST).contains(&size)) {
            return Err(Error::Config(format!(
                "frame size {size} is not between {smallest} and {LARGEST} for these headers"
            )));
        }
        let mut plan = Self { config, transport_at, number_at, templates: Vec::new(), lines: None };
        plan.templates = plan.config.sizes.iter().map(|&size| plan.headers(size)).collect();
        plan.lines = plan.lines();
        Ok(plan)
    }

    /// The plan's configuration.
    pub fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// The largest frame, vnet header not included.
    pub fn largest(&self) -> usize {
        self.config.sizes.iter().copied().max().unwrap_or(0)
    }

    /// The frame size at `sequence`, vnet header not included.
    #[inline]
    pub fn size(&self, sequence: u64) -> usize {
        self.config.sizes[self.turn(sequence)]
    }

    /// Whether headers and number of these frames fit the first cache line, so that
    /// [`write_line`](Self::write_line) can be used.
    pub fn has_lines(&self) -> bool {
        self.lines.is_some()
    }

    /// Writes the first 64 bytes (vnet header included) of the frame at `sequence`, checksum zero:
    /// all that a light sender writes. Nothing when there are no [lines](Self::has_lines).
    #[inline]
    pub fn write_line(&self, sequence: u64, window: &Window, at: usize) {
        let Some(lines) = &self.lines else { return };
        // Straight into guest memory: patching a copy first would stall on the copy's own stores.
        window.write_line(at, &lines[self.turn(sequence)]);
        let base = at + self.config.header_size;
        window.write(base + self.number_at, &sequence.to_le_bytes());
        if self.config.destinations > 1 {
            window.write(base, &self.destination(sequence).0);
        }
        if self.config.flows != 1 {
            window.write(base + self.transport_at, &self.source_port(sequence).to_be_bytes());
        }
    }

    /// Builds vnet header and frame at `sequence` into `bytes`, whose content is replaced.
    pub fn build(&self, sequence: u64, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.templates[self.turn(sequence)]);
        let base = self.config.header_size;
        let size = base + self.size(sequence);
        let port = base + self.transport_at;
        bytes[port..port + 2].copy_from_slice(&self.source_port(sequence).to_be_bytes());
        bytes[base..base + 6].copy_from_slice(&self.destination(sequence).0);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&self.config.stream.to_le_bytes());
        let start = bytes.len();
        bytes.resize(size, 0);
        pattern::fill(pattern::seed(self.config.stream, sequence), &mut bytes[start..]);
        self.finish_checksum(&mut bytes[base..]);
    }

    #[inline]
    fn turn(&self, sequence: u64) -> usize {
        match self.config.sizes.len() {
            1 => 0,
            count => (sequence % count as u64) as usize,
        }
    }

    #[inline]
    fn source_port(&self, sequence: u64) -> u16 {
        1024 + (sequence % u64::from(self.config.flows)) as u16
    }

    #[inline]
    fn destination(&self, sequence: u64) -> Mac {
        self.config.destination.plus((sequence % u64::from(self.config.destinations.max(1))) as u32)
    }

    fn checksum_at(&self) -> usize {
        self.transport_at
            + match self.config.transport {
                Transport::Udp => 6,
                Transport::Tcp => 16,
            }
    }

    fn finish_checksum(&self, frame: &mut [u8]) {
        if self.config.checksum == Checksum::Zero {
            return;
        }
        let at = self.checksum_at();
        let addresses = match self.config.network {
            Network::V4 => 26..34,
            Network::V6 => 22..54,
        };
        let protocol = protocol_number(self.config.transport);
        let len = frame.len() - self.transport_at;
        let pseudo = checksum::pseudo_header(&frame[addresses], protocol, len);
        let value = if self.config.checksum == Checksum::Partial {
            pseudo
        } else {
            match !checksum::add(pseudo, checksum::sum(&frame[self.transport_at..])) {
                0 => 0xffff,
                sum => sum,
            }
        };
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn headers(&self, size: usize) -> Vec<u8> {
        let config = &self.config;
        let mut bytes = vec![0; config.header_size];
        if config.checksum == Checksum::Partial {
            bytes[0] = VNET_NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&(self.transport_at as u16).to_le_bytes());
            let offset = (self.checksum_at() - self.transport_at) as u16;
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        bytes.extend(config.destination.0);
        bytes.extend(config.source.0);
        let protocol = protocol_number(config.transport);
        match config.network {
            Network::V4 => {
                bytes.extend(IPV4.to_be_bytes());
                bytes.extend(ipv4_header(config, size - ETHERNET_SIZE, protocol));
            }
            Network::V6 => {
                bytes.extend(IPV6.to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(((size - self.transport_at) as u16).to_be_bytes());
                bytes.extend([protocol, 64]);
                bytes.extend(ipv6_address(config.source));
                bytes.extend(ipv6_address(config.destination));
            }
        }
        bytes.extend(1024_u16.to_be_bytes());
        bytes.extend(NUMBERED_PORT.to_be_bytes());
        match config.transport {
            Transport::Udp => {
                bytes.extend(((size - self.transport_at) as u16).to_be_bytes());
                bytes.extend([0; 2]);
            }
            // Sequence and acknowledgement 1, header of 5 words, ACK, a full window.
            Transport::Tcp => bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]),
        }
        bytes
    }

    fn lines(&self) -> Option<Vec<[u8; 64]>> {
        let end = self.config.header_size + self.number_at + NUMBER_SIZE;
        if end > 64 || self.config.checksum != Checksum::Zero {
            return None;
        }
        let line = |template: &Vec<u8>| {
            let mut line = [0; 64];
            line[..template.len()].copy_from_slice(template);
            line[end - 2..end].copy_from_slice(&self.config.stream.to_le_bytes());
            line
        };
        Some(self.templates.iter().map(line).collect())
    }
}

fn protocol_number(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 17,
        Transport::Tcp => 6,
    }
}

fn ipv4_header(config: &PlanConfig, total: usize, protocol: u8) -> [u8; 20] {
    let [high, low] = (total as u16).to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 0, 10, 0, 0, 0];
    header[13..16].copy_from_slice(&config.source.0[3..]);
    header[17..20].copy_from_slice(&config.destination.0[3..]);
    let sum = !checksum::sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6_address(mac: Mac) -> [u8; 16] {
    let mut address = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    address[8..11].copy_from_slice(&mac.0[..3]);
    address[13..].copy_from_slice(&mac.0[3..]);
    address
}

/// vnet header and a broadcast RARP frame of `source`, as QEMU announces a guest: a learning
/// switch knows the address after it.
pub fn announcement(source: Mac, header_size: usize) -> Vec<u8> {
    let mut bytes = vec![0; header_size];
    bytes.extend(Mac::BROADCAST.0);
    bytes.extend(source.0);
    bytes.extend(RARP.to_be_bytes());
    // Ethernet, IPv4, request reverse.
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        bytes.extend(source.0);
        bytes.extend([0; 4]);
    }
    bytes.resize(header_size + 64, 0);
    bytes
}
