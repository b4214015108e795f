//! The thread that keeps a network device's port what it should be.
//!
//! ```text
//!   look:   no device ──▶ let go, say so ◀── another device of that name, other settings
//!              │ it is there                    │
//!              ▼                                │
//!           take over ── refused: say why, try again in a moment
//!              │
//!              ▼
//!           carrier: transmit queues in the topology, or not
//! ```
//!
//! Whatever was told, the thread compares what should be with what is: no event is needed to heal a port, it only makes
//! that quick.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::super::Shared;
use super::super::port::PortRecord;
use super::super::zero_copy::{Offer, Turns};
use super::offloads::Offloads;
use super::spare::Spare;
use super::{Command, NicDevice, Report};
use crate::error::Result;
use crate::frame::ethernet::Mac;
use crate::lock::Lock;
use crate::pmd::{OutletSlot, PolledQueue};
use crate::port::afxdp::{self, Mode};
use crate::port::{Attachment, Driver, Plan, RxQueue, TxQueue};
use crate::sys::netdev::{Asker, Details, Device};
use crate::vhost::Level;

/// How soon a device that was refused is asked for again.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// How long it takes at most until the thread looks again by itself: whoever watches the links of this host tells it
/// of most changes at once.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The port in the datapath. Its id lives as long as somebody can use it.
pub(super) struct Claim {
    pub shared: Arc<Shared>,
    pub record: Arc<PortRecord>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.state().free(self.record.id);
    }
}

/// A device that was taken over.
struct Hold {
    plan: Plan,
    attachment: Arc<Attachment>,
    slots: Vec<Arc<OutletSlot>>,
    is_published: bool,
}

/// The thread's own.
pub(super) struct Keeper {
    claim: Claim,
    asker: Asker,
    device: NicDevice,
    mtu: Option<u32>,
    hold: Option<Hold>,
    /// Of the device that is held, or was asked for in vain.
    offloads: Option<Offloads>,
    report: Arc<Lock<Report>>,
    /// What a poll thread said, until the device is taken over anew, and when that may be.
    trouble: Option<(String, Instant)>,
    /// How long to wait after the next refusal; each doubles it.
    backoff: Duration,
    /// When to look again by itself.
    wait: Duration,
    /// Guests whose lanes it opens.
    turns: Turns,
}

impl Keeper {
    pub(super) fn new(
        claim: Claim,
        asker: Asker,
        device: NicDevice,
        mtu: Option<u32>,
        report: Arc<Lock<Report>>,
    ) -> Self {
        let (backoff, wait, turns) = (RETRY_MIN, RETRY_MAX, Turns::default());
        Self { claim, asker, device, mtu, hold: None, offloads: None, report, trouble: None, backoff, wait, turns }
    }

    /// Until it is told to stop, or nobody is left to tell it.
    pub(super) fn run(mut self, told: &Receiver<Command>) {
        loop {
            self.wait = RETRY_MAX;
            self.look();
            match told.recv_timeout(self.wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                // One look sees all that was said before it: nobody stands behind a guest that has it asked often.
                Ok(first) => {
                    if !std::iter::once(first).chain(told.try_iter()).all(|command| self.obey(command)) {
                        break;
                    }
                }
            }
        }
        self.let_go();
        self.claim.shared.recovery.device_settled(&self.claim.record.name);
    }

