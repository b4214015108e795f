//! What control decided, under one lock, and the topology made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::FdbEntry;
use super::assignment::{Places, PmdView};
use super::port::{PortChange, PortConfig, PortRecord, PortState};
use super::threads::Seat;
use crate::error::{Error, Result};
use crate::frame::flow::FlowKey;
use crate::pmd::{BridgeView, PortView, ReceiveSlot, Topology};
use crate::switch::PortId;
use crate::switch::fdb::Fdb;
use crate::vhost::Endpoint;

/// Most ports in a datapath: `OpenFlow` numbers end there.
const PORTS_MAX: usize = 65_279;

#[derive(Debug)]
struct Bridge {
    index: usize,
    fdb: Arc<Fdb>,
    forward_bpdu: bool,
}

struct Port {
    bridge: String,
    config: PortConfig,
    admin_up: bool,
    record: Arc<PortRecord>,
    endpoint: Option<Endpoint>,
}

#[derive(Default)]
pub(super) struct State {
    bridges: BTreeMap<String, Bridge>,
    ports: BTreeMap<String, Port>,
    /// Ids in use, those of ports whose session is still ending included.
    ids: BTreeSet<PortId>,
    /// Live receiveqs; outlive their port's entry until its session has ended.
    pub receiveqs: BTreeMap<(PortId, u16), Arc<ReceiveSlot>>,
    /// Who polls which transmitq.
    pub places: Places,
    /// The secret by which flows are spread over receiveqs.
    flow_key: FlowKey,
}

impl State {
    /// The packet path's view of all this.
    pub(super) fn topology(&self) -> Topology {
        let mut topology = Topology { flow_key: self.flow_key, ..Topology::default() };
        for bridge in self.bridges.values() {
            grow(&mut topology.bridges, bridge.index);
            if let Some(place) = topology.bridges.get_mut(bridge.index) {
                let (fdb, forward_bpdu) = (Arc::clone(&bridge.fdb), bridge.forward_bpdu);
                *place = Some(BridgeView { fdb, members: Vec::new(), forward_bpdu });
            }
        }
        for port in self.ports.values() {
            let Some(bridge) = self.bridges.get(&port.bridge).map(|b| b.index) else { continue };
            let id = port.record.id;
            if let Some(Some(view)) = topology.bridges.get_mut(bridge) {
                view.members.push(id);
            }
            let receiveqs = self.receiveqs.range((id, 0)..=(id, u16::MAX)).map(|(_, slot)| Arc::clone(slot)).collect();

            let PortConfig { mtu, retries, backpressure_us, steering, .. } = port.config;
            let (admin_up, counters) = (port.admin_up, port.record.counters_of(0));
            let view = PortView { bridge, mtu, admin_up, retries, backpressure_us, steering, counters, receiveqs };
            grow(&mut topology.ports, usize::from(id));
            if let Some(place) = topology.ports.get_mut(usize::from(id)) {
                *place = Some(view);
            }
        }
        topology
    }

    fn bridge(&self, name: &str) -> Result<&Bridge> {
        self.bridges.get(name).ok_or_else(|| Error::Config(format!("no bridge named {name}")))
    }

    pub(super) fn add_bridge(&mut self, name: &str) -> Result<()> {
        if self.bridges.contains_key(name) {
            return Err(Error::Config(format!("a bridge named {name} exists already")));
        }
        let used: BTreeSet<usize> = self.bridges.values().map(|b| b.index).collect();
        let index = (0..used.len()).find(|i| !used.contains(i)).unwrap_or(used.len());
        let bridge = Bridge { index, fdb: Arc::new(Fdb::new(8192, 300)), forward_bpdu: false };
        self.bridges.insert(name.to_owned(), bridge);
        Ok(())
    }

    pub(super) fn set_bridge(
        &mut self,
        name: &str,
        aging_s: u32,
        table_size: usize,
        forward_bpdu: bool,
        now_s: u32,
    ) -> Result<()> {
        if !(15..=3600).contains(&aging_s) {
            return Err(Error::Config(format!("bridge {name}: mac-aging-time {aging_s} is not in 15..3600")));
        }
        if !(10..=1_000_000).contains(&table_size) {
            return Err(Error::Config(format!("bridge {name}: mac-table-size {table_size} is not in 10..1000000")));
        }
        self.bridge(name)?;
        if let Some(bridge) = self.bridges.get_mut(name) {
            if bridge.fdb.max() != table_size {
                bridge.fdb = Arc::new(bridge.fdb.resized(table_size, now_s));
            }
            bridge.fdb.set_aging(aging_s);
            bridge.forward_bpdu = forward_bpdu;
        }
        Ok(())
    }

