//! The thread itself: its loop, its start and its end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mailbox::{Mailbox, Message};
use super::poll::{Forwarder, PolledQueue, SELDOM_US};
use super::sleep::Sleeper;
use super::stats::PmdStats;
use super::{Fault, FaultCause, OutletSlot};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::switch::PortId;
use crate::sys::eventfd::{Desk, Notifier};
use crate::sys::{cpu, tsc};

/// How long a poll thread may take to pass before it is named, and how long a second panic counts as "at once".
const PATIENCE: Duration = Duration::from_secs(1);

/// `pmd-sleep-max`: None is adaptive, 0 never sleeps, else the longest sleep in µs.
pub type Sleep = Option<u64>;

/// A running poll thread, as control sees it.
#[derive(Debug)]
pub struct Pmd {
    /// The core it is pinned to.
    pub cpu: usize,
    /// Its number among the threads.
    pub number: usize,
    /// Its counters.
    pub stats: Arc<PmdStats>,
    /// Where it says which guest it is calling.
    pub desk: &'static Desk,
    mailbox: Arc<Mailbox>,
    thread: Lock<Option<JoinHandle<()>>>,
}

impl Pmd {
    /// Starts a thread on `cpu`. `number` is its own among those there are: by that it chooses receiveqs where each thread
    /// shall have one. `started` is the datapath's birth: seconds count from there.
    ///
    /// # Errors
    /// `Config` if this process may not use the core; `Kernel` without eventfd, epoll or thread.
    pub fn spawn(cpu: usize, number: usize, sleep: Sleep, started: Instant, faults: Sender<Fault>) -> Result<Self> {
        let allowed = cpu::allowed_cpus().map_err(|e| Error::kernel("cannot read the allowed cores", e))?;
        if !allowed.contains(&cpu) {
            return Err(Error::Config(format!(
                "core {cpu} is not one of {allowed:?} that this process may use; change pmd-cpu-mask"
            )));
        }
        let name = format!("pmd-c{cpu}");
        let wake = EventFd::new(EFD_NONBLOCK).map_err(|e| Error::kernel(format!("{name}: no eventfd"), e))?;
        let sleeper = Sleeper::new(&wake, sleep).map_err(|e| Error::kernel(format!("{name}: no epoll"), e))?;
        let (mailbox, stats) = (Arc::new(Mailbox::new(wake)), Arc::new(PmdStats::default()));
        let mut body = Body {
            mailbox: Arc::clone(&mailbox),
            stats: Arc::clone(&stats),
            queues: Vec::new(),
            stopped: Vec::new(),
            resting: false,
            look_at_quiet: 0,
            forwarder: Forwarder::new(number, faults.clone(), Arc::clone(&stats)),
            ungreeted: Vec::new(),
            unlooked: Vec::new(),
            sleeper,
            started,
            next_second: tsc::now(),
            faults,
            last_panic: None,
        };
        let (pinned, is_pinned) = channel();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                // The spawner waits for this word.
                match cpu::poll_on(cpu) {
                    Ok(_polled) => {
                        let _ = pinned.send(Ok(Desk::of_this_thread()));
                        body.run();
                    }
                    Err(e) => {
                        let _ = pinned.send(Err(e));
                    }
                }
            })
            .map_err(|e| Error::kernel(format!("{name}: no thread"), e))?;
        match is_pinned.recv() {
            Ok(Ok(desk)) => Ok(Self { cpu, number, stats, desk, mailbox, thread: Lock::new(Some(thread)) }),
            Ok(Err(e)) => Err(Error::kernel(format!("{name}: cannot be pinned to core {cpu}"), e)),
            Err(_) => Err(Error::Bug(format!("{name}: died at its start"))),
        }
    }

    /// Leaves a message.
    pub fn post(&self, message: Message) {
        self.mailbox.post(message);
    }

    /// Waits for a thread's answer as long as it takes; calls `late` once if that is more than a second. None if the
    /// thread is gone.
    pub fn wait<T>(&self, answer: &Receiver<T>, late: impl FnOnce(&str)) -> Option<T> {
        match answer.recv_timeout(PATIENCE) {
            Ok(value) => Some(value),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                late(&format!("pmd-c{} did not pass within {PATIENCE:?}; still waiting for it", self.cpu));
                answer.recv().ok()
            }
        }
    }

    /// Takes a queue back: settled, or whole if it is `to_move` to another thread. None if the thread does not have it.
    pub fn release(
        &self,
        port: PortId,
        vring: u16,
        to_move: bool,
        late: impl FnOnce(&str),
    ) -> Option<Box<PolledQueue>> {
        let (reply, answer) = channel();
        self.post(Message::Release { port, vring, to_move, reply });
        self.wait(&answer, late).flatten()
    }

    /// Ends the thread and waits for it; its core is free then. May be called again.
    pub fn end(&self) {
        self.post(Message::Stop);
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the loop itself was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Pmd {
    fn drop(&mut self) {
        self.end();
    }
}

struct Body {
    mailbox: Arc<Mailbox>,
    stats: Arc<PmdStats>,
    queues: Vec<PolledQueue>,
    /// Broken ones, and all once it rests, until their session takes them back.
    stopped: Vec<PolledQueue>,
    resting: bool,
    /// When quiet queues are looked at again; in the past after a round that moved nothing.
    look_at_quiet: u64,
    forwarder: Forwarder,
    /// Receiveqs whose first call is still to be made: another thread had them.
    ungreeted: Vec<Arc<OutletSlot>>,
    /// Receiveqs whose next buffers may lack mappings: likewise.
    unlooked: Vec<Arc<OutletSlot>>,
    sleeper: Sleeper,
    started: Instant,
    next_second: u64,
    faults: Sender<Fault>,
    last_panic: Option<Instant>,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl Body {
    fn run(&mut self) {
        let mut before = tsc::now();
        loop {
            if before >= self.next_second {
                self.count_seconds(before);
            }
            if self.mailbox.has_mail() && !self.read_mail() {
                return;
            }
            let (moved, mark) = self.poll_all(before);
            let pushes = self.forwarder.has_stuck();
            if pushes {
                self.forwarder.push_stuck();
            }
            if moved == 0 {
                // Part of this round: a frame that the next one finds is not to bear it.
                std::hint::spin_loop();
            }
            // Reading the clock costs as much as a line that is missing. Looks that found nothing behind the last burst
            // are the next round's.
            let now = if moved > 0 && !pushes { mark } else { tsc::now() };
            let spent = now.wrapping_sub(before);
            before = now;
            if moved > 0 {
                self.stats.busy_rounds.add(1);
                self.stats.busy_cycles.add(spent);
                self.stats.cycles_per_round.count(spent);
                self.sleeper.busy(now);
            } else {
                self.stats.idle_rounds.add(1);
                self.stats.idle_cycles.add(spent);
                if self.sleeper.is_time(now) {
                    self.sleep();
                    before = tsc::now();
                }
            }
        }
    }

    fn count_seconds(&mut self, now: u64) {
        self.forwarder.now_s = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.next_second = now + 100_000 * tsc::cycles_per_us();
        self.check_queues();
    }

    /// Stops the queues that read as empty because their ring is gone.
    #[cold]
    fn check_queues(&mut self) {
        let mut at = 0;
        while let Some(queue) = self.queues.get_mut(at) {
            match queue.queue.check() {
                Ok(()) => at += 1,
                Err(fault) => {
                    // A burst that waits was taken: it is counted and given back before the ring is answered for.
                    self.forwarder.settle(queue);
                    self.stop_queue(at, FaultCause::Ring(fault));
                }
            }
        }
    }

    /// One round over the queues; `mark` is the time now. A queue's time runs from the end of the last one that moved
    /// frames: the clock is read only after a queue did. Gives the frames moved, and when the last of them were.
    #[inline]
    fn poll_all(&mut self, mut mark: u64) -> (usize, u64) {
        let (began, mut moved, mut broken) = (mark, 0, None);
        // One guard around the round: a panic names the queue that was being polled.
        let mut at = 0;
        let (queues, forwarder, stats) = (&mut self.queues, &mut self.forwarder, &self.stats);
        let leaves_quiet = mark < self.look_at_quiet;
        let end = catch_unwind(AssertUnwindSafe(|| {
            while let Some(queue) = queues.get_mut(at) {
                if leaves_quiet && queue.is_quiet() {
                    at += 1;
                    continue;
                }
                let found = forwarder.poll(queue);
                queue.looked(found.unwrap_or(0));
                match found {
                    Ok(0) => {}
                    Ok(count) => {
                        let now = tsc::now();
                        let cycles = now.wrapping_sub(mark);
                        queue.gathered(mark, now, stats);
                        mark = now;
                        queue.counters.cycles.add(cycles);
                        stats.burst(count, cycles);
                        moved += count;
                    }
                    Err(fault) => {
                        broken = Some(fault);
                        return;
                    }
                }
                at += 1;
            }
        }));
        match (end, broken) {
            (Ok(()), None) => {}
            (Ok(()), Some(fault)) => self.stop_queue(at, FaultCause::Ring(fault)),
            (Err(panic), _) => self.after_panic(at, panic.as_ref()),
        }
        if moved == 0 {
            self.look_at_quiet = 0;
        } else if !leaves_quiet {
            self.look_at_quiet = began + SELDOM_US * tsc::cycles_per_us();
        }
        (moved, mark)
    }

    /// Takes queue `at` out of the round and reports it.
    #[cold]
    fn stop_queue(&mut self, at: usize, cause: FaultCause) {
        let mut queue = self.queues.remove(at);
        queue.is_stopped = true;
        self.sleeper.unwatch(queue.queue.kick());
        // The receiver of faults lives as long as the datapath.
        let _ = self.faults.send(Fault { port: queue.port, vring: queue.vring, run: queue.run, cause });
        self.stopped.push(queue);
    }

    /// A bug of ours stops one queue. A second at once is more than one guest's bad luck: the process ends, and its
    /// supervisor starts it anew.
    #[cold]
    fn after_panic(&mut self, at: usize, panic: &(dyn std::any::Any + Send)) {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        if self.last_panic.is_some_and(|last| last.elapsed() < PATIENCE) {
            eprintln!("ovsvhost: two queues failed within a second ({text}); ending");
            std::process::exit(1);
        }
        self.last_panic = Some(Instant::now());
        self.forwarder.forget_burst();
        if let Some(queue) = self.queues.get_mut(at) {
            // What waited beside the frame that broke us is not to blame; if it was that, it is lost with its queue.
            let _ = catch_unwind(AssertUnwindSafe(|| self.forwarder.settle(queue)));
        }
        self.stop_queue(at, FaultCause::Panic(text));
    }

    /// False when told to leave.
    #[cold]
    fn read_mail(&mut self) -> bool {
        let mut goes_on = true;
        for message in self.mailbox.take() {
            match message {
                Message::Topology(topology, done) => {
                    self.forwarder.adopt(Arc::clone(&topology));
                    // Nobody need wait for the calls: they are made at this thread's desk.
                    let _ = done.send(());
                    self.ungreeted = topology.ports.iter().flatten().flat_map(|port| port.receiveqs.clone()).collect();
                }
                Message::Pass(done) => {
                    let _ = done.send(());
                }
                Message::Assign(queue) if self.resting || queue.is_stopped => self.stopped.push(*queue),
                Message::Assign(mut queue) => {
                    if !std::mem::replace(&mut queue.is_greeted, true) {
                        queue.queue.greet();
                    }
                    self.sleeper.watch(queue.queue.kick());
                    self.queues.push(*queue);
                }
                Message::Release { port, vring, to_move, reply } => {
                    let _ = reply.send(self.release(port, vring, to_move));
                }
                Message::SetCall { port, vring, call } => self.set_call(port, vring, call),
                Message::AddLane { port, vring, lane, memory, reply } => {
                    let refused = match self.find(port, vring) {
                        Some(queue) => queue.add_lane(lane, &memory).err(),
                        None => Some(lane),
                    };
                    let _ = reply.send(refused);
                }
                Message::RemoveLane { port, vring, keeper, reply } => {
                    let lane = self.find(port, vring).and_then(PolledQueue::zero_copy).and_then(|z| z.remove(keeper));
                    let _ = reply.send(lane);
                }
                Message::LaneClosed { port, vring, keeper } => {
                    if let Some(queue) = self.find(port, vring) {
                        queue.close_lane(keeper);
                    }
                }
                Message::Greet(slot) => self.ungreeted.push(slot),
                Message::LookAhead(slots) => {
                    self.unlooked.retain(|known| !slots.iter().any(|slot| Arc::ptr_eq(slot, known)));
                    self.unlooked.extend(slots);
                }
                Message::Sleep(max) => self.sleeper.set_max(max),
                Message::Announce { port, mac } => self.forwarder.announce(port, mac),
                Message::Teach { port, addresses } => self.forwarder.teach(port, &addresses),
                Message::Emit { port, head, len } => self.forwarder.emit(port, &head, len),
                Message::Rest(done) => {
                    self.resting = true;
                    for mut queue in self.queues.drain(..) {
                        self.forwarder.settle(&mut queue);
                        self.sleeper.unwatch(queue.queue.kick());
                        self.stopped.push(queue);
                    }
                    let _ = done.send(());
                }
                Message::Stop => goes_on = false,
            }
        }
        self.ungreeted.retain(|slot| !slot.greet());
        self.unlooked.retain(|slot| !slot.look_ahead());
        if !self.ungreeted.is_empty() || !self.unlooked.is_empty() {
            self.mailbox.remind();
        }
        goes_on
    }

    fn find(&mut self, port: PortId, vring: u16) -> Option<&mut PolledQueue> {
        self.queues.iter_mut().chain(&mut self.stopped).find(|q| (q.port, q.vring) == (port, vring))
    }

    fn set_call(&mut self, port: PortId, vring: u16, call: Option<Notifier>) {
        if let Some(queue) = self.find(port, vring) {
            queue.queue.set_call(call);
        }
    }

    fn release(&mut self, port: PortId, vring: u16, to_move: bool) -> Option<Box<PolledQueue>> {
        let is_it = |q: &PolledQueue| (q.port, q.vring) == (port, vring);
        if let Some(at) = self.queues.iter().position(is_it) {
            let mut queue = self.queues.remove(at);
            self.sleeper.unwatch(queue.queue.kick());
            if !to_move {
                self.forwarder.settle(&mut queue);
            }
            return Some(Box::new(queue));
        }
        let at = self.stopped.iter().position(is_it)?;
        Some(Box::new(self.stopped.remove(at)))
    }

    /// Asks every guest for kicks, looks once more, sleeps, and goes back to polling.
    #[cold]
    fn sleep(&mut self) {
        if self.queues.iter().any(PolledQueue::is_restless) {
            // Its receiver does not wake us: look again.
            return self.sleeper.busy(tsc::now());
        }
        // Nor does a device that was full.
        let (mut work, mut parked) = (false, self.forwarder.push_stuck());
        for queue in &mut self.queues {
            let (is_parked, is_shut) = (queue.is_parked(), queue.is_shut());
            // Nor does one that reads a guest's memory say when it has done so.
            parked |= is_parked || is_shut || queue.is_waiting() || queue.is_out();
            work |= !is_shut && queue.queue.enable_kicks() && !is_parked;
        }
        // After the last look at the rings: what that found gone is said now, not when the guest kicks again.
        self.check_queues();
        if !work && self.mailbox.about_to_sleep() {
            self.stats.sleeps.add(1);
            self.stats.sleep_cycles.add(self.sleeper.sleep(parked));
        }
        self.mailbox.awake();
        for queue in self.queues.iter_mut().filter(|queue| !queue.is_shut()) {
            queue.queue.disable_kicks();
        }
    }
}
