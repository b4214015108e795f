//! Finding the transport header: Ethernet, 802.1Q tags, then IPv4 (RFC 791) or IPv6 with extension headers (RFC 8200).
//!
//! ```text
//!   dst src │ tag … │ type │ IPv4 │ options …            │ transport
//!                          │ IPv6 │ hop-by-hop │ routing │ destination options │ transport
//!                          ▲                             ▲                     ▲
//!                          at                 fragmentable (IPv6)          transport
//! ```
//!
//! Total over any bytes. What it does not know it does not guess: fragments, authenticated or encrypted packets,
//! source routes and unknown extension headers have no transport header that could be found and rewritten.

use super::ethernet;

/// `EtherType`s that are four more bytes: 802.1Q, 802.1ad, and what older switches used for the outer tag.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// IPv6 Next Header values (RFC 8200 §4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Where an IPv4 header has its parts (RFC 791 §3.1).
pub mod v4 {
    /// Total length.
    pub const LENGTH: usize = 2;
    /// Identification.
    pub const ID: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Protocol.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: usize = 10;
    /// Source address, four bytes.
    pub const SOURCE: usize = 12;
    /// Destination address, four bytes.
    pub const DESTINATION: usize = 16;
    /// Header without options.
    pub const SIZE: usize = 20;
    /// Don't fragment, in the word of flags and offset.
    pub const DF: u16 = 0x4000;
    /// More fragments.
    pub const MF: u16 = 0x2000;
}

/// Where an IPv6 header has its parts (RFC 8200 §3).
pub mod v6 {
    /// Payload length.
    pub const LENGTH: usize = 4;
    /// Next Header.
    pub const NEXT: usize = 6;
    /// Source address, sixteen bytes.
    pub const SOURCE: usize = 8;
    /// Destination address, sixteen bytes.
    pub const DESTINATION: usize = 24;
    /// Header without extensions.
    pub const SIZE: usize = 40;
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// A frame's network header and what it says of the rest. Offsets are from the frame's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// IPv4 or IPv6.
    pub version: Version,
    /// Its first byte.
    pub at: usize,
    /// The transport header's first byte.
    pub transport: usize,
    /// What the transport is (IANA protocol number).
    pub protocol: u8,
    /// First byte past the packet, by the header's own length field.
    pub end: usize,
    /// The address of the last hop, which the pseudo-header has as destination (RFC 8200 §8.1).
    pub destination: usize,
    /// First byte that a fragment may cut off: the rest of the headers goes with the data (RFC 8200 §4.5).
    pub fragmentable: usize,
    /// IPv6: the Next Header byte that says what is at `fragmentable`.
    pub next_header: usize,
}

fn byte(head: &[u8], at: usize) -> Option<u8> {
    head.get(at).copied()
}

