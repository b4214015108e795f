// SPDX-License-Identifier: Apache-2.0
//! Frames longer than a packet, which ask to be cut: TSO, USO, UFO.
//!
//! ```text
//!  headers │ record │ pattern …      │ record │ pattern …      │ record │ pattern … │
//!          └─ gso_size bytes ───────┘└─ gso_size bytes ───────┘└─ the rest ────────┘
//!  record: sequence u64 │ stream u16 │ gso_size u16 │ index u16 │ pieces u15, ECN u1        all little-endian
//! ```
//! Every piece says what it is a piece of and where it belongs, so that a receiver judges it alone, or all of them in
//! one frame. What the headers of a piece must be follows from its index: TCP sequence number, IPv4 id, PSH in the last
//! and CWR in the first. A UFO datagram has one number: its fragments are no packets.
#![expect(
    clippy::cast_possible_truncation,
    reason = "pieces and their sizes are bounded by the 16-bit lengths of a frame"
)]

use super::plan::{Checksum, Network, PlanConfig, Transport};
use super::{Corruption, pattern};
use crate::testing::{Error, Result};

/// Bytes in front of a piece's pattern.
pub(super) const RECORD_SIZE: usize = 16;
const ECN_BIT: u16 = 1 << 15;

/// The TCP sequence number of every frame: it wraps within a long one.
const FIRST_SEQUENCE: u32 = 0xffff_f000;
/// The IPv4 id of every frame: it wraps with the third piece.
pub(super) const FIRST_ID: u16 = 0xfffe;
/// Timestamps (RFC 7323), with two no-operations before them.
pub(super) const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
const TCP_HEADER_SIZE: usize = 20 + TIMESTAMPS.len();

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Into what frames are to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segments.
    Segments,
    /// Datagrams.
    Datagrams,
    /// IP fragments of one datagram.
    Fragments,
}

/// How frames ask to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Into what.
    pub kind: GsoKind,
    /// Bytes of payload in a piece.
    pub size: u16,
    /// Whether CWR is set, which only the first segment may keep.
    pub ecn: bool,
}

impl Gso {
    /// `gso_type` of the vnet header.
    pub(super) fn number(self, network: Network) -> u8 {
        let number = match (self.kind, network) {
            (GsoKind::Segments, Network::V4) => GSO_TCPV4,
            (GsoKind::Segments, Network::V6) => GSO_TCPV6,
            (GsoKind::Datagrams, _) => GSO_UDP_L4,
            (GsoKind::Fragments, _) => GSO_UDP,
        };
        if self.ecn { number | GSO_ECN } else { number }
    }

    pub(super) fn pieces(self, payload: usize) -> usize {
        payload.div_ceil(usize::from(self.size))
    }

    /// Bytes at the end of a payload that would not hold a record.
    pub(super) fn surplus(self, payload: usize) -> usize {
        match payload % usize::from(self.size) {
            rest if self.kind != GsoKind::Fragments && rest < RECORD_SIZE => rest,
            _ => 0,
        }
    }

    /// Appends `payload` bytes: a record and a pattern per piece, the first numbered `first`, then every `step`th.
    pub(super) fn fill(self, payload: usize, stream: u16, first: u64, step: u64, bytes: &mut Vec<u8>) {
        let pieces = self.pieces(payload);
        let ecn = if self.ecn && pieces > 1 { ECN_BIT } else { 0 };
        let mut left = payload;
        for index in 0..pieces {
            let sequence = first + index as u64 * step;
            let size = left.min(usize::from(self.size));
            bytes.extend_from_slice(&sequence.to_le_bytes());
            for word in [stream, self.size, index as u16, pieces as u16 | ecn] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            let start = bytes.len();
            bytes.resize(start + size - RECORD_SIZE, 0);
            pattern::fill(pattern::seed(stream, sequence), &mut bytes[start..]);
            left -= size;
        }
    }
}

