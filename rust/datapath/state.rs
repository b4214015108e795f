//! What control decided, under one lock, and the topology made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::FdbEntry;
use super::assignment::{Places, PmdView};
use super::bond::Bond;
use super::nic::{Nic, NicConfig, NicDevice};
use super::port::{PortChange, PortConfig, PortRecord, PortState, Settings, check_zero_copy};
use super::threads::Seat;
use super::zero_copy::{Lanes, Wish};
use crate::error::{Error, Result};
use crate::frame::ethernet::Mac;
use crate::frame::flow::FlowKey;
use crate::pmd::{Bonding, BridgeView, FaultCause, LINKS_MAX, OutletSlot, PortView, Topology};
use crate::switch::PortId;
use crate::switch::fdb::Fdb;
use crate::vhost::{Endpoint, EndpointKind};

/// Most ports in a datapath: `OpenFlow` numbers end there.
const PORTS_MAX: usize = 65_279;

#[derive(Debug)]
pub(super) struct Bridge {
    index: usize,
    fdb: Arc<Fdb>,
    forward_bpdu: bool,
}

struct Port {
    bridge: String,
    settings: Settings,
    admin_up: bool,
    record: Arc<PortRecord>,
    backing: Backing,
    /// The bond it is a link of.
    bond: Option<String>,
}

/// What is behind a port; None until its thread runs.
pub(super) enum Backing {
    /// A guest.
    Vhost { socket: PathBuf, kind: EndpointKind, endpoint: Option<Endpoint> },
    /// A network device of the host.
    Nic { device: NicDevice, nic: Option<Nic> },
}

impl Backing {
    /// Ends it. Not with the state locked: it stops its queues through the state.
    pub(super) fn shut_down(self) {
        match self {
            Self::Vhost { endpoint: Some(endpoint), .. } => endpoint.shutdown(),
            Self::Nic { nic: Some(nic), .. } => nic.shutdown(),
            _ => {}
        }
    }

    /// What two ports cannot share: words for it, and its name.
    fn claim(&self) -> (&'static str, String) {
        match self {
            Self::Vhost { socket, .. } => ("socket", socket.display().to_string()),
            Self::Nic { device, .. } => ("network device", device.netdev.clone()),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    bridges: BTreeMap<String, Bridge>,
    ports: BTreeMap<String, Port>,
    pub bonds: BTreeMap<String, Bond>,
    /// Ids in use, those of ports whose session is still ending included.
    ids: BTreeSet<PortId>,
    /// Live receiveqs; outlive their port's entry until its session has ended.
    pub receiveqs: BTreeMap<(PortId, u16), Arc<OutletSlot>>,
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
            if port.bond.is_none()
                && let Some(Some(view)) = topology.bridges.get_mut(bridge)
            {
                view.members.push(id);
            }
            let receiveqs = self.receiveqs.range((id, 0)..=(id, u16::MAX)).map(|(_, slot)| Arc::clone(slot)).collect();
            let Settings { mtu, retries, backpressure_us, steering, .. } = port.settings;
            let (admin_up, counters, credit) =
                (port.admin_up, port.record.counters_of(0), Arc::clone(&port.record.credit));
            let bonding = Bonding::None;
            let view = PortView {
                bridge,
                mtu,
                admin_up,
                retries,
                backpressure_us,
                steering,
                counters,
                credit,
                receiveqs,
                bonding,
            };
            put(&mut topology.ports, id, view);
        }
        for bond in self.bonds.values() {
            let Some(bridge) = self.bridges.get(&bond.bridge).map(|b| b.index) else { continue };
            let view = bond.join(&mut topology, bridge);
            put(&mut topology.ports, bond.id, view);
            if let Some(Some(view)) = topology.bridges.get_mut(bridge) {
                view.members.push(bond.id);
            }
        }
        topology
    }

    pub(super) fn bridge(&self, name: &str) -> Result<&Bridge> {
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
        let (settings, backing) =
            (config.settings(), Backing::Vhost { socket: config.socket, kind: config.kind, endpoint: None });
        self.add(bridge, &config.name, settings, backing, "guest_notifications", None)
    }