fn word(head: &[u8], at: usize) -> Option<u16> {
    head.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Finds the headers in `head`, the first bytes of a frame. None if it is no whole IP packet, or if what leads to the
/// transport header is unknown or lies past the end of `head`.
pub fn parse(head: &[u8]) -> Option<Network> {
    let mut at = ethernet::HEADER_SIZE as usize;
    let mut ethertype = word(head, at - 2)?;
    while TAGS.contains(&ethertype) {
        at += ethernet::TAG_SIZE as usize;
        ethertype = word(head, at - 2)?;
    }
    match ethertype {
        IPV4 => parse_v4(head, at),
        IPV6 => parse_v6(head, at),
        _ => None,
    }
}

fn parse_v4(head: &[u8], at: usize) -> Option<Network> {
    let first = byte(head, at)?;
    let size = usize::from(first & 0x0f) * 4;
    let fragment = word(head, at + v4::FRAGMENT)?;
    if first >> 4 != 4 || size < v4::SIZE || fragment & !v4::DF != 0 {
        return None;
    }
    let options = head.get(at + v4::SIZE..at + size)?;
    if Options(options).any(|option| matches!(option.first(), Some(131 | 137))) {
        return None;
    }
    Some(Network {
        version: Version::V4,
        at,
        transport: at + size,
        protocol: byte(head, at + v4::PROTOCOL)?,
        end: at + usize::from(word(head, at + v4::LENGTH)?),
        destination: at + v4::DESTINATION,
        fragmentable: at + size,
        next_header: at + v4::PROTOCOL,
    })
}

fn parse_v6(head: &[u8], at: usize) -> Option<Network> {
    if byte(head, at)? >> 4 != 6 {
        return None;
    }
    let (mut next_at, mut here) = (at + v6::NEXT, at + v6::SIZE);
    let (mut destination, mut fragmentable, mut next_header) = (at + v6::DESTINATION, here, next_at);
    let protocol = loop {
        let protocol = byte(head, next_at)?;
        if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            break protocol;
        }
        if protocol == HOP_BY_HOP && here != at + v6::SIZE {
            return None;
        }
        if protocol == ROUTING && byte(head, here + 3)? != 0 {
            // Hops to go: the last one's address is the first in the list of types 2 (RFC 6275) and 4 (RFC 8754).
            if !matches!(byte(head, here + 2)?, 2 | 4) {
                return None;
            }
            destination = here + 8;
        }
        next_at = here;
        here += 8 + 8 * usize::from(byte(head, here + 1)?);
        if protocol != DESTINATION_OPTIONS {
            (fragmentable, next_header) = (here, next_at);
        }
    };
    // The addresses are judged here, that nobody need look again: both lie inside.
    head.get(destination..destination + 16)?;
    head.get(..here)?;
    let end = at + v6::SIZE + usize::from(word(head, at + v6::LENGTH)?);
    Some(Network { version: Version::V6, at, transport: here, protocol, end, destination, fragmentable, next_header })
}

/// The options of an IPv4 header, each from its type byte; ends at the end-of-list or where one is malformed.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let size = match *self.0 {
            [] | [0, ..] => return None,
            [1, ..] => 1,
            [_, size, ..] if size >= 2 => usize::from(size),
            _ => return None,
        };
        let (option, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(option)
    }
}

