//! Which flow a frame belongs to, as a number: both directions of a flow give the same one.
//!
//! ```text
//!   Ethernet ─ tags ─┬─ IPv4 ── not a fragment ─ TCP, UDP, SCTP … ─▶ addresses, protocol, ports
//!                    ├─ IPv6 ── extensions ────┘
//!                    │          any other, or a fragment ─────────▶ addresses, protocol (fragments: addresses)
//!                    └─ anything else ────────────────────────────▶ MAC addresses
//! ```
//!
//! Only the first 64 bytes are looked at. What decides is the same in every frame of a flow, so a flow whose ports lie
//! behind them (IPv6 under two tags, long extensions) is told by its addresses: it stays in order and spreads less.
//! Every fragment of a datagram gives the same number, for only the first has the ports.

use std::hash::{BuildHasher, RandomState};

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const OLD_SERVICE_VLAN: u16 = 0x9100;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Tags that are looked through: two, as 802.1ad stacks them.
const TAGS: usize = 2;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The secret behind the numbers: without it a guest could choose flows that all end in one queue of another.
#[derive(Debug, Clone, Copy)]
pub struct FlowKey(u64);

/// A secret that nobody knows.
impl Default for FlowKey {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u8))
    }
}

/// The two ends of a flow, each folded to a word, and what else tells it from others.
type Ends = (u64, u64, u64);

impl FlowKey {
    /// The same secret gives the same numbers.
    pub fn new(secret: u64) -> Self {
        Self(secret)
    }

    /// The flow's number, spread over all 32 bits. About 40 instructions for a TCP frame; reads nothing but `head`.
    #[inline]
    pub fn hash(self, head: &[u8; 64]) -> u32 {
        let (kind, at) = payload(head);
        let ends = match kind {
            IPV4 => ipv4(head, at),
            IPV6 => self.ipv6(head, at),
            _ => None,
        };
        let (a, b, kind) = ends.unwrap_or_else(|| stations(head));
        // A product does not know which factor was first: that makes both directions one.
        let both = fold(a ^ self.0, b ^ self.0);
        #[allow(clippy::cast_possible_truncation, reason = "the folded halves are equally good")]
        let hash = fold(both ^ kind, ODD ^ self.0.rotate_left(32)) as u32;
        hash
    }

    /// A number for who sends: the same for all frames of a station in a VLAN.
    #[inline]
    pub fn hash_source(self, head: &[u8; 64]) -> u32 {
        let header = super::ethernet::parse(head);
        let station = header.src.0 | u64::from(header.vlan) << 48;
        #[allow(clippy::cast_possible_truncation, reason = "the folded halves are equally good")]
        let hash = fold(fold(station ^ self.0, ODD), ODD ^ self.0.rotate_left(32)) as u32;
        hash
    }

    fn ipv6(self, head: &[u8; 64], at: usize) -> Option<Ends> {
        let header = head.get(at..at + 40)?;
        let address = |from: usize| Some(fold(word64(header, from)? ^ self.0, word64(header, from + 8)? ^ ODD));
        let (source, destination) = (address(8)?, address(24)?);
        let (mut next, mut at) = (*header.get(6)?, at + 40);
        while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
            // Past the first 64 bytes nothing is known, in no frame of this flow.
            let Some((&after, &len)) = head.get(at).zip(head.get(at + 1)) else {
                return Some((source, destination, 0));
            };
            (next, at) = (after, at + (usize::from(len) + 1) * 8);
        }
        if next == FRAGMENT {
            return Some((source, destination, 0));
        }
        let (from, to) = ports(head, at, next);
        Some((source.wrapping_add(from), destination.wrapping_add(to), u64::from(next)))
    }
}

fn ipv4(head: &[u8; 64], at: usize) -> Option<Ends> {
    let header = head.get(at..at + 20)?;
    let (size, whole) = (usize::from(header.first()? & 0x0f) * 4, word16(header, 6)?.trailing_zeros() >= 14);
    let (source, destination) = (u64::from(word32(header, 12)?), u64::from(word32(header, 16)?));
    let protocol = *header.get(9)?;
    if !whole {
        return Some((source, destination, 0));
    }
    let (from, to) = ports(head, at + size.max(20), protocol);
    Some((source | from << 32, destination | to << 32, u64::from(protocol)))
}

/// Type of what the Ethernet header carries behind at most two tags, and where that begins.
#[inline]
fn payload(head: &[u8; 64]) -> (u16, usize) {
    let mut at = 12;
    for _ in 0..TAGS {
        match word16(head, at) {
            Some(VLAN | SERVICE_VLAN | OLD_SERVICE_VLAN) => at += 4,
            _ => break,
        }
    }
    (word16(head, at).unwrap_or(0), at + 2)
}

