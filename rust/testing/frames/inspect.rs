// SPDX-License-Identifier: Apache-2.0
//! Judging a received frame by itself: whose it is, and whether every byte is right.
//!
//! Invariant: total over any bytes; nothing is taken from the sender's plan, only from the frame.

use super::cut::{PieceHeaders, Record};
use super::layers::{Layers, word};
use super::{CUT_PORT, Mac, NUMBER_SIZE, NUMBERED_PORT, VNET_DATA_VALID, VNET_NEEDS_CSUM};
use super::{checksum, pattern};
use crate::testing::memory::Window;
use crate::testing::wire::features;

/// What is wrong with a numbered frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Corruption {
    /// The length fields and the bytes received do not agree.
    Length,
    /// The IPv4 header checksum is wrong.
    IpChecksum,
    /// The transport checksum is wrong and the vnet header does not excuse it.
    TransportChecksum,
    /// The vnet header asks for an offload that was not negotiated, or points astray.
    VnetHeader,
    /// The payload is not the one of its number.
    Payload,
    /// The destination is another station.
    Misdirected,
    /// A piece of a frame that was cut has wrong headers, a wrong size, or came out of place.
    Piece,
}

impl Corruption {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Length,
        Self::IpChecksum,
        Self::TransportChecksum,
        Self::VnetHeader,
        Self::Payload,
        Self::Misdirected,
        Self::Piece,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::IpChecksum => "ip_checksum",
            Self::TransportChecksum => "transport_checksum",
            Self::VnetHeader => "vnet_header",
            Self::Payload => "payload",
            Self::Misdirected => "misdirected",
            Self::Piece => "piece",
        }
    }
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A numbered frame, whole.
    Numbered {
        /// Its stream.
        stream: u16,
        /// Its place in the stream.
        sequence: u64,
    },
    /// A frame of several numbered pieces, all whole.
    Pieces {
        /// Their stream.
        stream: u16,
        /// The first one's place in the stream.
        first: u64,
        /// From each to the next.
        step: u64,
        /// How many.
        count: u64,
    },
    /// A numbered frame with something wrong.
    Corrupt(Corruption),
    /// Not one of ours.
    Foreign,
}

/// What a receiver knows that a frame does not say.
#[derive(Clone, Copy, Debug)]
pub struct Inspector {
    /// The receiver's own address.
    pub station: Mac,
    /// Addresses from `station` on that are its own.
    pub stations: u32,
    /// Bytes of the vnet header.
    pub header_size: usize,
    /// Features agreed on: those of the guest's offloads say what may come in.
    pub agreed: u64,
}

/// The vnet header as it came.
struct Vnet {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    checksum: [u16; 2],
}

impl Vnet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let fields: &[u8; 10] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_le_bytes([fields[at], fields[at + 1]]);
        let [flags, gso_type, ..] = *fields;
        Some(Self { flags, gso_type, header_len: word(2), gso_size: word(4), checksum: [word(6), word(8)] })
    }

    /// Whether a frame of these layers may come like this to a guest that agreed to these features.
    fn is_allowed(&self, agreed: u64, layers: &Layers, header_end: usize) -> bool {
        let allowed = |bit: u64| agreed & bit == bit;
        if self.flags & (VNET_NEEDS_CSUM | VNET_DATA_VALID) != 0 && !allowed(features::GUEST_CSUM) {
            return false;
        }
        if self.gso_type == 0 {
            return true;
        }
        let needed = match (self.gso_type & 0x7f, layers.protocol, layers.is_v4) {
            (1, 6, true) => features::GUEST_TSO4,
            (4, 6, false) => features::GUEST_TSO6,
            (3, 17, _) => features::GUEST_UFO,
            (5, 17, true) => features::GUEST_USO4,
            (5, 17, false) => features::GUEST_USO6,
            _ => return false,
        };
        let ecn = if self.gso_type & 0x80 == 0 { 0 } else { features::GUEST_ECN };
        // Without a partial checksum there is nothing to cut by, and a length of headers that lies misleads a driver.
        allowed(needed | ecn)
            && self.flags & VNET_NEEDS_CSUM != 0
            && self.gso_size != 0
            && usize::from(self.header_len) == header_end
    }
}

