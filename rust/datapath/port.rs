//! One port as control knows it: its configuration, its record, and what is told of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32};
use std::sync::{Arc, Mutex, PoisonError};

use super::check_socket_path;
use crate::counters::{QueueCounters, SIZE_CLASSES};
use crate::drops::{self, DropReason};
use crate::error::{Error, Result};
use crate::switch::PortId;
use crate::vhost::{EndpointConfig, EndpointKind};

/// Smallest MTU of a port, bytes (IPv4 needs it, RFC 791).
const MTU_MIN: u16 = 68;
/// Largest: what OVS's DPDK ports take.
const MTU_MAX: u16 = 9702;
/// Largest `tx-retries-max`.
const RETRIES_MAX: u32 = 32;

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
    pub mtu: u16,
    /// 0..32.
    pub retries: u32,
    /// Permission bits of a socket we make.
    pub socket_mode: u32,
    /// Its owner, None leaves it.
    pub socket_owner: Option<u32>,
    /// Its group, None leaves it.
    pub socket_group: Option<u32>,
    /// Accept guest memory on disk files.
    pub allow_file_memory: bool,
}

impl PortConfig {
    /// # Errors
    /// `Config` naming what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        if self.name.is_empty() {
            return Err(Error::Config("a port needs a name".into()));
        }
        if !(1..=65_279).contains(&self.ofport) {
            return Err(Error::Config(format!("{}: ofport {} is not in 1..65279", self.name, self.ofport)));
        }
        check_mtu(&self.name, self.mtu)?;
        check_retries(&self.name, self.retries)?;
        if self.socket_mode > 0o777 {
            return Err(Error::Config(format!("{}: socket-mode {:o} is not in 0..777", self.name, self.socket_mode)));
        }
        check_socket_path(&self.socket)
    }

    pub(super) fn endpoint(&self) -> EndpointConfig {
        EndpointConfig {
            name: self.name.clone(),
            kind: self.kind,
            socket: self.socket.clone(),
            socket_mode: self.socket_mode,
            socket_owner: self.socket_owner,
            socket_group: self.socket_group,
            allow_file_memory: self.allow_file_memory,
        }
    }
}

pub(super) fn check_mtu(port: &str, mtu: u16) -> Result<()> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        Ok(())
    } else {
        Err(Error::Config(format!("{port}: unsupported MTU {mtu}; {MTU_MIN}..{MTU_MAX} are possible")))
    }
}

pub(super) fn check_retries(port: &str, retries: u32) -> Result<()> {
    if retries <= RETRIES_MAX {
        Ok(())
    } else {
        Err(Error::Config(format!("{port}: tx-retries-max {retries} is not in 0..{RETRIES_MAX}")))
    }
}

/// What outlives sessions: identity, counters, link.
#[derive(Debug)]
pub(super) struct PortRecord {
    pub id: PortId,
    pub name: String,
    pub mtu: AtomicU16,
    pub link_up: AtomicBool,
    pub link_resets: AtomicU32,
    /// The NUMA node of the guest's rings.
    pub numa: AtomicU32,
    /// By vring, made when first started; never reset by a reconnect.
    counters: Mutex<BTreeMap<u16, Arc<QueueCounters>>>,
}

impl PortRecord {
    pub(super) fn new(id: PortId, name: &str, mtu: u16) -> Self {
        Self {
            id,
            name: name.to_owned(),
            mtu: AtomicU16::new(mtu),
            link_up: AtomicBool::new(false),
            link_resets: AtomicU32::new(0),
            numa: AtomicU32::new(0),
            counters: Mutex::default(),
        }
    }

    /// Counters of a vring.
    pub(super) fn counters_of(&self, vring: u16) -> Arc<QueueCounters> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counters.entry(vring).or_default())
    }

    /// Interface `statistics` (`ovs-vswitchd.conf.db(5)`): rx is what the guest sent, so the transmitqs'.
    pub(super) fn statistics(&self) -> BTreeMap<String, u64> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
            add_queue(&mut all, *vring, queue);
        }
        all
    }
}

/// Adds one queue's counters to the port's sums and to its own `rx_qN_…`.
fn add_queue(all: &mut BTreeMap<String, u64>, vring: u16, queue: &QueueCounters) {
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
    for (name, counter) in
        [("good_packets", &queue.packets), ("good_bytes", &queue.bytes), ("guest_notifications", &queue.notifications)]
    {
        add(format!("{side}_q{number}_{name}"), counter.read());
    }
    for (class, counter) in SIZE_CLASSES.iter().zip(&queue.sizes) {
        add(format!("{side}_{class}_packets"), counter.read());
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
            DropReason::MtuExceeded => add("ovs_tx_mtu_exceeded_drops".into(), n),
            DropReason::NoBuffer | DropReason::BufferTooSmall | DropReason::RingBroken => {
                add("ovs_tx_failure_drops".into(), n);
            }
            DropReason::Runt | DropReason::Oversize | DropReason::BadOffload | DropReason::BadSource => {
                add("rx_errors".into(), n);
            }
            _ => {}
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
    pub mtu: u16,
    /// Why the link is down or degraded, with the cure.
    pub error: Option<String>,
    /// Interface `status`.
    pub status: BTreeMap<String, String>,
    /// Interface `statistics`.
    pub statistics: BTreeMap<String, u64>,
}