/// Refuses what no driver could ask for.
pub(super) fn check(config: &PlanConfig, gso: Gso) -> Result<()> {
    let wrong = |text: &str| Err(Error::Config(text.into()));
    if config.checksum != Checksum::Partial {
        return wrong("frames to be cut need a partial checksum: set checksum=partial");
    }
    if (gso.kind == GsoKind::Segments) != (config.transport == Transport::Tcp) {
        return wrong("segments are of TCP, datagrams and fragments of UDP: set transport to match gso");
    }
    if gso.ecn && gso.kind != GsoKind::Segments {
        return wrong("only TCP has ECN's CWR flag");
    }
    if usize::from(gso.size) < RECORD_SIZE + 1 {
        return Err(Error::Config(format!("gso-size {} is below {}", gso.size, RECORD_SIZE + 1)));
    }
    Ok(())
}

/// A TCP header from its sequence number on, without checksum: 8 words, timestamps.
pub(super) fn tcp_header(ecn: bool) -> impl Iterator<Item = u8> {
    let flags = ACK | PSH | if ecn { CWR } else { 0 };
    let fixed = [0, 0, 0, 1, 0x80, flags, 0xff, 0xff, 0, 0, 0, 0];
    FIRST_SEQUENCE.to_be_bytes().into_iter().chain(fixed).chain(TIMESTAMPS)
}

/// What one piece says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) stream: u16,
    size: u16,
    index: u16,
    pieces: u16,
    ecn: bool,
}

impl Record {
    /// Reads the record of a piece and checks the pattern after it.
    pub(super) fn read(piece: &[u8]) -> std::result::Result<Self, Corruption> {
        let (record, rest) = piece.split_first_chunk::<RECORD_SIZE>().ok_or(Corruption::Piece)?;
        let (sequence, words) = record.split_first_chunk::<8>().ok_or(Corruption::Piece)?;
        let sequence = u64::from_le_bytes(*sequence);
        let mut fields = words.as_chunks::<2>().0.iter().map(|word| u16::from_le_bytes(*word));
        let mut field = || fields.next().ok_or(Corruption::Piece);
        let (stream, size, index, last) = (field()?, field()?, field()?, field()?);
        if !pattern::matches(pattern::seed(stream, sequence), rest) {
            return Err(Corruption::Payload);
        }
        Ok(Self { sequence, stream, size, index, pieces: last & !ECN_BIT, ecn: last & ECN_BIT != 0 })
    }

    fn is_last(self) -> bool {
        self.index + 1 == self.pieces
    }

    /// Whether a piece that came alone is as long as it must be.
    fn has_len(self, len: usize) -> bool {
        if self.is_last() { len <= usize::from(self.size) } else { len == usize::from(self.size) }
    }

    /// Whether these pieces, found in one frame with this `gso_size`, are all of it and in order; gives the step from
    /// number to number.
    pub(super) fn agree(records: &[Self], gso_size: u16) -> Option<u64> {
        let (first, second) = (records.first()?, records.get(1)?);
        let step = second.sequence.checked_sub(first.sequence)?;
        let agrees = (0_u16..).zip(records).all(|(index, record)| {
            (record.stream, record.size, record.index) == (first.stream, gso_size, index)
                && usize::from(record.pieces) == records.len()
                && record.sequence == first.sequence.wrapping_add(step.wrapping_mul(u64::from(index)))
        });
        agrees.then_some(step)
    }

    /// Whether a frame of this one piece has the headers it must have. `whole` for one that was not cut.
    pub(super) fn matches_headers(self, headers: &PieceHeaders<'_>, len: usize, whole: bool) -> bool {
        let index = if whole { 0 } else { self.index };
        if !whole && !self.has_len(len) {
            return false;
        }
        if headers.id.is_some_and(|id| id != FIRST_ID.wrapping_add(index)) {
            return false;
        }
        let Some(tcp) = headers.tcp else { return true };
        let offset = u32::from(index) * u32::from(self.size);
        let mut expected: Vec<u8> = tcp_header(self.ecn && index == 0).collect();
        expected[..4].copy_from_slice(&FIRST_SEQUENCE.wrapping_add(offset).to_be_bytes());
        if !whole && !self.is_last() {
            expected[9] &= !PSH;
        }
        let Some(found) = tcp.get(4..TCP_HEADER_SIZE) else { return false };
        // All but the checksum, which was judged.
        found[..12] == expected[..12] && found[14..] == expected[14..]
    }
}

/// Headers that cutting changes.
#[derive(Debug)]
pub(super) struct PieceHeaders<'a> {
    /// The IPv4 id.
    pub(super) id: Option<u16>,
    /// The TCP header.
    pub(super) tcp: Option<&'a [u8]>,
}