impl Inspector {
    /// Judges vnet header and frame.
    pub fn inspect(&self, bytes: &[u8]) -> Verdict {
        let Some((vnet, frame)) = bytes.split_at_checked(self.header_size) else {
            return Verdict::Foreign;
        };
        let Some(layers) = Layers::of(frame) else { return Verdict::Foreign };
        let judge = match word(frame, layers.transport_at + 2) {
            Some(NUMBERED_PORT) => Self::judge_number,
            Some(CUT_PORT) => Self::judge_pieces,
            _ => return Verdict::Foreign,
        };
        let Some(vnet) = Vnet::read(vnet) else { return Verdict::Corrupt(Corruption::VnetHeader) };
        self.judge_headers(&vnet, frame, &layers)
            .and_then(|(headers, payload)| judge(&vnet, &headers, payload))
            .and_then(|verdict| if self.is_addressed(frame) { Ok(verdict) } else { Err(Corruption::Misdirected) })
            .unwrap_or_else(Verdict::Corrupt)
    }

    /// Whether vnet header and frame are for this station.
    pub fn is_meant(&self, bytes: &[u8]) -> bool {
        bytes.get(self.header_size..).is_some_and(|frame| self.is_addressed(frame))
    }

    fn is_addressed(&self, frame: &[u8]) -> bool {
        frame.first_chunk().is_some_and(|to| self.is_own(Mac(*to)) || Mac(*to) == Mac::BROADCAST)
    }

    fn is_own(&self, address: Mac) -> bool {
        let number = |mac: Mac| u32::from_be_bytes([0, mac.0[3], mac.0[4], mac.0[5]]);
        address.0[..3] == self.station.0[..3] && number(address).wrapping_sub(number(self.station)) < self.stations
    }

