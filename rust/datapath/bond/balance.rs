//! Which link carries which share of a bond's frames: pure.
//!
//! ```text
//!   frame ─ hash ─▶ one of 256 buckets ─▶ a link        Balance: who has which bucket, and what each carried of late
//! ```
//!
//! A bucket stays with its link as long as that is enabled, or frames of one flow would overtake each other for nothing.
//! Buckets of a link that goes are shared out at once; those that carried nothing of late are nobody's, and shared out
//! whenever links come. Loaded ones move when rebalancing finds it worth it: a link that carries much more than another
//! gives it what brings both closest to the middle.

use crate::pmd::SHARES;
use crate::switch::PortId;

/// Less than this is no imbalance, bytes of load: what Open vSwitch takes for a megabit a second.
const LEAST: u64 = 100_000;

/// One bucket that moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::datapath) struct Move {
    pub bucket: usize,
    pub from: PortId,
    pub to: PortId,
    /// Bytes.
    pub load: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    link: Option<PortId>,
    /// Bytes of late: half of what it was at each rebalancing, and what came since.
    load: u64,
    /// Where its counter stood when that was read last.
    counted: u64,
}

/// The buckets of one bond.
#[derive(Debug)]
pub(in crate::datapath) struct Balance([Bucket; SHARES]);

impl Default for Balance {
    fn default() -> Self {
        Self([Bucket::default(); SHARES])
    }
}

impl Balance {
    /// Gives every bucket to one of the enabled links, as evenly as those that cannot move allow; nobody's if there is none.
    pub(in crate::datapath) fn fit(&mut self, enabled: &[PortId]) {
        let stays = |bucket: &Bucket| bucket.load > 0 && bucket.link.is_some_and(|link| enabled.contains(&link));
        let mut counts: Vec<(usize, PortId)> = enabled.iter().map(|link| (0, *link)).collect();
        for (count, link) in &mut counts {
            *count = self.0.iter().filter(|bucket| stays(bucket) && bucket.link == Some(*link)).count();
        }
        // Idle ones too keep their link while that has no more than its part: nothing moves that need not.
        let links = enabled.len().max(1);
        let parts: Vec<usize> = (0..links).map(|at| SHARES / links + usize::from(at < SHARES % links)).collect();
        for bucket in self.0.iter_mut().filter(|bucket| !stays(bucket)) {
            let mut old = counts.iter_mut().zip(&parts);
            let old = old.find(|((count, link), part)| bucket.link == Some(*link) && count < *part);
            bucket.link = None;
            if let Some(((count, link), _)) = old {
                (*count, bucket.link) = (*count + 1, Some(*link));
            }
        }
        for bucket in self.0.iter_mut().filter(|bucket| bucket.link.is_none()) {
            if let Some((count, link)) = counts.iter_mut().min_by_key(|(count, _)| *count) {
                (*count, bucket.link) = (*count + 1, Some(*link));
            }
        }
    }

    /// Reads what each bucket carried.
    pub(in crate::datapath) fn account(&mut self, counted: impl IntoIterator<Item = u64>) {
        for (bucket, counted) in self.0.iter_mut().zip(counted) {
            bucket.load += counted.wrapping_sub(bucket.counted);
            bucket.counted = counted;
        }
    }

    /// Evens the links' loads out; gives what moved, the heaviest link's first. What was carried counts half from now on.
    pub(in crate::datapath) fn rebalance(&mut self, enabled: &[PortId]) -> Vec<Move> {
        let (mut moves, mut givers) = (Vec::new(), enabled.to_vec());
        let mut has_moved = [false; SHARES];
        while let Some((&from, &to)) = givers
            .iter()
            .max_by_key(|link| self.load_of(**link))
            .zip(enabled.iter().min_by_key(|link| self.load_of(**link)))
        {
            let (high, low) = (self.load_of(from), self.load_of(to));
            let gap = high - low;
            if gap < LEAST || gap < low >> 5 {
                break;
            }
            let mine = |(at, bucket): &(usize, &mut Bucket)| {
                bucket.link == Some(from) && bucket.load > 0 && !has_moved.get(*at).copied().unwrap_or(true)
            };
            let best =
                self.0.iter_mut().enumerate().filter(mine).min_by_key(|(_, bucket)| gap.abs_diff(2 * bucket.load));
            match best {
                // Worth a move if the gap shrinks by a tenth.
                Some((at, bucket)) if gap - gap.abs_diff(2 * bucket.load).min(gap) >= gap / 10 => {
                    bucket.link = Some(to);
                    moves.push(Move { bucket: at, from, to, load: bucket.load });
                    if let Some(has_moved) = has_moved.get_mut(at) {
                        *has_moved = true;
                    }
                }
                _ => givers.retain(|link| *link != from),
            }
        }
        for bucket in &mut self.0 {
            bucket.load /= 2;
        }
        moves
    }

    /// Gives a bucket to a link until that goes, or rebalancing moves it. False if there is no such bucket.
    pub(in crate::datapath) fn give(&mut self, bucket: usize, to: PortId) -> bool {
        self.0.get_mut(bucket).map(|bucket| bucket.link = Some(to)).is_some()
    }

