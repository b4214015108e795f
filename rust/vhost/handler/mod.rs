//! The one holder of protocol state: what the front-end negotiated, shared and set up, and which vrings are live.
//!
//! Every message changes the record first; then [`Handler::reconcile`] starts what can run and stops what must not. So
//! messages may come in any order, and there is one place that decides. Before a mapping, a size or an address
//! changes under a live vring, the vring is taken back from the [`PortLink`]; it comes back settled, and goes on at the
//! index where it stopped.
//!
//! A refusal is remembered by its subject until the front-end does better, so a port can say why it is down.

mod iommu;
mod logging;
mod offer;
mod pace;
mod postcopy;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserMemoryRegion;

use super::endpoint::Port;
use super::features;
use super::peer::Peer;
use super::status::SessionState;
use super::vring::{self, Kick, Vring};
use super::{Level, PortLink};
use crate::error::{Error, Result};
use crate::memory::{GuestMap, RegionSpec};
use crate::ring::Past;
use iommu::Iommu;
use logging::Migration;
use offer::Bits;
pub(super) use offer::Made;
use postcopy::Postcopy;

/// What a refusal was about; doing it right clears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Features,
    Memory,
    /// Any other request, by its number.
    Request(u32),
}

/// The state of one session.
pub(super) struct Handler {
    port: Arc<Port>,
    peer: Peer,
    bits: Bits,
    features: Option<u64>,
    /// `GET_FEATURES` was answered: the front-end knows the offer.
    offered: bool,
    protocol: u64,
    device_status: u8,
    memory: Option<Arc<GuestMap>>,
    vrings: Vec<Vring>,
    mtu: Option<u16>,
    /// A `SEND_RARP` that came before anything could be sent.
    announcement: Option<[u8; 6]>,
    refusals: BTreeMap<Subject, String>,
    link_up: bool,
    /// A transmitq may wait for other ports to be back.
    is_held: bool,
    /// Node of the memory that holds the last ring started.
    numa: u32,
    migration: Migration,
    postcopy: Postcopy,
    iommu: Iommu,
}

impl Handler {
    pub(super) fn new(port: Arc<Port>, peer: Peer) -> Self {
        let bits = Bits::for_session(&port, &peer);
        Self {
            port,
            peer,
            bits,
            features: None,
            offered: false,
            protocol: 0,
            device_status: 0,
            memory: None,
            vrings: Vec::new(),
            mtu: None,
            announcement: None,
            refusals: BTreeMap::new(),
            link_up: false,
            is_held: false,
            numa: 0,
            migration: Migration::default(),
            postcopy: Postcopy::default(),
            iommu: Iommu::default(),
        }
    }

    /// True once the front-end may ask for an answer to any message.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// True if the front-end saw the offer and has not accepted any of it: a hang-up now may be its way to say no.
    pub(super) fn is_judging_features(&self) -> bool {
        self.offered && self.features.is_none()
    }

    /// Stops a vring that broke; the session and the other vrings go on.
    pub(super) fn fail_vring(&mut self, at: usize, reason: &str) {
        if !self.vrings.get(at).is_some_and(|vring| vring.live) {
            return;
        }
        self.stop(at);
        self.record_fault(at, reason);
        self.report();
    }

    /// Takes every vring back; the front-end may do with its memory what it likes.
    pub(super) fn end(&mut self) {
        // Transmitqs first: nothing is taken from a guest whose port may be on its way out of the topology.
        for first in [1, 0] {
            (first..self.vrings.len()).step_by(2).for_each(|at| self.stop(at));
        }
        self.abandon_postcopy();
        self.report();
    }

    /// What a snapshot shows of this session.
    pub(super) fn state(&self) -> SessionState {
        let live = |receiveq: bool| {
            let all = self.vrings.iter().enumerate();
            all.filter(|(at, vring)| vring.live && vring::is_receiveq(*at) == receiveq).count()
        };
        SessionState {
            peer: self.peer.clone(),
            features: self.features,
            numa: self.numa,
            vring_sizes: self.vrings.iter().map(|vring| vring.size).collect(),
            n_rxq: live(false),
            n_txq: live(true),
            guest_mtu: self.mtu,
            is_logging: self.is_logging(),
            link_up: self.link_up,
            waiting_for: self.waiting_for(),
            problem: self.problem(),
            postcopy: self.postcopy.state(),
            obstacles_to_ovs: self.obstacles_to_ovs(),
        }
    }

