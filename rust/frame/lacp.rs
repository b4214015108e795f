//! LACP frames (IEEE 802.1AX §6.4.2.3): what each end of a link says of itself, and of whom it hears.
//!
//! ```text
//!   0        14  16       36         56           72
//!   Ethernet │1,1│ actor  │ partner  │ collector  │ zeroes ─▶ 124
//! ```
//!
//! All that is read, and all that we write but zeroes, lies in the first 64 bytes. Nothing here believes anything: a frame
//! whose lengths, version or addresses cannot be is none.

use super::ethernet::Mac;

/// Where slow protocols are spoken: nobody forwards it (IEEE 802.3 annex 57A).
pub const SLOW_PROTOCOLS: Mac = Mac(0x0180_c200_0002);
const ETHERTYPE: [u8; 2] = [0x88, 0x09];
const SUBTYPE: u8 = 1;
/// The version that we write, and the least that we read: later ones begin alike (§6.4.2.3 d).
const VERSION: u8 = 1;
/// Type and length of what is said of the sender, of its partner, and of its collector.
const ACTOR: [u8; 2] = [1, 20];
const PARTNER: [u8; 2] = [2, 20];
const COLLECTOR: [u8; 2] = [3, 16];
/// Bytes of a frame, without its checksum.
pub const FRAME_SIZE: u32 = 124;

/// Bits of an end's state (§6.4.2.3 m).
pub mod state {
    /// It speaks unasked.
    pub const ACTIVITY: u8 = 1;
    /// It wants to hear every second.
    pub const TIMEOUT: u8 = 1 << 1;
    /// The link may be one with others.
    pub const AGGREGATION: u8 = 1 << 2;
    /// The link is where it belongs.
    pub const SYNCHRONIZED: u8 = 1 << 3;
    /// It takes frames.
    pub const COLLECTING: u8 = 1 << 4;
    /// It sends frames.
    pub const DISTRIBUTING: u8 = 1 << 5;
    /// It knows nothing of its partner.
    pub const DEFAULTED: u8 = 1 << 6;
    /// It did not hear of its partner of late.
    pub const EXPIRED: u8 = 1 << 7;
    /// In the order of their bits, as Open vSwitch names them.
    pub const NAMES: [&str; 8] =
        ["activity", "timeout", "aggregation", "synchronized", "collecting", "distributing", "defaulted", "expired"];
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Of the system; the lower, the more it decides.
    pub system_priority: u16,
    /// The system's address.
    pub system: Mac,
    /// Links of a system that have the same may be one.
    pub key: u16,
    /// Of the link.
    pub port_priority: u16,
    /// The link's number.
    pub port: u16,
    /// Bits of [`state`].
    pub state: u8,
}

impl End {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { system_priority: 0, system: Mac(0), key: 0, port_priority: 0, port: 0, state: 0 };

    /// True if every one of these bits is set.
    pub fn is(&self, bits: u8) -> bool {
        self.state & bits == bits
    }

    fn parse(bytes: &[u8; 15]) -> Self {
        let [s0, s1, m0, m1, m2, m3, m4, m5, k0, k1, r0, r1, p0, p1, state] = *bytes;
        Self {
            system_priority: u16::from_be_bytes([s0, s1]),
            system: Mac::from_bytes([m0, m1, m2, m3, m4, m5]),
            key: u16::from_be_bytes([k0, k1]),
            port_priority: u16::from_be_bytes([r0, r1]),
            port: u16::from_be_bytes([p0, p1]),
            state,
        }
    }

    fn bytes(&self) -> [u8; 18] {
        let [_, _, m0, m1, m2, m3, m4, m5] = self.system.0.to_be_bytes();
        let [[s0, s1], [k0, k1], [r0, r1], [p0, p1]] =
            [self.system_priority, self.key, self.port_priority, self.port].map(u16::to_be_bytes);
        [s0, s1, m0, m1, m2, m3, m4, m5, k0, k1, r0, r1, p0, p1, self.state, 0, 0, 0]
    }
}

/// What one end tells the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pdu {
    /// Of itself.
    pub actor: End,
    /// Of whom it hears.
    pub partner: End,
}

/// True for a frame of a slow protocol: LACP, its markers, OAM.
#[inline]
pub fn is_slow_protocol(head: &[u8; 64]) -> bool {
    Mac::destination(head) == SLOW_PROTOCOLS && head.get(12..14) == Some(&ETHERTYPE)
}

impl Pdu {
    /// Reads a frame of `len` bytes by its first ones; None if it is not LACP's, or not whole.
    pub fn parse(head: &[u8; 64], len: u32) -> Option<Self> {
        if len < FRAME_SIZE || !is_slow_protocol(head) {
            return None;
        }
        let (_, rest) = head.split_at_checked(14)?;
        let (&[subtype, version], rest) = rest.split_first_chunk()?;
        let (actor, rest) = rest.strip_prefix(&ACTOR)?.split_first_chunk::<18>()?;
        let (partner, rest) = rest.strip_prefix(&PARTNER)?.split_first_chunk::<18>()?;
        let is_whole = subtype == SUBTYPE && version >= VERSION && rest.starts_with(&COLLECTOR);
        let pdu = Self { actor: End::parse(actor.first_chunk()?), partner: End::parse(partner.first_chunk()?) };
        // A system is somebody's own address.
        let is_somebody = pdu.actor.system != Mac(0) && !pdu.actor.system.is_group();
        (is_whole && is_somebody).then_some(pdu)
    }