    pub(super) fn add_nic(&mut self, bridge: &str, config: &NicConfig) -> Result<Arc<PortRecord>> {
        let backing = Backing::Nic { device: config.device.clone(), nic: None };
        if let Some(bond) = &config.bond
            && self.bonds.get(bond).is_none_or(|bond| bond.bridge != bridge)
        {
            return Err(Error::Config(format!("{}: bridge {bridge} has no bond named {bond}", config.name)));
        }
        if let Some(bond) = config.bond.as_ref().filter(|bond| self.bonds.get(*bond).is_some_and(Bond::is_full)) {
            return Err(Error::Config(format!("{}: bond {bond} has {LINKS_MAX} links already", config.name)));
        }
        let record = self.add(bridge, &config.name, config.settings(), backing, "kicks", config.bond.clone())?;
        if let Some(bond) = config.bond.as_ref().and_then(|bond| self.bonds.get_mut(bond)) {
            bond.add_link(record.id, &config.name);
        }
        Ok(record)
    }

    fn add(
        &mut self,
        bridge: &str,
        name: &str,
        settings: Settings,
        backing: Backing,
        call: &'static str,
        bond: Option<String>,
    ) -> Result<Arc<PortRecord>> {
        self.bridge(bridge)?;
        if self.ports.contains_key(name) {
            return Err(Error::Config(format!("a port named {name} exists already")));
        }
        self.check_claim(name, &backing)?;
        let same = self.ports.iter().find(|(_, p)| p.bridge == bridge && p.settings.ofport == settings.ofport);
        if let Some((other, _)) = same {
            return Err(Error::Config(format!("{name}: ofport {} belongs to port {other}", settings.ofport)));
        }
        let id = self.take_id(name)?;
        let record = Arc::new(PortRecord::new(id, name, settings.mtu, call));
        let (bridge, kept) = (bridge.to_owned(), Arc::clone(&record));
        self.ports.insert(name.to_owned(), Port { bridge, settings, admin_up: true, record: kept, backing, bond });
        Ok(record)
    }

    pub(super) fn take_id(&mut self, name: &str) -> Result<PortId> {
        let id = (0..PORTS_MAX).filter_map(|i| PortId::try_from(i).ok()).find(|id| !self.ids.contains(id));
        let id = id.ok_or_else(|| Error::Config(format!("{name}: {PORTS_MAX} ports exist already")))?;
        self.ids.insert(id);
        Ok(id)
    }

    /// What is known of who is where on a bridge.
    pub(super) fn fdb_of(&self, bridge: &str) -> Option<&Fdb> {
        self.bridges.get(bridge).map(|bridge| &*bridge.fdb)
    }

    /// Refuses what another port has.
    fn check_claim(&self, name: &str, backing: &Backing) -> Result<()> {
        let claim = backing.claim();
        match self.ports.iter().find(|(other, port)| *other != name && port.backing.claim() == claim) {
            None => Ok(()),
            Some((other, _)) => {
                let (what, which) = claim;
                Err(Error::Config(format!("{name}: {what} {which} belongs to port {other}; give it another")))
            }
        }
    }

    /// Keeps a port's endpoint. Gives it back if the port was deleted meanwhile: drop it without the lock.
    pub(super) fn set_endpoint(&mut self, name: &str, id: PortId, new: Endpoint) -> Option<Endpoint> {
        match self.ports.get_mut(name) {
            Some(Port { record, backing: Backing::Vhost { endpoint, .. }, .. }) if record.id == id => {
                endpoint.replace(new)
            }
            _ => Some(new),
        }
    }

    /// Keeps a NIC's thread, as [`Self::set_endpoint`].
    pub(super) fn set_nic_thread(&mut self, name: &str, id: PortId, new: Nic) -> Option<Nic> {
        match self.ports.get_mut(name) {
            Some(Port { record, backing: Backing::Nic { nic, .. }, .. }) if record.id == id => nic.replace(new),
            _ => Some(new),
        }
    }

