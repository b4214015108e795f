//! The packet path's view: made anew from what control decided, and handed to the poll threads whole.

use std::sync::Arc;

use super::super::port::Settings;
use super::State;
use crate::pmd::{Bonding, BridgeView, PortView, Topology};
use crate::switch::PortId;

impl State {
    /// The packet path's view of all this.
    pub(in crate::datapath) fn topology(&self) -> Topology {
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
