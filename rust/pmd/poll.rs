//! One queue's turn: gather, classify, output, commit; or what is left of the turn before.

mod own;
mod queue;

use std::sync::Arc;
use std::sync::mpsc::Sender;

pub use self::queue::PolledQueue;
use super::deliver::{Source, Spread};
use super::output::Groups;
use super::stats::PmdStats;
use super::wait::{Waiting, indices};
use super::zero_copy::ZeroCopy;
use super::{Bonding, Fault, OutletSlot, Topology};
use crate::burst::{Burst, MAX_BURST, Stop};
use crate::counters::{QueueCounters, Tally};
use crate::drops::DropReason;
use crate::frame::ethernet::Mac;
use crate::ring::RingFault;
use crate::switch::PortId;
use crate::switch::classify::{Cache, Output};
use crate::sys::tsc;

/// What a burst has beside its frames.
struct Aside<'a> {
    waiting: &'a mut Waiting,
    zero_copy: Option<&'a mut ZeroCopy>,
    settle_by: Option<u64>,
}

/// While others move frames, quiet queues are looked at so often, µs: a hundred silent guests would cost the two that talk a
/// tenth of their rate in every round. Time and not rounds, for a round of large frames is long by itself.
pub(super) const SELDOM_US: u64 = 20;

/// How long a transmitq that is taken back asks for rings that other threads have, µs. Each of them has one for as long
/// as a group takes to copy.
const SETTLE_US: u64 = 1000;

/// What polling needs beside the queue itself; one per thread.
#[derive(Debug)]
pub struct Forwarder {
    pub(super) topology: Arc<Topology>,
    /// Which of the poll threads this is.
    pub(super) thread: usize,
    groups: Groups,
    spread: Spread,
    stuck: Stuck,
    faults: Sender<Fault>,
    stats: Arc<PmdStats>,
    /// Seconds since the datapath started, for ageing.
    pub(super) now_s: u32,
}

impl Forwarder {
    /// Of poll thread number `thread`, in no topology yet. What breaks is told to `faults`, what it does to `stats`.
    pub fn new(thread: usize, faults: Sender<Fault>, stats: Arc<PmdStats>) -> Self {
        let (groups, spread, stuck) = (Groups::new(), Spread::new(), Stuck::default());
        Self { topology: Arc::default(), thread, groups, spread, stuck, faults, stats, now_s: 0 }
    }

    /// Swaps the topology.
    pub fn adopt(&mut self, topology: Arc<Topology>) {
        self.groups.fit(topology.ports.len());
        self.stuck.fit(&topology);
        self.topology = topology;
    }

    /// Moves up to one burst from `q` to where it goes. Gives the frames taken: none while a burst waits.
    ///
    /// # Errors
    /// The queue's ring is broken: stop polling it.
    #[inline]
    pub fn poll(&mut self, q: &mut PolledQueue) -> Result<usize, RingFault> {
        if q.is_shut() {
            q.waiting.begin_anew();
            return Ok(0);
        }
        q.tend();
        if q.is_waiting() {
            self.resume(q, None);
            if q.is_waiting() {
                return Ok(0);
            }
        }
        let count = q.queue.gather()?;
        if q.queue.is_guarded() {
            q.count_translations(count);
        }
        if count > 0 {
            let aside = Aside { waiting: &mut q.waiting, zero_copy: q.zero_copy.as_deref_mut(), settle_by: None };
            self.forward(q.queue.burst_mut(), q.port, &q.counters, &mut q.cache, aside);
            if q.waiting.is_empty() {
                q.commit();
            }
        }
        Ok(count)
    }

    /// Ends a burst that waits: what cannot be delivered now is dropped, and the guest has its buffers back.
    pub(super) fn settle(&mut self, q: &mut PolledQueue) {
        if q.is_shut() {
            return q.give_up();
        }
        if q.is_waiting() {
            self.resume(q, Some(settle_by()));
        }
    }

    /// Tries the groups again that wait; when none is left the burst is done.
    #[cold]
    fn resume(&mut self, q: &mut PolledQueue, settle_by: Option<u64>) {
        let back = q.queue.taken_back(q.waiting.frames());
        q.is_away = back.away != 0;
        let aside = Aside { waiting: &mut q.waiting, zero_copy: q.zero_copy.as_deref_mut(), settle_by };
        let mut source = self.source(q.queue.burst(), q.port, aside);
        let mut room = [0; MAX_BURST];
        for _ in 0..source.waiting.len() {
            let Some(mut group) = source.waiting.pop() else { break };
            // Who has to settle does not wait for them.
            let lost = group.frames & if settle_by.is_some() { back.gone | back.away } else { back.gone };
            if lost != 0 {
                group.slot.counters.lost(DropReason::IotlbWait, u64::from(lost.count_ones()));
                if lost.trailing_zeros() == group.frames.trailing_zeros() {
                    // What the device has of it goes out; there is no rest.
                    group.begun = 0;
                }
                group.frames &= !lost;
            }
            if group.frames & back.away != 0 {
                // They wait for their own guest, which keeps nobody else: no longer for the receiver.
                group.since = 0;
                source.waiting.push(group);
            } else if group.frames != 0 {
                source.resume(&group, indices(group.frames, &mut room));
            }
        }
        if q.waiting.is_empty() {
            q.commit();
            self.stats.cycles_per_burst.count(tsc::now().wrapping_sub(q.gathered_at));
        }
    }

