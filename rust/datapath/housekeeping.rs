//! What nobody else has time for: ageing, loads, broken queues, and poll threads that hang.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use crate::pmd::load::INTERVAL;
use crate::pmd::{Fault, FaultCause};
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
    let (mut next_roll, mut balanced) = (Instant::now() + INTERVAL, Instant::now());
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
                state.fail_vring(fault.port, fault.vring, fault.run, &describe(&fault.cause));
                shared.events.poke();
            }
            if Instant::now() >= next_sweep {
                state.sweep(shared.now_s());
                next_sweep = Instant::now() + Duration::from_secs(1);
            }
            if Instant::now() >= next_roll {
                next_roll = Instant::now() + INTERVAL;
                state.places.roll();
                let every_min = state.places.sharing.auto_lb.map_or(0, |auto| auto.every_min);
                if every_min > 0 && balanced.elapsed() >= Duration::from_secs(60 * every_min) {
                    balanced = Instant::now();
                    if state.places.wants_balance() {
                        drop(state);
                        rebalance_elsewhere(&shared);
                    }
                }
            }
        }
    }
}

fn describe(cause: &FaultCause) -> String {
    match cause {
        FaultCause::Ring(ring) => {
            format!("{ring}; the queue is stopped until the guest's driver or VMM sets it up anew")
        }
        FaultCause::Panic(text) => format!("a bug in ovsvhost stopped it ({text}); please report it"),
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
