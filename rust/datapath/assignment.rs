//! Who shall poll what: the state's half of it (names, pins, settings) around the pure functions of `pmd::assign`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::port::PortRecord;
use super::threads::{Seat, SleepMax, Thread, percent};
use crate::pmd::assign::{self, Assignment, Core, Policy, Rxq};
use crate::pmd::balance::AutoLb;
use crate::pmd::load::INTERVALS;
use crate::pmd::{PmdStats, PolledQueue, Readings, Sleep};
use crate::switch::PortId;
use crate::sys::tsc;
use crate::vhost::Level;

/// How queues are shared out among the threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// `pmd-rxq-assign`.
    pub policy: Policy,
    /// `pmd-rxq-isolate`: a core with pinned queues takes no others.
    pub isolate: bool,
    /// `pmd-auto-lb` and its thresholds; None is off.
    pub auto_lb: Option<AutoLb>,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { policy: Policy::default(), isolate: true, auto_lb: None }
    }
}

/// A transmitq, as `pmd-rxq-show` shows it.
#[derive(Debug, Clone)]
pub struct RxqView {
    /// Its port's name.
    pub port: String,
    /// Its number.
    pub queue: u16,
    /// Whether it is polled: the guest enabled it.
    pub is_enabled: bool,
    /// Its share of the thread's time, %; None before it was measured.
    pub usage: Option<f64>,
}

/// A poll thread, as seen from outside.
#[derive(Debug, Clone)]
pub struct PmdView {
    /// The core it is pinned to.
    pub cpu: usize,
    /// That core's node.
    pub numa: u32,
    /// Whether the core is pinned queues' own.
    pub is_isolated: bool,
    /// Its longest sleep.
    pub sleep: Sleep,
    /// Its counters, live.
    pub stats: Arc<PmdStats>,
    /// What it counted since the last clear.
    pub since_clear: Readings,
    /// Seconds since then.
    pub cleared_s: f64,
    /// TSC cycles of a microsecond.
    pub cycles_per_us: u64,
    /// Busy time that belongs to no queue, %; None before it was measured.
    pub overhead: Option<f64>,
    /// Every transmitq that it polls, or would.
    pub rxqs: Vec<RxqView>,
}

/// Everything that decides who polls what, and who does.
#[derive(Default)]
pub(super) struct Places {
    /// Threads that take queues, by core; those that are about to end are not among them.
    pub threads: Vec<Arc<Thread>>,
    pub sharing: Sharing,
    pub sleep: SleepMax,
    /// `pmd-rxq-affinity`: the core that a port's queue is pinned to.
    pub pins: BTreeMap<(PortId, u16), usize>,
    /// Transmitqs that are with a poll thread, by vring.
    pub seats: BTreeMap<(PortId, u16), Arc<Seat>>,
    /// Cores of transmitqs that stopped, by vring: whoever looks finds them there, disabled.
    left: BTreeMap<(PortId, u16), usize>,
}

impl Places {
    fn cores(&self) -> Vec<Core> {
        self.threads.iter().map(|thread| thread.core).collect()
    }

    fn pin_of(&self, port: PortId, vring: u16) -> Option<usize> {
        self.pins.get(&(port, vring / 2)).copied()
    }

    fn rxqs(&self) -> Vec<Rxq> {
        self.seats.iter().map(|((port, vring), seat)| seat.rxq(self.pin_of(*port, *vring))).collect()
    }

    /// Seats a new queue while all others stay. None without a thread.
    pub(super) fn seat(&mut self, queue: Box<PolledQueue>, numa: Option<u32>) -> Option<Arc<Seat>> {
        let at = (queue.port, queue.vring);
        let (port, vring) = at;
        let new = Rxq { port, queue: vring / 2, load: 0, numa, pinned: self.pin_of(port, vring) };
        let others: Vec<(Rxq, usize)> = self.rxqs().into_iter().zip(self.seats.values().map(|s| s.cpu())).collect();
        let Sharing { policy, isolate, .. } = self.sharing;
        let cpu = assign::place(&new, &others, &self.cores(), policy, isolate)?;
        let seat = Arc::new(Seat::new(queue, numa, self.threads.iter().find(|thread| thread.core.cpu == cpu)?));
        self.left.remove(&at);
        self.seats.insert(at, Arc::clone(&seat));
        Some(seat)
    }

    /// The thread that polls a vring, or would.
    pub(super) fn thread_of(&self, port: PortId, vring: u16) -> Option<&Arc<Thread>> {
        let cpu = self.seats.get(&(port, vring)).map(|seat| seat.cpu());
        self.threads.iter().find(|thread| Some(thread.core.cpu) == cpu).or_else(|| self.threads.first())
    }

