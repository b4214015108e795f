//! The poll threads: who there is, and how a queue gets from one to another.
//!
//! ```text
//!   set_pmds ─▶ start new threads ─▶ reassign ─▶ end those that are left without a place
//!                                       │
//!   assign (pure) ─ a core per rxq ─▶ Seat: release ─ queue ─▶ assign to its new thread
//! ```
//!
//! Locks, in the order in which they may be taken: `moves` (one hand decides at a time), the state, a [`Seat`]. A seat is
//! locked while its queue travels, so whoever stops that queue meanwhile waits for it and finds it. Nobody waits for a
//! poll thread with the state locked, and housekeeping waits for none at all: it is what frees a thread that hangs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::events::Events;
use crate::counters::QueueCounters;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::memory::GuestMap;
use crate::pmd::assign::{Core, Rxq};
use crate::pmd::load::{History, INTERVALS};
use crate::pmd::{Fault, Lane, Message, Pmd, PolledQueue, Readings, Sleep};
use crate::ring::Obstacle;
use crate::switch::PortId;
use crate::sys::eventfd::Notifier;
use crate::sys::{cpu, numa, tsc};
use crate::vhost::Level;

/// `pmd-sleep-max`: for every thread, and for those of some cores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SleepMax {
    /// Where nothing else is said.
    pub default: Sleep,
    /// By core.
    pub by_cpu: BTreeMap<usize, u64>,
}

impl SleepMax {
    /// For one core.
    pub fn of(&self, cpu: usize) -> Sleep {
        self.by_cpu.get(&cpu).copied().or(self.default)
    }
}

/// A poll thread, and what control keeps about it.
pub(super) struct Thread {
    pub pmd: Pmd,
    pub core: Core,
    /// The counters at the last clear, and when that was.
    cleared: Lock<(Readings, Instant)>,
    load: Lock<ThreadLoad>,
}

/// How busy a thread was.
struct ThreadLoad {
    busy: History,
    /// TSC cycles that went by.
    passed: History,
    /// Intervals in a row in which it was overloaded.
    overloaded: usize,
}

impl Thread {
    fn spawn(cpu: usize, number: usize, sleep: Sleep, started: Instant, faults: Sender<Fault>) -> Result<Self> {
        let core = Core { cpu, numa: numa::node_of_cpu(cpu) };
        let pmd = Pmd::spawn(cpu, number, sleep, started, faults)?;
        let load = ThreadLoad { busy: History::new(0), passed: History::new(tsc::now()), overloaded: 0 };
        Ok(Self { pmd, core, cleared: Lock::new((Readings::default(), Instant::now())), load: Lock::new(load) })
    }

    /// What it counted since the last clear, and how many seconds ago that was.
    pub(super) fn since_clear(&self) -> (Readings, f64) {
        let cleared = self.cleared.lock();
        (self.pmd.stats.read().since(&cleared.0), cleared.1.elapsed().as_secs_f64())
    }

    /// Counts from here.
    pub(super) fn clear(&self) {
        *self.cleared.lock() = (self.pmd.stats.read(), Instant::now());
    }

    /// Ends an interval. `overload_pct`: the load from which on it counts as overloaded.
    pub(super) fn roll(&self, overload_pct: u64) {
        let mut load = self.load.lock();
        load.busy.roll(self.pmd.stats.busy_cycles.read());
        load.passed.roll(tsc::now());
        let is_overloaded = load.busy.latest().saturating_mul(100) >= load.passed.latest().saturating_mul(overload_pct);
        load.overloaded = if is_overloaded { load.overloaded + 1 } else { 0 };
    }

    /// True if it was overloaded in every interval of the last minute.
    pub(super) fn is_overloaded(&self) -> bool {
        self.load.lock().overloaded >= INTERVALS
    }

    /// TSC cycles of one interval, and of rounds that moved frames over the last `intervals`, in percent; None before the
    /// first is over.
    pub(super) fn usage(&self, intervals: usize) -> (u64, Option<f64>) {
        let load = self.load.lock();
        let (interval, known) = (load.passed.latest(), load.busy.known(intervals));
        (interval, percent(load.busy.sum(intervals), interval, known))
    }
}

/// Cycles in percent of `known` intervals; None before there is one.
pub(super) fn percent(cycles: u64, interval: u64, known: usize) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "percent")]
    (interval > 0 && known > 0).then(|| 100.0 * cycles as f64 / (interval as f64 * known as f64))
}

/// One transmitq's place among the threads.
pub(super) struct Seat {
    port: PortId,
    vring: u16,
    /// Which start of the vring this is.
    pub run: u64,
    /// Its guest's node.
    numa: Option<u32>,
    /// A guest's memory, for lanes of its transmitq; or why there can be none.
    memory: std::result::Result<Arc<GuestMap>, Option<Obstacle>>,
    counters: Arc<QueueCounters>,
    load: Lock<History>,
    /// The core it is on, for those who only want to know.
    cpu: AtomicUsize,
    /// Locked while the queue travels; None once it was stopped.
    place: Lock<Option<Arc<Thread>>>,
    /// Locked while a lane is closed that was taken away.
    closing: Lock<()>,
}

