//! What a ring does for a guest that is on its way to another host: the pages that it writes are marked in the dirty
//! log. Off, it costs a load and a branch a group, and a branch a frame.
//!
//! ```text
//!   payload written ─▶ its pages marked ─▶ used elements, index published ─▶ their pages marked ─▶ driver called
//! ```
//!
//! Payload is marked before it is published, so that whoever comes after a crash finds everything marked that the guest
//! was told of; then only the ring's own pages, and buffers that the guest was not told of, can lack a mark, and
//! [`Ring::log_to`] marks those again.

use std::sync::Arc;

use super::Ring;
use super::chain::{Direction, Scratch};
use super::kind::{Kind, with_layout};
use super::layout::Layout;
use super::transmitq::header_size;
use crate::burst::MAX_FRAME;
use crate::memory::{Gpa, GuestMap, Logging, Marks};

/// Where a ring's own areas are to the dirty log.
#[derive(Debug, Default)]
pub(super) struct RingLog {
    pub(super) logging: Arc<Logging>,
    /// The used ring, or the device event area of a packed ring.
    used: u64,
    /// The descriptor ring of a packed ring.
    desc: u64,
}

impl RingLog {
    fn new(logging: Arc<Logging>, used: Gpa, desc: Gpa) -> Self {
        Self { logging, used: used.0, desc: desc.0 }
    }

    /// One load.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.logging.is_on()
    }

    /// Marks stretches of the used area that were written: where from its start, how many bytes.
    pub(super) fn mark_used<const N: usize>(&self, stretches: [(u64, u64); N]) {
        self.logging.mark(stretches.map(|(from, len)| (Gpa(self.used.saturating_add(from)), len)));
    }

    /// The same of a packed ring's descriptors.
    pub(super) fn mark_desc<const N: usize>(&self, stretches: [(u64, u64); N]) {
        self.logging.mark(stretches.map(|(from, len)| (Gpa(self.desc.saturating_add(from)), len)));
    }
}

impl Ring {
    /// Marks from now on what is written, while `logging` is on. `used` is the used area's address in the log; None: as
    /// the memory table says. A ring that `is_taken_over` from a process that died marks again what that may have written
    /// without a mark.
    pub fn log_to(&mut self, logging: &Arc<Logging>, used: Option<Gpa>, is_taken_over: bool) {
        with_layout!(&mut self.0, ring => {
            let place = |at| GuestMap::gpa_of(ring.memory(), at, &mut 0);
            let (own, desc) = (place(ring.used_area()), place(ring.desc_area()));
            let nowhere = Gpa(u64::MAX);
            let used = used.or(own).unwrap_or(nowhere);
            ring.set_log(RingLog::new(Arc::clone(logging), used, desc.unwrap_or(nowhere)));
            if is_taken_over && logging.is_on() {
                ring.mark_own_areas();
                mark_available(ring, &mut Marks::new(Arc::clone(logging)));
            }
        });
    }

    pub(super) fn logging(&self) -> &Arc<Logging> {
        with_layout!(&self.0, ring => ring.logging())
    }
}

/// Marks what may have been written of every buffer that the driver lent: of a chain, no more than a frame takes. A
/// transmitq has none.
fn mark_available<L: Layout>(ring: &mut L, marks: &mut Marks) {
    let (mut scratch, mut place) = (Scratch::new(), 0);
    while ring.ready(usize::from(place) + 1).is_ok_and(|ready| ready > place) {
        scratch.clear();
        let Ok(Some((chain, first))) = ring.head(place) else { break };
        let Ok((chain, _)) = ring.walk(place, chain, first, Direction::Writable, &mut scratch) else { break };
        let mut left = header_size(ring.features()) + MAX_FRAME;
        for span in &scratch.spans {
            let len = span.len.min(left);
            marks.note(ring.memory(), span.start, len);
            left -= len;
        }
        place += L::places(chain);
    }
    marks.settle();
}
