//! Ethernet and 802.1Q headers (IEEE 802.3 §3, IEEE 802.1Q §9.6).

/// Bytes of an Ethernet header without a tag.
pub const HEADER_SIZE: u32 = 14;
/// Bytes an 802.1Q tag adds.
pub const TAG_SIZE: u32 = 4;

/// A 48-bit address in the low bits, first byte highest: `01:00:5e:…` has bit 40 set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub u64);

impl Mac {
    /// All ones.
    pub const BROADCAST: Self = Self(0xffff_ffff_ffff);

    /// From the six bytes as they travel.
    #[inline]
    pub fn from_bytes(b: [u8; 6]) -> Self {
        Self(u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]]))
    }

    /// The destination of a frame.
    #[inline]
    pub fn destination(head: &[u8; 64]) -> Self {
        let [bytes @ .., _, _] = [head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]];
        Self::from_bytes(bytes)
    }

    /// Group addresses: multicast and broadcast.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & 0x0100_0000_0000 != 0
    }

    /// 01:80:c2:00:00:00 to …:0f: link-local protocols that a bridge keeps to itself (IEEE 802.1D §7.12.6).
    #[inline]
    pub fn is_reserved(self) -> bool {
        self.0 & 0xffff_ffff_fff0 == 0x0180_c200_0000
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        for (i, byte) in bytes.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i > 0 { ":" } else { "" })?;
        }
        Ok(())
    }
}

/// What a bridge needs of a frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// VLAN id, 0 when untagged or priority-tagged.
    pub vlan: u16,
    /// True if there is an 802.1Q tag at all.
    pub tagged: bool,
}

/// Reads the header from the first 64 bytes of a frame that has at least 14 (shorter ones were dropped).
#[inline]
pub fn parse(head: &[u8; 64]) -> Header {
    let word = u64::from_be_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
    let next = u64::from_be_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]);
    let dst = Mac(word >> 16);
    let src = Mac((word & 0xffff) << 32 | next >> 32);
    let tagged = next >> 16 & 0xffff == 0x8100;
    #[allow(clippy::cast_possible_truncation, reason = "masked to twelve bits")]
    let vlan = if tagged { next as u16 & 0x0fff } else { 0 };
    Header { dst, src, vlan, tagged }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> [u8; 64] {
        let mut head = [0; 64];
        head[..bytes.len()].copy_from_slice(bytes);
        head
    }

    #[test]
    fn untagged_frame_has_vlan_zero() {
        let h = parse(&head(&[1, 2, 3, 4, 5, 6, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x08, 0x00, 0xff, 0xff]));
        assert_eq!(h.dst.to_string(), "01:02:03:04:05:06");
        assert_eq!(h.src.to_string(), "0a:0b:0c:0d:0e:0f");
        assert_eq!((h.vlan, h.tagged), (0, false));
    }

    #[test]
    fn tag_gives_the_vlan_without_priority_bits() {
        let h = parse(&head(&[0; 12].iter().copied().chain([0x81, 0x00, 0xe1, 0x23]).collect::<Vec<_>>()));
        assert_eq!((h.vlan, h.tagged), (0x123, true));
    }

    #[test]
    fn reserved_addresses_are_the_sixteen_of_the_standard() {
        assert!(Mac(0x0180_c200_0000).is_reserved());
        assert!(Mac(0x0180_c200_000f).is_reserved());
        assert!(!Mac(0x0180_c200_0010).is_reserved());
        assert!(Mac::BROADCAST.is_group() && !Mac::BROADCAST.is_reserved());
    }
}
