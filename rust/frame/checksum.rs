//! The Internet checksum (RFC 1071), over pieces.

/// A running ones'-complement sum over bytes that arrive in pieces of any length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    /// True when an odd number of bytes came so far: the next byte is a low one.
    odd: bool,
}

impl Sum {
    /// Adds one piece.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let [first, rest @ ..] = bytes
        {
            self.total += u64::from(*first);
            self.odd = false;
            bytes = rest;
        }
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            // Four 16-bit lanes at once: their sum folds the same as the lanes' sums.
            let word = u64::from_be_bytes(*word);
            self.total += (word >> 32) + (word & 0xffff_ffff);
        }
        let (pairs, last) = tail.as_chunks::<2>();
        for pair in pairs {
            self.total += u64::from(u16::from_be_bytes(*pair));
        }
        if let [byte] = last {
            self.total += u64::from(*byte) << 8;
            self.odd = true;
        }
    }

    /// The checksum as it is stored in a header, in network order. A transport checksum of zero is sent as `0xffff`.
    pub fn finish(self) -> [u8; 2] {
        let mut total = self.total;
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        #[allow(clippy::cast_possible_truncation, reason = "folded to sixteen bits")]
        let sum = !(total as u16);
        (if sum == 0 { 0xffff } else { sum }).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> [u8; 2] {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        let sum = !u16::try_from(total).unwrap();
        (if sum == 0 { 0xffff } else { sum }).to_be_bytes()
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
            prop_assert_eq!(sum.finish(), naive(&pieces.concat()));
        }
    }
}
