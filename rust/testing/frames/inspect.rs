// SPDX-License-Identifier: Apache-2.0
//! Judging a received frame by itself: whose it is, and whether every byte is right.
//!
//! Invariant: total over any bytes; nothing is taken from the sender's plan, only from the frame.

use super::{IPV4, IPV6, Mac, NUMBER_SIZE, NUMBERED_PORT, VNET_DATA_VALID, VNET_NEEDS_CSUM};
use super::{checksum, pattern};
use crate::testing::memory::Window;

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
}

impl Corruption {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Length, Self::IpChecksum, Self::TransportChecksum, Self::VnetHeader, Self::Payload, Self::Misdirected];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::IpChecksum => "ip_checksum",
            Self::TransportChecksum => "transport_checksum",
            Self::VnetHeader => "vnet_header",
            Self::Payload => "payload",
            Self::Misdirected => "misdirected",
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
    /// Whether a partial checksum may come in (`GUEST_CSUM`).
    pub partial_allowed: bool,
}

struct Layers {
    transport_at: usize,
    protocol: u8,
    addresses: std::ops::Range<usize>,
    claimed: usize,
}

impl Inspector {
    /// Judges vnet header and frame.
    pub fn inspect(&self, bytes: &[u8]) -> Verdict {
        let Some((vnet, frame)) = bytes.split_at_checked(self.header_size) else {
            return Verdict::Foreign;
        };
        let Some(layers) = layers(frame) else { return Verdict::Foreign };
        let at = layers.transport_at;
        if word(frame, at + 2) != Some(NUMBERED_PORT) {
            return Verdict::Foreign;
        }
        self.judge(vnet, frame, &layers).unwrap_or_else(Verdict::Corrupt)
    }

    fn judge(&self, vnet: &[u8], frame: &[u8], layers: &Layers) -> Result<Verdict, Corruption> {
        // Ethernet pads to 60 bytes; anything beyond that must be claimed by the lengths.
        if layers.claimed > frame.len() || frame.len() > layers.claimed.max(60) {
            return Err(Corruption::Length);
        }
        let padding = frame.get(layers.claimed..).ok_or(Corruption::Length)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Corruption::Payload);
        }
        let frame = frame.get(..layers.claimed).ok_or(Corruption::Length)?;
        if word(frame, 12) == Some(IPV4) {
            let header = frame.get(14..34).ok_or(Corruption::Length)?;
            if checksum::sum(header) != 0xffff {
                return Err(Corruption::IpChecksum);
            }
        }
        let transport = frame.get(layers.transport_at..).ok_or(Corruption::Length)?;
        let (header, checksum_at) = match layers.protocol {
            17 if word(transport, 4).map(usize::from) != Some(transport.len()) => {
                return Err(Corruption::Length);
            }
            17 => (8, 6),
            _ => (20, 16),
        };
        self.judge_checksum(vnet, frame, layers, checksum_at)?;
        let numbered = transport.get(header..).ok_or(Corruption::Length)?;
        let (number, payload) = numbered.split_first_chunk::<NUMBER_SIZE>().ok_or(Corruption::Length)?;
        let (sequence, stream) = number.split_at(8);
        let sequence = u64::from_le_bytes(*sequence.first_chunk().ok_or(Corruption::Length)?);
        let stream = u16::from_le_bytes(*stream.first_chunk().ok_or(Corruption::Length)?);
        if !pattern::matches(pattern::seed(stream, sequence), payload) {
            return Err(Corruption::Payload);
        }
        let destination = Mac(*frame.first_chunk().ok_or(Corruption::Length)?);
        if !self.is_own(destination) && destination != Mac::BROADCAST {
            return Err(Corruption::Misdirected);
        }
        Ok(Verdict::Numbered { stream, sequence })
    }

    fn is_own(&self, address: Mac) -> bool {
        let number = |mac: Mac| u32::from_be_bytes([0, mac.0[3], mac.0[4], mac.0[5]]);
        address.0[..3] == self.station.0[..3] && number(address).wrapping_sub(number(self.station)) < self.stations
    }

    fn judge_checksum(&self, vnet: &[u8], frame: &[u8], layers: &Layers, checksum_at: usize) -> Result<(), Corruption> {
        let [flags, gso, ..] = *vnet else { return Err(Corruption::VnetHeader) };
        let excused = flags & (VNET_NEEDS_CSUM | VNET_DATA_VALID) != 0;
        if gso != 0 || (excused && !self.partial_allowed) {
            return Err(Corruption::VnetHeader);
        }
        let transport = frame.get(layers.transport_at..).ok_or(Corruption::Length)?;
        let addresses = frame.get(layers.addresses.clone()).ok_or(Corruption::Length)?;
        let pseudo = checksum::pseudo_header(addresses, layers.protocol, transport.len());
        let field = word(transport, checksum_at).ok_or(Corruption::Length)?;
        if flags & VNET_NEEDS_CSUM != 0 {
            let points_at = [6, 8]
                .map(|at| vnet.get(at..at + 2).map_or(0, |pair| usize::from(pair[0]) | usize::from(pair[1]) << 8));
            if points_at != [layers.transport_at, checksum_at] {
                return Err(Corruption::VnetHeader);
            }
            return if field == pseudo { Ok(()) } else { Err(Corruption::TransportChecksum) };
        }
        let none = field == 0 && layers.protocol == 17;
        if none || checksum::add(pseudo, checksum::sum(transport)) == 0xffff {
            Ok(())
        } else {
            Err(Corruption::TransportChecksum)
        }
    }
}

fn layers(frame: &[u8]) -> Option<Layers> {
    match word(frame, 12)? {
        IPV4 => Some(Layers {
            transport_at: 34,
            protocol: *frame.get(23)?,
            addresses: 26..34,
            claimed: 14 + usize::from(word(frame, 16)?),
        }),
        IPV6 => Some(Layers {
            transport_at: 54,
            protocol: *frame.get(20)?,
            addresses: 22..54,
            claimed: 54 + usize::from(word(frame, 18)?),
        }),
        _ => None,
    }
    .filter(|layers| matches!(layers.protocol, 6 | 17))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
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
    const STRICT: Inspector = Inspector { station: STATION, stations: 1, header_size: 12, partial_allowed: false };

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
        let lenient = Inspector { partial_allowed: true, ..STRICT };
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
