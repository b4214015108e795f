//! What was written into a receiver's buffers, looked at again.
//!
//! Checksums are made of these bytes and never of a second look at the sender's. A receiver that scribbles over its
//! buffers meanwhile spoils its own frame. The caller keeps the spans mapped.

use crate::frame::checksum::Sum;
use crate::frame::vnet_hdr::PartialChecksum;
use crate::memory::{GuestMap, Marks, Span, access, copy};

/// Sums a frame of `frame_len` bytes that lies `skip` bytes into `spans`, and stores the checksum.
#[cold]
pub(crate) fn finish_checksum(spans: &[Span], skip: u32, frame_len: u32, partial: PartialChecksum) {
    let from = skip + u32::from(partial.start);
    let mut sum = Sum::default();
    add_to(&mut sum, spans, from, skip + frame_len);
    Field::at(spans, from + u32::from(partial.offset)).store(sum.finish());
}

/// Adds bytes `[from, to)` of `spans` laid end to end.
pub(crate) fn add_to(sum: &mut Sum, spans: &[Span], from: u32, to: u32) {
    let mut chunk = [0_u8; 512];
    for_each_range(spans, from, to, |mut start, mut left| {
        while left > 0 {
            let n = left.min(chunk.len());
            // SAFETY: `n` bytes from `start` are inside a span that the caller keeps mapped; the chunk has room.
            unsafe { copy::copy(chunk.as_mut_ptr(), start, n) };
            sum.add(chunk.get(..n).unwrap_or_default());
            (start, left) = (start.wrapping_add(n), left - n);
        }
    });
}

/// The two bytes of a checksum, which may lie in two buffers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field([*mut u8; 2]);

impl Field {
    /// The bytes at `at` and after it of `spans` laid end to end; null where there are none.
    pub(crate) fn at(spans: &[Span], at: u32) -> Self {
        let mut bytes = [std::ptr::null_mut(); 2];
        let mut places = bytes.iter_mut();
        for_each_range(spans, at, at.saturating_add(2), |start, len| {
            for (i, place) in places.by_ref().take(len).enumerate() {
                *place = start.wrapping_add(i);
            }
        });
        Self(bytes)
    }

    /// Notes for the dirty log that a checksum was stored.
    pub(crate) fn note(self, memory: &GuestMap, marks: &mut Marks) {
        if marks.are_wanted() {
            self.0.into_iter().filter(|at| !at.is_null()).for_each(|at| marks.note(memory, at, 1));
        }
    }

    /// Stores a checksum.
    pub(crate) fn store(self, value: [u8; 2]) {
        for (at, byte) in self.0.into_iter().zip(value).filter(|(at, _)| !at.is_null()) {
            // SAFETY: a byte of a span that the caller keeps mapped.
            unsafe { access::store::<u8>(at, byte) };
        }
    }
}

/// Calls `f` with each run of bytes `[from, to)` of `spans` laid end to end.
fn for_each_range(spans: &[Span], from: u32, to: u32, mut f: impl FnMut(*mut u8, usize)) {
    let mut base = 0_u32;
    for span in spans {
        let end = base.saturating_add(span.len);
        let (a, b) = (from.max(base), to.min(end));
        if a < b {
            f(span.start.wrapping_add((a - base) as usize), (b - a) as usize);
        }
        base = end;
    }
}