    /// Judges all that is not payload; gives the headers that cutting changes, and the payload.
    fn judge_headers<'a>(
        &self,
        vnet: &Vnet,
        frame: &'a [u8],
        layers: &Layers,
    ) -> Result<(PieceHeaders<'a>, &'a [u8]), Corruption> {
        // Ethernet pads to 60 bytes; anything beyond that must be claimed by the lengths.
        if layers.claimed > frame.len() || frame.len() > layers.claimed.max(60) {
            return Err(Corruption::Length);
        }
        let padding = frame.get(layers.claimed..).ok_or(Corruption::Length)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Corruption::Payload);
        }
        let frame = frame.get(..layers.claimed).ok_or(Corruption::Length)?;
        let mut id = None;
        if layers.is_v4 {
            let header = frame.get(layers.network_at..layers.transport_at).ok_or(Corruption::Length)?;
            if checksum::sum(header) != 0xffff {
                return Err(Corruption::IpChecksum);
            }
            id = word(header, 4);
        }
        let transport = frame.get(layers.transport_at..).ok_or(Corruption::Length)?;
        let (header_size, checksum_at) = match layers.protocol {
            17 if word(transport, 4).map(usize::from) != Some(transport.len()) => {
                return Err(Corruption::Length);
            }
            17 => (8, 6),
            _ => (4 * usize::from(transport.get(12).ok_or(Corruption::Length)? >> 4), 16),
        };
        if !vnet.is_allowed(self.agreed, layers, layers.transport_at + header_size) {
            return Err(Corruption::VnetHeader);
        }
        Self::judge_checksum(vnet, frame, layers, checksum_at)?;
        let (header, payload) = transport.split_at_checked(header_size).ok_or(Corruption::Length)?;
        Ok((PieceHeaders { id, tcp: (layers.protocol == 6).then_some(header) }, payload))
    }

    /// A frame with one number. Cut it may be asked to be into fragments only.
    fn judge_number(vnet: &Vnet, _: &PieceHeaders<'_>, numbered: &[u8]) -> Result<Verdict, Corruption> {
        if !matches!(vnet.gso_type, 0 | 3) {
            return Err(Corruption::VnetHeader);
        }
        let (number, payload) = numbered.split_first_chunk::<NUMBER_SIZE>().ok_or(Corruption::Length)?;
        let (sequence, stream) = number.split_at(8);
        let sequence = u64::from_le_bytes(*sequence.first_chunk().ok_or(Corruption::Length)?);
        let stream = u16::from_le_bytes(*stream.first_chunk().ok_or(Corruption::Length)?);
        if !pattern::matches(pattern::seed(stream, sequence), payload) {
            return Err(Corruption::Payload);
        }
        Ok(Verdict::Numbered { stream, sequence })
    }

    /// A frame of numbered pieces, or one such piece.
    fn judge_pieces(vnet: &Vnet, headers: &PieceHeaders<'_>, payload: &[u8]) -> Result<Verdict, Corruption> {
        if vnet.gso_type == 0 {
            let record = Record::read(payload)?;
            return if record.matches_headers(headers, payload.len(), false) {
                Ok(Verdict::Numbered { stream: record.stream, sequence: record.sequence })
            } else {
                Err(Corruption::Piece)
            };
        }
        let pieces = payload.chunks(usize::from(vnet.gso_size));
        let records = pieces.map(Record::read).collect::<Result<Vec<_>, _>>()?;
        let (Some(first), Some(step)) = (records.first(), Record::agree(&records, vnet.gso_size)) else {
            return Err(Corruption::Piece);
        };
        if !first.matches_headers(headers, payload.len(), true) {
            return Err(Corruption::Piece);
        }
        Ok(Verdict::Pieces { stream: first.stream, first: first.sequence, step, count: records.len() as u64 })
    }

    fn judge_checksum(vnet: &Vnet, frame: &[u8], layers: &Layers, checksum_at: usize) -> Result<(), Corruption> {
        let transport = frame.get(layers.transport_at..).ok_or(Corruption::Length)?;
        let addresses = frame.get(layers.addresses.clone()).ok_or(Corruption::Length)?;
        let pseudo = checksum::pseudo_header(addresses, layers.protocol, transport.len());
        let field = word(transport, checksum_at).ok_or(Corruption::Length)?;
        if vnet.flags & VNET_NEEDS_CSUM != 0 {
            if vnet.checksum.map(usize::from) != [layers.transport_at, checksum_at] {
                return Err(Corruption::VnetHeader);
            }
            return if field == pseudo { Ok(()) } else { Err(Corruption::TransportChecksum) };
        }
        let none = field == 0 && layers.protocol == 17 && layers.is_v4;
        if none || checksum::add(pseudo, checksum::sum(transport)) == 0xffff {
            Ok(())
        } else {
            Err(Corruption::TransportChecksum)
        }
    }
}

/// The light look: stream and sequence of an UDP over IPv4 frame at `at` (its vnet header skipped),
/// from its first cache line alone; `None` when it is not a numbered one.
#[inline]
pub fn inspect_number(window: &Window, at: usize) -> Option<(u16, u64)> {
    let mut port = [0; 2];
    window.read(at + 36, &mut port);
    if u16::from_be_bytes(port) != NUMBERED_PORT {
        return None;
    }
    let mut sequence = [0; 8];
    window.read(at + 42, &mut sequence);
    let mut stream = [0; 2];
    window.read(at + 50, &mut stream);
    Some((u16::from_le_bytes(stream), u64::from_le_bytes(sequence)))
}

#[cfg(test)]
mod tests {
    use super::super::{Checksum, FramePlan, Network, PlanConfig, Transport};
    use super::*;

