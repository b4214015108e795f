//! Cutting a frame that is too long for its receiver: which bytes each piece has, and what its headers say.
//!
//! ```text
//!   frame      │ headers │ payload ────────────────────────────────────────────▶ │
//!   TSO, USO   │ headers'│ size │  │ headers'│ size │  …  │ headers'│ rest │         every one a whole packet
//!   UFO        │ headers' (+ Fragment header)│ UDP, size │  …                        one packet in IP fragments
//! ```
//!
//! A [`Plan`] is the judgement of one frame, made from a snapshot of its first bytes and used for every piece and every
//! receiver: a sender that changes its headers meanwhile changes nothing. `hdr_len` is never looked at. Pure
//! arithmetic: no piece is copied here.

use std::hash::{BuildHasher, RandomState};

use super::checksum::Sum;
use super::ip::{self, Network, Version, v4, v6};
use super::vnet_hdr::{GsoRequest, GsoType};

/// Most bytes of a frame that are looked at for its headers: two tags, IPv6 with 100 bytes of extension headers and
/// the longest TCP header fit.
pub const HEAD_SIZE: usize = 256;
/// Most bytes of headers that a piece can have: those and an IPv6 Fragment header.
pub const PIECE_HEAD_SIZE: usize = HEAD_SIZE + FRAGMENT_HEADER;
/// Most pieces a frame may ask to be cut into. No stack goes below 32 bytes of payload in a frame of 64 KiB; what does
/// only wants to make us work.
pub const MAX_PIECES: u32 = 2048;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 Fragment header (RFC 8200 §4.5): its number and its bytes.
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER: usize = 8;

/// Where a TCP header (RFC 9293 §3.1) has its parts.
mod tcp {
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    pub(super) const CHECKSUM: usize = 16;
    pub(super) const SIZE: usize = 20;
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const CWR: u8 = 0x80;
}

/// Where a UDP header (RFC 768) has its parts.
mod udp {
    pub(super) const LENGTH: usize = 4;
    pub(super) const CHECKSUM: usize = 6;
    pub(super) const SIZE: usize = 8;
}

/// How one frame is cut. Every offset lies inside the snapshot it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    gso_type: GsoType,
    network: Network,
    /// Bytes that every piece begins with, before they are made its own.
    head_size: usize,
    /// Bytes after them.
    payload: u32,
    /// Most of those in a piece, not 0.
    size: u32,
    count: u32,
    /// Bytes of all headers, the transport's included.
    header_len: u16,
}

/// One piece: the headers were written by [`Plan::piece`], the payload is the frame's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of its headers.
    pub head_size: usize,
    /// Where in the frame its payload starts.
    pub from: u32,
    /// How long that is.
    pub len: u32,
    /// First byte of the piece that its transport checksum covers. The headers hold what is to be added to it.
    pub sum_from: usize,
    /// Where in the piece the checksum goes; None in all but the first of a datagram's fragments.
    pub checksum_at: Option<usize>,
}

impl Plan {
    /// Judges a frame of `frame_len` bytes by `head`, its first 256 bytes or all of them. None if its headers do not say
    /// what the virtio header says, do not end within `head`, or lie about lengths; or if it would make too many pieces.
    pub fn new(head: &[u8], frame_len: u32, request: GsoRequest) -> Option<Self> {
        let head = head.get(..HEAD_SIZE).unwrap_or(head);
        let network = ip::parse(head)?;
        let frame_end = usize::try_from(frame_len).ok()?;
        let (version, protocol) = match request.gso_type {
            GsoType::Tcp4 => (Version::V4, TCP),
            GsoType::Tcp6 => (Version::V6, TCP),
            GsoType::UdpFragments | GsoType::Udp => (network.version, UDP),
        };
        if network.version != version
            || network.protocol != protocol
            || network.transport != usize::from(request.transport)
            || network.end != frame_end
        {
            return None;
        }
        let header_end = if protocol == TCP { tcp_end(head, network.transport)? } else { udp_end(head, &network)? };
        // The snapshot is no longer than the frame, so headers within it are within the frame.
        if header_end > head.len().min(frame_end) {
            return None;
        }
        let (head_size, size) = if request.gso_type == GsoType::UdpFragments {
            let size = u32::from(request.size) & !7;
            // All headers travel in the first fragment (RFC 8200 §4.5).
            if usize::try_from(size).ok()? < header_end - network.fragmentable {
                return None;
            }
            (network.fragmentable, size)
        } else {
            (header_end, u32::from(request.size))
        };
        let payload = frame_len - u32::try_from(head_size).ok()?;
        let count = payload.div_ceil(size).max(1);
        if count > MAX_PIECES {
            return None;
        }
        let header_len = u16::try_from(header_end).ok()?;
        Some(Self { gso_type: request.gso_type, network, head_size, payload, size, count, header_len })
    }

