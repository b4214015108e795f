//! Snapshots as frozen Python objects.

use std::collections::BTreeMap;

use pyo3::prelude::*;

use crate::datapath;
use crate::pmd::PmdStats;
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

/// One poll thread, since its counters were cleared.
#[pyclass(frozen, get_all, module = "ovsvhost._core")]
pub(super) struct PmdState {
    cpu: usize,
    packets: u64,
    busy_cycles: u64,
    idle_cycles: u64,
    sleeps: u64,
    rxqs: Vec<(String, u16)>,
}

/// Packets, busy cycles, idle cycles, sleeps.
pub(super) fn readings(stats: &PmdStats) -> [u64; 4] {
    [stats.packets.read(), stats.busy_cycles.read(), stats.idle_cycles.read(), stats.sleeps.read()]
}

impl PmdState {
    pub(super) fn new(pmd: datapath::PmdView, cleared: Option<&[u64; 4]>) -> Self {
        let datapath::PmdView { cpu, stats, rxqs } = pmd;
        let [p, b, i, s] = cleared.copied().unwrap_or_default();
        let [packets, busy, idle, sleeps] = readings(&stats);
        Self { cpu, packets: packets - p, busy_cycles: busy - b, idle_cycles: idle - i, sleeps: sleeps - s, rxqs }
    }
}
