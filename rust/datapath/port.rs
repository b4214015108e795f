//! One port as control knows it: its configuration, its record, and what is told of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Instant;

use super::events::Allowance;
use super::zero_copy::LaneTotals;
use crate::counters::{Counter, PORT_SIZES, QUEUE_SIZES, QueueCounters};
use crate::drops::{self, DropReason};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::pmd::{Credit, Steering};
use crate::port::afxdp::LaneGauges;
use crate::recovery::Recovery;
use crate::switch::PortId;
use crate::vhost::offer::Offer;
use crate::vhost::{EndpointConfig, EndpointKind};

/// Smallest MTU of a port, bytes (IPv4 needs it, RFC 791).
const MTU_MIN: u32 = 68;
/// Largest: what OVS's DPDK ports take.
const MTU_MAX: u32 = 9702;
/// Largest `tx-retries-max`.
const RETRIES_MAX: u32 = 32;
/// Largest `backpressure-us`: longer than this a sender's own timers take the switch for dead.
const BACKPRESSURE_MAX_US: u32 = 100_000;

/// What a port is to be.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Unique in the datapath.
    pub name: String,
    /// Who makes the socket.
    pub kind: EndpointKind,
    /// 1..65279, unique on the bridge.
    pub ofport: u16,
    /// Absolute path, at most 107 bytes.
    pub socket: PathBuf,
    /// 68..9702 bytes.
    pub mtu: u32,
    /// 0..32.
    pub retries: u32,
    /// 0..100000 µs that frames wait for the guest's buffers.
    pub backpressure_us: u32,
    /// How one of several receiveqs is chosen.
    pub steering: Steering,
    /// Permission bits of a socket we make.
    pub socket_mode: u32,
    /// Its owner, None leaves it.
    pub socket_owner: Option<u32>,
    /// Its group, None leaves it.
    pub socket_group: Option<u32>,
    /// Accept guest memory on disk files.
    pub allow_file_memory: bool,
    /// Send what the guest sends to network devices from its memory (`dq-zero-copy`).
    pub zero_copy: bool,
}

impl PortConfig {
    /// A port with nothing set: what an Interface without options is.
    pub fn new(name: &str, kind: EndpointKind, ofport: u16, socket: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            ofport,
            socket,
            mtu: 1500,
            retries: 8,
            backpressure_us: 0,
            steering: Steering::Hash,
            socket_mode: 0o600,
            socket_owner: None,
            socket_group: None,
            allow_file_memory: false,
            zero_copy: false,
        }
    }

    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        self.settings().check(&self.name)?;
        check_zero_copy(&self.name, self.kind, self.zero_copy)?;
        if self.socket_mode > 0o777 {
            return Err(Error::Config(format!("{}: socket-mode {:o} is not in 0..777", self.name, self.socket_mode)));
        }
        check_socket_path(&self.socket)
    }

    /// What can change with the guest attached.
    pub(super) fn settings(&self) -> Settings {
        let Self { ofport, mtu, retries, backpressure_us, steering, zero_copy, .. } = *self;
        Settings { ofport, mtu, retries, backpressure_us, steering, zero_copy }
    }

    pub(super) fn endpoint(&self, recovery: &Arc<Recovery>, offer: &Arc<Offer>, options: Options) -> EndpointConfig {
        EndpointConfig {
            name: self.name.clone(),
            kind: self.kind,
            socket: self.socket.clone(),
            socket_mode: self.socket_mode,
            socket_owner: self.socket_owner,
            socket_group: self.socket_group,
            allow_file_memory: self.allow_file_memory,
            postcopy: options.postcopy,
            iommu: options.iommu,
            offer: Arc::clone(offer),
            recovery: Arc::clone(recovery),
        }
    }
}

/// What client ports that are added from now on serve besides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    /// `other_config:vhost-postcopy-support`.
    pub(super) postcopy: bool,
    /// `other_config:vhost-iommu-support`.
    pub(super) iommu: bool,
}

/// What every port has, whatever is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    pub ofport: u16,
    pub mtu: u32,
    pub retries: u32,
    pub backpressure_us: u32,
    pub steering: Steering,
    pub zero_copy: bool,
}

/// # Errors
/// `Config`: zero copy is for guests that make the socket.
pub(super) fn check_zero_copy(name: &str, kind: EndpointKind, zero_copy: bool) -> Result<()> {
    if zero_copy && kind == EndpointKind::Server {
        let text = "dq-zero-copy is for client ports: set type=dpdkvhostuserclient and options:vhost-server-path";
        return Err(Error::Config(format!("{name}: {text}")));
    }
    Ok(())
}