    /// What delivers a burst whose receivers are known. [`Self::forward`] has its bridge and its groups in hand beside one.
    fn source<'a>(&'a mut self, burst: &'a Burst, port: PortId, aside: Aside<'a>) -> Source<'a> {
        let Aside { waiting, zero_copy, settle_by } = aside;
        let Self { topology, faults, spread, stuck, thread, .. } = self;
        spread.begin();
        Source { burst, port, thread: *thread, topology, faults, spread, stuck, waiting, zero_copy, settle_by }
    }

    fn forward(
        &mut self,
        burst: &mut Burst,
        port: PortId,
        counters: &QueueCounters,
        cache: &mut Cache,
        aside: Aside<'_>,
    ) {
        let view = self.topology.port(port);
        let bridge = view.and_then(|v| self.topology.bridges.get(v.bridge)).and_then(Option::as_ref);
        let Some((view, bridge)) = view.zip(bridge) else {
            return counters.dropped(DropReason::NoReceiver, burst.len() as u64);
        };
        if !view.admin_up {
            return counters.dropped(DropReason::AdminDown, burst.len() as u64);
        }
        let port = match &view.bonding {
            Bonding::None | Bonding::Shares(_) => port,
            Bonding::Member(membership) => {
                membership.admit(burst, &bridge.fdb, &self.topology, self.now_s);
                membership.bond
            }
        };
        let burst = &*burst;
        cache.refresh(&bridge.fdb, self.now_s);
        let mut frames = (0_u8..).zip(burst.packets().iter().zip(burst.heads())).peekable();
        while let Some((index, (packet, _))) = frames.next() {
            if let Some(stop) = packet.stop {
                match stop {
                    Stop::Drop(reason) => counters.dropped(reason, 1),
                    Stop::Read => count_passed(counters, burst, &[index]),
                }
                continue;
            }
            let frame = (burst.heads(), usize::from(index));
            let output = cache.classify(&bridge.fdb, port, frame, bridge.forward_bpdu, self.now_s);
            match output {
                Output::Port(to) => {
                    let Some(list) = self.groups.list(to, view.bridge, &self.topology) else {
                        counters.dropped(DropReason::NoReceiver, 1);
                        continue;
                    };
                    list.push_counted(index, packet.len);
                    let last = cache.last();
                    if last.output == output {
                        // The next ones mostly go the same way.
                        while let Some((index, (packet, _))) = frames.next_if(|(index, (packet, head))| {
                            packet.stop.is_none()
                                && (last.is_like(&head.0) || cache.goes_with(&last, &head.0, usize::from(*index)))
                        }) {
                            list.push_counted(index, packet.len);
                        }
                    }
                }
                // Whether it passes turns out when it is delivered.
                Output::Flood => self.groups.flood(index),
                Output::Drop(reason) => counters.dropped(reason, 1),
            }
        }
        self.spread.begin();
        let mut source = Source {
            burst,
            port,
            thread: self.thread,
            topology: &self.topology,
            faults: &self.faults,
            spread: &mut self.spread,
            stuck: &mut self.stuck,
            waiting: aside.waiting,
            zero_copy: aside.zero_copy,
            settle_by: aside.settle_by,
        };
        let receivers = self.groups.deliver(&mut source, &bridge.members);
        self.groups.shares().for_each(|share| counters.add_share(share));
        let flooded = self.groups.flooded();
        if receivers > 0 {
            count_passed(counters, burst, flooded);
        } else if !flooded.is_empty() {
            counters.dropped(DropReason::NoReceiver, flooded.len() as u64);
        }
        self.groups.forget();
    }

    /// True if there are devices that did not take what they were told to send.
    #[inline]
    pub(super) fn has_stuck(&self) -> bool {
        !self.stuck.0.is_empty()
    }

    /// Tells those devices again; true if there are such still.
    #[inline]
    pub(super) fn push_stuck(&mut self) -> bool {
        self.has_stuck() && self.stuck.push()
    }

    /// Drops what a panic left sorted and not delivered.
    pub(super) fn forget_burst(&mut self) {
        self.groups.forget();
        self.spread.forget();
    }
}

/// Transmit queues of devices that did not take all that they were told to send: full for the moment, or down. Nothing
/// wakes us when they can, so whoever delivered to them asks again.
#[derive(Debug, Default)]
pub(super) struct Stuck(Vec<Arc<OutletSlot>>);

impl Stuck {
    /// Room for every queue there is; called when the topology changes, never per burst.
    fn fit(&mut self, topology: &Topology) {
        let queues = topology.ports.iter().flatten().map(|port| port.receiveqs.len()).sum::<usize>();
        self.0.reserve(queues);
    }

    /// Remembers one, once.
    #[cold]
    pub(super) fn add(&mut self, slot: &Arc<OutletSlot>) {
        if !self.0.iter().any(|known| Arc::ptr_eq(known, slot)) {
            self.0.push(Arc::clone(slot));
        }
    }

    /// True if one is left. Another thread that has a queue tells its device by itself, and remembers it if it must.
    #[cold]
    fn push(&mut self) -> bool {
        self.0.retain(|slot| {
            let Some(mut guard) = slot.queue.try_lock() else { return false };
            guard.as_mut().is_some_and(|queue| {
                queue.push();
                queue.is_stuck()
            })
        });
        !self.0.is_empty()
    }
}

/// Counts where they came in frames of a burst that went everywhere, or were the switch's own.
#[cold]
fn count_passed(counters: &QueueCounters, burst: &Burst, list: &[u8]) {
    let mut tally = Tally::default();
    for (packet, head) in list.iter().filter_map(|&index| burst.frame(index)) {
        let dst = Mac::destination(&head.0);
        tally.count(packet.len, dst.is_group(), dst == Mac::BROADCAST);
    }
    counters.add(&tally);
}

fn settle_by() -> u64 {
    tsc::now() + SETTLE_US * tsc::cycles_per_us()
}