    /// Changes what a NIC port takes of which device.
    pub(super) fn set_nic(&mut self, name: &str, change: impl FnOnce(&mut NicDevice)) -> Result<()> {
        let (mut wanted, _) = self.nic(name).map(|(device, nic)| (device.clone(), nic))?;
        change(&mut wanted);
        wanted.check(name)?;
        self.check_claim(name, &Backing::Nic { device: wanted.clone(), nic: None })?;
        if let Some(Port { backing: Backing::Nic { device, nic }, .. }) = self.ports.get_mut(name)
            && *device != wanted
        {
            *device = wanted.clone();
            if let Some(nic) = nic {
                nic.set_device(wanted);
            }
        }
        Ok(())
    }

    /// A NIC port's device and thread.
    pub(super) fn nic(&self, name: &str) -> Result<(&NicDevice, Option<&Nic>)> {
        match self.ports.get(name).map(|port| &port.backing) {
            None => Err(Error::Config(format!("no port named {name}"))),
            Some(Backing::Nic { device, nic }) => Ok((device, nic.as_ref())),
            Some(Backing::Vhost { .. }) => {
                Err(Error::Config(format!("port {name} is a guest's, not a network device's")))
            }
        }
    }

    /// The MTU that a NIC turned out to have.
    pub(super) fn set_nic_mtu(&mut self, id: PortId, mtu: u32) {
        if let Some(port) = self.ports.values_mut().find(|port| port.record.id == id) {
            port.settings.mtu = mtu;
            port.record.mtu.store(mtu, Ordering::Relaxed);
        }
    }

    /// Transmitqs of guests beside this NIC whose ports want lanes to it.
    pub(super) fn wishes_for(&self, nic: PortId) -> Vec<Wish> {
        let Some(bridge) = self.ports.values().find(|port| port.record.id == nic).map(|port| &port.bridge) else {
            return Vec::new();
        };
        let guests = self.ports.values().filter(|port| port.settings.zero_copy && port.bridge == *bridge);
        let seats =
            guests.flat_map(|port| self.places.seats_of(port.record.id).map(move |(vring, seat)| (port, vring, seat)));
        seats
            .map(|(port, vring, seat)| Wish { guest: Arc::clone(&port.record), vring, seat: Arc::clone(seat) })
            .collect()
    }

    /// Has every NIC's thread look that is on the bridge of this port, if the port's lanes may be other ones.
    pub(super) fn refresh_nics_beside(&self, id: PortId) {
        let Some(port) = self.ports.values().find(|port| port.record.id == id) else { return };
        for other in self.ports.values().filter(|other| other.bridge == port.bridge) {
            if let Backing::Nic { nic: Some(nic), .. } = &other.backing {
                nic.refresh();
            }
        }
    }