    pub(super) fn del_bridge(&mut self, name: &str) -> Result<()> {
        self.bridge(name)?;
        self.bridges.remove(name);
        Ok(())
    }

    pub(super) fn ports_of(&self, bridge: &str) -> Result<Vec<String>> {
        self.bridge(bridge)?;
        Ok(self.ports.iter().filter(|(_, p)| p.bridge == bridge).map(|(name, _)| name.clone()).collect())
    }

    pub(super) fn port_names(&self) -> Vec<String> {
        self.ports.keys().cloned().collect()
    }

    pub(super) fn add_port(&mut self, bridge: &str, config: PortConfig) -> Result<Arc<PortRecord>> {
        self.bridge(bridge)?;
        let name = config.name.clone();
        if self.ports.contains_key(&name) {
            return Err(Error::Config(format!("a port named {name} exists already")));
        }
        for (other, port) in &self.ports {
            if port.config.socket == config.socket {
                let path = config.socket.display();
                return Err(Error::Config(format!("{name}: socket {path} belongs to port {other}; give it another")));
            }
            if port.bridge == bridge && port.config.ofport == config.ofport {
                return Err(Error::Config(format!("{name}: ofport {} belongs to port {other}", config.ofport)));
            }
        }
        let id = (0..PORTS_MAX).filter_map(|i| PortId::try_from(i).ok()).find(|id| !self.ids.contains(id));
        let id = id.ok_or_else(|| Error::Config(format!("{name}: {PORTS_MAX} ports exist already")))?;
        self.ids.insert(id);
        let record = Arc::new(PortRecord::new(id, &name, config.mtu));
        let port =
            Port { bridge: bridge.to_owned(), config, admin_up: true, record: Arc::clone(&record), endpoint: None };
        self.ports.insert(name, port);
        Ok(record)
    }

    /// Keeps a port's endpoint. Gives it back if the port was deleted meanwhile: drop it without the lock.
    pub(super) fn set_endpoint(&mut self, name: &str, id: PortId, endpoint: Endpoint) -> Option<Endpoint> {
        match self.ports.get_mut(name) {
            Some(port) if port.record.id == id => port.endpoint.replace(endpoint),
            _ => Some(endpoint),
        }
    }

    /// Takes what a session left behind that did not end in time: its receiveqs out of the topology to come, and the
    /// seats of its transmitqs.
    pub(super) fn take_vrings(&mut self, id: PortId) -> Vec<Arc<Seat>> {
        self.receiveqs.retain(|(port, _), _| *port != id);
        self.places.forget(id)
    }

    /// Pins queues of a port to cores; those not named are free. True if that is new.
    pub(super) fn set_affinity(&mut self, name: &str, pins: &BTreeMap<u16, usize>) -> Result<bool> {
        let port = self.ports.get(name).ok_or_else(|| Error::Config(format!("no port named {name}")))?;
        let id = port.record.id;
        let mut wanted = self.places.pins.clone();
        wanted.retain(|(port, _), _| *port != id);
        wanted.extend(pins.iter().map(|(queue, cpu)| ((id, *queue), *cpu)));
        let is_new = wanted != self.places.pins;
        self.places.pins = wanted;
        Ok(is_new)
    }

    /// A port's name, while it is there.
    pub(super) fn name_of(&self, id: PortId) -> Option<String> {
        self.ports.iter().find(|(_, port)| port.record.id == id).map(|(name, _)| name.clone())
    }

    pub(super) fn set_port(&mut self, name: &str, change: &PortChange) -> Result<()> {
        let port = self.ports.get_mut(name).ok_or_else(|| Error::Config(format!("no port named {name}")))?;
        change.apply(&mut port.config)?;
        port.record.mtu.store(port.config.mtu, Ordering::Relaxed);
        port.admin_up = change.admin_up.unwrap_or(port.admin_up);
        Ok(())
    }

