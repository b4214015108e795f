//! How long others may be kept waiting by who has not made its buffers reachable: a credit of time that fills by itself.
//!
//! ```text
//!   every look at a group that waits ── spend ──▶ ┌ Credit ┐ ◀── the clock: a quarter of the time, or half
//!   every frame of it that got through ── earn ─▶ └────────┘ ─▶ spent: nobody waits, frames are dropped by name
//! ```
//!
//! A limit on each single wait is none on their sum: who answers just before that is over, every time, would have its
//! senders for good. So a wait is paid for while it lasts, however it ends, out of two credits: the receiver's, which is
//! the same for all its queues and outlives its sessions, and the sender's, for receivers may take turns. What frames earn
//! is what an honest IOMMU takes to answer, so one that answers every question at once is never left alone.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::tsc;

/// How long an empty credit takes to fill, µs.
const FILL_US: u64 = 4_000_000;
/// What a frame earns that got through, µs: an emulated IOMMU answers in half of that.
const EARNED_US: u64 = 200;

/// What may still be spent on waiting. Any poll thread spends and earns; times are in TSC cycles.
#[derive(Debug)]
pub struct Credit {
    /// It fills by one part for as many of the clock's.
    one_in: u64,
    /// When it will be full if nobody spends.
    full_at: AtomicU64,
    /// Waiting until then is paid for: what several wait for at the same time is paid for once.
    paid_until: AtomicU64,
}

impl Credit {
    /// Of a port that is waited for: a quarter of the time, and more than a second at once. An emulated IOMMU shares its
    /// processor with others, and takes tens of milliseconds when they are busy.
    pub fn of_receiver() -> Self {
        Self::new(4)
    }

    /// Of a transmitq that waits, for whomever: half of the time, some seconds at once.
    pub(super) fn of_sender() -> Self {
        Self::new(2)
    }

    /// Of a guest whose lanes a device's thread opens: a quarter of that thread's time, and a second at once.
    pub fn of_lanes() -> Self {
        Self::new(4)
    }

    fn new(one_in: u64) -> Self {
        Self { one_in, full_at: AtomicU64::new(0), paid_until: AtomicU64::new(0) }
    }

    /// Pays for what was waited from `since` until `now`, as far as nobody has paid.
    pub fn spend(&self, since: u64, now: u64) {
        let from = self.paid_until.fetch_max(now, Ordering::Relaxed).max(since);
        let cost = now.saturating_sub(from).saturating_mul(self.one_in);
        self.change(|full_at| full_at.max(now).saturating_add(cost));
    }

    /// Takes note of `frames` that got through after they had waited.
    pub(super) fn earn(&self, frames: u64) {
        let gain = frames * EARNED_US * self.one_in * tsc::cycles_per_us();
        self.change(|full_at| full_at.saturating_sub(gain));
    }

    /// True if nothing is left of it.
    pub fn is_spent(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) > now + FILL_US * tsc::cycles_per_us()
    }

    /// True if nothing of it is spent.
    pub fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }

    fn change(&self, next: impl Fn(u64) -> u64) {
        // It always has a next.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(next(full_at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// µs of a made-up clock, which begins long after the machine did.
    fn at(us: u64) -> u64 {
        (3_600_000_000 + us) * tsc::cycles_per_us()
    }

    /// Waits from `now` on, with a look every 50 µs, until `until` or until a credit is spent. Gives when that was.
    fn wait(credits: &[&Credit], now: u64, until: u64) -> u64 {
        let mut look = now;
        while look < until {
            look += 50;
            for credit in credits {
                credit.spend(at(now), at(look));
            }
            if credits.iter().any(|credit| credit.is_spent(at(look))) {
                break;
            }
        }
        look
    }

    #[test]
    fn who_answers_just_in_time_keeps_its_senders_for_a_quarter_of_the_time() {
        for (late, frames) in [(95_000, 1), (95_000, 64), (30_000, 8), (5_000, 4), (300, 1)] {
            let (credit, end) = (Credit::of_receiver(), 30_000_000);
            let (mut now, mut waited, mut earned) = (0, 0, 0);
            while now < end {
                if credit.is_spent(at(now)) {
                    now += 10;
                    continue;
                }
                let over = wait(&[&credit], now, now + late);
                if over == now + late {
                    credit.earn(frames);
                    earned += frames * EARNED_US;
                }
                waited += over - now;
                now = over;
            }
            assert!(waited <= end / 4 + 1_400_000 + earned, "{late} µs late: waited {waited} µs, earned {earned}");
            assert!(late > 1000 || waited < end / 10 * 9, "{late} µs late: waited {waited} µs");
        }
    }

    #[test]
    fn receivers_that_take_turns_have_a_sender_for_half_of_the_time() {
        let (sender, receivers) = (Credit::of_sender(), [(); 16].map(|()| Credit::of_receiver()));
        let (mut now, mut waited, end) = (0, 0, 30_000_000);
        while now < end {
            let mut waits = receivers.iter().filter(|credit| !credit.is_spent(at(now)));
            match waits.next().filter(|_| !sender.is_spent(at(now))) {
                None => now += 10,
                Some(receiver) => {
                    let over = wait(&[&sender, receiver], now, now + 95_000);
                    waited += over - now;
                    now = over;
                }
            }
        }
        assert!((end / 3..=end / 2 + 4_200_000).contains(&waited), "waited {waited} µs");
    }

    #[test]
    fn who_answers_every_question_at_once_is_waited_for_every_time() {
        let (sender, receiver) = (Credit::of_sender(), Credit::of_receiver());
        let mut now = 0;
        for burst in 0..2000 {
            let since = now;
            for _ in 0..64 {
                now += 100;
                for credit in [&sender, &receiver] {
                    credit.spend(at(since), at(now));
                    assert!(!credit.is_spent(at(now)), "burst {burst}");
                    credit.earn(1);
                }
            }
        }
    }

    #[test]
    fn what_several_wait_for_together_is_paid_for_once_and_some_seconds_fill_it() {
        let credit = Credit::of_receiver();
        for look in 1..=90 {
            for since in [0, 100, 200, 40_000] {
                credit.spend(at(since.min(10_000 * look)), at(10_000 * look));
            }
        }
        assert!(!credit.is_spent(at(900_000)));
        credit.spend(at(900_000), at(1_500_000));
        assert!(credit.is_spent(at(1_500_000)));
        assert!(!credit.is_spent(at(2_500_000)));
        assert_eq!(wait(&[&credit], 3_000_000, 3_095_000), 3_095_000);
    }
}