    /// True if this port wants lanes.
    pub(super) fn wants_zero_copy(&self, id: PortId) -> bool {
        self.ports.values().any(|port| port.record.id == id && port.settings.zero_copy)
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

    /// The id of a port of this name.
    pub(super) fn id_of(&self, name: &str) -> Option<PortId> {
        self.ports.get(name).map(|port| port.record.id)
    }

    /// A port's name, while it is there.
    pub(super) fn name_of(&self, id: PortId) -> Option<String> {
        self.ports.iter().find(|(_, port)| port.record.id == id).map(|(name, _)| name.clone())
    }

    /// The Ethernet address of a network device's port, as it was seen last.
    pub(super) fn address_of(&self, id: PortId) -> Mac {
        let port = self.ports.values().find(|port| port.record.id == id);
        Mac(port.map_or(0, |port| port.record.address.load(Ordering::Relaxed)))
    }

    pub(super) fn set_port(&mut self, name: &str, change: &PortChange) -> Result<()> {
        let port = self.ports.get_mut(name).ok_or_else(|| Error::Config(format!("no port named {name}")))?;
        match (change.zero_copy, &port.backing) {
            (Some(zero_copy), Backing::Vhost { kind, .. }) => check_zero_copy(name, *kind, zero_copy)?,
            (Some(true), Backing::Nic { .. }) => {
                return Err(Error::Config(format!("{name}: dq-zero-copy belongs to the guest's port")));
            }
            _ => {}
        }
        change.apply(name, &mut port.settings)?;
        port.record.mtu.store(port.settings.mtu, Ordering::Relaxed);
        if let (Some(mtu), Backing::Nic { nic: Some(nic), .. }) = (change.mtu, &port.backing) {
            nic.set_mtu(mtu);
        }
        port.admin_up = change.admin_up.unwrap_or(port.admin_up);
        Ok(())
    }

    /// Takes a port out; its id stays taken until [`Self::free`].
    pub(super) fn remove_port(&mut self, name: &str) -> Option<(Arc<PortRecord>, Backing)> {
        let port = self.ports.remove(name)?;
        self.leave_bond(port.record.id);
        if let Some(bridge) = self.bridges.get(&port.bridge) {
            bridge.fdb.flush_port(port.record.id);
        }
        Some((port.record, port.backing))
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

    pub(super) fn port_state(&self, name: &str, lanes: &Lanes) -> Option<PortState> {
        self.ports.get(name).map(|port| self.snapshot(name, port, lanes))
    }

    pub(super) fn port_states(&self, lanes: &Lanes) -> Vec<PortState> {
        self.ports.iter().map(|(name, port)| self.snapshot(name, port, lanes)).collect()
    }

    fn snapshot(&self, name: &str, port: &Port, lanes: &Lanes) -> PortState {
        let record = &port.record;
        let mut statistics = record.statistics();
        let (error, mut status) = match &port.backing {
            Backing::Vhost { endpoint: Some(endpoint), .. } => (endpoint.error(), endpoint.status()),
            Backing::Nic { nic: Some(nic), .. } => {
                nic.add_statistics(&mut statistics);
                record.add_lanes(&mut statistics);
                (nic.error(), nic.status())
            }
            _ => (None, BTreeMap::new()),
        };
        if port.settings.zero_copy {
            let obstacles: Vec<_> =
                self.places.seats_of(record.id).map(|(_, seat)| seat.memory().err().flatten()).collect();
            status.insert("zero-copy".to_owned(), lanes.state_of(record.id, &obstacles));
        }
        PortState {
            name: name.to_owned(),
            bridge: port.bridge.clone(),
            ofport: port.settings.ofport,
            admin_up: port.admin_up,
            link_up: record.link_up.load(Ordering::Acquire) && port.admin_up,
            link_resets: record.link_resets.load(Ordering::Relaxed),
            mtu: port.settings.mtu,
            error,
            status,
            statistics,
        }
    }

    pub(super) fn fdb(&self, bridge: &str, now_s: u32) -> Result<Vec<FdbEntry>> {
        let mut ofports: BTreeMap<PortId, u16> =
            self.ports.values().map(|p| (p.record.id, p.settings.ofport)).collect();
        // As in Open vSwitch, a bond is shown as the first of its links.
        for bond in self.bonds.values() {
            if let Some(ofport) = bond.first_link().and_then(|id| ofports.get(&id).copied()) {
                ofports.insert(bond.id, ofport);
            }
        }
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
    pub(super) fn fail_vring(&self, port: PortId, vring: u16, run: u64, cause: &FaultCause) {
        let started = self.receiveqs.get(&(port, vring)).map(|slot| slot.run);
        if started.or_else(|| self.places.seats.get(&(port, vring)).map(|seat| seat.run)) != Some(run) {
            // The vring was started anew since: its former self's trouble is over.
            return;
        }
        match self.ports.values().find(|p| p.record.id == port).map(|port| &port.backing) {
            Some(Backing::Vhost { endpoint: Some(endpoint), .. }) => {
                let until = "the queue is stopped until the guest's driver or VMM sets it up anew";
                endpoint.fail_vring(usize::from(vring), describe(cause, until));
            }
            Some(Backing::Nic { nic: Some(nic), .. }) => {
                nic.fail(describe(cause, "the network device is given up and taken over anew"));
            }
            _ => {}
        }
    }
}

fn describe(cause: &FaultCause, until: &str) -> String {
    match cause {
        FaultCause::Ring(ring) => format!("{ring}; {until}"),
        FaultCause::Panic(text) => format!("a bug in ovsvhost stopped it ({text}); please report it"),
    }
}

fn put(ports: &mut Vec<Option<PortView>>, id: PortId, view: PortView) {
    grow(ports, usize::from(id));
    if let Some(place) = ports.get_mut(usize::from(id)) {
        *place = Some(view);
    }
}

fn grow<T>(places: &mut Vec<Option<T>>, index: usize) {
    if places.len() <= index {
        places.resize_with(index + 1, || None);
    }
}
