//! A port that is a network device of the host: what it is to be, and the thread that keeps it so.
//!
//! ```text
//!   refresh, set_nic, set_port, a broken queue ──Command──▶ thread nic-<port>: look
//!
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
//! that quick. Nothing here is on the packet path, and no poll thread ever waits for a device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Shared;
use super::port::{PortRecord, Settings};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::pmd::{OutletSlot, Steering, PolledQueue};
use crate::port::afxdp::{Attachment, Gauges, Plan, RING_SIZES, RxQueue, TxQueue, XdpMode};
use crate::sys::netdev::{self, Asker, Details, Device};
use crate::vhost::Level;

/// How soon a device that was refused is asked for again, and how long it takes at most until the next time.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Most queues of a port: what a datapath's queue numbers hold.
const QUEUES_MAX: u32 = 128;
/// Largest `xdp-busy-budget` (`SO_BUSY_POLL_BUDGET`: sixteen bits).
const BUDGET_MAX: u32 = 65_535;
/// The MTU of a port whose device was never seen.
const MTU_UNKNOWN: u32 = 1500;

/// Which device a port takes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicDevice {
    /// Its name in this process's network namespace.
    pub netdev: String,
    /// Queues, 1..128.
    pub n_rxq: u32,
    /// Entries of each receive ring, a power of two in 64..4096.
    pub n_rxq_desc: u32,
    /// Entries of each transmit ring, likewise.
    pub n_txq_desc: u32,
    /// `xdp-mode`.
    pub mode: XdpMode,
    /// `use-need-wakeup`.
    pub need_wakeup: bool,
    /// `xdp-start-queue`.
    pub start_queue: u32,
    /// `xdp-busy-budget`, frames; 0 is off.
    pub busy_budget: u32,
}

impl NicDevice {
    /// A device with nothing else set.
    pub fn new(netdev: &str) -> Self {
        Self {
            netdev: netdev.to_owned(),
            n_rxq: 1,
            n_rxq_desc: 2048,
            n_txq_desc: 2048,
            mode: XdpMode::BestEffort,
            need_wakeup: true,
            start_queue: 0,
            busy_budget: 0,
        }
    }

    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self, port: &str) -> Result<()> {
        let refuse = |text: String| Err(Error::Config(format!("{port}: {text}")));
        if !netdev::is_name(&self.netdev) {
            return refuse(format!(
                "'{}' is no name of a network device: 1 to 15 bytes, no slash or space",
                self.netdev
            ));
        }
        if !(1..=QUEUES_MAX).contains(&self.n_rxq) {
            return refuse(format!("n_rxq {} is not in 1..{QUEUES_MAX}", self.n_rxq));
        }
        for (name, size) in [("n_rxq_desc", self.n_rxq_desc), ("n_txq_desc", self.n_txq_desc)] {
            if !RING_SIZES.contains(&size) || !size.is_power_of_two() {
                let (least, most) = (RING_SIZES.start(), RING_SIZES.end());
                return refuse(format!("{name} {size} is not a power of two in {least}..{most}"));
            }
        }
        if self.start_queue > u32::from(u16::MAX) {
            return refuse(format!("xdp-start-queue {} is not in 0..65535", self.start_queue));
        }
        if self.busy_budget > BUDGET_MAX {
            return refuse(format!("xdp-busy-budget {} is not in 0..{BUDGET_MAX}", self.busy_budget));
        }
        Ok(())
    }

    fn plan(&self, ifindex: u32, mtu: u32) -> Plan {
        Plan {
            netdev: self.netdev.clone(),
            ifindex,
            start_queue: self.start_queue,
            queues: self.n_rxq,
            rx_size: self.n_rxq_desc,
            tx_size: self.n_txq_desc,
            mode: self.mode,
            need_wakeup: self.need_wakeup,
            busy_budget: self.busy_budget,
            multi_buffer: Plan::needs_multi_buffer(mtu),
        }
    }
}

/// What a NIC port is to be.
#[derive(Debug, Clone)]
pub struct NicConfig {
    /// Unique in the datapath.
    pub name: String,
    /// 1..65279, unique on the bridge.
    pub ofport: u16,
    /// Its device.
    pub device: NicDevice,
    /// 68..9702 bytes, given to the device; None leaves the device its own.
    pub mtu: Option<u32>,
    /// Further attempts when the transmit ring is full (`tx-retries-max`), 0..32.
    pub retries: u32,
}

