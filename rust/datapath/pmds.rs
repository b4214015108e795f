//! Poll threads and who polls what: which cores, how long they sleep, how queues are shared out, what each one did.

use std::collections::BTreeMap;

use super::Datapath;
use super::assignment::{PmdView, Sharing};
use super::threads::{self, SleepMax};
use crate::error::Result;
use crate::pmd::Message;
use crate::pmd::load::{INTERVAL, INTERVALS};

impl Datapath {
    /// Changes which cores have poll threads, live: new threads start, queues move, threads without a place end. No
    /// frame is lost. Empty: the first core this process may use.
    ///
    /// # Errors
    /// `Config` for a core out of reach, `Kernel` without threads or descriptors; nothing changed then.
    pub fn set_pmds(&self, cpus: &[usize]) -> Result<()> {
        let shared = &self.shared;
        let cpus = threads::wanted(cpus)?;
        let _moves = shared.threads.moves();
        let new = {
            let sleep = shared.state().places.sleep.clone();
            shared.threads.start(&cpus, &sleep)?
        };
        let mut state = shared.state();
        if new.is_empty() && cpus.iter().copied().eq(state.places.threads.iter().map(|thread| thread.core.cpu)) {
            return Ok(());
        }
        shared.threads.add(&new);
        state.places.threads = shared.threads.all();
        state.places.threads.retain(|thread| cpus.contains(&thread.core.cpu));
        // The new ones get the topology before any queue.
        let passage = shared.publish(&mut state);
        drop(state);
        passage.wait(&shared.events);
        shared.reassign();
        let leaving = {
            let _state = shared.state();
            shared.threads.keep_only(&cpus)
        };
        shared.threads.end(leaving);
        Ok(())
    }

    /// Changes how long idle poll threads may sleep, live.
    pub fn set_sleep(&self, sleep: SleepMax) {
        let mut state = self.shared.state();
        for thread in self.shared.threads.all() {
            thread.pmd.post(Message::Sleep(sleep.of(thread.core.cpu)));
        }
        state.places.sleep = sleep;
    }

    /// Changes how queues are shared out among the threads, live.
    pub fn set_sharing(&self, sharing: Sharing) {
        let _moves = self.shared.threads.moves();
        let mut state = self.shared.state();
        let before = std::mem::replace(&mut state.places.sharing, sharing);
        drop(state);
        if (before.policy, before.isolate) != (sharing.policy, sharing.isolate) {
            self.shared.reassign();
        }
    }

    /// Pins queues of a port to cores (`pmd-rxq-affinity`), live; those not named are shared out.
    ///
    /// # Errors
    /// `Config` for an unknown port.
    pub fn set_affinity(&self, port: &str, pins: &BTreeMap<u16, usize>) -> Result<()> {
        let _moves = self.shared.threads.moves();
        let is_new = self.shared.state().set_affinity(port, pins)?;
        if is_new {
            self.shared.reassign();
        }
        Ok(())
    }

    /// Shares every queue out anew, by the loads of the last minute (`dpif-netdev/pmd-rxq-rebalance`).
    pub fn rebalance(&self) {
        let _moves = self.shared.threads.moves();
        self.shared.reassign();
    }

    /// Ends the running interval of every load; housekeeping does so every five seconds.
    pub fn end_interval(&self) {
        self.shared.state().places.roll();
    }

    /// What `pmd-auto-lb` does when its interval is over: [`Self::rebalance`] if that is worth it. True if it was.
    pub fn rebalance_if_worth_it(&self) -> bool {
        let wants = self.shared.state().places.wants_balance();
        if wants {
            self.rebalance();
        }
        wants
    }

    /// Each poll thread, its counters, and its queues with their shares of the last minute.
    pub fn pmds(&self) -> Vec<PmdView> {
        self.shared.state().pmds(INTERVALS)
    }

    /// The same with shares of the last `seconds`, rounded up to intervals of five.
    pub fn pmds_over(&self, seconds: u64) -> Vec<PmdView> {
        let intervals = usize::try_from(seconds.div_ceil(INTERVAL.as_secs())).unwrap_or(INTERVALS);
        self.shared.state().pmds(intervals.clamp(1, INTERVALS))
    }

    /// Starts the counters of the thread on `cpu`, or of all, at zero.
    pub fn clear_pmd_stats(&self, cpu: Option<usize>) {
        for thread in self.shared.threads.all() {
            if cpu.is_none_or(|cpu| cpu == thread.core.cpu) {
                thread.clear();
            }
        }
    }
}
