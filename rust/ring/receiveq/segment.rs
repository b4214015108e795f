//! Segmentation in software, for a receiver that did not negotiate it: each piece of a frame into buffers of its own.
//!
//! ```text
//!   sender    │ headers │ payload ───────────────────▶ │     judged once, when the frame was gathered
//!                  │          │ one copy
//!   receiver  │ virtio │ headers' │ size │  │ virtio │ headers' │ size │  …       checksums over what was written
//! ```
//!
//! All pieces or none: nothing is published before the last is written, so a frame that finds too few buffers is tried
//! again as a whole, never twice in part. One that needs more buffers than the ring can hold never fits, and is
//! dropped as such; this also bounds the work that a tiny segment size can ask for.

use super::Writer;
use crate::burst::Burst;
use crate::burst::written::{Field, add_to};
use crate::frame::checksum::Sum;
use crate::frame::gso::PIECE_HEAD_SIZE;
use crate::frame::vnet_hdr::{self, Offload, OffloadSet};
use crate::ring::RingFault;
use crate::ring::layout::Layout;

impl Writer {
    /// Writes frame `index` of `burst` in pieces, from place `taken` on. Gives as `place`.
    #[cold]
    pub(super) fn segment<L: Layout>(
        &mut self,
        ring: &mut L,
        burst: &Burst,
        index: usize,
        taken: u16,
    ) -> Result<Option<u16>, Option<RingFault>> {
        let Some((plan, head)) = burst.large(index).filter(|(plan, _)| plan.count() <= self.ring_size) else {
            return Ok(None);
        };
        let is_checked = !plan.is_fragmented() && OffloadSet::CHECKSUM.without(self.takes).is_empty();
        let header = vnet_hdr::encode(if is_checked { Offload::DATA_VALID } else { Offload::NONE });
        let ident = self.idents.next_ident();
        let (mut place, mut sum, mut field) = (taken, Sum::default(), None);
        for n in 0..plan.count() {
            let mut bytes = [0; PIECE_HEAD_SIZE];
            let piece = plan.piece(n, head, ident, &mut bytes);
            let piece_head = bytes.get(..piece.head_size).unwrap_or_default();
            #[allow(clippy::cast_possible_truncation, reason = "places in PIECE_HEAD_SIZE bytes")]
            let [head_end, sum_from] = [piece.head_size, piece.sum_from].map(|at| self.header_size + at as u32);
            let end = head_end + piece.len;
            self.scratch.next_piece();
            let Some((places, chains)) = self.reserve(ring, place, end)? else {
                ring.forget(taken);
                return Ok(None);
            };
            if n == 0 {
                // Every other piece takes a place at least: do not begin what cannot be ended.
                let want = usize::from(place + places) + plan.count() as usize - 1;
                if usize::from(ring.ready(want).map_err(Some)?) < want {
                    return Err(None);
                }
            }
            let header = vnet_hdr::with_buffers(header, chains);
            self.write_many(burst, index, header, piece_head, piece.from, piece.len);
            self.note_written(ring.memory(), end);
            let spans = &self.scratch.spans;
            add_to(&mut sum, spans, sum_from, end);
            #[allow(clippy::cast_possible_truncation, reason = "a place in PIECE_HEAD_SIZE bytes")]
            let here = piece.checksum_at.map(|at| Field::at(spans, self.header_size + at as u32));
            field = here.or(field);
            if (!plan.is_fragmented() || n + 1 == plan.count())
                && let Some(field) = field
            {
                field.store(std::mem::take(&mut sum).finish());
                // It may be in a piece that was noted, and marked, long ago.
                field.note(ring.memory(), &mut self.marks);
            }
            place += places;
        }
        Ok(Some(place - taken))
    }
}