    /// By bucket, its link.
    pub(in crate::datapath) fn links(&self) -> impl Iterator<Item = Option<PortId>> {
        self.0.iter().map(|bucket| bucket.link)
    }

    /// A link's buckets that carried something of late, each with its load in bytes.
    pub(in crate::datapath) fn loads(&self, link: PortId) -> impl Iterator<Item = (usize, u64)> {
        let buckets = self.0.iter().enumerate();
        buckets.filter(move |(_, b)| b.link == Some(link) && b.load > 0).map(|(at, bucket)| (at, bucket.load))
    }

    fn load_of(&self, link: PortId) -> u64 {
        self.loads(link).map(|(_, load)| load).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(balance: &Balance, links: &[PortId]) -> Vec<usize> {
        links.iter().map(|link| balance.links().filter(|has| *has == Some(*link)).count()).collect()
    }

    fn carried(loads: &[(usize, u64)]) -> Vec<u64> {
        let mut counted = vec![0; SHARES];
        for (bucket, load) in loads {
            counted[*bucket] = *load;
        }
        counted
    }

    #[test]
    fn idle_buckets_are_shared_out_evenly_whichever_links_come_and_go() {
        let mut balance = Balance::default();
        balance.fit(&[1]);
        assert_eq!(counts(&balance, &[1]), [256]);
        balance.fit(&[1, 2]);
        assert_eq!(counts(&balance, &[1, 2]), [128, 128]);
        balance.fit(&[1, 2, 3]);
        assert_eq!(counts(&balance, &[1, 2, 3]), [86, 85, 85]);
        balance.fit(&[3]);
        assert_eq!(counts(&balance, &[1, 2, 3]), [0, 0, 256]);
        balance.fit(&[]);
        assert_eq!(counts(&balance, &[1, 2, 3]), [0, 0, 0]);
    }

    #[test]
    fn a_bucket_that_carries_stays_until_its_link_goes() {
        let mut balance = Balance::default();
        balance.fit(&[1]);
        balance.account(carried(&[(7, 1000), (9, 1000)]));
        balance.fit(&[1, 2]);
        assert_eq!(balance.loads(1).map(|(bucket, _)| bucket).collect::<Vec<_>>(), [7, 9]);
        balance.fit(&[2]);
        assert_eq!(balance.loads(2).map(|(bucket, _)| bucket).collect::<Vec<_>>(), [7, 9]);
    }

    #[test]
    fn what_brings_both_links_to_the_middle_moves_and_half_counts_from_then_on() {
        let mut balance = Balance::default();
        balance.fit(&[1]);
        balance.account(carried(&[(0, 4_000_000), (1, 2_000_000), (2, 1_000_000), (3, 1_000_000)]));
        balance.fit(&[1, 2]);
        let moves = balance.rebalance(&[1, 2]);
        assert_eq!(moves, [Move { bucket: 0, from: 1, to: 2, load: 4_000_000 }]);
        assert_eq!([1, 2].map(|link| balance.load_of(link)), [2_000_000, 2_000_000]);
        assert_eq!(balance.rebalance(&[1, 2]), []);
    }

    #[test]
    fn little_and_what_cannot_be_divided_stays() {
        let mut balance = Balance::default();
        balance.fit(&[1]);
        balance.account(carried(&[(0, 50_000), (1, 40_000)]));
        balance.fit(&[1, 2]);
        assert_eq!(balance.rebalance(&[1, 2]), [], "less than counts");
        let mut balance = Balance::default();
        balance.fit(&[1]);
        balance.account(carried(&[(0, 50_000_000)]));
        balance.fit(&[1, 2]);
        assert_eq!(balance.rebalance(&[1, 2]), [], "one bucket: the other link would be the heavy one");
    }

    proptest! {
        #[test]
        fn rebalancing_never_widens_the_gap_and_loses_no_bucket(
            loads in prop::collection::vec((0_usize..SHARES, 0_u64..10_000_000), 0..80), links in 1_u16..5,
        ) {
            let enabled: Vec<PortId> = (0..links).collect();
            let mut balance = Balance::default();
            balance.fit(&enabled[..1]);
            balance.account(carried(&loads));
            balance.fit(&enabled);
            let gap = |balance: &Balance| {
                let loads: Vec<u64> = enabled.iter().map(|link| balance.load_of(*link)).collect();
                loads.iter().max().unwrap() - loads.iter().min().unwrap()
            };
            let (before, total) = (gap(&balance), carried(&loads).iter().sum::<u64>());
            prop_assert_eq!(enabled.iter().map(|link| balance.load_of(*link)).sum::<u64>(), total);
            let moves = balance.rebalance(&enabled);
            prop_assert!(moves.len() <= SHARES);
            prop_assert!(balance.links().all(|link| link.is_some_and(|link| enabled.contains(&link))));
            // Loads were halved, each rounded down.
            prop_assert!(2 * gap(&balance) <= before + 2 * SHARES as u64);
        }
    }
}
