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
//! thread is closing is waited for: [`Seat::closing`]. The device's thread has more to do than lanes, and guests ask for
//! them: it opens or closes one at a time, in [`Turns`].

mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::turns::Turns;
use super::Shared;
use super::port::PortRecord;
use super::threads::Seat;
use crate::error::Result;
use crate::lock::Lock;
use crate::memory::GuestMap;
use crate::pmd::{Lane, PolledQueue};
use crate::port::afxdp::{self, LaneGauges, LanePlan};
use crate::ring::Obstacle;
use crate::switch::PortId;
use crate::sys::tsc;
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
    /// It cannot be had now.
    Refused { seat: Arc<Seat>, queue: u32, text: String, until: Instant },
    /// Something is missing: asked for again whenever the device's thread looks. `status` has this.
    Lacking { seat: Arc<Seat>, text: String },
}

/// All lanes of a datapath.
#[derive(Default)]
pub(super) struct Lanes {
    laid: Lock<BTreeMap<Key, Laid>>,
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
    /// What to tell who gets none: a state and its reason.
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
            offer.lack.clone()
        } else {
            format!("Waiting(device): {netdev} is down: bring it up (ip link set {netdev} up)")
        };
        laid.insert(key, Laid::Lacking { seat: Arc::clone(&wish.seat), text });
        None
    }

    /// Says what a lane waits for.
    fn lack(&self, key: Key, wish: &Wish, text: String) {
        self.laid.lock().insert(key, Laid::Lacking { seat: Arc::clone(&wish.seat), text });
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
    /// Closes every lane to a device. The device's own thread, and no other.
    pub(super) fn close_lanes(&self, nic: PortId) {
        while self.close_next(&[], None, nic) {}
    }

    /// Closes a lane to a device that is not wanted, or opens one that is. The device's own thread, and no other. True if
    /// that took time: there may be more to do, and something more urgent before.
    pub(super) fn lay_lanes(&self, offer: &Offer<'_>, turns: &mut Turns) -> bool {
        let mut wishes = self.state().wishes_for(offer.nic);
        if self.close_next(&wishes, Some(offer), offer.nic) {
            return true;
        }
        turns.order(&mut wishes);
        wishes.iter().any(|wish| self.lay(wish, offer, turns))
    }

    /// Forgets what is not wanted, up to a lane that has to be closed; true if there was one.
    fn close_next(&self, wishes: &[Wish], offer: Option<&Offer<'_>>, nic: PortId) -> bool {
        let is_wanted = |key: &Key, seat: &Arc<Seat>| {
            wishes.iter().any(|wish| (wish.guest.id, wish.vring) == (key.0, key.1) && Arc::ptr_eq(&wish.seat, seat))
        };
        let fits = |queue: u32, plan: &LanePlan| {
            offer.is_some_and(|offer| {
                let wanted = LanePlan { queue, ..offer.plan.clone() };
                (offer.plan.queue..offer.plan.queue + offer.queues).contains(&queue) && *plan == wanted
            })
        };
        loop {
            let unwanted = {
                let mut laid = self.lanes.laid.lock();
                let mut theirs = laid.iter().filter(|(key, _)| key.2 == nic);
                let unwanted = theirs.find(|(key, laid)| match laid {
                    Laid::Open { seat, queue, plan, .. } => !is_wanted(key, seat) || !fits(*queue, plan),
                    Laid::Refused { seat, .. } | Laid::Lacking { seat, .. } => !is_wanted(key, seat),
                });
                let Some(key) = unwanted.map(|(key, _)| *key) else { return false };
                laid.remove(&key)
            };
            let Some(Laid::Open { seat, keeper, .. }) = unwanted else { continue };
            let _closing = seat.closing();
            // Where the queue was stopped meanwhile, its session closed the lane.
            let Some(lane) = seat.remove_lane(keeper, &self.events) else { continue };
            if self.close_lane(*lane, Instant::now() + DRAIN) {
                seat.lane_closed(keeper);
            }
            return true;
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

    /// Asks for a lane if it is wanted and may be had; true if that took time.
    fn lay(&self, wish: &Wish, offer: &Offer<'_>, turns: &mut Turns) -> bool {
        let key = (wish.guest.id, wish.vring, offer.nic);
        let Ok(memory) = wish.seat.memory() else { return false };
        let Some((queue, is_first)) = self.lanes.queue_for(key, wish, offer) else { return false };
        let since = tsc::now();
        if let Some(text) = in_the_way(memory, turns.is_due(key.0, since), &offer.plan.netdev) {
            self.lanes.lack(key, wish, text);
            return false;
        }
        if let Err(e) = self.open_lane(wish, offer, memory, queue) {
            let text = e.to_string();
            // The log has it once, `status` whatever is the latest.
            if is_first {
                self.note(&wish.guest, Level::Warning, "notice", format!("{}: {text}", wish.guest.name));
            }
            let (seat, until) = (Arc::clone(&wish.seat), Instant::now() + RETRY);
            self.lanes.laid.lock().insert(key, Laid::Refused { seat, queue, text, until });
        }
        turns.had(key.0, since, tsc::now());
        true
    }

    /// Opens a lane on this queue of a device and gives it to the thread that has the transmitq.
    fn open_lane(&self, wish: &Wish, offer: &Offer<'_>, memory: &Arc<GuestMap>, queue: u32) -> Result<()> {
        let plan = LanePlan { queue, ..offer.plan.clone() };
        let (seat, netdev) = (Arc::clone(&wish.seat), plan.netdev.clone());
        let lane = afxdp::Lane::open(plan.clone(), memory)?;
        #[allow(clippy::cast_possible_truncation, reason = "at most 128 queues")]
        let number = offer.first + (queue - offer.plan.queue) as u16;
        let (keeper, gauges) = (self.lanes.next_keeper(), lane.watch());
        let counters = offer.record.counters_of(2 * number);
        let lane = Box::new(Lane { nic: offer.nic, keeper, queue: lane, counters });
        offer.record.watch_lane(number, gauges);
        if let Some(lane) = seat.add_lane(lane, memory, &self.events) {
            // The queue was stopped meanwhile: nothing was ever sent on it.
            self.close_lane(*lane, Instant::now());
            return Ok(());
        }
        // Where it is stopped from here on its session closes the lane, and the next look forgets it.
        let key = (wish.guest.id, wish.vring, offer.nic);
        self.lanes.laid.lock().insert(key, Laid::Open { seat, keeper, queue, plan, netdev: netdev.clone() });
        let guest = &wish.guest.name;
        let text = format!(
            "Zero copy enabled for vHost port {guest}: what its transmitq {} sends to {netdev} is not copied (queue {queue})",
            wish.vring / 2
        );
        self.note(&wish.guest, Level::Info, "notice", text);
        Ok(())
    }

    /// Ends what a queue has with devices, for a queue that no thread has: then all its buffers are the guest's again.
    pub(super) fn settle_lanes(&self, seat: &Seat, queue: &mut PolledQueue) {
        let Some(zero_copy) = queue.zero_copy() else { return };
        let lanes = zero_copy.remove_all();
        let until = Instant::now() + DRAIN;
        for lane in lanes {
            self.close_lane(*lane, until);
        }
        // A lane that a device's thread took out may be on its way to be closed. It takes out no other: the queue is here.
        drop(seat.closing());
        queue.settle_lanes();
        let (port, vring) = (queue.port, queue.vring);
        let mut laid = self.lanes.laid.lock();
        laid.retain(|key, laid| {
            (key.0, key.1) != (port, vring) || matches!(laid, Laid::Open { seat, .. } if seat.run != queue.run)
        });
    }

    /// Has the devices' threads look whether lanes are to be opened or closed for this port.
    pub(super) fn ask_for_lanes(&self, port: PortId) {
        self.state().refresh_nics_beside(port);
    }
}

/// What a lane waits for that a device could open.
fn in_the_way(memory: &GuestMap, is_due: bool, netdev: &str) -> Option<String> {
    let unallocated = memory.unallocated().div_ceil(1 << 20);
    if unallocated > 0 {
        return Some(format!(
            "Waiting(memory): {unallocated} MiB of the guest's memory are not allocated yet, and a device needs all of it: \
             start its virtual machine with prealloc=on, or on hugepages; frames are copied"
        ));
    }
    (!is_due).then(|| {
        format!(
            "Waiting(turn): to open its lanes took a quarter of the time of {netdev}'s thread of late; frames are copied \
             until that is past"
        )
    })
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