    /// Keeps why a request was refused until one of its kind is not. What has a subject of its own is kept there.
    pub(super) fn remember(&mut self, request: u32, refusal: Option<&String>) {
        match refusal {
            Some(text) if !self.refusals.values().any(|known| known == text) => {
                self.refusals.insert(Subject::Request(request), text.clone());
            }
            Some(_) => {}
            None => {
                self.refusals.remove(&Subject::Request(request));
            }
        }
    }

    /// Why the link is down or degraded, with the cure.
    fn problem(&self) -> Option<String> {
        let faults = self.vrings.iter().find_map(|vring| vring.fault.as_ref());
        let told = self.refusals.values().next().or(faults).cloned();
        told.or_else(|| self.overdue_page()).or_else(|| self.overdue_mapping()).or_else(|| {
            let started = self.vrings.iter().take(2).any(|vring| vring.missing().is_none());
            (started && self.memory.is_none()).then(|| {
                format!(
                    "{} started a queue but shared no memory; give the guest shared memory, e.g. \
                     memory-backend-memfd,share=on (libvirt: memAccess='shared')",
                    self.peer
                )
            })
        })
    }

    /// What has to happen before the link is up.
    fn waiting_for(&self) -> Option<String> {
        if self.link_up {
            return None;
        }
        let Some(features) = self.features else {
            return Some("the guest's driver to start (no SET_FEATURES yet)".into());
        };
        if self.memory.is_none() {
            return Some("the front-end to share its memory".into());
        }
        if let Some(obstacle) = self.log_obstacle() {
            return Some(obstacle);
        }
        (0..2).find_map(|at| {
            let name = vring::name(at);
            let Some(vring) = self.vrings.get(at) else { return Some(format!("{name} to be set up")) };
            match vring.missing() {
                Some(message) => Some(format!("{name} to be started (no {message} yet)")),
                None if vring.fault.is_some() => Some(format!("{name} to be set up anew")),
                None if !vring.is_enabled(features) => Some(format!("{name} to be enabled (SET_VRING_ENABLE)")),
                None if let Some(obstacle) = self.log_obstacle_of(at) => Some(obstacle),
                None if self.is_interrupted() => Some(
                    "the rest of the guest's memory: it was on its way here when the session before this one ended"
                        .into(),
                ),
                None if vring.areas.is_none() => {
                    Some(format!("the guest's IOMMU to translate the addresses of {name}"))
                }
                None if !self.is_ring_here(at) => {
                    Some(format!("the pages of {name} to come from the source of the migration"))
                }
                None if self.is_held => Some("the other ports that were up before the switch died".into()),
                None => None,
            }
        })
    }

    fn link(&self) -> &dyn PortLink {
        &*self.port.link
    }

    fn event(&self, level: Level, kind: &'static str, text: String) {
        self.link().event(level, kind, text);
    }

    fn vring(&mut self, at: usize) -> &mut Vring {
        if self.vrings.len() <= at {
            self.vrings.resize_with(at + 1, Vring::default);
        }
        &mut self.vrings[at]
    }

    /// Changes what a vring is made of. It starts over: a fault is forgiven.
    fn set_up(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        let at = vring_number(index)?;
        self.stop(at);
        let vring = self.vring(at);
        vring.fault = None;
        change(vring);
        self.reconcile();
        Ok(())
    }

    /// Takes a vring back from the `PortLink`.
    fn stop(&mut self, at: usize) {
        let Some(vring) = self.vrings.get_mut(at).filter(|vring| vring.live) else { return };
        vring.live = false;
        if let Some(ring) = self.port.link.stop(at) {
            vring.base = ring.next_index();
        }
        // Nobody has the ring any more who could find another.
        self.port.forget_faults_of(at);
        self.port.recovery.stopped(&self.port.socket, at);
    }

    fn stop_all(&mut self) {
        for at in 0..self.vrings.len() {
            self.stop(at);
        }
    }

