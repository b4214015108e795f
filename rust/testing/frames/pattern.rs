// SPDX-License-Identifier: Apache-2.0
//! The payload pattern: every byte follows from stream, sequence and its place.
//!
//! Eight-byte words that differ between frames and between places, so a stale buffer, a shifted
//! copy or a lost line shows; cheap enough to make and check at full rate.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The first word of a frame's pattern.
pub fn seed(stream: u16, sequence: u64) -> u64 {
    let mut word = (sequence ^ u64::from(stream) << 48).wrapping_add(1).wrapping_mul(STEP);
    word ^= word >> 29;
    word.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Fills `bytes` with the pattern of `seed`.
pub fn fill(seed: u64, bytes: &mut [u8]) {
    let mut word = seed;
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = word.to_le_bytes();
        word = word.wrapping_add(STEP);
    }
    rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
}

/// Whether `bytes` hold the pattern of `seed`.
pub fn matches(seed: u64, bytes: &[u8]) -> bool {
    let mut word = seed;
    let mut wrong = 0;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        wrong |= u64::from_le_bytes(*chunk) ^ word;
        word = word.wrapping_add(STEP);
    }
    wrong == 0 && rest == &word.to_le_bytes()[..rest.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_shows() {
        for size in [0, 1, 7, 8, 9, 64, 100] {
            let mut bytes = vec![0; size];
            fill(seed(3, 17), &mut bytes);
            assert!(matches(seed(3, 17), &bytes));
            for place in 0..size {
                bytes[place] ^= 1;
                assert!(!matches(seed(3, 17), &bytes), "byte {place} of {size}");
                bytes[place] ^= 1;
            }
        }
    }

    #[test]
    fn neighbours_have_other_patterns() {
        let mut bytes = [0; 64];
        fill(seed(0, 1), &mut bytes);
        assert!(!matches(seed(0, 2), &bytes));
        assert!(!matches(seed(1, 1), &bytes));
        bytes.rotate_left(8);
        assert!(!matches(seed(0, 1), &bytes));
    }
}
