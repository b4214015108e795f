//! Sorting a burst by output: a list per port, and the frames that go everywhere.

use super::deliver::Source;
use super::{PortView, Topology};
use crate::burst::MAX_BURST;
use crate::counters::Share;
use crate::switch::PortId;

/// Packets of a burst that go the same way, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    port: PortId,
    /// What those count for that go to this port alone.
    share: Share,
    len: usize,
    indices: [u8; MAX_BURST],
}

impl List {
    pub(super) const EMPTY: Self = Self { port: 0, share: Share::NONE, len: 0, indices: [0; MAX_BURST] };

    #[inline]
    pub(super) fn push(&mut self, index: u8) {
        if let Some(place) = self.indices.get_mut(self.len) {
            *place = index;
            self.len += 1;
        }
    }

    /// Adds a packet of `len` bytes to a single address.
    #[inline]
    pub(super) fn push_counted(&mut self, index: u8, len: u32) {
        self.push(index);
        self.share.count(len);
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        self.indices.get(..self.len).unwrap_or_default()
    }
}

const NO_LIST: u8 = u8::MAX;

/// One burst, sorted.
#[derive(Debug)]
pub(super) struct Groups {
    lists: Box<[List; MAX_BURST]>,
    count: usize,
    flood: List,
    /// Which list a port has in this burst.
    list_of: Vec<u8>,
}

impl Groups {
    pub(super) fn new() -> Self {
        Self { lists: Box::new([List::EMPTY; MAX_BURST]), count: 0, flood: List::EMPTY, list_of: Vec::new() }
    }

    /// Room for ports up to `count`; called when the topology changes, never per burst.
    pub(super) fn fit(&mut self, count: usize) {
        self.list_of.resize(count, NO_LIST);
    }

    /// The packets for `port`, to add to. None if there is no such port on `bridge`: whatever the verdict, no frame leaves
    /// its bridge.
    #[inline]
    pub(super) fn list(&mut self, port: PortId, bridge: usize, topology: &Topology) -> Option<&mut List> {
        let place = self.list_of.get_mut(usize::from(port))?;
        if *place == NO_LIST {
            if topology.port(port).is_none_or(|view| view.bridge != bridge) {
                return None;
            }
            #[allow(clippy::cast_possible_truncation, reason = "below MAX_BURST")]
            let next = self.count as u8;
            *place = next;
            if let Some(list) = self.lists.get_mut(self.count) {
                (list.port, list.share, list.len) = (port, Share::NONE, 0);
                self.count += 1;
            }
        }
        self.lists.get_mut(usize::from(*place))
    }

    /// What the packets count for that go to one port each, port by port.
    #[inline]
    pub(super) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.lists.iter().take(self.count).map(|list| &list.share)
    }

    /// Sends packet `index` to every other port of the bridge.
    #[inline]
    pub(super) fn flood(&mut self, index: u8) {
        self.flood.push(index);
    }

    /// The packets that go everywhere.
    #[inline]
    pub(super) fn flooded(&self) -> &[u8] {
        self.flood.as_slice()
    }

    /// Delivers everything. Gives the ports that the flooded packets were meant for.
    pub(super) fn deliver(&self, source: &mut Source<'_>, members: &[PortId]) -> usize {
        if self.flood.len > 0 {
            return self.deliver_flood(source, members);
        }
        let topology = source.topology;
        for list in self.lists.iter().take(self.count) {
            if let Some(port) = topology.port(list.port) {
                source.deliver(port, list.as_slice(), Some(&list.share));
            }
        }
        0
    }

    /// Empties every list.
    #[inline]
    pub(super) fn forget(&mut self) {
        for list in self.lists.iter().take(self.count) {
            if let Some(place) = self.list_of.get_mut(usize::from(list.port)) {
                *place = NO_LIST;
            }
        }
        (self.count, self.flood.len) = (0, 0);
    }

    /// Some frames go everywhere: each port gets those and its own, in the order they came.
    #[cold]
    fn deliver_flood(&self, source: &mut Source<'_>, members: &[PortId]) -> usize {
        let (mut receivers, topology, from) = (0, source.topology, source.port);
        for &to in members.iter().filter(|&&port| port != from) {
            let Some(port) = topology.port(to) else { continue };
            let own = self.list_of.get(usize::from(to)).and_then(|&place| self.lists.get(usize::from(place)));
            let own = own.map(List::as_slice).unwrap_or_default();
            if !is_up(port) {
                source.deliver(port, own, None);
                continue;
            }
            let mut both = List::EMPTY;
            let (mut a, mut b) = (own.iter().peekable(), self.flooded().iter().peekable());
            while let Some(&next) = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x < y => a.next(),
                (Some(_), None) => a.next(),
                _ => b.next(),
            } {
                both.push(next);
            }
            receivers += 1;
            source.deliver(port, both.as_slice(), None);
        }
        receivers
    }
}

fn is_up(port: &PortView) -> bool {
    port.admin_up && !port.receiveqs.is_empty()
}