    /// Takes note of what shall be; false if it shall end.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Refresh => {}
            Command::Device(device) => self.device = device,
            Command::Mtu(mtu) => self.mtu = Some(mtu),
            Command::Fail(reason) => {
                self.let_go();
                self.trouble = Some((reason, Instant::now() + RETRY_MAX));
            }
            Command::Stop => return false,
        }
        true
    }

    /// Makes what is what should be, as far as that can be done now.
    fn look(&mut self) {
        let name = self.device.netdev.clone();
        let found = self.asker.find(&name);
        let is_there = matches!(found, Ok(Some(_)));
        let (error, device) = match found {
            Ok(Some(device)) => self.hold_on(device),
            Ok(None) => {
                self.let_go();
                (Some(format!("there is no network device {name}: create it, or name another")), None)
            }
            Err(e) => (Some(format!("cannot ask for network device {name}: {e}")), None),
        };
        let is_up = device.is_some_and(|device| device.is_up && device.has_carrier);
        if !is_up {
            self.tell_carrier(false);
        }
        let error = self.trouble.as_ref().map(|(reason, _)| reason.clone()).or(error);
        self.tell(error, self.status(device));
        if is_up {
            // Last: a link that is up has a status.
            self.tell_carrier(true);
        }
        // After a crash frames wait for a device that is about to carry, and for no other.
        if is_up || device.map_or(!is_there, |device| !device.is_up) {
            self.claim.shared.recovery.device_settled(&self.claim.record.name);
        }
        if self.lay_lanes(device.is_some_and(|device| device.is_up)) {
            // The carrier, and whatever was said meanwhile, come before the next one.
            self.wait = Duration::ZERO;
        }
    }

    /// Opens a lane that a guest wants to this device, or closes one that nobody wants; all, while it is not held. True if
    /// there may be more to do.
    fn lay_lanes(&mut self, is_up: bool) -> bool {
        let Claim { shared, record } = &self.claim;
        let held = self.hold.as_ref().and_then(|hold| Some((hold.attachment.mode()?, &hold.plan)));
        let Some((mode, Plan::Afxdp(plan))) = held else {
            shared.close_lanes(record.id);
            return false;
        };
        let plan = self.device.lane(plan.ifindex, mode);
        let Spare { queues, lack } = Spare::of(&self.device, mode, self.asker.details(&plan.netdev).tx_queues);
        let first = u16::try_from(self.device.n_rxq).unwrap_or(u16::MAX);
        shared.lay_lanes(&Offer { nic: record.id, record, plan, first, queues, lack, is_up }, &mut self.turns)
    }

    fn tell(&self, error: Option<String>, status: BTreeMap<String, String>) {
        let mut report = self.report.lock();
        if (&report.error, &report.status) == (&error, &status) {
            return;
        }
        let before = std::mem::replace(&mut report.error, error.clone());
        report.status = status;
        drop(report);
        if before != error {
            self.log(before, error);
        }
        self.claim.shared.events.poke();
    }

    /// Writes down what is in the way of the device: once, however often it is tried, and once more when it is over.
    fn log(&self, before: Option<String>, now: Option<String>) {
        let name = &self.claim.record.name;
        match (before, now) {
            (_, Some(error)) => self.say(Level::Warning, "device_error", format!("{name}: {error}")),
            (Some(error), None) => self.say(Level::Info, "device_error", format!("{name}: no longer: {error}")),
            (None, None) => {}
        }
    }

    /// A line for the log.
    fn say(&self, level: Level, kind: &'static str, text: String) {
        self.claim.shared.note(&self.claim.record, level, kind, text);
    }

    /// Takes the device over unless it is held as it should be. Gives what is in the way, and the device if it is held.
    fn hold_on(&mut self, mut device: Device) -> (Option<String>, Option<Device>) {
        let mtu = self.mtu.unwrap_or(device.mtu);
        let plan = self.device.plan(device.index, mtu);
        self.claim.record.address.store(Mac::from_bytes(device.address).0, Ordering::Relaxed);
        if self.hold.as_ref().is_some_and(|hold| hold.plan != plan) {
            self.let_go();
        }
        let mut error = None;
        if mtu != device.mtu {
            match self.asker.set_mtu(&self.device.netdev, mtu) {
                Ok(()) => device.mtu = mtu,
                Err(e) => error = Some(format!("{} does not take mtu_request {mtu}: {e}", self.device.netdev)),
            }
        }
        if self.hold.is_none() {
            if let Some(left) =
                self.trouble.as_ref().and_then(|(_, until)| until.checked_duration_since(Instant::now()))
            {
                self.wait = left;
                return (error, None);
            }
            match self.take_over(plan) {
                Ok(()) => (self.trouble, self.backoff) = (None, RETRY_MIN),
                Err(refused) => {
                    self.wait = self.backoff;
                    self.backoff = (self.backoff * 2).min(RETRY_MAX);
                    return (Some(refused.to_string()), None);
                }
            }
        }
        if !device.is_up {
            error = Some(format!("{0} is down: bring it up (ip link set {0} up)", self.device.netdev));
        }
        let (shared, id) = (&self.claim.shared, self.claim.record.id);
        if self.claim.record.mtu.load(Ordering::Relaxed) != device.mtu {
            let changed = shared.change(|state| {
                state.set_nic_mtu(id, device.mtu);
                Ok(())
            });
            error = changed.err().map(|e| e.to_string()).or(error);
        }
        (error, Some(device))
    }

    /// Binds every queue and gives its rx side to a poll thread.
    fn take_over(&mut self, plan: Plan) -> Result<()> {
        self.switch_offloads(&plan);
        let (attachment, sides) = Attachment::open(&plan)?;
        let details = self.asker.details(plan.netdev());
        self.claim.record.numa.store(details.numa.unwrap_or(0), Ordering::Relaxed);
        let attachment = Arc::new(attachment);
        self.report.lock().attachment = Some(Arc::clone(&attachment));
        let slots = (0_u16..).zip(sides).map(|(queue, (rx, tx))| self.seat(queue, rx, tx)).collect();
        self.note(&plan, &attachment, &details);
        self.hold = Some(Hold { plan, attachment, slots, is_published: false });
        Ok(())
    }

    /// Once a device, and before the first frame comes here: every change may cost it its link for a moment.
    fn switch_offloads(&mut self, plan: &Plan) {
        let Plan::Afxdp(afxdp::Plan { netdev, ifindex, .. }) = plan else { return };
        if self.offloads.as_ref().is_some_and(|off| (&off.netdev, off.index) == (netdev, *ifindex)) {
            return;
        }
        self.restore_offloads();
        let (offloads, complaint) = Offloads::switch_off(&self.asker, netdev, *ifindex);
        self.offloads = Some(offloads);
        if let Some(complaint) = complaint {
            self.say(Level::Warning, "notice", format!("{}: {complaint}", self.claim.record.name));
        }
    }

    fn restore_offloads(&mut self) {
        if let Some(offloads) = self.offloads.take() {
            offloads.restore(&self.asker);
        }
    }

    fn seat(&self, queue: u16, rx: RxQueue, tx: TxQueue) -> Arc<OutletSlot> {
        let Claim { shared, record } = &self.claim;
        let vring = 2 * queue;
        let slot = OutletSlot::new(tx, record.id, vring, record.counters_of(vring), shared.next_run());
        let counters = record.counters_of(vring + 1);
        let rx = Box::new(PolledQueue::new(rx, record.id, vring + 1, counters, shared.next_run()));
        if let Some(note) = shared.seat(rx, record) {
            self.say(Level::Warning, "notice", note);
        }
        Arc::new(slot)
    }

    /// What is worth telling of a device that was taken over.
    fn note(&self, plan: &Plan, attachment: &Attachment, details: &Details) {
        let name = &self.claim.record.name;
        let Plan::Afxdp(afxdp::Plan { netdev, start_queue, queues, .. }) = plan else {
            let text = format!("{name}: {} is taken over through AF_PACKET", plan.netdev());
            return self.say(Level::Info, "notice", text);
        };
        let (mode, last) = (attachment.mode().map_or("", Mode::name), start_queue + queues - 1);
        let text = format!("{name}: queues {start_queue} to {last} of {netdev} are taken over in mode {mode}");
        self.say(Level::Info, "notice", text);
        if let Some(count) = details.rx_queues.filter(|count| *start_queue > 0 || *count > *queues) {
            let text = format!(
                "{name}: {netdev} has {count} queues; what it receives on others than {start_queue} to {last} is the \
                 host's: set n_rxq, have it spread over those only (ethtool -X {netdev} start {start_queue} equal \
                 {queues}), or give it fewer (ethtool -L {netdev} combined {queues})"
            );
            self.say(Level::Warning, "notice", text);
        }
    }

    /// Gives the device back to the host: nobody has a queue of it any more.
    fn let_go(&mut self) {
        self.tell_carrier(false);
        if let Some(hold) = self.hold.take() {
            self.take_back(&hold);
        }
        self.restore_offloads();
    }

    fn take_back(&self, hold: &Hold) {
        let Claim { shared, record } = &self.claim;
        shared.close_lanes(record.id);
        for slot in &hold.slots {
            let seat = shared.state().places.leave(record.id, slot.vring + 1);
            drop(seat.and_then(|seat| seat.take(&shared.events)));
            // Nobody delivers to it any more.
            drop(slot.queue.lock().take());
        }
        let mut report = self.report.lock();
        report.attachment = None;
        report.ended.add(&hold.attachment.gauges());
    }

    /// The transmit queues are in the topology while there is a carrier.
    fn tell_carrier(&mut self, is_up: bool) {
        let record = Arc::clone(&self.claim.record);
        if let Some(mut hold) = self.hold.take() {
            if hold.is_published != is_up {
                self.publish(&hold.slots, is_up);
                hold.is_published = is_up;
            }
            self.hold = Some(hold);
        }
        if record.link_up.swap(is_up, Ordering::AcqRel) != is_up {
            record.link_resets.fetch_add(1, Ordering::Relaxed);
            self.claim.shared.events.poke();
        }
    }

    /// Puts transmit queues into the topology, or takes them out; nobody uses them any more then.
    fn publish(&self, slots: &[Arc<OutletSlot>], is_up: bool) {
        let Claim { shared, record } = &self.claim;
        let mut state = shared.state();
        for slot in slots {
            if is_up {
                state.receiveqs.insert((record.id, slot.vring), Arc::clone(slot));
            } else {
                state.receiveqs.remove(&(record.id, slot.vring));
            }
        }
        let passage = shared.publish(&mut state);
        drop(state);
        passage.wait(&shared.events);
    }

    /// Interface `status`: what was asked for, and what is, while the device is held.
    fn status(&self, device: Option<Device>) -> BTreeMap<String, String> {
        let wanted = &self.device;
        let mut status = BTreeMap::from([
            ("if_name".to_owned(), wanted.netdev.clone()),
            ("n_rxq".to_owned(), wanted.n_rxq.to_string()),
            ("n_txq".to_owned(), wanted.n_rxq.to_string()),
            ("n_rxq_desc".to_owned(), wanted.n_rxq_desc.to_string()),
            ("n_txq_desc".to_owned(), wanted.n_txq_desc.to_string()),
        ]);
        if wanted.driver == Driver::Afxdp {
            status.insert("xdp-mode".to_owned(), wanted.mode.name().to_owned());
            status.insert("use-need-wakeup".to_owned(), wanted.need_wakeup.to_string());
        }
        let (Some(hold), Some(device)) = (&self.hold, device) else { return status };
        let details = self.asker.details(&wanted.netdev);
        let mut put = |key: &str, value: String| drop(status.insert(key.to_owned(), value));
        if let Some(mode) = hold.attachment.mode() {
            put("xdp-mode-in-use", mode.name().to_owned());
            put("xdp-zc-min", wanted.least(mode).map_or("none".to_owned(), |least| least.to_string()));
        }
        if hold.attachment.is_busy_polled() {
            put("xdp-busy-budget", wanted.busy_budget.to_string());
        }
        put("if_index", device.index.to_string());
        put("numa_id", details.numa.unwrap_or(0).to_string());
        if let Some(driver) = details.driver {
            put("driver_name", driver);
        }
        if let Some(speed) = details.speed_mbps {
            let whole = speed >= 1000 && speed.is_multiple_of(1000);
            put("link_speed", if whole { format!("{}Gbps", speed / 1000) } else { format!("{speed}Mbps") });
        }
        status
    }
}