impl Seat {
    /// A place for `queue`, which goes to `thread` at once.
    pub(super) fn new(queue: Box<PolledQueue>, numa: Option<u32>, thread: &Arc<Thread>) -> Self {
        let counters = Arc::clone(&queue.counters);
        let (load, cpu) = (Lock::new(History::new(counters.cycles.read())), AtomicUsize::new(thread.core.cpu));
        let (port, vring, run, place) = (queue.port, queue.vring, queue.run, Lock::new(Some(Arc::clone(thread))));
        let memory = queue.memory_to_show().map_or(Err(None), |memory| memory.map_err(Some));
        thread.pmd.post(Message::Assign(queue));
        Self { port, vring, run, numa, memory, counters, load, cpu, place, closing: Lock::default() }
    }

    /// The memory that lanes of this queue are shown.
    ///
    /// # Errors
    /// What is in the way of lanes; None for a queue that is no guest's.
    pub(super) fn memory(&self) -> std::result::Result<&Arc<GuestMap>, Option<Obstacle>> {
        self.memory.as_ref().map_err(|obstacle| *obstacle)
    }

    /// Gives the queue a lane, wherever it is. Gives the lane back if the queue was stopped.
    pub(super) fn add_lane(&self, lane: Box<Lane>, memory: &Arc<GuestMap>, events: &Events) -> Option<Box<Lane>> {
        let place = self.place.lock();
        let Some(thread) = place.as_ref() else { return Some(lane) };
        let ((reply, answer), memory) = (channel(), Arc::clone(memory));
        let (port, vring) = (self.port, self.vring);
        thread.pmd.post(Message::AddLane { port, vring, lane, memory, reply });
        thread.pmd.wait(&answer, |late| say_late(events, late)).flatten()
    }

    /// Held by whoever takes a lane away until it is closed, and taken by whoever stops the queue: no buffer goes back to
    /// the guest before.
    pub(super) fn closing(&self) -> MutexGuard<'_, ()> {
        self.closing.lock()
    }

    /// Takes a lane away; None if the queue was stopped, with its lanes.
    pub(super) fn remove_lane(&self, keeper: u16, events: &Events) -> Option<Box<Lane>> {
        let place = self.place.lock();
        let (reply, answer) = channel();
        let thread = place.as_ref()?;
        thread.pmd.post(Message::RemoveLane { port: self.port, vring: self.vring, keeper, reply });
        thread.pmd.wait(&answer, |late| say_late(events, late)).flatten()
    }

    /// Says that a lane taken away is closed.
    pub(super) fn lane_closed(&self, keeper: u16) {
        if let Some(thread) = self.place.lock().as_ref() {
            thread.pmd.post(Message::LaneClosed { port: self.port, vring: self.vring, keeper });
        }
    }

    /// As the assignment wants it; `pinned` is the core that its port's affinity names.
    pub(super) fn rxq(&self, pinned: Option<usize>) -> Rxq {
        let load = self.load.lock().sum(INTERVALS);
        Rxq { port: self.port, queue: self.vring / 2, load, numa: self.numa, pinned }
    }

    pub(super) fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    /// Ends an interval.
    pub(super) fn roll(&self) {
        self.load.lock().roll(self.counters.cycles.read());
    }

    /// Cycles over the last `intervals`, and how many of those are known.
    pub(super) fn cycles(&self, intervals: usize) -> (u64, usize) {
        let load = self.load.lock();
        (load.sum(intervals), load.known(intervals))
    }

    /// Carries the queue over to another thread; nothing if it was stopped or is there already.
    pub(super) fn go(&self, to: &Arc<Thread>, events: &Events) {
        let mut place = self.place.lock();
        let Some(from) = place.as_ref().filter(|from| !Arc::ptr_eq(from, to)) else { return };
        let queue = from.pmd.release(self.port, self.vring, true, |late| say_late(events, late));
        *place = queue.map(|queue| {
            self.cpu.store(to.core.cpu, Ordering::Relaxed);
            to.pmd.post(Message::Assign(queue));
            Arc::clone(to)
        });
    }

    /// Takes the queue away for good, settled. None if somebody else did.
    pub(super) fn take(&self, events: &Events) -> Option<Box<PolledQueue>> {
        let thread = self.place.lock().take()?;
        thread.pmd.release(self.port, self.vring, false, |late| say_late(events, late))
    }

    /// Replaces the call descriptor, wherever the queue is.
    pub(super) fn set_call(&self, call: Option<Notifier>) {
        if let Some(thread) = self.place.lock().as_ref() {
            thread.pmd.post(Message::SetCall { port: self.port, vring: self.vring, call });
        }
    }
}

