//! The thread that keeps bonds' time: delays that are over, lessons to be sent.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::super::Shared;
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
        if state.bonds_due().is_some_and(|due| due <= now) {
            let passage = shared.publish(&mut state);
            drop(state);
            passage.wait(&shared.events);
            state = shared.state();
        }
        if let (Some((port, addresses)), Some(thread)) =
            (state.next_lesson(shared.now_s()), state.places.threads.first())
        {
            // With the state locked: it is told before anything that a change to come says of this port's number.
            thread.pmd.post(Message::Teach { port, addresses });
        }
        let due = state.bonds_due().map_or(LONG, |due| due.saturating_duration_since(Instant::now()));
        wait = if state.has_lessons() { PAUSE } else { due };
    }
}
