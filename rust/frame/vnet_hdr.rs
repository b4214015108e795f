//! The virtio-net header that precedes each frame in a ring (virtio 1.2 §5.1.6, USO as in 1.3).
//!
//! ```text
//!   0 flags │ 1 gso_type │ 2 hdr_len │ 4 gso_size │ 6 csum_start │ 8 csum_offset │ 10 num_buffers (not legacy)
//! ```
//!
//! A sender's header is read once and judged twice: here by itself and by the frame's length, and, if it asks for
//! segmentation, against the frame's own headers (`gso`). What a receiver gets is never the sender's header but one
//! made from what was judged: `hdr_len` is ours, fields that mean nothing are zero.

use crate::drops::DropReason;

/// Bytes of the header with `VERSION_1` or `MRG_RXBUF`.
pub const SIZE: usize = 12;
/// Bytes of the legacy header.
pub const LEGACY_SIZE: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_ECN: u8 = 0x80;

/// The offset of the checksum in a TCP header, and in a UDP header.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// Offloads: what a frame asks of its receiver, or what an end agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadSet(u8);

impl OffloadSet {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Partial checksums.
    pub const CHECKSUM: Self = Self(1 << 0);
    /// TCP over IPv4, to be segmented.
    pub const TSO4: Self = Self(1 << 1);
    /// TCP over IPv6, to be segmented.
    pub const TSO6: Self = Self(1 << 2);
    /// The same with the CWR flag set (RFC 3168).
    pub const ECN: Self = Self(1 << 3);
    /// UDP, to be cut into IP fragments.
    pub const UFO: Self = Self(1 << 4);
    /// UDP over IPv4, to be cut into datagrams.
    pub const USO4: Self = Self(1 << 5);
    /// UDP over IPv6, to be cut into datagrams.
    pub const USO6: Self = Self(1 << 6);
    /// All of them.
    pub const ALL: Self = Self(0x7f);

    /// Those of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of this that `other` lacks.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// True if there is none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if there is any but the checksum.
    #[inline]
    pub const fn has_segmentation(self) -> bool {
        self.0 > Self::CHECKSUM.0
    }
}

/// How a frame longer than its receiver's packets is to be cut (`VIRTIO_NET_HDR_GSO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoType {
    /// TCP over IPv4.
    Tcp4,
    /// UDP into IP fragments.
    UdpFragments,
    /// TCP over IPv6.
    Tcp6,
    /// UDP into datagrams.
    Udp,
}

impl GsoType {
    fn new(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Tcp4),
            3 => Some(Self::UdpFragments),
            4 => Some(Self::Tcp6),
            5 => Some(Self::Udp),
            _ => None,
        }
    }

    /// What a sender must have negotiated for it.
    fn asks(self) -> OffloadSet {
        match self {
            Self::Tcp4 => OffloadSet::TSO4,
            Self::Tcp6 => OffloadSet::TSO6,
            Self::UdpFragments => OffloadSet::UFO,
            Self::Udp => OffloadSet::USO4.union(OffloadSet::USO6),
        }
    }

    fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp4 | Self::Tcp6 => TCP_CHECKSUM,
            Self::UdpFragments | Self::Udp => UDP_CHECKSUM,
        }
    }
}

/// What a sender asked for, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Bytes 0 to 7 of the header for a receiver that does it all.
    low: u64,
    /// Bytes 8 and 9.
    high: u16,
    needs: OffloadSet,
}

/// A checksum left for a later hand to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte summed, from the start of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

/// A request to cut a frame, as far as the header alone can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoRequest {
    /// How.
    pub gso_type: GsoType,
    /// Most bytes after the headers in one piece, not 0.
    pub size: u16,
    /// Where the sender says the transport header is.
    pub transport: u16,
}

impl Offload {
    /// Nothing to do.
    pub const NONE: Self = Self { low: 0, high: 0, needs: OffloadSet::NONE };
    /// The checksum was verified, or is true because we made it (`VIRTIO_NET_HDR_F_DATA_VALID`): for a receiver that
    /// negotiated `GUEST_CSUM`.
    pub const DATA_VALID: Self = Self { low: DATA_VALID as u64, high: 0, needs: OffloadSet::NONE };