    fn record_fault(&mut self, at: usize, reason: &str) {
        let text = format!("{}: {reason}", vring::name(at));
        self.event(Level::Error, "peer_error", format!("{}: {text}", self.port.name));
        let vring = self.vring(at);
        vring.fault = Some(text);
        vring.signal_error();
    }

    /// Starts what can run, stops what must not, and tells what changed.
    fn reconcile(&mut self) {
        // Asked once: what it keeps from starting now is looked at again when it is over.
        self.is_held = self.port.recovery.hold_left().is_some();
        self.place_rings();
        for at in 0..self.vrings.len() {
            if !self.may_run(at) {
                self.stop(at);
            }
        }
        // What has to stop for want of a log marked the one before to the end.
        self.turn_logging();
        for at in 0..self.vrings.len() {
            if self.may_run(at) && self.vrings.get(at).is_some_and(|vring| !vring.live) {
                self.start(at);
            }
        }
        self.report();
    }

    fn may_run(&self, at: usize) -> bool {
        let (Some(vring), Some(features)) = (self.vrings.get(at), self.features) else { return false };
        let is_ready =
            self.memory.is_some() && vring.missing().is_none() && vring.fault.is_none() && vring.is_enabled(features);
        let is_ready = is_ready && vring.areas.is_some() && self.is_ring_here(at);
        let is_ready = is_ready && self.log_obstacle().is_none() && self.log_obstacle_of(at).is_none();
        // Frames wait in the guest's ring for those who were there to receive them.
        is_ready && (vring::is_receiveq(at) || vring.live || !self.is_held)
    }

    /// True while transmitqs of this session wait for others to come back.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Starts what was held, once nothing is waited for.
    pub(super) fn look_again(&mut self) {
        self.reconcile();
    }

    fn start(&mut self, at: usize) {
        let (Some(memory), Some(features)) = (self.memory.clone(), self.features) else { return };
        self.forget_arrival();
        let past = self.past_of(at, &memory, features);
        let Some(vring) = self.vrings.get_mut(at) else { return };
        match vring.activate(&memory, features, past, &self.migration.logging) {
            Ok((ring, note)) => {
                vring.live = true;
                self.numa = vring.areas.and_then(|[desc, ..]| memory.numa_node_at(desc)).unwrap_or(0);
                self.port.link.on_node(self.numa);
                self.port.recovery.started(&self.port.socket, at);
                self.tell_start(at, note);
                self.port.link.start(at, ring);
                // Only now can it receive: who waits for that may go on.
                self.port.recovery.returned(&self.port.socket, at);
            }
            Err(e) => self.record_fault(at, &e.to_string()),
        }
    }

    /// Where a vring's place is written down, and where it stood. None if it cannot be: then it runs all the same.
    fn past_of(&self, at: usize, memory: &GuestMap, features: u64) -> Option<Past> {
        let identity = self.vrings.get(at)?.identity(at, &self.port.socket, memory, features)?;
        match self.port.recovery.seat(&identity) {
            Ok(seat) => {
                self.tell_start(at, seat.note);
                Some(Past { journal: seat.journal, is_known: seat.is_known })
            }
            Err(e) => {
                self.event(Level::Warning, "notice", format!("{}: {}: {e}", self.port.name, vring::name(at)));
                None
            }
        }
    }

    fn tell_start(&self, at: usize, note: Option<String>) {
        if let Some(note) = note {
            self.event(Level::Info, "notice", format!("{}: {}: {note}", self.port.name, vring::name(at)));
        }
    }

    /// The front-end knows where a vring stands from now on, or the vring begins anew.
    fn forget(&self, at: usize) {
        self.port.recovery.forget(&self.port.socket, at);
    }