    /// Takes a port out; its id stays taken until [`Self::free`].
    pub(super) fn remove_port(&mut self, name: &str) -> Option<(Arc<PortRecord>, Option<Endpoint>)> {
        let port = self.ports.remove(name)?;
        if let Some(bridge) = self.bridges.get(&port.bridge) {
            bridge.fdb.flush_port(port.record.id);
        }
        Some((port.record, port.endpoint))
    }

    /// Nothing learned behind a port that is gone stays.
    pub(super) fn forget(&self, id: PortId) {
        for bridge in self.bridges.values() {
            bridge.fdb.flush_port(id);
        }
    }

    /// The port's session is over: its id may be used again.
    pub(super) fn free(&mut self, id: PortId) {
        self.forget(id);
        self.ids.remove(&id);
    }

    pub(super) fn port_state(&self, name: &str) -> Option<PortState> {
        self.ports.get(name).map(|port| Self::snapshot(name, port))
    }

    pub(super) fn port_states(&self) -> Vec<PortState> {
        self.ports.iter().map(|(name, port)| Self::snapshot(name, port)).collect()
    }

    fn snapshot(name: &str, port: &Port) -> PortState {
        let record = &port.record;
        let endpoint = port.endpoint.as_ref();
        PortState {
            name: name.to_owned(),
            bridge: port.bridge.clone(),
            ofport: port.config.ofport,
            admin_up: port.admin_up,
            link_up: record.link_up.load(Ordering::Acquire) && port.admin_up,
            link_resets: record.link_resets.load(Ordering::Relaxed),
            mtu: port.config.mtu,
            error: endpoint.and_then(Endpoint::error),
            status: endpoint.map(Endpoint::status).unwrap_or_default(),
            statistics: record.statistics(),
        }
    }

    pub(super) fn fdb(&self, bridge: &str, now_s: u32) -> Result<Vec<FdbEntry>> {
        let ofports: BTreeMap<PortId, u16> = self.ports.values().map(|p| (p.record.id, p.config.ofport)).collect();
        let learned = self.bridge(bridge)?.fdb.list(now_s);
        Ok(learned
            .into_iter()
            .filter_map(|learned| Some(FdbEntry { ofport: *ofports.get(&learned.port)?, learned }))
            .collect())
    }

    pub(super) fn fdb_stats(&self, bridge: &str) -> Result<[(&'static str, u64); 4]> {
        let stats = &self.bridge(bridge)?.fdb.stats;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok([
            ("learned", count(&stats.learned)),
            ("expired", count(&stats.expired)),
            ("evicted", count(&stats.evicted)),
            ("moved", count(&stats.moved)),
        ])
    }

    pub(super) fn flush_fdb(&self, bridge: &str) -> Result<()> {
        self.bridge(bridge)?.fdb.flush();
        Ok(())
    }

    pub(super) fn sweep(&self, now_s: u32) {
        for bridge in self.bridges.values() {
            bridge.fdb.sweep(now_s);
        }
    }

    /// Each poll thread and its queues; shares of time are of the last `intervals`.
    pub(super) fn pmds(&self, intervals: usize) -> Vec<PmdView> {
        let names: BTreeMap<PortId, &String> = self.ports.iter().map(|(name, p)| (p.record.id, name)).collect();
        self.places.views(intervals, |id| names.get(&id).map(ToString::to_string))
    }

    /// Passes a poll thread's report to the session whose queue it is.
    pub(super) fn fail_vring(&self, port: PortId, vring: u16, run: u64, reason: &str) {
        let started = self.receiveqs.get(&(port, vring)).map(|slot| slot.run);
        if started.or_else(|| self.places.seats.get(&(port, vring)).map(|seat| seat.run)) != Some(run) {
            // The vring was started anew since: its former self's trouble is over.
            return;
        }
        let endpoint = self.ports.values().find(|p| p.record.id == port).and_then(|p| p.endpoint.as_ref());
        if let Some(endpoint) = endpoint {
            endpoint.fail_vring(usize::from(vring), reason.to_owned());
        }
    }
}

fn grow<T>(places: &mut Vec<Option<T>>, index: usize) {
    if places.len() <= index {
        places.resize_with(index + 1, || None);
    }
}
