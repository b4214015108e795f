//! What nobody else has time for: ageing, loads, broken queues, and poll threads that hang.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use crate::pmd::Fault;
use crate::pmd::balance::AutoLb;
use crate::pmd::load::INTERVAL;
use crate::vhost::Level;

/// How often housekeeping looks around while all poll threads sleep.
const QUIET_ROUND: Duration = Duration::from_millis(500);
/// How often while one moves frames: a guest that makes it hang is found out in one to two rounds.
const BUSY_ROUND: Duration = Duration::from_millis(40);

/// Ageing, a watch over poll threads that hang in a call, and reports of broken queues as they come.
///
/// Never waits for the state: whoever holds it may be waiting for the very thread that hangs.
pub(super) fn keep_house(shared: &Weak<Shared>, faults: &Receiver<Fault>) {
    let (mut next_look, mut next_sweep) = (Instant::now(), Instant::now());
    let mut calendar = Calendar::new(Instant::now());
    let (mut seen, mut moved, mut reports) = (BTreeMap::new(), 0, Vec::new());
    loop {
        let fault = faults.recv_timeout(next_look.saturating_duration_since(Instant::now()));
        let Some(shared) = shared.upgrade() else { return };
        match fault {
            Ok(fault) => reports.push(fault),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let threads = shared.threads.watched();
                seen.retain(|desk, _| threads.iter().any(|thread| std::ptr::from_ref(thread.pmd.desk) == *desk));
                for thread in &threads {
                    thread.pmd.desk.watch(seen.entry(std::ptr::from_ref(thread.pmd.desk)).or_default());
                }
                let packets = threads.iter().map(|thread| thread.pmd.stats.packets.read()).sum::<u64>();
                let is_busy = std::mem::replace(&mut moved, packets) != packets || seen.values().any(Option::is_some);
                // From now, not from the last look: after a long stop, looks in a row would see one call twice.
                next_look = Instant::now() + if is_busy { BUSY_ROUND } else { QUIET_ROUND };
            }
        }
        if let Some(state) = shared.state.try_lock() {
            for fault in reports.drain(..) {
                state.fail_vring(fault.port, fault.vring, fault.run, &fault.cause);
                shared.events.poke();
            }
            if Instant::now() >= next_sweep {
                state.sweep(shared.now_s());
                next_sweep = Instant::now() + Duration::from_secs(1);
            }
            let due = calendar.due(Instant::now(), state.places.sharing.auto_lb);
            if due != Due::Nothing {
                state.places.roll();
            }
            if due == Due::Balance && state.places.wants_balance() {
                drop(state);
                rebalance_elsewhere(&shared);
            }
        }
    }
}

/// When loads are written down, and when `pmd-auto-lb` looks at them.
#[derive(Debug)]
struct Calendar {
    next_roll: Instant,
    balanced: Instant,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    /// An interval of the loads is over.
    Roll,
    /// The same, and it is time to ask whether queues should move.
    Balance,
}

impl Calendar {
    fn new(now: Instant) -> Self {
        Self { next_roll: now + INTERVAL, balanced: now }
    }

    /// Asks what is due, and takes it as done. `auto_lb` may change from one time to the next.
    fn due(&mut self, now: Instant, auto_lb: Option<AutoLb>) -> Due {
        if now < self.next_roll {
            return Due::Nothing;
        }
        self.next_roll = now + INTERVAL;
        let every = auto_lb.map(|auto| Duration::from_secs(60 * auto.every_min));
        if every.is_none_or(|every| now.saturating_duration_since(self.balanced) < every) {
            return Due::Roll;
        }
        self.balanced = now;
        Due::Balance
    }
}

/// Carries `pmd-auto-lb`'s advice out on a thread of its own: moving queues waits for poll threads, and one that hangs is
/// freed from here.
fn rebalance_elsewhere(shared: &Arc<Shared>) {
    let mover = Arc::clone(shared);
    let started = std::thread::Builder::new().name("rebalance".into()).spawn(move || {
        let _moves = mover.threads.moves();
        mover.events.push(Level::Info, "notice", None, "PMD auto load balance: sharing the queues out anew".to_owned());
        mover.reassign();
    });
    if let Err(error) = started {
        shared.events.push(Level::Warning, "notice", None, format!("pmd-auto-lb: no thread to move queues: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: B5.
    #[test]
    fn queues_are_looked_at_once_in_so_many_minutes_and_only_where_that_is_asked_for() {
        let began = Instant::now();
        let mut calendar = Calendar::new(began);
        let every = |every_min| Some(AutoLb { every_min, ..AutoLb::default() });
        let mut looks = |minutes: std::ops::Range<u64>, auto_lb| -> Vec<u64> {
            let seconds = minutes.start * 60 + 1..=minutes.end * 60;
            let due: Vec<_> = seconds.map(|s| (s, calendar.due(began + Duration::from_secs(s), auto_lb))).collect();
            assert!(due.iter().filter(|(_, due)| *due != Due::Nothing).all(|(s, _)| s % INTERVAL.as_secs() == 0));
            due.iter().filter(|(_, due)| *due == Due::Balance).map(|(s, _)| s / 60).collect()
        };
        assert!(looks(0..3, None).is_empty());
        // On again after minutes without: due at the next interval, then once a minute.
        assert_eq!(looks(3..5, every(1)), [3, 4]);
        assert_eq!(looks(5..10, every(3)), [7], "the setting is live");
        assert!(looks(10..12, None).is_empty());
    }
}