    /// Bytes of the frame's own headers, Ethernet to transport.
    pub fn header_len(&self) -> u16 {
        self.header_len
    }

    /// True for IPv6.
    pub fn is_v6(&self) -> bool {
        self.network.version == Version::V6
    }

    /// Pieces, 1 to [`MAX_PIECES`].
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the longest piece: what the frame is on a wire.
    pub fn longest(&self) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "at most PIECE_HEAD_SIZE")]
        let head_size = (self.head_size + self.inserted()) as u32;
        head_size + self.payload.min(self.size)
    }

    /// Bytes of the last piece. All before it are as long as the longest.
    pub fn last(&self) -> u32 {
        self.longest() - self.payload.min(self.size) + (self.payload - (self.count - 1) * self.size)
    }

    /// True if the pieces are fragments of one datagram, whose one checksum covers them all.
    pub fn is_fragmented(&self) -> bool {
        self.gso_type == GsoType::UdpFragments && self.count > 1
    }

    /// Bytes put into the headers of each piece.
    fn inserted(&self) -> usize {
        if self.is_fragmented() && self.is_v6() { FRAGMENT_HEADER } else { 0 }
    }

    /// Writes the headers of the `n`-th piece, made from the snapshot that the plan was made from. `ident` identifies
    /// the datagram among those between its two addresses, where its own headers cannot.
    pub fn piece(&self, n: u32, head: &[u8], ident: u32, out: &mut [u8; PIECE_HEAD_SIZE]) -> Piece {
        let start = n.saturating_mul(self.size).min(self.payload);
        let len = (self.payload - start).min(self.size);
        #[allow(clippy::cast_possible_truncation, reason = "at most HEAD_SIZE")]
        let from = self.head_size as u32 + start;
        if self.is_fragmented() {
            return self.fragment(n, head, ident, out, (start, len));
        }
        // What came as fragments and fits one packet is a datagram with its own headers.
        let head_size = usize::from(self.header_len);
        #[allow(clippy::cast_possible_truncation, reason = "at most HEAD_SIZE")]
        let in_head = (head_size - self.head_size) as u32;
        let (from, len) = (from + in_head, len - in_head.min(len));
        copy(out, 0, head, head_size);
        let transport = self.network.transport;
        let segment = (head_size - transport) + len as usize;
        self.set_length(out, transport + segment);
        if self.gso_type == GsoType::Tcp4 || self.gso_type == GsoType::Tcp6 {
            let sequence = read(out, transport + tcp::SEQUENCE).map_or(0, u32::from_be_bytes);
            write(out, transport + tcp::SEQUENCE, sequence.wrapping_add(start).to_be_bytes());
            let [mut flags] = read(out, transport + tcp::FLAGS).unwrap_or_default();
            if n + 1 < self.count {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            if n > 0 {
                flags &= !tcp::CWR;
            }
            write(out, transport + tcp::FLAGS, [flags]);
        } else {
            write(out, transport + udp::LENGTH, short(segment).to_be_bytes());
        }
        if !self.is_v6() {
            let id = read(out, self.network.at + v4::ID).map_or(0, u16::from_be_bytes);
            write(out, self.network.at + v4::ID, id.wrapping_add(short(n as usize)).to_be_bytes());
            self.finish_v4(out);
        }
        let checksum_at = self.seed_checksum(out, transport, segment);
        Piece { head_size, from, len, sum_from: transport, checksum_at: Some(checksum_at) }
    }

    /// The `n`-th fragment, of `len` bytes from `start` of what is fragmented.
    fn fragment(
        &self,
        n: u32,
        head: &[u8],
        ident: u32,
        out: &mut [u8; PIECE_HEAD_SIZE],
        (start, len): (u32, u32),
    ) -> Piece {
        let at = self.network.at;
        let more = n + 1 < self.count;
        let inserted = self.inserted();
        // The first carries every header, so that what follows is data in all of them.
        let rest = if n == 0 { usize::from(self.header_len) - self.head_size } else { 0 };
        copy(out, 0, head, self.head_size);
        if let Some(more_headers) = head.get(self.head_size..self.head_size + rest) {
            copy(out, self.head_size + inserted, more_headers, rest);
        }
        self.set_length(out, self.head_size + inserted + len as usize);
        if self.is_v6() {
            let [next] = read(out, self.network.next_header).unwrap_or_default();
            write(out, self.network.next_header, [FRAGMENT]);
            // `start` is a multiple of 8, so the offset in units of 8 stands in the upper 13 bits as it is.
            let place = short(start as usize) | u16::from(more);
            write(out, self.head_size, [next, 0]);
            write(out, self.head_size + 2, place.to_be_bytes());
            write(out, self.head_size + 4, ident.to_be_bytes());
        } else {
            let flags = read(out, at + v4::FRAGMENT).map_or(0, u16::from_be_bytes);
            if flags & v4::DF != 0 {
                // Where nothing was to be fragmented the identification may be anything (RFC 6864 §4.1).
                write(out, at + v4::ID, short((ident & 0xffff) as usize).to_be_bytes());
            }
            let place = short(start as usize / 8) | if more { v4::MF } else { 0 };
            write(out, at + v4::FRAGMENT, place.to_be_bytes());
            if n > 0
                && let Some(options) = out.get_mut(at + v4::SIZE..self.head_size)
            {
                ip::keep_copied_options(options);
            }
            self.finish_v4(out);
        }
        let head_size = self.head_size + inserted + rest;
        #[allow(clippy::cast_possible_truncation, reason = "at most HEAD_SIZE")]
        let (from, rest) = ((self.head_size + rest) as u32 + start, rest as u32);
        let (sum_from, checksum_at) = if n == 0 {
            let transport = self.network.transport + inserted;
            let datagram = self.payload as usize - (self.network.transport - self.head_size);
            (transport, Some(self.seed_checksum(out, transport, datagram)))
        } else {
            (head_size, None)
        };
        Piece { head_size, from, len: len - rest, sum_from, checksum_at }
    }

    /// Writes the network header's length field for a packet that ends `end` bytes into its piece.
    fn set_length(&self, out: &mut [u8; PIECE_HEAD_SIZE], end: usize) {
        let at = self.network.at;
        let (field, length) = if self.is_v6() { (v6::LENGTH, end - at - v6::SIZE) } else { (v4::LENGTH, end - at) };
        write(out, at + field, short(length).to_be_bytes());
    }

    fn finish_v4(&self, out: &mut [u8; PIECE_HEAD_SIZE]) {
        let at = self.network.at;
        write(out, at + v4::CHECKSUM, [0; 2]);
        let mut sum = Sum::default();
        sum.add(out.get(at..self.network.fragmentable).unwrap_or_default());
        write(out, at + v4::CHECKSUM, sum.complement());
    }

    /// Puts the sum of the pseudo-header into the checksum field of the transport header at `transport`; gives its place.
    fn seed_checksum(&self, out: &mut [u8; PIECE_HEAD_SIZE], transport: usize, segment: usize) -> usize {
        let network = &self.network;
        let (source, bytes) = if self.is_v6() { (v6::SOURCE, 16) } else { (v4::SOURCE, 4) };
        let source = network.at + source;
        let mut sum = Sum::default();
        sum.add(out.get(source..source + bytes).unwrap_or_default());
        sum.add(out.get(network.destination..network.destination + bytes).unwrap_or_default());
        sum.add_u16(u16::from(network.protocol));
        sum.add_u16(short(segment));
        let at = transport + if network.protocol == TCP { tcp::CHECKSUM } else { udp::CHECKSUM };
        write(out, at, sum.folded());
        at
    }
}

