//! Where the frames of a burst lie: asked when a guest's IOMMU took mappings back under them. Nothing of a frame is read.

use super::{Burst, Packet};
use crate::memory::Span;

impl Burst {
    /// Which frames have bytes where `is_there` says so: bit i for frame i.
    #[cold]
    pub(crate) fn frames_in(&self, is_there: impl Fn(Span) -> bool) -> u64 {
        let mut frames = 0;
        for (i, packet) in self.packets().iter().enumerate() {
            let whole = [Span { start: packet.data, len: packet.len }];
            if self.pieces_of(packet, &whole).iter().any(|&span| is_there(span)) {
                frames |= 1 << i;
            }
        }
        frames
    }

    /// True if frame `index` is what these spans hold after their first `skip` bytes, all of it and no more, in the same
    /// place.
    #[cold]
    pub(crate) fn is_in(&self, index: usize, spans: &[Span], mut skip: u32) -> bool {
        let Some(packet) = self.packets().get(index) else { return false };
        let whole = [Span { start: packet.data, len: packet.len }];
        let mut pieces = self.pieces_of(packet, &whole).iter().copied().filter(|piece| piece.len > 0);
        let mut left = Span::EMPTY;
        for &span in spans {
            let cut = skip.min(span.len);
            skip -= cut;
            let mut span = span.after(cut);
            while span.len > 0 {
                if left.len == 0 {
                    let Some(piece) = pieces.next() else { return false };
                    left = piece;
                }
                if left.start != span.start {
                    return false;
                }
                let same = left.len.min(span.len);
                (left, span) = (left.after(same), span.after(same));
            }
        }
        left.len == 0 && pieces.next().is_none()
    }

    /// The pieces of a frame; `whole` if it lies in one.
    fn pieces_of<'a>(&'a self, packet: &Packet, whole: &'a [Span]) -> &'a [Span] {
        let (first, count) = (usize::from(packet.pieces.0), usize::from(packet.pieces.1));
        self.spans.get(first..first + count).filter(|_| count > 0).unwrap_or(whole)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::vnet_hdr::Offload;

    fn span(bytes: &mut [u8]) -> Span {
        Span { start: bytes.as_mut_ptr(), len: u32::try_from(bytes.len()).unwrap() }
    }

    /// Rows: A14.
    #[test]
    fn a_frame_is_where_its_chain_is_however_the_mappings_cut_it() {
        let (mut first, mut second) = ([1_u8; 300], [2_u8; 200]);
        let (one, two) = (span(&mut first), span(&mut second));
        let mut burst = Burst::new(Arc::default());
        // The virtio header's twelve bytes come first.
        burst.push_pieces(&[one.after(12), two], 488, None, Offload::NONE);
        let cut = |span: Span, at: u32| [Span { len: at, ..span }, span.after(at)];
        let [a, b] = cut(one, 5);
        let [c, d] = cut(two, 100);
        assert!(burst.is_in(0, &[one, two], 12));
        assert!(burst.is_in(0, &[a, b, c, d], 12));
        assert!(!burst.is_in(0, &[one, c], 12), "its end is missing");
        assert!(!burst.is_in(0, &[one, two, a], 12), "there is more");
        assert!(!burst.is_in(0, &[two, one], 12), "the other way round");
        assert!(!burst.is_in(0, &[one.after(1), two], 12), "elsewhere");
        assert!(!burst.is_in(1, &[one, two], 12), "no such frame");
        assert_eq!(burst.frames_in(|piece| piece.start == two.start), 1);
        assert_eq!(burst.frames_in(|_| false), 0);
    }
}