/// Source and destination port of a transport that has them in its first four bytes; zeroes for any other, and for one
/// whose ports are not in `head`.
#[inline]
fn ports(head: &[u8; 64], at: usize, protocol: u8) -> (u64, u64) {
    // TCP, UDP, DCCP, SCTP, UDP-Lite.
    if !matches!(protocol, 6 | 17 | 33 | 132 | 136) {
        return (0, 0);
    }
    word32(head, at).map_or((0, 0), |both| (u64::from(both >> 16), u64::from(both & 0xffff)))
}

fn stations(head: &[u8; 64]) -> Ends {
    let header = super::ethernet::parse(head);
    (header.src.0, header.dst.0, 1 << 32)
}

/// Both halves of the product, folded.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[allow(clippy::cast_possible_truncation, reason = "takes the halves apart")]
    let halves = (product as u64) ^ ((product >> 64) as u64);
    halves
}

#[inline]
fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

#[inline]
fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

#[inline]
fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One flow's description; `there` gives a frame of it, `back` one the other way.
    #[derive(Debug, Clone)]
    struct Flow {
        tags: Vec<u16>,
        macs: [[u8; 6]; 2],
        v6: bool,
        addresses: [[u8; 16]; 2],
        extensions: Vec<u8>,
        protocol: u8,
        ports: [u16; 2],
    }

    impl Flow {
        fn there(&self) -> Vec<u8> {
            self.frame(0, 1, None)
        }

        fn back(&self) -> Vec<u8> {
            self.frame(1, 0, None)
        }

        /// A fragment at `offset` eighths; the transport's header is in the first only.
        fn fragment(&self, offset: u16, more: bool) -> Vec<u8> {
            self.frame(0, 1, Some((offset, more)))
        }

        fn frame(&self, from: usize, to: usize, fragment: Option<(u16, bool)>) -> Vec<u8> {
            let mut bytes = [self.macs[to], self.macs[from]].concat();
            for tag in &self.tags {
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0x20, 0x07]);
            }
            let mut transport = self.ports[from].to_be_bytes().to_vec();
            transport.extend(self.ports[to].to_be_bytes());
            if fragment.is_some_and(|(offset, _)| offset > 0) {
                transport = vec![0xab; 4];
            }
            if self.v6 {
                bytes.extend(IPV6.to_be_bytes());
                let mut chain = self.extensions.clone();
                chain.extend(fragment.map(|_| FRAGMENT));
                chain.push(self.protocol);
                bytes.extend([0x60, 0, 0, 0, 0, 8, chain[0], 64]);
                bytes.extend(self.addresses[from]);
                bytes.extend(self.addresses[to]);
                for pair in chain.windows(2) {
                    let (offset, more) = fragment.filter(|_| pair[0] == FRAGMENT).unwrap_or((0, false));
                    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                    bytes.extend([pair[1], 0, high, low, 9, 9, 9, 9]);
                }
            } else {
                bytes.extend(IPV4.to_be_bytes());
                let (offset, more) = fragment.unwrap_or((0, false));
                let [high, low] = (offset | u16::from(more) << 13).to_be_bytes();
                bytes.extend([0x45, 0, 0, 40, 1, 2, high, low, 64, self.protocol, 0, 0]);
                bytes.extend(&self.addresses[from][..4]);
                bytes.extend(&self.addresses[to][..4]);
            }
            bytes.extend(transport);
            bytes
        }
    }

    fn hash(frame: &[u8]) -> u32 {
        hash_with(7, frame)
    }

    fn hash_with(secret: u64, frame: &[u8]) -> u32 {
        let mut head = [0; 64];
        let n = frame.len().min(64);
        head[..n].copy_from_slice(&frame[..n]);
        FlowKey::new(secret).hash(&head)
    }

    fn flows() -> impl Strategy<Value = Flow> {
        let tags = prop_oneof![
            Just(vec![]),
            Just(vec![VLAN]),
            Just(vec![SERVICE_VLAN, VLAN]),
            Just(vec![VLAN, VLAN]),
            Just(vec![OLD_SERVICE_VLAN, VLAN])
        ];
        let extensions =
            proptest::collection::vec(prop_oneof![Just(HOP_BY_HOP), Just(ROUTING), Just(DESTINATION)], 0..3);
        let protocol = prop_oneof![Just(6), Just(17), Just(132), Just(1), Just(58), Just(50)];
        (tags, any::<[[u8; 6]; 2]>(), any::<bool>(), any::<[[u8; 16]; 2]>(), extensions, protocol, any::<[u16; 2]>())
            .prop_map(|(tags, macs, v6, addresses, extensions, protocol, ports)| Flow {
                tags,
                macs,
                v6,
                addresses,
                extensions,
                protocol,
                ports,
            })
    }

    proptest! {
        #[test]
        fn both_directions_of_a_flow_are_one(flow in flows()) {
            prop_assert_eq!(hash(&flow.there()), hash(&flow.back()));
        }

        #[test]
        fn every_fragment_of_a_datagram_goes_with_the_first(flow in flows(), offset in 1_u16..0x1fff) {
            let first = hash(&flow.fragment(0, true));
            prop_assert_eq!(first, hash(&flow.fragment(offset, true)));
            prop_assert_eq!(first, hash(&flow.fragment(offset, false)));
        }

        #[test]
        fn tags_do_not_move_an_ipv4_flow(flow in flows()) {
            let (mut plain, mut flow) = (flow.clone(), flow);
            (plain.tags, plain.v6, flow.v6) = (vec![], false, false);
            prop_assert_eq!(hash(&plain.there()), hash(&flow.there()));
        }

        #[test]
        fn any_bytes_have_a_number(head in proptest::array::uniform32(any::<u8>()), secret: u64) {
            let mut bytes = [0; 64];
            bytes[12..44].copy_from_slice(&head);
            FlowKey::new(secret).hash(&bytes);
        }
    }

    fn flow(n: u32) -> Flow {
        let bytes = n.to_be_bytes();
        let mut addresses = [[0; 16]; 2];
        addresses[0][..4].copy_from_slice(&[10, bytes[1], bytes[2], bytes[3]]);
        addresses[1][..4].copy_from_slice(&[10, 255, 0, 1]);
        Flow {
            tags: vec![],
            macs: [[2, 0, bytes[0], bytes[1], bytes[2], bytes[3]], [2, 0, 0, 0, 0, 0xff]],
            v6: false,
            addresses,
            extensions: vec![],
            protocol: 6,
            ports: [1024, 80],
        }
    }

    /// How many of 4096 flows each of `queues` queues gets, least and most.
    fn extremes(queues: usize, secret: u64, make: impl Fn(u32) -> Vec<u8>) -> (u32, u32) {
        let mut counts = vec![0; queues];
        for n in 0..4096 {
            counts[usize::try_from((u64::from(hash_with(secret, &make(n))) * queues as u64) >> 32).unwrap()] += 1;
        }
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    #[test]
    fn neighbouring_flows_spread_evenly_over_any_number_of_queues() {
        type Make = fn(u32) -> Vec<u8>;
        let kinds: [(&str, Make); 5] = [
            ("addresses that count up", |n| flow(n).there()),
            ("source ports that count up", |n| {
                Flow { ports: [1024 + u16::try_from(n).unwrap(), 80], ..flow(1) }.there()
            }),
            ("both ports that count up", |n| {
                let port = 1024 + u16::try_from(n).unwrap();
                Flow { ports: [port, port], ..flow(1) }.there()
            }),
            ("v6 ports that count up", |n| {
                Flow { ports: [1024 + u16::try_from(n).unwrap(), 80], v6: true, ..flow(1) }.there()
            }),
            ("stations of another protocol", |n| {
                let mut frame = flow(n).there();
                frame[12..14].copy_from_slice(&[0x88, 0xb5]);
                frame
            }),
        ];
        for (kind, make) in kinds {
            for secret in [0x0123_4567_89ab_cdef, u64::MAX / 3, 0x8000_0000_0000_0001] {
                for queues in [2, 3, 8, 128] {
                    let (least, most) = extremes(queues, secret, make);
                    // Seven standard deviations of fair dice.
                    let fair = 4096.0 / f64::from(u32::try_from(queues).unwrap());
                    let slack = 7.0 * fair.sqrt();
                    assert!(f64::from(least) > fair - slack, "{kind}, {queues} queues: {least} of {fair}");
                    assert!(f64::from(most) < fair + slack, "{kind}, {queues} queues: {most} of {fair}");
                }
            }
        }
    }

    #[test]
    fn another_secret_spreads_otherwise() {
        let moved = (0..1000).filter(|&n| {
            let frame = flow(n).there();
            hash_with(0x0100_0000_0005, &frame) >> 31 != hash_with(0x000c_0000_0000_004d, &frame) >> 31
        });
        assert!((400..600).contains(&moved.count()));
    }
}