    /// Tells the log and the `PortLink` what is different from the last time.
    fn report(&mut self) {
        let path = self.port.path();
        for (at, vring) in self.vrings.iter_mut().enumerate() {
            if vring.live != vring.reported {
                vring.reported = vring.live;
                let side = if vring::is_receiveq(at) { "tx" } else { "rx" };
                let state = if vring.live { "enabled" } else { "disabled" };
                let queue = at / 2;
                let text =
                    format!("State of queue {at} ( {side}_qid {queue} ) of vhost device '{path}' changed to '{state}'");
                self.port.link.event(Level::Info, "queue_state", text);
            }
        }
        let up = self.vrings.len() >= 2 && self.vrings.iter().take(2).all(|vring| vring.live);
        if up != self.link_up {
            self.link_up = up;
            self.link().link_changed(up);
            if up {
                let node = self.numa;
                self.event(Level::Info, "added", format!("vHost Device '{path}' has been added on numa node {node}"));
            } else {
                self.event(Level::Info, "removed", format!("vHost Device '{path}' has been removed"));
            }
        }
        if up && let Some(mac) = self.announcement.take() {
            self.link().announce(mac);
        }
    }

    /// Puts a new memory table in place, or records why not.
    fn remap(&mut self, map: Result<GuestMap>) -> Result<()> {
        let map = map.inspect_err(|e| {
            self.refusals.insert(Subject::Memory, e.to_string());
        })?;
        self.refusals.remove(&Subject::Memory);
        self.stop_all();
        let before = std::mem::replace(&mut self.memory, (!map.is_empty()).then(|| Arc::new(map)));
        if let Some(before) = before {
            before.replaced_by(self.memory.as_deref());
        }
        self.guard_memory();
        self.ask_for_acknowledgement();
        self.note_arrival();
        for vring in &mut self.vrings {
            vring.fault = None;
        }
        self.reconcile();
        Ok(())
    }

    fn spec(&self, region: &VhostUserMemoryRegion, file: File) -> Result<RegionSpec> {
        let (gpa, uva, size, mmap_offset) =
            (region.guest_phys_addr, region.user_addr, region.memory_size, region.mmap_offset);
        if self.peer.maps_privately(uva, &file) {
            return Err(Error::Peer(format!(
                "guest memory at {gpa:#x} is private to {}: what the guest writes never reaches this process; add \
                 share=on to its memory backend (libvirt: memAccess='shared')",
                self.peer
            )));
        }
        Ok(RegionSpec { gpa, uva, size, mmap_offset, file })
    }

    fn map_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let specs: Result<Vec<_>> = regions.iter().zip(files).map(|(region, file)| self.spec(region, file)).collect();
        let map = specs.and_then(|specs| {
            if specs.is_empty() {
                let text = "the memory table is empty: the guest has no shared memory; give it some, e.g. \
                            memory-backend-memfd,share=on (libvirt: memAccess='shared')";
                return Err(Error::Peer(text.into()));
            }
            if self.memory.as_ref().is_some_and(|memory| memory.same_table(&specs)) {
                return Ok(None);
            }
            GuestMap::map_incoming(specs, self.port.allow_file_memory, self.incoming()).map(Some)
        });
        match map {
            Ok(None) => Ok(()),
            Ok(Some(map)) => self.remap(Ok(map)),
            Err(e) => {
                // The table that was is no more, whatever becomes of the new one.
                self.stop_all();
                if let Some(before) = self.memory.take() {
                    before.replaced_by(None);
                }
                self.report();
                self.remap(Err(e))
            }
        }
    }

    fn accept_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offer();
        if unknown != 0 {
            let text = format!("{} accepted features that were not offered: {}", self.peer, features::names(unknown));
            self.refusals.insert(Subject::Features, text.clone());
            return Err(Error::Peer(text));
        }
        self.refusals.remove(&Subject::Features);
        // Logging comes and goes while rings run.
        if self.features.is_none_or(|before| (before ^ features) & !features::LOG_ALL != 0) {
            self.stop_all();
        }
        self.features = Some(features);
        self.guard_memory();
        self.forget_mappings();
        self.reconcile();
        Ok(())
    }

    /// Every vring has to be started again by the front-end.
    fn unstart_all(&mut self) {
        self.stop_all();
        for at in 0..self.vrings.len() {
            self.vring(at).kick = Kick::Stopped;
            self.forget(at);
        }
        self.forget_mappings();
        self.report();
    }
}

/// A vring's index; wire has checked its range.
fn vring_number(index: u32) -> Result<usize> {
    match usize::try_from(index) {
        Ok(at) if at < features::VRINGS => Ok(at),
        _ => Err(Error::Peer(format!("vring {index} is past the last of {}", features::VRINGS))),
    }
}