    /// Seats of a port, by vring.
    pub(super) fn seats_of(&self, port: PortId) -> impl Iterator<Item = (u16, &Arc<Seat>)> {
        self.seats.range((port, 0)..=(port, u16::MAX)).map(|((_, vring), seat)| (*vring, seat))
    }

    /// Takes a seat out, and remembers where it was.
    pub(super) fn leave(&mut self, port: PortId, vring: u16) -> Option<Arc<Seat>> {
        let seat = self.seats.remove(&(port, vring))?;
        self.left.insert((port, vring), seat.cpu());
        Some(seat)
    }

    /// Takes out what a port has or had.
    pub(super) fn forget(&mut self, port: PortId) -> Vec<Arc<Seat>> {
        self.pins.retain(|(id, _), _| *id != port);
        self.left.retain(|(id, _), _| *id != port);
        let vrings: Vec<_> = self.seats.range((port, 0)..=(port, u16::MAX)).map(|(at, _)| *at).collect();
        vrings.into_iter().filter_map(|at| self.seats.remove(&at)).collect()
    }

    /// True if a queue is where it must not be: away from its pin, or on a core that is others' own.
    pub(super) fn is_out_of_place(&self) -> bool {
        let cores = self.cores();
        let has = |cpu: usize| cores.iter().any(|core| core.cpu == cpu);
        let rxqs = self.rxqs();
        let own: BTreeSet<usize> = rxqs.iter().filter_map(|rxq| rxq.pinned).collect();
        let is_isolated = |cpu: usize| self.sharing.isolate && own.contains(&cpu);
        let is_somewhere_open = cores.iter().any(|core| !is_isolated(core.cpu));
        rxqs.iter().zip(self.seats.values()).any(|(rxq, seat)| match rxq.pinned.filter(|cpu| has(*cpu)) {
            Some(cpu) => seat.cpu() != cpu,
            None => !has(seat.cpu()) || is_somewhere_open && is_isolated(seat.cpu()),
        })
    }

    /// Ends an interval of every thread and queue.
    pub(super) fn roll(&self) {
        let overload_pct = self.sharing.auto_lb.unwrap_or_default().load_pct;
        self.threads.iter().for_each(|thread| thread.roll(overload_pct));
        self.seats.values().for_each(|seat| seat.roll());
    }

    /// True if `pmd-auto-lb` is on, a thread is overloaded, and another assignment would help enough.
    pub(super) fn wants_balance(&self) -> bool {
        let Some(auto) = self.sharing.auto_lb else { return false };
        if !self.threads.iter().any(|thread| thread.is_overloaded()) {
            return false;
        }
        let interval = self.threads.iter().map(|thread| thread.usage(1).0).max().unwrap_or(0);
        let (rxqs, now): (_, Vec<usize>) = (self.rxqs(), self.seats.values().map(|seat| seat.cpu()).collect());
        let Sharing { policy, isolate, .. } = self.sharing;
        auto.advises(&rxqs, &now, &self.cores(), policy, isolate, interval * INTERVALS as u64).is_some()
    }

    /// Everything for those who look; `name` is a port's. Shares are of the last `intervals`.
    pub(super) fn views(&self, intervals: usize, name: impl Fn(PortId) -> Option<String>) -> Vec<PmdView> {
        let isolated = assign::assign(&self.rxqs(), &self.cores(), self.sharing.policy, self.sharing.isolate).isolated;
        let first = self.threads.first().map(|thread| thread.core.cpu);
        let view = |thread: &Arc<Thread>| {
            let cpu = thread.core.cpu;
            let (interval, busy) = thread.usage(intervals);
            let here = self.seats.iter().filter(|(_, seat)| seat.cpu() == cpu).filter_map(|((port, vring), seat)| {
                let (cycles, known) = seat.cycles(intervals);
                let usage = percent(cycles, interval, known);
                Some(RxqView { port: name(*port)?, queue: vring / 2, is_enabled: true, usage })
            });
            // A core that is gone since: the first shows what was there.
            let is_there = |cpu: usize| self.threads.iter().any(|thread| thread.core.cpu == cpu);
            let was_here = |at: usize| at == cpu || first == Some(cpu) && !is_there(at);
            let left = self.left.iter().filter(|(_, at)| was_here(**at)).filter_map(|((port, vring), _)| {
                let usage = percent(0, interval, 1);
                Some(RxqView { port: name(*port)?, queue: vring / 2, is_enabled: false, usage })
            });
            let mut rxqs: Vec<RxqView> = here.chain(left).collect();
            rxqs.sort_by(|a, b| (&a.port, a.queue).cmp(&(&b.port, b.queue)));
            let known = rxqs.iter().filter_map(|rxq| rxq.usage).sum::<f64>();
            let (since_clear, cleared_s) = thread.since_clear();
            PmdView {
                cpu,
                numa: thread.core.numa,
                is_isolated: isolated.contains(&cpu),
                sleep: self.sleep.of(cpu),
                stats: Arc::clone(&thread.pmd.stats),
                since_clear,
                cleared_s,
                cycles_per_us: tsc::cycles_per_us(),
                overhead: busy.map(|busy| (busy - known).max(0.0)),
                rxqs,
            }
        };
        self.threads.iter().map(view).collect()
    }
}

