//! Which guest's transmitq has a lane to which network device, and whose turn it is to open and close them.
//!
//! ```text
//!   a port wants it (dq-zero-copy) ─┐
//!   its transmitq is with a thread ─┼─▶ thread nic-<port>: open ─▶ the poll thread that has the queue
//!   the device has a queue left ────┘                      ◀─ close ─ or whoever stops that queue
//! ```
//!
//! A lane is opened by the device's thread, which alone gives its queues away: sessions and poll threads never wait for
//! guest memory to be pinned. It is closed by that thread (the device leaves, the option is taken back) or by the session
//! that stops the queue. No buffer goes back to the guest before the lane that it is on is closed, so one that a device's
//! thread is closing is waited for: [`Lanes::closing`].

mod pace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::pace::{Paces, STARTS};
use super::Shared;
use super::port::PortRecord;
use super::threads::Seat;
use crate::error::Error;
use crate::lock::Lock;
use crate::pmd::{Lane, PolledQueue};
use crate::port::afxdp::{self, LaneGauges, LanePlan};
use crate::ring::Obstacle;
use crate::switch::PortId;
use crate::vhost::Level;

/// How long frames on their way may take when a lane is closed.
const DRAIN: Duration = Duration::from_secs(1);
/// How soon a lane that was refused is asked for again.
const RETRY: Duration = Duration::from_secs(10);

/// Which lane: a guest's port, its vring, a device's port.
type Key = (PortId, u16, PortId);

/// What became of a lane that is wanted.
enum Laid {
    /// It is there.
    Open { seat: Arc<Seat>, keeper: u16, queue: u32, plan: LanePlan, netdev: String },
    /// It cannot be had now, however often the transmitq is started meanwhile.
    Refused { queue: u32, text: String, until: Instant },
    /// The device has no queue left, or is down: asked for again whenever its thread looks. `status` has this.
    Lacking { seat: Arc<Seat>, text: String },
}

/// All lanes of a datapath.
#[derive(Default)]
pub(super) struct Lanes {
    /// Held while a lane is closed that belongs to a queue which may be stopped meanwhile.
    closing: Lock<()>,
    laid: Lock<BTreeMap<Key, Laid>>,
    paces: Lock<Paces>,
    /// The last keeper's number.
    keeper: Lock<u16>,
}

/// A network device as its thread offers it for lanes.
pub(super) struct Offer<'a> {
    pub nic: PortId,
    pub record: &'a Arc<PortRecord>,
    /// Of a lane on its first queue that is nobody's.
    pub plan: LanePlan,
    /// That queue's number in the port.
    pub first: u16,
    /// How many there are.
    pub queues: u32,
    /// What to tell who finds none left.
    pub lack: String,
    /// None can be taken while it is down; those that are stay.
    pub is_up: bool,
}

/// A transmitq of a guest whose port wants lanes.
pub(super) struct Wish {
    pub guest: Arc<PortRecord>,
    pub vring: u16,
    pub seat: Arc<Seat>,
}

impl Lanes {
    fn next_keeper(&self) -> u16 {
        let mut keeper = self.keeper.lock();
        *keeper = keeper.wrapping_add(1);
        *keeper
    }

    /// A queue that is to be asked for now, and whether none was refused yet.
    fn queue_for(&self, key: Key, wish: &Wish, offer: &Offer<'_>) -> Option<(u32, bool)> {
        let mut laid = self.laid.lock();
        let refused = match laid.get(&key) {
            Some(Laid::Refused { queue, until, .. }) if Instant::now() >= *until => Some(*queue),
            Some(Laid::Lacking { .. }) | None => None,
            Some(Laid::Open { .. } | Laid::Refused { .. }) => return None,
        };
        let netdev = &offer.plan.netdev;
        let text = if offer.is_up {
            let is_taken = |queue: u32| {
                laid.iter()
                    .any(|(key, l)| key.2 == offer.nic && matches!(l, Laid::Open { queue: q, .. } if *q == queue))
            };
            let mut free = (offer.plan.queue..offer.plan.queue + offer.queues).filter(|queue| !is_taken(*queue));
            // What was refused somebody else may have: first those behind it.
            let behind = free.clone().find(|queue| refused.is_some_and(|refused| *queue > refused));
            if let Some(queue) = behind.or_else(|| free.next()) {
                return Some((queue, refused.is_none()));
            }
            format!("Waiting(queue): {}", offer.lack)
        } else {
            format!("Waiting(device): {netdev} is down: bring it up (ip link set {netdev} up)")
        };
        laid.insert(key, Laid::Lacking { seat: Arc::clone(&wish.seat), text });
        None
    }

