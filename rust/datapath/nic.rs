//! A port that is a network device of the host: what it is to be, and the handle of the thread that keeps it so.
//!
//! ```text
//!   refresh, set_nic, set_port, a broken queue ──Command──▶ thread nic-<port>: keeper ──▶ Report
//! ```
//!
//! Nothing here is on the packet path, and no poll thread ever waits for a device.

mod keeper;
mod offloads;
mod queues;
mod spare;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use self::keeper::{Claim, Keeper};
use self::queues::Ended;
pub use self::queues::NicQueue;
use super::Shared;
use super::port::{PortRecord, Settings};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::pmd::Steering;
use crate::port::afxdp::{self, LanePlan, Mode, RING_SIZES, XdpMode, ZERO_COPY_MIN, ZERO_COPY_MINS};
use crate::port::{Attachment, Driver, Plan, packet};
use crate::sys::netdev::{self, Asker};

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
    /// The way to it. Over AF_PACKET there is one queue, and of what follows only the sizes of rings count.
    pub driver: Driver,
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
    /// `xdp-zc-queues`: how many queues above the port's own guests may have to send on without a copy, 0..128; no more
    /// than the device has. None is taken before a guest wants it.
    pub zc_queues: u32,
    /// `xdp-zc-min`: bytes of the shortest frame that is sent from guest memory, 65..65535; 0: what is worth it where the
    /// driver reads that by itself, and none where the kernel copies.
    pub zc_min: u32,
}

impl NicDevice {
    /// A device with nothing else set.
    pub fn new(netdev: &str) -> Self {
        Self {
            netdev: netdev.to_owned(),
            driver: Driver::default(),
            n_rxq: 1,
            n_rxq_desc: 2048,
            n_txq_desc: 2048,
            mode: XdpMode::BestEffort,
            need_wakeup: true,
            start_queue: 0,
            busy_budget: 0,
            zc_queues: QUEUES_MAX,
            zc_min: 0,
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
        if self.zc_queues > QUEUES_MAX {
            return refuse(format!("xdp-zc-queues {} is not in 0..{QUEUES_MAX}", self.zc_queues));
        }
        if self.zc_min > 0 && !ZERO_COPY_MINS.contains(&self.zc_min) {
            let (least, most) = (ZERO_COPY_MINS.start(), ZERO_COPY_MINS.end());
            return refuse(format!("xdp-zc-min {} is not 0 or in {least}..{most}", self.zc_min));
        }
        if self.busy_budget > BUDGET_MAX {
            return refuse(format!("xdp-busy-budget {} is not in 0..{BUDGET_MAX}", self.busy_budget));
        }
        Ok(())
    }

    /// A lane on the first queue that is reserved for guests.
    fn lane(&self, ifindex: u32, mode: Mode) -> LanePlan {
        LanePlan {
            netdev: self.netdev.clone(),
            ifindex,
            queue: self.start_queue + self.n_rxq,
            tx_size: self.n_txq_desc,
            need_wakeup: self.need_wakeup,
            zero_copy: !mode.copies(),
            least: self.least(mode).unwrap_or(ZERO_COPY_MIN),
        }
    }

    /// Bytes of the shortest frame that is worth sending from guest memory. A driver that reads it saves our copy. The
    /// kernel, where it copies in the driver's place, takes longer for that than we do: no frame is, unless somebody said
    /// which.
    fn least(&self, mode: Mode) -> Option<u32> {
        match self.zc_min {
            0 => (!mode.copies()).then_some(ZERO_COPY_MIN),
            said => Some(said),
        }
    }

    fn plan(&self, ifindex: u32, mtu: u32) -> Plan {
        let netdev = self.netdev.clone();
        if self.driver == Driver::Packet {
            return Plan::Packet(packet::Plan { netdev, ifindex, rx_size: self.n_rxq_desc, tx_size: self.n_txq_desc });
        }
        Plan::Afxdp(afxdp::Plan {
            netdev,
            ifindex,
            start_queue: self.start_queue,
            queues: self.n_rxq,
            rx_size: self.n_rxq_desc,
            tx_size: self.n_txq_desc,
            mode: self.mode,
            need_wakeup: self.need_wakeup,
            busy_budget: self.busy_budget,
            multi_buffer: afxdp::Plan::needs_multi_buffer(mtu),
        })
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
    /// The bond on the same bridge that it is a link of.
    pub bond: Option<String>,
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
        Settings { ofport, mtu, retries, backpressure_us: 0, steering: Steering::Thread, zero_copy: false }
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
    ended: Ended,
    attachment: Option<Arc<Attachment>>,
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
        let keeper = Keeper::new(claim, asker, device, mtu, Arc::clone(&report));
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

    /// Each of its queues.
    pub(super) fn queues(&self) -> Vec<NicQueue> {
        let report = self.report.lock();
        let now = report.attachment.as_ref().map(|attachment| attachment.gauges()).unwrap_or_default();
        report.ended.with(&now)
    }

    /// Adds what only the device's rings know: where descriptors are, sums and by queue.
    pub(super) fn add_statistics(&self, all: &mut BTreeMap<String, u64>) {
        queues::add_statistics(&self.queues(), all);
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
            ("p0: xdp-zc-queues 129 is not in 0..128", &|d| d.zc_queues = 129),
            ("p0: xdp-zc-min 64 is not 0 or in 65..65535", &|d| d.zc_min = 64),
            ("p0: xdp-zc-min 65536", &|d| d.zc_min = 65_536),
            ("p0: xdp-busy-budget 65536", &|d| d.busy_budget = 65_536),
        ] {
            assert!(refused(change).starts_with(text), "{}", refused(change));
        }
        for size in [64, 128, 256, 512, 2048, 4096] {
            assert!(NicDevice { n_txq_desc: size, ..NicDevice::new("eth0") }.check("p0").is_ok(), "{size}");
        }
    }
}
