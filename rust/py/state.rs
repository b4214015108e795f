//! Snapshots as frozen Python objects.

use std::collections::BTreeMap;

use pyo3::prelude::*;

use crate::datapath;
use crate::vhost::Level;

/// One thing that happened.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct Event {
    level: &'static str,
    kind: &'static str,
    port: Option<String>,
    text: String,
}

impl From<datapath::Event> for Event {
    fn from(event: datapath::Event) -> Self {
        let level = match event.level {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        Self { level, kind: event.kind, port: event.port, text: event.text }
    }
}

/// One port at one moment.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct PortState {
    name: String,
    bridge: String,
    ofport: u16,
    admin_up: bool,
    link_up: bool,
    link_resets: u32,
    mtu: u32,
    error: Option<String>,
    status: BTreeMap<String, String>,
    statistics: BTreeMap<String, u64>,
}

impl From<datapath::PortState> for PortState {
    fn from(state: datapath::PortState) -> Self {
        let datapath::PortState {
            name,
            bridge,
            ofport,
            admin_up,
            link_up,
            link_resets,
            mtu,
            error,
            status,
            statistics,
        } = state;
        Self { name, bridge, ofport, admin_up, link_up, link_resets, mtu, error, status, statistics }
    }
}

/// One learned address.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct FdbEntry {
    ofport: u16,
    vlan: u16,
    mac: String,
    age_s: u32,
}

impl From<datapath::FdbEntry> for FdbEntry {
    fn from(entry: datapath::FdbEntry) -> Self {
        let key = entry.learned.key;
        Self { ofport: entry.ofport, vlan: key.vlan(), mac: key.mac().to_string(), age_s: entry.learned.age_s }
    }
}

/// One queue among a poll thread's.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
#[derive(Clone)]
pub(super) struct RxqState {
    port: String,
    queue: u16,
    enabled: bool,
    usage_pct: Option<f64>,
}

/// One poll thread; counters since they were cleared.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct PmdState {
    cpu: usize,
    numa: u32,
    isolated: bool,
    max_sleep_us: Option<u64>,
    since_clear_s: f64,
    cycles_per_us: u64,
    packets: u64,
    bursts: u64,
    busy_cycles: u64,
    idle_cycles: u64,
    sleep_cycles: u64,
    busy_iterations: u64,
    idle_iterations: u64,
    sleeps: u64,
    cycles_per_iteration: Vec<u64>,
    packets_per_burst: Vec<u64>,
    cycles_per_packet: Vec<u64>,
    cycles_per_burst: Vec<u64>,
    overhead_pct: Option<f64>,
    rxqs: Vec<RxqState>,
}

impl From<datapath::PmdView> for PmdState {
    fn from(pmd: datapath::PmdView) -> Self {
        let since = pmd.since_clear;
        let rxq = |rxq: datapath::RxqView| {
            let datapath::RxqView { port, queue, is_enabled, usage } = rxq;
            RxqState { port, queue, enabled: is_enabled, usage_pct: usage }
        };
        Self {
            cpu: pmd.cpu,
            numa: pmd.numa,
            isolated: pmd.is_isolated,
            max_sleep_us: pmd.sleep,
            since_clear_s: pmd.cleared_s,
            cycles_per_us: pmd.cycles_per_us,
            packets: since.packets,
            bursts: since.bursts,
            busy_cycles: since.busy_cycles,
            idle_cycles: since.idle_cycles,
            sleep_cycles: since.sleep_cycles,
            busy_iterations: since.busy_rounds,
            idle_iterations: since.idle_rounds,
            sleeps: since.sleeps,
            cycles_per_iteration: since.cycles_per_round.to_vec(),
            packets_per_burst: since.packets_per_burst.to_vec(),
            cycles_per_packet: since.cycles_per_packet.to_vec(),
            cycles_per_burst: since.cycles_per_burst.to_vec(),
            overhead_pct: pmd.overhead,
            rxqs: pmd.rxqs.into_iter().map(rxq).collect(),
        }
    }
}
