//! Where the latest LACP frame of a bond's link lies until whoever negotiates looks.
//!
//! A frame says what is, and not what changed: of several the last one counts. So a neighbour that sends them by the million
//! costs a poll thread a write each, and the reader, who looks when it has the time, nothing. No poll thread waits for it,
//! wakes it, or is waited for.

use crate::frame::lacp::Pdu;
use crate::lock::Lock;
use crate::sys::tsc;

/// What came, and when (TSC cycles).
type Letter = Option<(u64, Pdu)>;

/// Of one link. Two places: where one is being read there is another. Several threads may poll queues of one link.
#[derive(Debug, Default)]
pub struct Letterbox([Lock<Letter>; 2]);

impl Letterbox {
    /// Leaves a frame.
    pub(super) fn put(&self, pdu: Pdu) {
        if let Some(mut place) = self.0.iter().find_map(Lock::try_lock) {
            *place = Some((tsc::now(), pdu));
        }
    }

    /// Takes the latest frame; None if there was none since. A place that is being written keeps it until the next look.
    pub fn take(&self) -> Option<Pdu> {
        let letters = self.0.iter().filter_map(|place| place.try_lock()?.take());
        letters.max_by_key(|(at, _)| *at).map(|(_, pdu)| pdu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::lacp::End;

    fn pdu(port: u16) -> Pdu {
        Pdu { actor: End { port, ..End::UNKNOWN }, partner: End::UNKNOWN }
    }

    #[test]
    fn the_last_one_counts_and_is_taken_once() {
        let letterbox = Letterbox::default();
        assert_eq!(letterbox.take(), None);
        (1..=3).for_each(|port| letterbox.put(pdu(port)));
        assert_eq!(letterbox.take(), Some(pdu(3)));
        assert_eq!(letterbox.take(), None);
    }

    #[test]
    fn what_comes_while_somebody_reads_is_the_next_to_be_taken() {
        let letterbox = Letterbox::default();
        letterbox.put(pdu(1));
        let reading = letterbox.0[0].lock();
        letterbox.put(pdu(2));
        drop(reading);
        assert_eq!(letterbox.take(), Some(pdu(2)));
        assert_eq!(letterbox.take(), None, "the earlier one is old");
    }
}
