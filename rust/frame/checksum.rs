//! The Internet checksum (RFC 1071), over pieces.
//!
//! Summed in the machine's own byte order, for the sum does not care (RFC 1071 §2): the loop then has no byte swap and
//! the compiler makes vectors of it. The one swap is at the end.

/// A running ones'-complement sum over bytes that arrive in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    /// True when an odd number of bytes came so far: the next byte is the second of its pair.
    odd: bool,
}

impl Sum {
    /// Adds one piece.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let [second, rest @ ..] = bytes
        {
            self.total += u64::from(u16::from_ne_bytes([0, *second]));
            self.odd = false;
            bytes = rest;
        }
        let (words, tail) = bytes.as_chunks::<4>();
        for word in words {
            // Two 16-bit lanes at once: their sum folds the same as the lanes' sums.
            self.total += u64::from(u32::from_ne_bytes(*word));
        }
        let (pairs, last) = tail.as_chunks::<2>();
        for pair in pairs {
            self.total += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [first] = last {
            self.total += u64::from(u16::from_ne_bytes([*first, 0]));
            self.odd = true;
        }
    }

    /// Adds a number as its two bytes in network order. Only between pieces of even length.
    #[inline]
    pub fn add_u16(&mut self, number: u16) {
        self.total += u64::from(number.to_be());
    }

    /// The sum itself, in network order: what a sender leaves in the field of a partial checksum when it summed the
    /// pseudo-header.
    pub fn folded(self) -> [u8; 2] {
        let mut total = self.total;
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        #[allow(clippy::cast_possible_truncation, reason = "folded to sixteen bits")]
        let sum = total as u16;
        sum.to_ne_bytes()
    }

    /// The checksum of a network header, in network order.
    pub fn complement(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// The checksum of a transport header, in network order: zero, which would say "none" in UDP, is sent as `0xffff`
    /// (RFC 768); for TCP the two mean the same.
    pub fn finish(self) -> [u8; 2] {
        match self.complement() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        u16::try_from(total).unwrap()
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_sum_like_the_whole(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..12)
        ) {
            let mut sum = Sum::default();
            for piece in &pieces {
                sum.add(piece);
            }
            let want = naive(&pieces.concat());
            prop_assert_eq!(sum.folded(), want.to_be_bytes());
            prop_assert_eq!(sum.complement(), (!want).to_be_bytes());
            let sent = if want == 0xffff { 0xffff } else { !want };
            prop_assert_eq!(sum.finish(), sent.to_be_bytes());
        }

        #[test]
        fn numbers_sum_like_their_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..20), number: u16) {
            let even = &bytes[..bytes.len() / 2 * 2];
            let (mut by_number, mut by_bytes) = (Sum::default(), Sum::default());
            by_number.add(even);
            by_number.add_u16(number);
            by_bytes.add(even);
            by_bytes.add(&number.to_be_bytes());
            prop_assert_eq!(by_number.folded(), by_bytes.folded());
        }
    }

    #[test]
    fn the_largest_frame_of_ones_does_not_overflow() {
        let mut sum = Sum::default();
        sum.add(&vec![0xff; 65_557]);
        assert_eq!(sum.folded(), naive(&vec![0xff; 65_557]).to_be_bytes());
    }
}
