// SPDX-License-Identifier: Apache-2.0
//! What senders and receivers count, and the account of every stream.

use crate::testing::frames::{Account, Corruption, Tracker};

/// Streams that a receiver keeps account of; numbers above are corrupt.
const STREAMS: u16 = 1024;

/// Counters of one transmitq.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendCounters {
    /// Frames posted.
    pub frames: u64,
    /// Their bytes, vnet header not included.
    pub bytes: u64,
    /// Frames that the device had when the ring was reset: whether they were sent, nobody knows.
    pub given_up: u64,
    /// Kicks written because the device asked for them.
    pub kicks: u64,
    /// Looks at the ring to find room.
    pub tries: u64,
    /// Looks that found the ring 0.9 full or fuller.
    pub full_tries: u64,
}

/// Counters of one receiveq.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiveCounters {
    /// Frames taken, of any kind.
    pub frames: u64,
    /// Their bytes, vnet header not included.
    pub bytes: u64,
    /// Kicks written because the device asked for them.
    pub kicks: u64,
    /// Frames that are not numbered ones of ours.
    pub foreign: u64,
    /// Frames, of those only counted that were looked at, with a number not above that of the one looked at before.
    pub behind: u64,
    /// Numbers in frames that were found right in every byte: one a frame, many in a frame that asks to be cut.
    pub numbers: u64,
    /// Frames of many pieces that came whole.
    pub whole: u64,
    /// IP fragments that were not the last of their datagram.
    pub fragments: u64,
    /// Frames that came in more than one buffer.
    pub merged: u64,
    /// Numbered frames with something wrong, by kind, in the order of [`Corruption::ALL`].
    pub corrupt: [u64; Corruption::ALL.len()],
}

impl ReceiveCounters {
    /// Counts a corrupt frame.
    pub(super) fn note_corrupt(&mut self, kind: Corruption) {
        for (count, known) in self.corrupt.iter_mut().zip(Corruption::ALL) {
            *count += u64::from(known == kind);
        }
    }

    /// Corrupt frames of all kinds.
    pub fn corrupt_total(&self) -> u64 {
        self.corrupt.iter().sum()
    }
}

/// Accounts of all streams that arrive at one end, per flow, because order is promised per flow.
#[derive(Debug)]
pub struct Streams {
    flows: u64,
    trackers: Vec<Option<Box<[Flow]>>>,
    received: u64,
    queue: u8,
}

/// One flow of a stream.
#[derive(Debug, Default)]
struct Flow {
    tracker: Tracker,
    /// The queue of its last frame, and a bit for every queue it came in on.
    queue: u8,
    queues: u128,
    moves: u64,
}

impl Flow {
    #[inline]
    fn note(&mut self, sequence: u64, queue: u8) {
        self.tracker.note(sequence);
        if self.queue != queue || self.queues == 0 {
            self.moves += u64::from(self.queues != 0);
            self.queue = queue;
            self.queues |= 1 << (queue & 127);
        }
    }
}

/// On which queues the flows of a stream came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// A bit for every queue.
    pub queues: u128,
    /// How often a flow came in on another queue than before.
    pub moves: u64,
}

impl Streams {
    /// Streams of `flows` flows each, taken in turn.
    pub fn new(flows: u16) -> Self {
        Self { flows: u64::from(flows.max(1)), trackers: (0..STREAMS).map(|_| None).collect(), received: 0, queue: 0 }
    }

    /// What is noted next came in on queue pair `pair`.
    #[inline]
    pub fn arriving_on(&mut self, pair: usize) {
        // 128 pairs at most.
        self.queue = u8::try_from(pair).unwrap_or(u8::MAX);
    }

    /// Notes the arrival of a numbered frame; `false` when there can be no such stream.
    #[inline]
    pub fn note(&mut self, stream: u16, sequence: u64) -> bool {
        let (flows, queue) = (self.flows, self.queue);
        let Some(place) = self.trackers.get_mut(usize::from(stream)) else { return false };
        let trackers = place.get_or_insert_with(|| (0..flows).map(|_| Flow::default()).collect());
        if let [flow] = &mut **trackers {
            flow.note(sequence, queue);
        } else if let Ok(flow) = usize::try_from(sequence % flows)
            && let Some(flow) = trackers.get_mut(flow)
        {
            flow.note(sequence / flows, queue);
        }
        self.received += 1;
        true
    }

    /// Numbered frames that arrived, duplicates included.
    #[inline]
    pub fn arrivals(&self) -> u64 {
        self.received
    }

    /// One more than the highest number of a stream of one flow that arrived; 0 when none did.
    #[inline]
    pub fn next(&self, stream: u16) -> u64 {
        match self.trackers.get(usize::from(stream)).and_then(Option::as_deref) {
            Some([flow]) => flow.tracker.next(),
            _ => 0,
        }
    }

    /// Stream number and account of every stream that was seen.
    pub fn accounts(&self) -> impl Iterator<Item = (u16, Account)> {
        (0..STREAMS).zip(&self.trackers).filter_map(|(stream, trackers)| {
            let trackers = trackers.as_ref()?;
            let mut total = Account::default();
            for account in trackers.iter().map(|flow| flow.tracker.account()) {
                total.received += account.received;
                total.lost += account.lost;
                total.duplicated += account.duplicated;
                total.reordered += account.reordered;
                total.next += account.next;
            }
            Some((stream, total))
        })
    }

    /// The queues that each flow of a stream came in on, flow by flow; none of a stream that was not seen.
    pub fn spread(&self, stream: u16) -> impl Iterator<Item = Spread> {
        let flows = self.trackers.get(usize::from(stream)).and_then(Option::as_deref).unwrap_or_default();
        flows.iter().map(|flow| Spread { queues: flow.queues, moves: flow.moves })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_judged_within_a_flow() {
        let mut streams = Streams::new(2);
        for sequence in [0, 2, 4, 1, 3, 5] {
            assert!(streams.note(1, sequence));
        }
        let (stream, account) = streams.accounts().next().unwrap();
        assert_eq!(stream, 1);
        assert_eq!((account.received, account.reordered, account.lost), (6, 0, 0));
    }

    #[test]
    fn a_flow_that_changes_its_queue_is_noticed() {
        let mut streams = Streams::new(2);
        for (queue, sequences) in [(3, [0, 2, 4]), (1, [1, 3, 6])] {
            streams.arriving_on(queue);
            for sequence in sequences {
                streams.note(0, sequence);
            }
        }
        let spread: Vec<Spread> = streams.spread(0).collect();
        assert_eq!(spread, [Spread { queues: 0b1010, moves: 1 }, Spread { queues: 0b10, moves: 0 }]);
        assert_eq!(streams.spread(1).count(), 0);
    }

    #[test]
    fn a_stream_that_cannot_be_is_not_noted() {
        assert!(!Streams::new(1).note(60_000, 0));
    }
}