/// Turns the options that only a first fragment carries into no-operations (RFC 791 §3.1: the copied flag).
pub(super) fn keep_copied_options(options: &mut [u8]) {
    let mut at = 0;
    while let Some(size) = Options(options.get(at..).unwrap_or_default()).next().map(<[u8]>::len) {
        if let Some(option) = options.get_mut(at..at + size)
            && option.first().is_some_and(|kind| kind & 0x80 == 0)
        {
            option.fill(1);
        }
        at += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ethernet(types: &[u16]) -> Vec<u8> {
        let mut head = vec![2; 12];
        for (i, ethertype) in types.iter().enumerate() {
            head.extend(ethertype.to_be_bytes());
            if i + 1 < types.len() {
                head.extend([0, 7]);
            }
        }
        head
    }

    fn v4(options: &[u8], total: u16) -> Vec<u8> {
        let mut header = vec![0x45 + u8::try_from(options.len() / 4).unwrap(), 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(options);
        header
    }

    fn v6(next: u8, payload: u16, extensions: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(payload.to_be_bytes());
        header.extend([next, 64]);
        header.extend([0xfd; 32]);
        header.extend(extensions);
        header
    }

    #[test]
    fn tags_of_both_kinds_are_passed_over() {
        for (types, at) in [(&[0x0800][..], 14), (&[0x8100, 0x0800], 18), (&[0x88a8, 0x8100, 0x0800], 22)] {
            let network = parse(&[ethernet(types), v4(&[], 60)].concat()).unwrap();
            assert_eq!((network.at, network.transport, network.end), (at, at + 20, at + 60));
        }
    }

    #[test]
    fn options_lie_before_the_transport_header() {
        let network = parse(&[ethernet(&[0x0800]), v4(&[0x94, 4, 0, 0, 1, 1, 1, 0], 60)].concat()).unwrap();
        assert_eq!(network.transport, 14 + 28);
    }

    #[test]
    fn a_source_route_is_not_followed() {
        for route in [131, 137] {
            assert_eq!(parse(&[ethernet(&[0x0800]), v4(&[1, route, 7, 4, 9, 9, 9, 9], 60)].concat()), None);
        }
    }

    #[test]
    fn fragments_have_no_transport_header() {
        for fragment in [0x2000_u16, 0x0001, 0x8000] {
            let mut head = [ethernet(&[0x0800]), v4(&[], 60)].concat();
            head[20..22].copy_from_slice(&fragment.to_be_bytes());
            assert_eq!(parse(&head), None, "{fragment:#x}");
        }
    }

    #[test]
    fn extension_headers_are_walked_and_the_fragmentable_part_begins_behind_routing() {
        let extensions = [
            &[43, 0, 0, 0, 0, 0, 0, 0][..],                     // hop-by-hop
            &[60, 0, 4, 0, 0, 0, 0, 0],                         // routing, arrived
            &[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // destination options of 16 bytes
        ]
        .concat();
        let network = parse(&[ethernet(&[0x86dd]), v6(0, 100, &extensions)].concat()).unwrap();
        assert_eq!((network.protocol, network.transport), (17, 14 + 40 + 32));
        assert_eq!((network.fragmentable, network.next_header), (14 + 40 + 16, 14 + 40 + 8));
        assert_eq!((network.end, network.destination), (14 + 40 + 100, 14 + 24));
    }

    #[test]
    fn a_segment_route_under_way_ends_at_its_last_segment() {
        let mut route = vec![6, 4, 4, 1, 1, 0, 0, 0];
        route.extend([7; 32]);
        let network = parse(&[ethernet(&[0x86dd]), v6(43, 100, &route)].concat()).unwrap();
        assert_eq!((network.protocol, network.destination), (6, 14 + 40 + 8));
        route[2] = 0;
        assert_eq!(parse(&[ethernet(&[0x86dd]), v6(43, 100, &route)].concat()), None, "type 0 is no more");
    }

    #[test]
    fn what_cannot_be_cut_is_not_parsed() {
        for next in [44, 50, 51, 59, 135] {
            let head = [ethernet(&[0x86dd]), v6(next, 100, &[6, 0, 0, 0, 0, 0, 0, 0])].concat();
            assert!(parse(&head).is_none_or(|n| n.protocol == next && !matches!(next, 6 | 17)), "{next}");
        }
    }

    #[test]
    fn only_options_with_the_copied_flag_stay() {
        let mut options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0];
        keep_copied_options(&mut options);
        assert_eq!(options, [1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_what_is_found_lies_inside(
            noise in proptest::collection::vec(any::<u8>(), 0..256),
            types in proptest::sample::select(vec![vec![0x0800], vec![0x86dd], vec![0x8100, 0x0800], vec![0x8100; 9]]),
            steer: bool, first in 0x44_u8..0x70, next in proptest::sample::select(vec![0_u8, 43, 60, 6, 17, 44]),
        ) {
            let mut head = noise;
            if steer {
                let mut steered = ethernet(&types);
                let at = steered.len();
                steered.extend(&head);
                if let Some(byte) = steered.get_mut(at) { *byte = first; }
                if let Some(byte) = steered.get_mut(at + 6) { *byte = next; }
                head = steered;
            }
            if let Some(network) = parse(&head) {
                prop_assert!(network.at < network.fragmentable && network.fragmentable <= network.transport);
                prop_assert!(network.transport <= head.len());
                prop_assert!(network.destination + 4 <= head.len() && network.next_header < network.fragmentable);
            }
            let mut options = head;
            keep_copied_options(&mut options);
        }
    }
}