    const STATION: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const STRICT: Inspector = Inspector { station: STATION, stations: 1, header_size: 12, agreed: 0 };

    fn plan(network: Network, transport: Transport, checksum: Checksum) -> FramePlan {
        FramePlan::new(PlanConfig {
            source: Mac([2, 0, 0, 0, 0, 1]),
            destination: STATION,
            destinations: 1,
            network,
            transport,
            checksum,
            flows: 3,
            sizes: vec![84, 333, 1518, 9000],
            stream: 0x102,
            header_size: 12,
            vlan: None,
            gso: None,
        })
        .unwrap()
    }

    fn kinds() -> impl Iterator<Item = (Network, Transport)> {
        [Network::V4, Network::V6]
            .into_iter()
            .flat_map(|network| [(network, Transport::Udp), (network, Transport::Tcp)])
    }

    #[test]
    fn a_built_frame_is_recognised() {
        for (network, transport) in kinds() {
            let plan = plan(network, transport, Checksum::Good);
            let mut bytes = Vec::new();
            for sequence in 0..8 {
                plan.build(sequence, &mut bytes);
                assert_eq!(bytes.len(), 12 + plan.size(sequence));
                let expected = Verdict::Numbered { stream: 0x102, sequence };
                assert_eq!(STRICT.inspect(&bytes), expected, "{network:?} {transport:?}");
            }
        }
    }

    #[test]
    fn a_flip_of_any_bit_is_never_passed_as_whole() {
        for (network, transport) in kinds() {
            let plan = plan(network, transport, Checksum::Good);
            let mut bytes = Vec::new();
            plan.build(5, &mut bytes);
            // The source address and the traffic class of IPv6 are under no checksum.
            let uncovered = 6..12;
            let class_and_hops = [14, 15, 16, 17, 21];
            for at in 0..bytes.len() - 12 {
                if uncovered.contains(&at) || (network == Network::V6 && class_and_hops.contains(&at)) {
                    continue;
                }
                bytes[12 + at] ^= 0x10;
                let verdict = STRICT.inspect(&bytes);
                assert!(!matches!(verdict, Verdict::Numbered { .. }), "{network:?} {transport:?} byte {at}");
                bytes[12 + at] ^= 0x10;
            }
        }
    }

    #[test]
    fn a_partial_checksum_passes_only_where_it_was_negotiated() {
        let lenient = Inspector { agreed: features::GUEST_CSUM, ..STRICT };
        for (network, transport) in kinds() {
            let mut bytes = Vec::new();
            plan(network, transport, Checksum::Partial).build(1, &mut bytes);
            assert!(matches!(lenient.inspect(&bytes), Verdict::Numbered { .. }));
            assert_eq!(STRICT.inspect(&bytes), Verdict::Corrupt(Corruption::VnetHeader));
            bytes[0] = 0;
            let expected = Verdict::Corrupt(Corruption::TransportChecksum);
            assert_eq!(STRICT.inspect(&bytes), expected);
        }
    }

    #[test]
    fn a_short_frame_and_a_long_one_are_corrupt() {
        let mut bytes = Vec::new();
        plan(Network::V4, Transport::Udp, Checksum::Good).build(1, &mut bytes);
        let short = STRICT.inspect(&bytes[..bytes.len() - 1]);
        assert_eq!(short, Verdict::Corrupt(Corruption::Length));
        bytes.push(0);
        assert_eq!(STRICT.inspect(&bytes), Verdict::Corrupt(Corruption::Length));
    }

    #[test]
    fn announcements_and_noise_are_foreign() {
        let bytes = super::super::announcement(STATION, 12);
        assert_eq!(STRICT.inspect(&bytes), Verdict::Foreign);
        assert_eq!(STRICT.inspect(&[0; 5]), Verdict::Foreign);
        assert_eq!(STRICT.inspect(&[0xff; 200]), Verdict::Foreign);
    }
}