impl Settings {
    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let Self { ofport, mtu, retries, backpressure_us, .. } = *self;
        if name.is_empty() {
            return Err(Error::Config("a port needs a name".into()));
        }
        if !(1..=65_279).contains(&ofport) {
            return Err(Error::Config(format!("{name}: ofport {ofport} is not in 1..65279")));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(Error::Config(format!("{name}: unsupported MTU {mtu}: {MTU_MIN}..{MTU_MAX} are possible")));
        }
        if retries > RETRIES_MAX {
            return Err(Error::Config(format!("{name}: tx-retries-max {retries} is not in 0..{RETRIES_MAX}")));
        }
        if backpressure_us > BACKPRESSURE_MAX_US {
            let text = format!("{name}: backpressure-us {backpressure_us} is not in 0..{BACKPRESSURE_MAX_US}");
            return Err(Error::Config(text));
        }
        Ok(())
    }
}

/// What changes of a port, with its guest attached; None leaves it.
#[derive(Debug, Clone, Default)]
pub struct PortChange {
    /// As in [`PortConfig`], like the rest.
    pub mtu: Option<u32>,
    /// `admin_state`.
    pub admin_up: Option<bool>,
    /// `tx-retries-max`.
    pub retries: Option<u32>,
    /// `backpressure-us`.
    pub backpressure_us: Option<u32>,
    /// `tx-steering`.
    pub steering: Option<Steering>,
    /// `dq-zero-copy`.
    pub zero_copy: Option<bool>,
}

impl PortChange {
    /// # Errors
    /// `Config` naming what is out of range; nothing changed then.
    pub(super) fn apply(&self, name: &str, settings: &mut Settings) -> Result<()> {
        let next = Settings {
            mtu: self.mtu.unwrap_or(settings.mtu),
            retries: self.retries.unwrap_or(settings.retries),
            backpressure_us: self.backpressure_us.unwrap_or(settings.backpressure_us),
            steering: self.steering.unwrap_or(settings.steering),
            zero_copy: self.zero_copy.unwrap_or(settings.zero_copy),
            ..*settings
        };
        next.check(name)?;
        *settings = next;
        Ok(())
    }
}

/// What outlives sessions: identity, counters, link.
#[derive(Debug)]
pub(super) struct PortRecord {
    pub id: PortId,
    pub name: String,
    pub mtu: AtomicU32,
    pub link_up: AtomicBool,
    pub link_resets: AtomicU32,
    /// The NUMA node of the guest's rings, or of the NIC.
    pub numa: AtomicU32,
    /// Of a NIC, its Ethernet address as it was seen last, as [`Mac`](crate::frame::ethernet::Mac) has it.
    pub address: AtomicU64,
    /// What a call to whoever is behind it is named in statistics.
    call: &'static str,
    /// By vring, made when first started; never reset by a reconnect.
    counters: Lock<BTreeMap<u16, Arc<QueueCounters>>>,
    /// How long others may still wait for its guest's memory, whichever session that is of.
    pub credit: Arc<Credit>,
    /// Of a NIC, guests' own ways to it.
    lanes: Lock<LaneTotals>,
    /// Lines that it may put into the log.
    pub allowance: Allowance,
}

impl PortRecord {
    pub(super) fn new(id: PortId, name: &str, mtu: u32, call: &'static str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            mtu: AtomicU32::new(mtu),
            link_up: AtomicBool::new(false),
            link_resets: AtomicU32::new(0),
            numa: AtomicU32::new(0),
            address: AtomicU64::new(0),
            call,
            counters: Lock::default(),
            credit: Arc::new(Credit::of_receiver()),
            lanes: Lock::default(),
            allowance: Allowance::new(Instant::now()),
        }
    }

    /// Counts what a lane on queue `queue` does from now on.
    pub(super) fn watch_lane(&self, queue: u16, lane: LaneGauges) {
        self.lanes.lock().watch(queue, lane);
    }

    /// Adds what only the rings of lanes know.
    pub(super) fn add_lanes(&self, all: &mut BTreeMap<String, u64>) {
        self.lanes.lock().add_to(all);
    }

    /// Counters of a vring.
    pub(super) fn counters_of(&self, vring: u16) -> Arc<QueueCounters> {
        let mut counters = self.counters.lock();
        Arc::clone(counters.entry(vring).or_default())
    }

    /// Interface `statistics` (`ovs-vswitchd.conf.db(5)`): rx is what the guest sent, so the transmitqs'.
    pub(super) fn statistics(&self) -> BTreeMap<String, u64> {
        let counters = self.counters.lock().clone();
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for name in ["packets", "bytes", "dropped", "errors", "multicast_packets", "broadcast_packets"] {
            for side in ["rx", "tx"] {
                all.insert(format!("{side}_{name}"), 0);
            }
        }
        for name in [
            "ovs_tx_retries",
            "ovs_tx_failure_drops",
            "ovs_tx_mtu_exceeded_drops",
            "ovs_tx_qos_drops",
            "ovs_rx_qos_drops",
        ] {
            all.insert(name.into(), 0);
        }
        for (vring, queue) in &counters {
            add_queue(&mut all, *vring, queue, self.call);
        }
        all
    }
}

