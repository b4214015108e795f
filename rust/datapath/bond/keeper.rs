//! The thread that keeps bonds' time: delays that are over, what LACP hears and says, lessons to be sent.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::super::Shared;
use crate::frame::lacp::FRAME_SIZE;
use crate::pmd::Message;

/// Between two parts of a lesson: a burst of frames is at its neighbours' pace, ten thousand are not.
const PAUSE: Duration = Duration::from_millis(1);
/// While nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// Until nobody is left to tell it that something changed.
pub(in crate::datapath) fn keep_bonds(shared: &Weak<Shared>, told: &Receiver<()>) {
    let mut wait = LONG;
    loop {
        if told.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        // What was said since is seen now.
        while told.try_recv().is_ok() {}
        let Some(shared) = shared.upgrade() else { return };
        let mut state = shared.state();
        let now = Instant::now();
        if state.negotiate_bonds(now) || state.bonds_due().is_some_and(|due| due <= now) {
            let passage = shared.publish(&mut state);
            drop(state);
            passage.wait(&shared.events);
            shared.events.poke();
            state = shared.state();
        }
        let said = state.take_pdus();
        let lessons = state.next_lessons(shared.now_s());
        if let Some(thread) = state.places.threads.first() {
            // With the state locked: it is told before anything that a change to come says of these ports' numbers.
            for (port, head) in said {
                thread.pmd.post(Message::Emit { port, head: Box::new(head), len: FRAME_SIZE });
            }
            for (port, addresses) in lessons {
                thread.pmd.post(Message::Teach { port, addresses });
            }
        }
        let now = Instant::now();
        let due = state.bonds_due().into_iter().chain(state.lacp_due(now)).min();
        let until = due.map_or(LONG, |due| due.saturating_duration_since(now));
        wait = if state.has_lessons() { PAUSE } else { until };
    }
}