    /// What is in the way of zero copy for a guest's port, or nothing: Interface `status:zero-copy`.
    pub(super) fn state_of(&self, guest: PortId, obstacles: &[Option<Obstacle>]) -> String {
        if obstacles.is_empty() {
            return "Waiting(guest): it has no transmitq that runs".into();
        }
        if let Some(obstacle) = obstacles.iter().flatten().next() {
            return match obstacle {
                Obstacle::InOrder => {
                    "Waiting(in_order): its driver wants buffers back in order, so frames are copied; \
                                      start its virtual machine anew, this port no longer offers that"
                        .into()
                }
                Obstacle::Packed => "Waiting(packed): its driver uses packed rings, so frames are copied".into(),
                Obstacle::Guarded => "Waiting(iommu): the guest's IOMMU guards its memory, so frames are copied".into(),
                Obstacle::Postcopy => "Suspended(postcopy): a migration brings its memory; frames are copied".into(),
            };
        }
        let laid = self.laid.lock();
        let (mut open, mut lack) = (Vec::new(), None);
        for laid in laid.range((guest, 0, 0)..=(guest, u16::MAX, PortId::MAX)).map(|(_, laid)| laid) {
            match laid {
                Laid::Open { netdev, queue, .. } => open.push(format!("{netdev} queue {queue}")),
                Laid::Refused { text, .. } => lack = Some(format!("Waiting(device): {text}")),
                Laid::Lacking { text, .. } => lack = Some(text.clone()),
            }
        }
        match (open.is_empty(), lack) {
            (true, None) => {
                "Waiting(device): no network device of its bridge is held over AF_XDP (type=afxdp, type=dpdk); \
                             frames to guests are copied once, from guest to guest"
                    .into()
            }
            (true, Some(lack)) => lack,
            (false, None) => format!("Active: {}", open.join(", ")),
            (false, Some(lack)) => format!("Active: {}; {lack}", open.join(", ")),
        }
    }
}

impl Shared {
    /// Closes lanes to a device that are not wanted, and opens one that is. The device's own thread, and no other. True if
    /// that took time: there may be more to open, and something more urgent to look at before.
    pub(super) fn lay_lanes(&self, offer: Option<&Offer<'_>>, nic: PortId) -> bool {
        let wishes = offer.map(|_| self.state().wishes_for(nic)).unwrap_or_default();
        self.close_unwanted(&wishes, offer, nic);
        offer.is_some_and(|offer| wishes.iter().any(|wish| self.lay(wish, offer)))
    }

    fn close_unwanted(&self, wishes: &[Wish], offer: Option<&Offer<'_>>, nic: PortId) {
        let is_wanted = |key: &Key, seat: &Arc<Seat>, queue: Option<(u32, &LanePlan)>| {
            let fits = queue.is_none_or(|(queue, plan)| {
                offer.is_some_and(|offer| {
                    let wanted = LanePlan { queue, ..offer.plan.clone() };
                    (offer.plan.queue..offer.plan.queue + offer.queues).contains(&queue) && *plan == wanted
                })
            });
            fits && wishes
                .iter()
                .any(|wish| (wish.guest.id, wish.vring) == (key.0, key.1) && Arc::ptr_eq(&wish.seat, seat))
        };
        let (now, wanting) = (Instant::now(), self.state().zero_copy_ports());
        self.lanes.paces.lock().keep_only(|guest| wanting.contains(&guest));
        let mut unwanted = Vec::new();
        {
            let mut laid = self.lanes.laid.lock();
            let keys: Vec<Key> = laid.keys().filter(|key| key.2 == nic).copied().collect();
            for key in keys {
                let keep = match laid.get(&key) {
                    Some(Laid::Open { seat, queue, plan, .. }) => is_wanted(&key, seat, Some((*queue, plan))),
                    Some(Laid::Lacking { seat, .. }) => is_wanted(&key, seat, None),
                    // Whoever starts the queue anew waits all the same, and is told the same once.
                    Some(Laid::Refused { until, .. }) => {
                        let is_wished = wishes.iter().any(|wish| (wish.guest.id, wish.vring) == (key.0, key.1));
                        offer.is_some() && (is_wished || (now < *until && wanting.contains(&key.0)))
                    }
                    None => false,
                };
                if !keep && let Some(Laid::Open { seat, keeper, .. }) = laid.remove(&key) {
                    unwanted.push((seat, keeper));
                }
            }
        }
        for (seat, keeper) in unwanted {
            let _closing = self.lanes.closing.lock();
            // Where the queue was stopped meanwhile, its session closed the lane.
            if let Some(lane) = seat.remove_lane(keeper, &self.events)
                && self.close_lane(*lane, Instant::now() + DRAIN)
            {
                seat.lane_closed(keeper);
            }
        }
    }

    /// True if nothing reads guest memory through it any more.
    fn close_lane(&self, lane: Lane, until: Instant) -> bool {
        match lane.queue.close(until) {
            Ok(_) => true,
            Err(e) => {
                let text = format!("{e}: the buffers that it has stay out until the guest's queue stops");
                self.events.push(Level::Error, "notice", None, text);
                false
            }
        }
    }