    fn new(flags: u8, gso_type: u8, gso_size: u16, checksum: PartialChecksum, needs: OffloadSet) -> Self {
        let low =
            u64::from(flags) | u64::from(gso_type) << 8 | u64::from(gso_size) << 32 | u64::from(checksum.start) << 48;
        Self { low, high: checksum.offset, needs }
    }

    /// What its receiver must have negotiated to get the frame as it is.
    #[inline]
    pub fn needs(&self) -> OffloadSet {
        self.needs
    }

    /// The checksum that is not finished, if any.
    pub fn checksum(&self) -> Option<PartialChecksum> {
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let start = (self.low >> 48) as u16;
        (!self.needs.is_empty()).then_some(PartialChecksum { start, offset: self.high })
    }

    /// The segmentation asked for, if any.
    pub fn gso(&self) -> Option<GsoRequest> {
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (number, size, transport) = ((self.low >> 8) as u8, (self.low >> 32) as u16, (self.low >> 48) as u16);
        GsoType::new(number & !GSO_ECN).map(|gso_type| GsoRequest { gso_type, size, transport })
    }

    /// The same for a frame whose headers were seen: of `header_len` bytes, over IPv6 or not.
    #[must_use]
    pub fn with_headers(self, header_len: u16, is_v6: bool) -> Self {
        let over = if is_v6 { OffloadSet::USO4 } else { OffloadSet::USO6 };
        Self { low: self.low | u64::from(header_len) << 16, needs: self.needs.without(over), ..self }
    }
}

/// Reads a sender's header once and judges it against the frame it precedes and what the sender negotiated, without
/// which the fields mean nothing. A request for segmentation is accepted as far as the header goes; the frame's own
/// headers are judged by `gso::Plan`.
///
/// # Errors
/// `bad_offload`: a checksum that lies outside the frame, a segmentation type that is unknown or was not negotiated, a
/// segment size of zero, a checksum that is not the transport's or not left to us (virtio 1.2 §5.1.6.2.1), ECN without
/// TCP.
#[inline]
pub fn judge(raw: u128, frame_len: u32, sender: OffloadSet) -> Result<Offload, DropReason> {
    // A header of zeroes (num_buffers aside) asks for nothing: nearly every frame.
    if raw & ((1 << 80) - 1) == 0 {
        return Ok(Offload::NONE);
    }
    let bytes = raw.to_le_bytes();
    let [flags, gso_type, _, _, size_lo, size_hi, start_lo, start_hi, offset_lo, offset_hi, ..] = bytes;
    if flags & NEEDS_CSUM == 0 {
        return if gso_type == 0 { Ok(Offload::NONE) } else { Err(DropReason::BadOffload) };
    }
    let checksum = PartialChecksum {
        start: u16::from_le_bytes([start_lo, start_hi]),
        offset: u16::from_le_bytes([offset_lo, offset_hi]),
    };
    let asks = OffloadSet::CHECKSUM;
    if !asks.without(sender).is_empty() || u32::from(checksum.start) + u32::from(checksum.offset) + 2 > frame_len {
        return Err(DropReason::BadOffload);
    }
    if gso_type == 0 {
        return Ok(Offload::new(NEEDS_CSUM, 0, 0, checksum, asks));
    }
    judge_gso(gso_type, u16::from_le_bytes([size_lo, size_hi]), checksum, sender)
}

fn judge_gso(number: u8, size: u16, checksum: PartialChecksum, sender: OffloadSet) -> Result<Offload, DropReason> {
    let Some(gso_type) = GsoType::new(number & !GSO_ECN) else { return Err(DropReason::BadOffload) };
    let mut asks = OffloadSet::CHECKSUM.union(gso_type.asks());
    if number & GSO_ECN != 0 {
        if !matches!(gso_type, GsoType::Tcp4 | GsoType::Tcp6) {
            return Err(DropReason::BadOffload);
        }
        asks = asks.union(OffloadSet::ECN);
    }
    if size == 0 || checksum.offset != gso_type.checksum_offset() || !asks.without(sender).is_empty() {
        return Err(DropReason::BadOffload);
    }
    Ok(Offload::new(NEEDS_CSUM, number, size, checksum, asks))
}

/// The header a receiver gets, `num_buffers` still 1; the low 10 bytes are the legacy form.
#[inline]
pub fn encode(offload: Offload) -> u128 {
    1_u128 << 80 | u128::from(offload.high) << 64 | u128::from(offload.low)
}