impl NicConfig {
    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        self.settings().check(&self.name)?;
        self.device.check(&self.name)
    }

    /// Threads keep out of each other's way: a flow comes from one.
    pub(super) fn settings(&self) -> Settings {
        let (ofport, retries) = (self.ofport, self.retries);
        let mtu = self.mtu.unwrap_or(MTU_UNKNOWN);
        Settings { ofport, mtu, retries, backpressure_us: 0, steering: Steering::Thread }
    }
}

enum Command {
    /// Look.
    Refresh,
    /// Be this from now on.
    Device(NicDevice),
    /// Give the device this MTU.
    Mtu(u32),
    /// A poll thread found a queue broken.
    Fail(String),
    /// Let go and end.
    Stop,
}

/// What others see.
#[derive(Default)]
struct Report {
    error: Option<String>,
    status: BTreeMap<String, String>,
    /// Of holds that ended, by queue.
    before: Vec<Totals>,
    attachment: Option<Arc<Attachment>>,
}

/// Of one queue.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    completed: u64,
    inflight_max: u64,
    /// In flight when the hold ended: sent or not, nobody says.
    abandoned: u64,
    rx_missed: u64,
}

/// A NIC port's thread, as others see it. Dropping it ends the hold on the device, and waits for that.
pub(super) struct Nic {
    commands: Sender<Command>,
    report: Arc<Lock<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Nic {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// `Kernel` without a socket or a thread.
    pub(super) fn spawn(config: NicConfig, shared: &Arc<Shared>, record: &Arc<PortRecord>) -> Result<Self> {
        let NicConfig { name, device, mtu, .. } = config;
        let claim = Claim { shared: Arc::clone(shared), record: Arc::clone(record) };
        let asker = Asker::new().map_err(|e| Error::kernel(format!("{name}: no socket to ask for devices"), e))?;
        let (commands, told) = channel();
        let report = Arc::new(Lock::new(Report::default()));
        let keeper =
            Keeper { claim, asker, device, mtu, hold: None, report: Arc::clone(&report), trouble: None, retry: None };
        let thread = std::thread::Builder::new()
            .name(format!("nic-{name}"))
            .spawn(move || keeper.run(&told))
            .map_err(|e| Error::kernel(format!("{name}: no thread"), e))?;
        Ok(Self { commands, report, thread: Some(thread) })
    }

    /// Ends the hold on the device, and waits until it is over.
    pub(super) fn shutdown(self) {
        drop(self);
    }

    fn tell(&self, command: Command) {
        // It leaves when it is told to, and by nothing else.
        let _ = self.commands.send(command);
    }

    pub(super) fn refresh(&self) {
        self.tell(Command::Refresh);
    }

    pub(super) fn set_device(&self, device: NicDevice) {
        self.tell(Command::Device(device));
    }

    pub(super) fn set_mtu(&self, mtu: u32) {
        self.tell(Command::Mtu(mtu));
    }

    pub(super) fn fail(&self, reason: String) {
        self.tell(Command::Fail(reason));
    }

    pub(super) fn error(&self) -> Option<String> {
        self.report.lock().error.clone()
    }

    pub(super) fn status(&self) -> BTreeMap<String, String> {
        self.report.lock().status.clone()
    }

    /// Adds what only the device's rings know: where descriptors are, sums and by queue.
    pub(super) fn add_statistics(&self, all: &mut BTreeMap<String, u64>) {
        let report = self.report.lock();
        let now = report.attachment.as_ref().map(|attachment| attachment.gauges()).unwrap_or_default();
        for queue in 0..report.before.len().max(now.len()) {
            let before = report.before.get(queue).copied().unwrap_or_default();
            let now = now.get(queue).copied().unwrap_or_default();
            for (name, n) in [
                ("tx_inflight", now.inflight),
                ("tx_completed", before.completed + now.completed),
                ("tx_abandoned", before.abandoned),
                ("rx_missed_errors", before.rx_missed + now.rx_missed),
            ] {
                *all.entry(name.to_owned()).or_default() += n;
                let (side, name) = name.split_at(2);
                all.insert(format!("{side}_q{queue}{name}"), n);
            }
            let most = before.inflight_max.max(now.inflight_max);
            all.insert(format!("tx_q{queue}_inflight_max"), most);
            let whole = all.entry("tx_inflight_max".to_owned()).or_default();
            *whole = (*whole).max(most);
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// The port in the datapath. Its id lives as long as somebody can use it.
struct Claim {
    shared: Arc<Shared>,
    record: Arc<PortRecord>,
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
struct Keeper {
    claim: Claim,
    asker: Asker,
    device: NicDevice,
    mtu: Option<u32>,
    hold: Option<Hold>,
    report: Arc<Lock<Report>>,
    /// What a poll thread said, until the device is taken over anew, and when that may be.
    trouble: Option<(String, Instant)>,
    /// When to look again by itself.
    retry: Option<Duration>,
}

impl Keeper {
    fn run(mut self, told: &Receiver<Command>) {
        loop {
            self.look();
            let next = match self.retry {
                Some(wait) => told.recv_timeout(wait),
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Err(RecvTimeoutError::Timeout) | Ok(Command::Refresh) => {}
                Ok(Command::Device(device)) => self.device = device,
                Ok(Command::Mtu(mtu)) => self.mtu = Some(mtu),
                Ok(Command::Fail(reason)) => {
                    self.let_go();
                    self.trouble = Some((reason, Instant::now() + RETRY_MAX));
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.let_go();
    }

    /// Makes what is what should be, as far as that can be done now.
    fn look(&mut self) {
        let name = self.device.netdev.clone();
        let found = self.asker.find(&name);
        let (error, device) = match found {
            Ok(Some(device)) => self.hold_on(device),
            Ok(None) => {
                self.let_go();
                self.retry = Some(RETRY_MAX);
                (Some(format!("there is no network device {name}: create it, or name another")), None)
            }
            Err(e) => {
                self.retry = Some(RETRY_MAX);
                (Some(format!("cannot ask for network device {name}: {e}")), None)
            }
        };
        let is_up = device.is_some_and(|device| device.is_up && device.has_carrier);
        if !is_up {
            self.tell_carrier(false);
            // Whoever watches the links of this host tells us; if nobody does, it only takes longer.
            self.retry = self.retry.or(Some(RETRY_MAX));
        }
        let error = self.trouble.as_ref().map(|(reason, _)| reason.clone()).or(error);
        self.tell(error, self.status(device));
        if is_up {
            // Last: a link that is up has a status.
            self.tell_carrier(true);
        }
    }

    fn tell(&self, error: Option<String>, status: BTreeMap<String, String>) {
        let mut report = self.report.lock();
        if (&report.error, &report.status) != (&error, &status) {
            (report.error, report.status) = (error, status);
            drop(report);
            self.claim.shared.events.poke();
        }
    }

    /// Takes the device over unless it is held as it should be. Gives what is in the way, and the device if it is held.
    fn hold_on(&mut self, mut device: Device) -> (Option<String>, Option<Device>) {
        let mtu = self.mtu.unwrap_or(device.mtu);
        let plan = self.device.plan(device.index, mtu);
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
                self.retry = Some(left);
                return (error, None);
            }
            match self.take_over(plan) {
                Ok(()) => self.trouble = None,
                Err(refused) => {
                    let wait = self.retry.map_or(RETRY_MIN, |wait| (wait * 2).min(RETRY_MAX));
                    self.retry = Some(wait);
                    return (Some(refused.to_string()), None);
                }
            }
        }
        self.retry = None;
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
        let (attachment, sides) = Attachment::open(&plan)?;
        let details = self.asker.details(&plan.netdev);
        self.claim.record.numa.store(details.numa.unwrap_or(0), Ordering::Relaxed);
        let attachment = Arc::new(attachment);
        self.report.lock().attachment = Some(Arc::clone(&attachment));
        let slots = (0_u16..).zip(sides).map(|(queue, (rx, tx))| self.seat(queue, rx, tx)).collect();
        self.note(&plan, &attachment, &details);
        self.hold = Some(Hold { plan, attachment, slots, is_published: false });
        Ok(())
    }

    fn seat(&self, queue: u16, rx: RxQueue, tx: TxQueue) -> Arc<OutletSlot> {
        let Claim { shared, record } = &self.claim;
        let vring = 2 * queue;
        let slot = OutletSlot::new(tx, record.id, vring, record.counters_of(vring), shared.next_run());
        let counters = record.counters_of(vring + 1);
        let rx = Box::new(PolledQueue::new(rx, record.id, vring + 1, counters, shared.next_run()));
        if let Some(note) = shared.seat(rx, record) {
            shared.events.push(Level::Warning, "notice", Some(&record.name), note);
        }
        Arc::new(slot)
    }

    /// What is worth telling of a device that was taken over.
    fn note(&self, plan: &Plan, attachment: &Attachment, details: &Details) {
        let Claim { shared, record } = &self.claim;
        let Plan { netdev, start_queue, queues, .. } = plan;
        let (mode, last) = (attachment.mode.name(), start_queue + queues - 1);
        let text = format!("{}: queues {start_queue} to {last} of {netdev} are taken over in mode {mode}", record.name);
        shared.events.push(Level::Info, "notice", Some(&record.name), text);
        if let Some(count) = details.rx_queues.filter(|count| *start_queue > 0 || *count > *queues) {
            let text = format!(
                "{}: {netdev} has {count} queues; what it receives on others than {start_queue} to {last} is the host's: set \
                 n_rxq, or give it fewer (ethtool -L {netdev} combined {queues})",
                record.name
            );
            shared.events.push(Level::Warning, "notice", Some(&record.name), text);
        }
    }

    /// Gives the device back to the host: nobody has a queue of it any more.
    fn let_go(&mut self) {
        self.tell_carrier(false);
        let Some(hold) = self.hold.take() else { return };
        let Claim { shared, record } = &self.claim;
        for slot in &hold.slots {
            let seat = shared.state().places.leave(record.id, slot.vring + 1);
            drop(seat.and_then(|seat| seat.take(&shared.events)));
            // Nobody delivers to it any more.
            drop(slot.queue.lock().take());
        }
        let mut report = self.report.lock();
        report.attachment = None;
        let gauges = hold.attachment.gauges();
        let queues = report.before.len().max(gauges.len());
        report.before.resize(queues, Totals::default());
        for (before, Gauges { inflight, completed, inflight_max, rx_missed }) in report.before.iter_mut().zip(gauges) {
            before.completed += completed;
            before.abandoned += inflight;
            before.inflight_max = before.inflight_max.max(inflight_max);
            before.rx_missed += rx_missed;
        }
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
        let passage = shared.publish(&state);
        drop(state);
        passage.wait(&shared.events);
    }

    /// Interface `status`: what was asked for, and what is, while the device is held.
    fn status(&self, device: Option<Device>) -> BTreeMap<String, String> {
        let wanted = &self.device;
        let mut status = BTreeMap::from([
            ("if_name".to_owned(), wanted.netdev.clone()),
            ("xdp-mode".to_owned(), wanted.mode.name().to_owned()),
            ("n_rxq".to_owned(), wanted.n_rxq.to_string()),
            ("n_txq".to_owned(), wanted.n_rxq.to_string()),
            ("n_rxq_desc".to_owned(), wanted.n_rxq_desc.to_string()),
            ("n_txq_desc".to_owned(), wanted.n_txq_desc.to_string()),
            ("use-need-wakeup".to_owned(), wanted.need_wakeup.to_string()),
        ]);
        let (Some(hold), Some(device)) = (&self.hold, device) else { return status };
        let details = self.asker.details(&wanted.netdev);
        let mut put = |key: &str, value: String| drop(status.insert(key.to_owned(), value));
        put("xdp-mode-in-use", hold.attachment.mode.name().to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: A20, A22.
    #[test]
    fn what_no_device_can_have_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut NicDevice)| {
            let mut device = NicDevice::new("eth0");
            change(&mut device);
            device.check("p0").unwrap_err().to_string()
        };
        assert!(NicDevice::new("eth0").check("p0").is_ok());
        for (text, change) in [
            ("p0: 'a/b' is no name", (&|d: &mut NicDevice| d.netdev = "a/b".into()) as &dyn Fn(&mut NicDevice)),
            ("p0: n_rxq 0 is not in 1..128", &|d| d.n_rxq = 0),
            ("p0: n_txq_desc 100 is not a power of two in 64..4096", &|d| d.n_txq_desc = 100),
            ("p0: n_rxq_desc 8192 is not a power of two", &|d| d.n_rxq_desc = 8192),
            ("p0: xdp-start-queue 65536", &|d| d.start_queue = 65_536),
            ("p0: xdp-busy-budget 65536", &|d| d.busy_budget = 65_536),
        ] {
            assert!(refused(change).starts_with(text), "{}", refused(change));
        }
        for size in [64, 128, 256, 512, 2048, 4096] {
            assert!(NicDevice { n_txq_desc: size, ..NicDevice::new("eth0") }.check("p0").is_ok(), "{size}");
        }
    }
}