    /// The first bytes of the frame that says this; those up to [`FRAME_SIZE`] are zero.
    pub fn head(&self, source: Mac) -> [u8; 64] {
        let [_, _, to @ ..] = SLOW_PROTOCOLS.0.to_be_bytes();
        let [_, _, from @ ..] = source.0.to_be_bytes();
        let (actor, partner) = (self.actor.bytes(), self.partner.bytes());
        let parts: [&[u8]; 9] =
            [&to, &from, &ETHERTYPE, &[SUBTYPE, VERSION], &ACTOR, &actor, &PARTNER, &partner, &COLLECTOR];
        let mut head = [0; 64];
        for (to, from) in head.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end() -> impl Strategy<Value = End> {
        let system = (1_u64..1 << 48).prop_map(|bits| Mac(bits & !0x0100_0000_0000 | 1));
        (any::<[u16; 4]>(), system, any::<u8>()).prop_map(
            |([system_priority, key, port_priority, port], system, state)| End {
                system_priority,
                system,
                key,
                port_priority,
                port,
                state,
            },
        )
    }

    fn pdu() -> impl Strategy<Value = Pdu> {
        (end(), end()).prop_map(|(actor, partner)| Pdu { actor, partner })
    }

    /// Every field another number.
    fn example() -> Pdu {
        Pdu {
            actor: End {
                system_priority: 0xffff,
                system: Mac(0x0200_0000_0107),
                key: 15,
                port_priority: 255,
                port: 1,
                state: state::ACTIVITY | state::AGGREGATION | state::SYNCHRONIZED,
            },
            partner: End {
                system_priority: 1,
                system: Mac(0x0a0b_0c0d_0e0f),
                key: 2,
                port_priority: 3,
                port: 4,
                state: 5,
            },
        }
    }

    #[test]
    fn every_field_is_where_the_standard_has_it() {
        let head = example().head(Mac(0x0200_0000_0009));
        let mut expected = vec![0x01, 0x80, 0xc2, 0, 0, 2, 2, 0, 0, 0, 0, 9, 0x88, 0x09, 1, 1];
        expected.extend([1, 20, 0xff, 0xff, 2, 0, 0, 0, 1, 7, 0, 15, 0, 255, 0, 1, 0x0d, 0, 0, 0]);
        expected.extend([2, 20, 0, 1, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0, 2, 0, 3, 0, 4, 5, 0, 0, 0]);
        expected.extend([3, 16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(head.as_slice(), expected);
    }

    #[test]
    fn every_length_type_and_version_is_checked() {
        let head = example().head(Mac(9));
        assert_eq!(Pdu::parse(&head, FRAME_SIZE), Some(example()));
        assert_eq!(Pdu::parse(&head, 1500), Some(example()), "padded");
        assert_eq!(Pdu::parse(&head, FRAME_SIZE - 1), None, "cut short");
        let with = |at: usize, byte: u8| {
            let mut other = head;
            other[at] = byte;
            Pdu::parse(&other, FRAME_SIZE)
        };
        assert_eq!(with(15, 2), Some(example()), "a later version begins alike");
        for (at, byte, what) in [
            (5, 3, "another address"),
            (13, 0, "another type"),
            (14, 2, "a marker"),
            (15, 0, "no version"),
            (16, 3, "no actor"),
            (17, 19, "a short actor"),
            (36, 1, "no partner"),
            (37, 21, "a long partner"),
            (56, 0, "no collector"),
            (57, 15, "a short collector"),
            (20, 3, "a group for a system"),
        ] {
            assert_eq!(with(at, byte), None, "{what}");
        }
        let mut nobody = head;
        nobody[20..26].fill(0);
        assert_eq!(Pdu::parse(&nobody, FRAME_SIZE), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pdu in pdu(), source in 0_u64..1 << 48) {
            prop_assert_eq!(Pdu::parse(&pdu.head(Mac(source)), FRAME_SIZE), Some(pdu));
        }

        #[test]
        fn any_bytes_are_read_or_refused_and_what_is_read_is_what_was_there(
            pdu in pdu(), changes in prop::collection::vec((0_usize..64, any::<u8>()), 0..6), len in 0_u32..200,
        ) {
            let mut head = pdu.head(Mac(9));
            for (at, byte) in changes {
                head[at] = byte;
            }
            if let Some(read) = Pdu::parse(&head, len) {
                prop_assert!(len >= FRAME_SIZE && is_slow_protocol(&head));
                let again = read.head(Mac(9));
                // But for the source, the version, and what is reserved.
                for at in (0..6).chain(12..15).chain(16..33).chain(36..53).chain(56..58) {
                    prop_assert_eq!(again[at], head[at], "byte {}", at);
                }
            }
        }
    }
}
