// SPDX-License-Identifier: Apache-2.0
//! The Internet checksum (RFC 1071), written for clarity: it judges faster ones.

/// The ones' complement sum of big-endian words, an odd last byte padded with zero, folded to 16
/// bits; not inverted.
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    if let [last] = rest {
        total += u64::from(*last) << 8;
    }
    fold(total)
}

/// The sum of two sums.
pub fn add(left: u16, right: u16) -> u16 {
    fold(u64::from(left) + u64::from(right))
}

/// The sum of the IPv4 or IPv6 pseudo-header: both addresses, protocol and length.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u16 {
    fold(u64::from(sum(addresses)) + u64::from(protocol) + len as u64)
}

#[expect(clippy::cast_possible_truncation, reason = "the loop ends below 2^16")]
fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_one() {
        assert_eq!(sum(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    #[test]
    fn a_known_ipv4_header_verifies() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        assert_eq!(sum(&header), 0xffff);
    }
}
