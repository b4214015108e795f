// SPDX-License-Identifier: Apache-2.0
//! Exact account of one stream: each number received once, missing, again, or late.
//!
//! Gaps are kept as ranges, so that a number that comes late is told from one that comes twice.
//! The number of ranges kept is bounded; past it the oldest gap is taken for lost for good.

use std::collections::VecDeque;

const GAPS_KEPT: usize = 1 << 16;

/// What a receiver can say about a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Numbers that arrived, each counted once.
    pub received: u64,
    /// Numbers below the highest that did not arrive.
    pub lost: u64,
    /// Arrivals of a number that had arrived already.
    pub duplicated: u64,
    /// First arrivals after a higher number.
    pub reordered: u64,
    /// One more than the highest number that arrived.
    pub next: u64,
}

/// Keeps account of one stream.
#[derive(Debug, Default)]
pub struct Tracker {
    next: u64,
    received: u64,
    duplicated: u64,
    reordered: u64,
    given_up: u64,
    gaps: VecDeque<(u64, u64)>,
}

impl Tracker {
    /// Notes the arrival of `sequence`.
    #[inline]
    pub fn note(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += 1;
            self.received += 1;
        } else {
            self.note_out_of_turn(sequence);
        }
    }

    #[cold]
    fn note_out_of_turn(&mut self, sequence: u64) {
        if sequence > self.next {
            self.gaps.push_back((self.next, sequence));
            if self.gaps.len() > GAPS_KEPT
                && let Some((start, end)) = self.gaps.pop_front()
            {
                self.given_up += end - start;
            }
            self.next = sequence + 1;
            self.received += 1;
            return;
        }
        let index = self.gaps.partition_point(|&(_, end)| end <= sequence);
        match self.gaps.get(index).copied() {
            Some((start, end)) if start <= sequence => {
                self.gaps.remove(index);
                if sequence + 1 < end {
                    self.gaps.insert(index, (sequence + 1, end));
                }
                if start < sequence {
                    self.gaps.insert(index, (start, sequence));
                }
                self.received += 1;
                self.reordered += 1;
            }
            _ => self.duplicated += 1,
        }
    }

    /// One more than the highest number that arrived.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The account so far.
    pub fn account(&self) -> Account {
        Account {
            received: self.received,
            lost: self.given_up + self.gaps.iter().map(|(start, end)| end - start).sum::<u64>(),
            duplicated: self.duplicated,
            reordered: self.reordered,
            next: self.next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn account(arrivals: &[u64]) -> Account {
        let mut tracker = Tracker::default();
        for &sequence in arrivals {
            tracker.note(sequence);
        }
        tracker.account()
    }

    #[test]
    fn a_stream_in_order_is_clean() {
        let clean = Account { received: 4, next: 4, ..Account::default() };
        assert_eq!(account(&[0, 1, 2, 3]), clean);
    }

    #[test]
    fn late_twice_and_missing_are_told_apart() {
        // 3 comes late, 5 comes twice, 4 never.
        let expected = Account { received: 6, lost: 1, duplicated: 1, reordered: 1, next: 7 };
        assert_eq!(account(&[0, 1, 2, 5, 3, 5, 6]), expected);
    }

    #[test]
    fn a_late_number_that_comes_again_is_a_duplicate() {
        assert_eq!(account(&[0, 2, 1, 1]).duplicated, 1);
    }

    #[test]
    fn any_order_agrees_with_a_plain_set() {
        let mut state = 7_u64;
        for _ in 0..200 {
            let mut tracker = Tracker::default();
            let (mut seen, mut twice) = (BTreeSet::new(), 0);
            for _ in 0..100 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                let sequence = (state >> 33) % 64;
                tracker.note(sequence);
                twice += u64::from(!seen.insert(sequence));
            }
            let account = tracker.account();
            let highest = seen.last().copied().unwrap();
            assert_eq!(account.received, seen.len() as u64);
            assert_eq!(account.duplicated, twice);
            assert_eq!(account.lost, highest + 1 - seen.len() as u64);
        }
    }
}
