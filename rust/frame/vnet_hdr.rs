//! The virtio-net header that precedes each frame in a ring (virtio 1.2 §5.1.6).
//!
//! ```text
//!   0 flags │ 1 gso_type │ 2 hdr_len │ 4 gso_size │ 6 csum_start │ 8 csum_offset │ 10 num_buffers (not legacy)
//! ```

use crate::drops::DropReason;

/// Bytes of the header with `VERSION_1` or `MRG_RXBUF`.
pub const SIZE: usize = 12;
/// Bytes of the legacy header.
pub const LEGACY_SIZE: usize = 10;

const NEEDS_CSUM: u8 = 1;

/// What a sender asked for, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The transport checksum is partial: sum from `start` to the end, store at `start + offset`.
    pub checksum: Option<PartialChecksum>,
}

/// A checksum left for a later hand to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte summed, from the start of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

/// Reads a sender's header once and judges it against the frame it precedes.
///
/// `csum` says whether the sender negotiated `VIRTIO_NET_F_CSUM`; without it the fields mean nothing.
///
/// # Errors
/// `bad_offload`: a checksum that lies outside the frame, or segmentation, which is not on offer.
#[inline]
pub fn judge(raw: u128, frame_len: u32, csum: bool) -> Result<Offload, DropReason> {
    // A header of zeroes (num_buffers aside) asks for nothing: nearly every frame.
    if raw & ((1 << 80) - 1) == 0 {
        return Ok(Offload::default());
    }
    let bytes = raw.to_le_bytes();
    let [flags, gso_type, _, _, _, _, start_lo, start_hi, offset_lo, offset_hi, ..] = bytes;
    if gso_type != 0 {
        return Err(DropReason::BadOffload);
    }
    if flags & NEEDS_CSUM == 0 {
        return Ok(Offload::default());
    }
    let start = u16::from_le_bytes([start_lo, start_hi]);
    let offset = u16::from_le_bytes([offset_lo, offset_hi]);
    if !csum || u32::from(start) + u32::from(offset) + 2 > frame_len {
        return Err(DropReason::BadOffload);
    }
    Ok(Offload { checksum: Some(PartialChecksum { start, offset }) })
}

/// The header a receiver gets, `num_buffers` still 1; the low 10 bytes are the legacy form.
#[inline]
pub fn encode(offload: Offload) -> u128 {
    let mut raw = 1_u128 << 80;
    if let Some(PartialChecksum { start, offset }) = offload.checksum {
        raw |= u128::from(NEEDS_CSUM) | u128::from(start) << 48 | u128::from(offset) << 64;
    }
    raw
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

    #[test]
    fn checksum_request_survives_the_round_trip() {
        let offload = Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }) };
        assert_eq!(judge(encode(offload), 100, true), Ok(offload));
    }

    #[test]
    fn segmentation_is_refused_while_it_is_not_on_offer() {
        assert_eq!(judge(1 << 8, 1500, true), Err(DropReason::BadOffload));
    }

    #[test]
    fn checksum_without_negotiation_is_refused() {
        let raw = encode(Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }) });
        assert_eq!(judge(raw, 100, false), Err(DropReason::BadOffload));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside_the_frame(raw: u128, frame_len in 14u32..70_000) {
            if let Ok(Offload { checksum: Some(c) }) = judge(raw, frame_len, true) {
                prop_assert!(u32::from(c.start) + u32::from(c.offset) + 2 <= frame_len);
            }
        }
    }
}