/// `raw` with another `num_buffers`.
#[inline]
pub fn with_buffers(raw: u128, buffers: u16) -> u128 {
    raw & ((1 << 80) - 1) | u128::from(buffers) << 80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CSUM: OffloadSet = OffloadSet::CHECKSUM;

    /// A header as a sender writes it.
    fn raw(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> u128 {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1]) = (flags, gso_type);
        bytes[2..4].copy_from_slice(&0xdead_u16.to_le_bytes());
        bytes[4..6].copy_from_slice(&gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        u128::from_le_bytes(bytes)
    }

    #[test]
    fn a_checksum_request_is_passed_on() {
        let offload = judge(raw(1, 0, 77, 34, 16), 100, CSUM).unwrap();
        assert_eq!(offload.checksum(), Some(PartialChecksum { start: 34, offset: 16 }));
        assert_eq!((offload.needs(), offload.gso()), (CSUM, None));
        let want = raw(1, 0, 0, 34, 16) & !(0xffff << 16) | 1 << 80;
        assert_eq!(encode(offload), want, "what means nothing is zero");
    }

    #[test]
    fn segmentation_is_judged_by_what_the_sender_negotiated() {
        let cases = [
            (1, 16, OffloadSet::TSO4),
            (0x81, 16, OffloadSet::TSO4.union(OffloadSet::ECN)),
            (4, 16, OffloadSet::TSO6),
            (0x84, 16, OffloadSet::TSO6.union(OffloadSet::ECN)),
            (3, 6, OffloadSet::UFO),
            (5, 6, OffloadSet::USO4.union(OffloadSet::USO6)),
        ];
        for (number, offset, set) in cases {
            let raw = raw(1, number, 1448, 34, offset);
            let offload = judge(raw, 9_000, set.union(CSUM)).unwrap();
            assert_eq!(offload.needs(), set.union(CSUM));
            assert_eq!(offload.gso().map(|gso| (gso.size, gso.transport)), Some((1448, 34)));
            let others = OffloadSet::ALL.without(set).union(CSUM);
            assert_eq!(judge(raw, 9_000, others), Err(DropReason::BadOffload), "{number}");
            assert_eq!(judge(raw, 9_000, set), Err(DropReason::BadOffload), "{number} without CSUM");
        }
    }

    #[test]
    fn lies_about_segmentation_are_refused() {
        let lies = [
            ("unknown type", raw(1, 2, 1448, 34, 16)),
            ("unknown type", raw(1, 6, 1448, 34, 16)),
            ("tunnel", raw(1, 0x21, 1448, 34, 16)),
            ("only ECN", raw(1, 0x80, 1448, 34, 16)),
            ("ECN with UDP", raw(1, 0x83, 1448, 34, 6)),
            ("ECN with UDP", raw(1, 0x85, 1448, 34, 6)),
            ("no size", raw(1, 1, 0, 34, 16)),
            ("no checksum", raw(0, 1, 1448, 34, 16)),
            ("only DATA_VALID", raw(2, 4, 1448, 34, 16)),
            ("UDP's checksum in TCP", raw(1, 1, 1448, 34, 6)),
            ("TCP's checksum in UDP", raw(1, 5, 1448, 34, 16)),
            ("checksum past the end", raw(1, 1, 1448, 8_990, 16)),
            ("checksum past everything", raw(1, 1, 1448, 0xffff, 16)),
        ];
        for (name, raw) in lies {
            assert_eq!(judge(raw, 9_000, OffloadSet::ALL), Err(DropReason::BadOffload), "{name}");
        }
    }

    #[test]
    fn checksum_without_negotiation_is_refused() {
        assert_eq!(judge(raw(1, 0, 0, 34, 16), 100, OffloadSet::NONE), Err(DropReason::BadOffload));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside_the_frame(raw: u128, frame_len in 14_u32..70_000, sender: u8) {
            let sender = OffloadSet(sender & OffloadSet::ALL.0);
            if let Ok(offload) = judge(raw, frame_len, sender) {
                if let Some(c) = offload.checksum() {
                    prop_assert!(u32::from(c.start) + u32::from(c.offset) + 2 <= frame_len);
                }
                prop_assert!(offload.needs().without(sender).is_empty());
                prop_assert_eq!(offload.gso().is_some(), offload.needs().has_segmentation());
                prop_assert!(offload.gso().is_none_or(|gso| gso.size > 0 && offload.checksum().is_some()));
            }
        }
    }
}