/// Adds one queue's counters to the port's sums and to its own `rx_qN_…`, under the names of DPDK's vhost library. What
/// is seldom counted is there from its first time on.
fn add_queue(all: &mut BTreeMap<String, u64>, vring: u16, queue: &QueueCounters, call: &str) {
    let (side, number) = (if vring.is_multiple_of(2) { "tx" } else { "rx" }, vring / 2);
    let mut add = |name: String, n: u64| *all.entry(name).or_default() += n;
    for (name, counter) in [
        ("packets", &queue.packets),
        ("bytes", &queue.bytes),
        ("multicast_packets", &queue.multicast),
        ("broadcast_packets", &queue.broadcast),
    ] {
        add(format!("{side}_{name}"), counter.read());
    }
    for (name, counter) in [
        ("good_packets", &queue.packets),
        ("good_bytes", &queue.bytes),
        (call, &queue.notifications),
        ("iotlb_hits", &queue.iotlb_hits),
        ("iotlb_misses", &queue.iotlb_misses),
    ] {
        add(format!("{side}_q{number}_{name}"), counter.read());
    }
    for (name, counter) in [
        ("multicast_packets", &queue.multicast),
        ("broadcast_packets", &queue.broadcast),
        ("retries", &queue.retries),
        ("waits", &queue.waits),
        ("contentions", &queue.contentions),
    ] {
        match counter.read() {
            0 => {}
            n => add(format!("{side}_q{number}_{name}"), n),
        }
    }
    if queue.suppressed.read() > 0 {
        add(format!("{side}_q{number}_{call}_suppressed"), queue.suppressed.read());
    }
    let in_classes = |classes: &std::ops::Range<usize>| -> u64 {
        queue.sizes.get(classes.clone()).unwrap_or_default().iter().map(Counter::read).sum()
    };
    for (name, classes) in &PORT_SIZES {
        add(format!("{side}_{name}_packets"), in_classes(classes));
    }
    for (name, classes) in &QUEUE_SIZES {
        match in_classes(classes) {
            0 => {}
            n => add(format!("{side}_q{number}_{name}_packets"), n),
        }
    }
    add("ovs_tx_retries".into(), queue.retries.read());
    for ((reason, name, _), counter) in drops::TABLE.iter().zip(&queue.drops) {
        let n = counter.read();
        if n == 0 {
            continue;
        }
        add(format!("{side}_dropped"), n);
        add(format!("{side}_q{number}_dropped"), n);
        add(format!("{side}_drop_{name}"), n);
        match reason {
            DropReason::Runt | DropReason::Oversize | DropReason::BadOffload | DropReason::BadSource => {
                add("rx_errors".into(), n);
            }
            DropReason::Reserved
            | DropReason::InactiveMember
            | DropReason::Reflected
            | DropReason::SamePort
            | DropReason::NoReceiver
            | DropReason::AdminDown => {}
            DropReason::MtuExceeded => add("ovs_tx_mtu_exceeded_drops".into(), n),
            DropReason::ReceiverAdminDown
            | DropReason::LinkDown
            | DropReason::NoBuffer
            | DropReason::Backpressure
            | DropReason::Contended
            | DropReason::BufferTooSmall
            | DropReason::RingBroken
            | DropReason::PostcopyWait
            | DropReason::IotlbWait
            | DropReason::DeviceRefused => add("ovs_tx_failure_drops".into(), n),
        }
    }
}

/// One port at one moment.
#[derive(Debug, Clone)]
pub struct PortState {
    /// Its name.
    pub name: String,
    /// Its bridge's.
    pub bridge: String,
    /// Its number there.
    pub ofport: u16,
    /// `admin_state`.
    pub admin_up: bool,
    /// `link_state`.
    pub link_up: bool,
    /// How often that changed.
    pub link_resets: u32,
    /// Bytes.
    pub mtu: u32,
    /// Why the link is down or degraded, with the cure.
    pub error: Option<String>,
    /// Interface `status`.
    pub status: BTreeMap<String, String>,
    /// Interface `statistics`.
    pub statistics: BTreeMap<String, u64>,
}

/// A path a socket can be bound to or reached at.
///
/// # Errors
/// `Config` naming the rule it breaks.
fn check_socket_path(path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::Config(format!("socket path '{shown}' is not absolute; write it from / on")));
    }
    if bytes.contains(&0) {
        return Err(Error::Config(format!("socket path '{}' contains a NUL byte", shown.to_string().escape_debug())));
    }
    if bytes.len() > 107 {
        return Err(Error::Config(format!(
            "socket path '{shown}' has {} bytes; the kernel takes at most 107: choose a shorter one",
            bytes.len()
        )));
    }
    Ok(())
}