/// Every poll thread there is.
pub(super) struct Threads {
    all: Lock<Vec<Arc<Thread>>>,
    /// Told to end: nobody tells them anything any more, but one that hangs is still freed.
    ending: Lock<Vec<Arc<Thread>>>,
    started: Instant,
    faults: Sender<Fault>,
    /// Held by whoever decides who polls what, until it is so.
    moves: Lock<()>,
}

impl Threads {
    pub(super) fn new(started: Instant, faults: Sender<Fault>) -> Self {
        Self { all: Lock::default(), ending: Lock::default(), started, faults, moves: Lock::default() }
    }

    /// Those there are now, by core.
    pub(super) fn all(&self) -> Vec<Arc<Thread>> {
        self.all.lock().clone()
    }

    /// Those and the ones that are ending.
    pub(super) fn watched(&self) -> Vec<Arc<Thread>> {
        let mut watched = self.all();
        watched.extend(self.ending.lock().iter().cloned());
        watched
    }

    /// The right to decide.
    pub(super) fn moves(&self) -> MutexGuard<'_, ()> {
        self.moves.lock()
    }

    /// Starts what is missing for `cpus`, all or nothing; gives the new ones, which nobody knows yet.
    ///
    /// # Errors
    /// `Config` if this process may not use a core; `Kernel` without thread or descriptors.
    pub(super) fn start(&self, cpus: &[usize], sleep: &SleepMax) -> Result<Vec<Arc<Thread>>> {
        let all = self.all();
        let missing = cpus.iter().filter(|cpu| all.iter().all(|thread| thread.core.cpu != **cpu));
        // As Open vSwitch numbers its threads: the lowest that is free, so that those of a steady set are 0, 1, 2 …
        let free = (0..).filter(|number| all.iter().all(|thread| thread.pmd.number != *number));
        missing
            .zip(free)
            .map(|(&cpu, number)| Thread::spawn(cpu, number, sleep.of(cpu), self.started, self.faults.clone()))
            .map(|thread| thread.map(Arc::new))
            .collect()
    }

    /// Makes threads known to all.
    pub(super) fn add(&self, threads: &[Arc<Thread>]) {
        let mut all = self.all.lock();
        all.extend(threads.iter().cloned());
        all.sort_by_key(|thread| thread.core.cpu);
    }

    /// Takes the threads of all cores but these out of the list; end them with [`Self::end`]. They have no queues any more.
    /// With the state locked: so nobody tells them anything after it was said that they are gone.
    pub(super) fn keep_only(&self, cpus: &[usize]) -> Vec<Arc<Thread>> {
        let mut all = self.all.lock();
        let (stays, leaving): (Vec<_>, Vec<_>) = all.drain(..).partition(|thread| cpus.contains(&thread.core.cpu));
        *all = stays;
        self.ending.lock().clone_from(&leaving);
        leaving
    }

    /// Ends threads that [`Self::keep_only`] gave.
    pub(super) fn end(&self, leaving: Vec<Arc<Thread>>) {
        for thread in leaving {
            thread.pmd.end();
        }
        self.ending.lock().clear();
    }
}

/// Cores in order and once each: those asked for, or the first that this process may use.
///
/// # Errors
/// `Config` naming a core out of reach.
pub(super) fn wanted(cpus: &[usize]) -> Result<Vec<usize>> {
    let allowed = cpu::allowed_cpus().map_err(|e| Error::kernel("cannot read the allowed cores", e))?;
    let mut cpus = cpus.to_vec();
    if cpus.is_empty() {
        let first = allowed.first().ok_or_else(|| Error::Bug("this process may use no core at all".into()))?;
        cpus.push(*first);
    }
    cpus.sort_unstable();
    cpus.dedup();
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(Error::Config(format!(
            "core {cpu} is not one of {allowed:?} that this process may use; change pmd-cpu-mask"
        )));
    }
    Ok(cpus)
}

/// What every poll thread was told, and who has not said yet that it is so.
#[must_use = "until it was waited for, some thread may use what was before"]
pub(super) struct Passage {
    answers: Vec<(Arc<Thread>, Receiver<()>)>,
}

impl Passage {
    /// Tells every thread; waits for none.
    pub(super) fn begin(threads: Vec<Arc<Thread>>, message: impl Fn(Sender<()>) -> Message) -> Self {
        let tell = |thread: Arc<Thread>| {
            let (done, passed) = channel();
            thread.pmd.post(message(done));
            (thread, passed)
        };
        Self { answers: threads.into_iter().map(tell).collect() }
    }

    /// Waits until all are through. One that takes more than a second is named, and waited for; nobody else is held up:
    /// the state is not locked meanwhile.
    pub(super) fn wait(self, events: &Events) {
        for (thread, answer) in self.answers {
            thread.pmd.wait(&answer, |late| say_late(events, late));
        }
    }
}

fn say_late(events: &Events, text: &str) {
    events.push(Level::Warning, "notice", None, text.to_owned());
}