    /// Opens a lane if it is wanted and may be had; true if that was tried and is not to be tried again at once.
    fn lay(&self, wish: &Wish, offer: &Offer<'_>) -> bool {
        let key = (wish.guest.id, wish.vring, offer.nic);
        let Ok(memory) = wish.seat.memory() else { return false };
        let Some((queue, is_first)) = self.lanes.queue_for(key, wish, offer) else { return false };
        let plan = LanePlan { queue, ..offer.plan.clone() };
        let (seat, netdev) = (Arc::clone(&wish.seat), plan.netdev.clone());
        let is_admitted = self.lanes.paces.lock().admit(key, seat.run, Instant::now());
        let opened = if is_admitted {
            afxdp::Lane::open(plan.clone(), memory)
        } else {
            let why = format!("{netdev}: zero copy: the guest started the transmitq more than {STARTS} times of late");
            Err(Error::Peer(format!("{why}; its frames are copied, for some seconds more")))
        };
        let text = match opened {
            Ok(lane) => {
                #[allow(clippy::cast_possible_truncation, reason = "at most 128 queues")]
                let number = offer.first + (queue - offer.plan.queue) as u16;
                let (keeper, gauges) = (self.lanes.next_keeper(), lane.watch());
                let counters = offer.record.counters_of(2 * number);
                let lane = Box::new(Lane { nic: offer.nic, keeper, queue: lane, counters });
                offer.record.watch_lane(number, gauges);
                if let Some(lane) = seat.add_lane(lane, memory, &self.events) {
                    // The queue was stopped meanwhile: nothing was ever sent on it. Its next start asks anew.
                    self.close_lane(*lane, Instant::now());
                    return false;
                }
                // Where it is stopped from here on its session closes the lane, and the next look forgets it.
                self.lanes.laid.lock().insert(key, Laid::Open { seat, keeper, queue, plan, netdev: netdev.clone() });
                let guest = &wish.guest.name;
                let text = format!(
                    "Zero copy enabled for vHost port {guest}: what its transmitq {} sends to {netdev} is not copied (queue \
                     {queue})",
                    wish.vring / 2
                );
                self.events.push(Level::Info, "notice", Some(guest), text);
                return true;
            }
            Err(e) => e.to_string(),
        };
        // The log has it once, `status` whatever is the latest.
        if is_first {
            let line = format!("{}: {text}", wish.guest.name);
            self.events.push(Level::Warning, "notice", Some(&wish.guest.name), line);
        }
        let until = Instant::now() + RETRY;
        self.lanes.laid.lock().insert(key, Laid::Refused { queue, text, until });
        is_admitted
    }

    /// Ends what a queue has with devices, for a queue that no thread has: then all its buffers are the guest's again.
    pub(super) fn settle_lanes(&self, queue: &mut PolledQueue) {
        let Some(zero_copy) = queue.zero_copy() else { return };
        let lanes = zero_copy.remove_all();
        let until = Instant::now() + DRAIN;
        // A lane that a device's thread took out may be on its way to be closed.
        let _closing = self.lanes.closing.lock();
        for lane in lanes {
            self.close_lane(*lane, until);
        }
        queue.settle_lanes();
        let (port, vring) = (queue.port, queue.vring);
        let mut laid = self.lanes.laid.lock();
        laid.retain(|key, laid| {
            (key.0, key.1) != (port, vring)
                || match laid {
                    Laid::Open { seat, .. } => seat.run != queue.run,
                    Laid::Refused { .. } => true,
                    Laid::Lacking { .. } => false,
                }
        });
    }

    /// Has the devices' threads look whether lanes are to be opened or closed for this port.
    pub(super) fn ask_for_lanes(&self, port: PortId) {
        self.state().refresh_nics_beside(port);
    }
}

/// What a device's statistics say of its lanes.
#[derive(Debug, Default)]
pub(super) struct LaneTotals {
    /// By queue of the port: the lane that has it now or had it last, and what those before did.
    queues: BTreeMap<u16, (LaneGauges, Sums)>,
}

/// Of the lanes that a queue had before.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    completed: u64,
    abandoned: u64,
    sent: u64,
    inflight_max: u64,
}

impl Sums {
    fn and(self, lane: &LaneGauges) -> Self {
        let gauges = lane.gauges();
        Self {
            completed: self.completed + gauges.completed,
            abandoned: self.abandoned + lane.abandoned(),
            sent: self.sent + lane.sent(),
            inflight_max: self.inflight_max.max(gauges.inflight_max),
        }
    }
}

impl LaneTotals {
    pub(super) fn watch(&mut self, queue: u16, lane: LaneGauges) {
        let sums = self.queues.get(&queue).map_or(Sums::default(), |(before, sums)| sums.and(before));
        self.queues.insert(queue, (lane, sums));
    }

    /// Adds what lanes count.
    pub(super) fn add_to(&self, all: &mut BTreeMap<String, u64>) {
        for (queue, (lane, before)) in &self.queues {
            let (inflight, now) = (lane.gauges().inflight, before.and(lane));
            for (name, n) in [
                ("tx_inflight", inflight),
                ("tx_completed", now.completed),
                ("tx_abandoned", now.abandoned),
                ("tx_zero_copy_packets", now.sent),
            ] {
                *all.entry(name.to_owned()).or_default() += n;
                let (side, name) = name.split_at(2);
                all.insert(format!("{side}_q{queue}{name}"), n);
            }
            all.insert(format!("tx_q{queue}_inflight_max"), now.inflight_max);
        }
    }
}