/// Identifications of datagrams that are fragmented here: counted from a random start per queue (RFC 7739 §5.2), so
/// that none comes again soon and no other guest's can be told from one's own.
#[derive(Debug)]
pub struct Idents(u32);

impl Default for Idents {
    fn default() -> Self {
        Self::new()
    }
}

impl Idents {
    /// From a random start.
    pub fn new() -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "half of a random number is one")]
        Self(RandomState::new().hash_one(0_u8) as u32)
    }

    /// The next one.
    pub fn next_ident(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// Where a TCP header that starts at `transport` ends.
fn tcp_end(head: &[u8], transport: usize) -> Option<usize> {
    let size = usize::from(*head.get(transport + tcp::OFFSET)? >> 4) * 4;
    (size >= tcp::SIZE).then_some(transport + size)
}

/// Where the UDP header ends, if its length is that of the packet.
fn udp_end(head: &[u8], network: &Network) -> Option<usize> {
    let [high, low] = read(head, network.transport + udp::LENGTH)?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    (network.transport + length == network.end && length >= udp::SIZE).then_some(network.transport + udp::SIZE)
}

/// A length of at most 64 KiB in sixteen bits.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the plan was judged: no packet is longer than its length fields say"
)]
fn short(n: usize) -> u16 {
    n as u16
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn write<const N: usize>(out: &mut [u8; PIECE_HEAD_SIZE], at: usize, bytes: [u8; N]) {
    if let Some(to) = out.get_mut(at..at + N) {
        to.copy_from_slice(&bytes);
    }
}

/// Copies the first `n` of `bytes` to `at`.
fn copy(out: &mut [u8; PIECE_HEAD_SIZE], at: usize, bytes: &[u8], n: usize) {
    if let Some((to, from)) = out.get_mut(at..at + n).zip(bytes.get(..n)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests;
