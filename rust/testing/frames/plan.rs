// SPDX-License-Identifier: Apache-2.0
//! Building numbered frames.
//!
//! Invariant: the bytes of a frame follow from the plan, its turn and its first number alone.
#![expect(
    clippy::cast_possible_truncation,
    reason = "frame sizes are checked against 16-bit length fields at construction"
)]

use super::cut::{self, Gso, RECORD_SIZE};
use super::headers::Headers;
use super::{Mac, NUMBER_SIZE, RARP};
use super::{checksum, pattern};
use crate::testing::memory::Window;
use crate::testing::{Error, Result};

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
    /// VLAN id of an 802.1Q tag, if there is to be one.
    pub vlan: Option<u16>,
    /// How long frames ask to be cut; needs a partial checksum.
    pub gso: Option<Gso>,
}

/// A checked plan for the frames of one stream.
#[derive(Clone, Debug)]
pub struct FramePlan {
    config: PlanConfig,
    headers: Headers,
    /// vnet header and all headers of a frame, one per size; lengths and IPv4 sum are final.
    templates: Vec<Vec<u8>>,
    lines: Option<Vec<[u8; 64]>>,
}

impl FramePlan {
    /// Checks sizes and flows, and prepares the headers. Of a frame to be cut, a last piece too short for its number is
    /// left off.
    ///
    /// # Errors
    /// `Config` when a size does not hold the headers and the number, flows are out of range, or frames cannot be cut
    /// that way.
    pub fn new(mut config: PlanConfig) -> Result<Self> {
        let headers = Headers::new(&config);
        let number = if headers.is_numbered_by_piece() { RECORD_SIZE } else { NUMBER_SIZE };
        let (smallest, largest) = (headers.size() + number, headers.largest_frame());
        if config.sizes.is_empty() || !(1..=32_768).contains(&config.flows) {
            return Err(Error::Config("a plan needs a frame size and 1 to 32768 flows".into()));
        }
        if let Some(size) = config.sizes.iter().find(|&&size| !(smallest..=largest).contains(&size)) {
            return Err(Error::Config(format!(
                "frame size {size} is not between {smallest} and {largest} for these headers"
            )));
        }
        if let Some(gso) = config.gso {
            cut::check(&config, gso)?;
            for size in &mut config.sizes {
                *size -= gso.surplus(*size - headers.size());
            }
        }
        let mut plan = Self { config, headers, templates: Vec::new(), lines: None };
        plan.templates = plan.config.sizes.iter().map(|&size| plan.headers.template(&plan.config, size)).collect();
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
        self.renew_line(sequence, window, at);
    }

    /// Makes the frame at `sequence` of one that [`write_line`](Self::write_line) wrote at the same place, with the same
    /// size: what a light sender writes of a frame that it sends again.
    #[inline]
    pub fn renew_line(&self, sequence: u64, window: &Window, at: usize) {
        let base = at + self.config.header_size;
        window.write(base + self.headers.size(), &sequence.to_le_bytes());
        if self.config.destinations > 1 {
            window.write(base, &self.destination(sequence).0);
        }
        if self.config.flows != 1 {
            window.write(base + self.headers.transport_at, &self.source_port(sequence).to_be_bytes());
        }
    }

    /// Whether frames have a number in every piece, so that [`build_cut`](Self::build_cut) makes them.
    pub fn is_numbered_by_piece(&self) -> bool {
        self.headers.is_numbered_by_piece()
    }

    /// The pieces of the frame at `turn`, each with a number of its own.
    pub fn pieces(&self, turn: u64) -> u64 {
        match self.config.gso {
            Some(gso) if self.is_numbered_by_piece() => gso.pieces(self.size(turn) - self.headers.size()) as u64,
            _ => 1,
        }
    }

    /// Builds vnet header and frame at `sequence` into `bytes`, whose content is replaced.
    pub fn build(&self, sequence: u64, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.templates[self.turn(sequence)]);
        self.name_flow_and_station(sequence, bytes);
        let size = self.config.header_size + self.size(sequence);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&self.config.stream.to_le_bytes());
        let start = bytes.len();
        bytes.resize(size, 0);
        pattern::fill(pattern::seed(self.config.stream, sequence), &mut bytes[start..]);
        self.finish_checksum(&mut bytes[self.config.header_size..]);
    }

    /// Builds vnet header and frame at `turn` into `bytes`, whose content is replaced. Its first piece has the number
    /// `first`, the next one that of the next frame of the same flow, and so on.
    pub fn build_cut(&self, turn: u64, first: u64, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.templates[self.turn(turn)]);
        self.name_flow_and_station(first, bytes);
        let Some(gso) = self.config.gso else { return };
        let payload = self.size(turn) - self.headers.size();
        gso.fill(payload, self.config.stream, first, self.config.flows.into(), bytes);
        self.finish_checksum(&mut bytes[self.config.header_size..]);
    }

    fn name_flow_and_station(&self, sequence: u64, bytes: &mut [u8]) {
        let base = self.config.header_size;
        bytes[base..base + 6].copy_from_slice(&self.destination(sequence).0);
        let at = base + self.headers.transport_at;
        bytes[at..at + 2].copy_from_slice(&self.source_port(sequence).to_be_bytes());
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

    fn finish_checksum(&self, frame: &mut [u8]) {
        if self.config.checksum == Checksum::Zero {
            return;
        }
        let headers = &self.headers;
        let at = headers.checksum_at();
        let len = frame.len() - headers.transport_at;
        let pseudo = checksum::pseudo_header(&frame[headers.addresses()], headers.protocol, len);
        let value = if self.config.checksum == Checksum::Partial {
            pseudo
        } else {
            match !checksum::add(pseudo, checksum::sum(&frame[headers.transport_at..])) {
                0 => 0xffff,
                sum => sum,
            }
        };
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn lines(&self) -> Option<Vec<[u8; 64]>> {
        let end = self.config.header_size + self.headers.size() + NUMBER_SIZE;
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