impl Shared {
    /// Gives a new queue of this port to a poll thread. Gives what is worth telling about that.
    pub(super) fn seat(&self, queue: Box<PolledQueue>, record: &PortRecord) -> Option<String> {
        let (number, numa) = (queue.vring / 2, Some(record.numa.load(Ordering::Relaxed)));
        let mut state = self.state();
        let pin = state.places.pins.get(&(record.id, number)).copied();
        let seat = state.places.seat(queue, numa);
        let is_out_of_place = state.places.is_out_of_place();
        drop(state);
        if is_out_of_place {
            // It has a core of its own from now on: who was there before it has to go.
            let _moves = self.threads.moves();
            self.reassign();
        }
        let pin = pin.filter(|pin| seat.is_some_and(|seat| seat.cpu() != *pin))?;
        Some(cannot_be_pinned(&record.name, number, pin))
    }

    /// Shares every queue out anew and carries each to its place. The caller holds `moves`.
    pub(super) fn reassign(&self) {
        let (journeys, notes) = {
            let state = self.state();
            let places = &state.places;
            let (rxqs, seats): (_, Vec<Arc<Seat>>) = (places.rxqs(), places.seats.values().cloned().collect());
            let Sharing { policy, isolate, .. } = places.sharing;
            let then = assign::assign(&rxqs, &places.cores(), policy, isolate);
            let name = |rxq: &Rxq| state.name_of(rxq.port).unwrap_or_default();
            let notes = notes(&rxqs, &seats, &then, &places.cores(), policy, name);
            let journeys: Vec<_> = seats
                .into_iter()
                .zip(&then.cpus)
                .filter_map(|(seat, cpu)| {
                    let to = places.threads.iter().find(|thread| thread.core.cpu == *cpu)?;
                    Some((seat, Arc::clone(to)))
                })
                .collect();
            (journeys, notes)
        };
        for (level, text) in notes {
            self.events.push(level, "notice", None, text);
        }
        for (seat, to) in journeys {
            seat.go(&to, &self.events);
        }
    }
}

/// What a new assignment is worth telling, in Open vSwitch's words: who moves, and which wish could not be met.
fn notes(
    rxqs: &[Rxq],
    seats: &[Arc<Seat>],
    then: &Assignment,
    cores: &[Core],
    policy: Policy,
    name: impl Fn(&Rxq) -> String,
) -> Vec<(Level, String)> {
    let node_of = |cpu: usize| cores.iter().find(|core| core.cpu == cpu).map_or(0, |core| core.numa);
    let mut notes = Vec::new();
    for (at, ((rxq, seat), &cpu)) in rxqs.iter().zip(seats).zip(&then.cpus).enumerate() {
        let (port, queue, node) = (name(rxq), rxq.queue, node_of(cpu));
        if then.unpinned.contains(&at) {
            notes.push((Level::Warning, cannot_be_pinned(&port, queue, rxq.pinned.unwrap_or(cpu))));
        }
        if then.foreign.contains(&at) {
            let home = rxq.numa.unwrap_or(0);
            let text = format!(
                "There's no available (non-isolated) pmd thread on numa node {home}. Port '{port}' rx queue {queue} will \
                 be assigned to a pmd on numa node {node}. This may lead to reduced performance."
            );
            notes.push((Level::Warning, text));
        }
        if then.crowded.contains(&at) {
            let text = format!(
                "No non-isolated pmd on any numa available for port '{port}' rx queue {queue}. It shares core {cpu} with \
                 pinned queues: add a core to pmd-cpu-mask."
            );
            notes.push((Level::Warning, text));
        }
        if seat.cpu() != cpu {
            let load = match policy {
                Policy::RoundRobin => String::new(),
                _ => format!(" (measured processing cycles {})", rxq.load),
            };
            let text = format!("Core {cpu:2} on numa node {node} assigned port '{port}' rx queue {queue}{load}.");
            notes.push((Level::Info, text));
        }
    }
    notes
}

/// Open vSwitch's words for an affinity that names a core without a thread.
fn cannot_be_pinned(port: &str, queue: u16, cpu: usize) -> String {
    format!(
        "Core {cpu:2} cannot be pinned with port '{port}' rx queue {queue}. Use pmd-cpu-mask to enable a pmd on core {cpu}. \
         An alternative core will be assigned."
    )
}
