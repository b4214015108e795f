//! The one holder of protocol state: what the front-end negotiated, shared and set up, and which vrings are live.
//!
//! Every message changes the record first; then [`Handler::reconcile`] starts what can run and stops what must not. So
//! messages may come in any order, and there is one place that decides. Before a mapping, a size or an address
//! changes under a live vring, the vring is taken back from the [`PortLink`]; it comes back settled, and goes on at the
//! index where it stopped.
//!
//! A refusal is remembered by its subject until the front-end does better, so a port can say why it is down.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddr,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::backend::{NetExt, wrap};
use super::endpoint::Port;
use super::features;
use super::peer::Peer;
use super::status::SessionState;
use super::vring::{self, Kick, Vring, eventfd};
use super::{Level, PortLink};
use crate::error::{Error, Result};
use crate::memory::{GuestMap, RegionSpec, Uva};

const STATUS_FEATURES_OK: u8 = 8;

/// What a refusal was about; doing it right clears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Features,
    Memory,
}

/// The state of one session.
pub(super) struct Handler {
    port: Arc<Port>,
    peer: Peer,
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
    /// Node of the memory that holds the last ring started.
    numa: u32,
}

impl Handler {
    pub(super) fn new(port: Arc<Port>, peer: Peer) -> Self {
        Self {
            port,
            peer,
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
            numa: 0,
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
        for at in 0..self.vrings.len() {
            self.stop(at);
        }
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
            link_up: self.link_up,
            waiting_for: self.waiting_for(),
            problem: self.problem(),
        }
    }

    /// Why the link is down or degraded, with the cure.
    fn problem(&self) -> Option<String> {
        let faults = self.vrings.iter().find_map(|vring| vring.fault.as_ref());
        let told = self.refusals.values().next().or(faults).cloned();
        told.or_else(|| {
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
        (0..2).find_map(|at| {
            let name = vring::name(at);
            let Some(vring) = self.vrings.get(at) else { return Some(format!("{name} to be set up")) };
            match vring.missing() {
                Some(message) => Some(format!("{name} to be started (no {message} yet)")),
                None if vring.fault.is_some() => Some(format!("{name} to be set up anew")),
                None if !vring.is_enabled(features) => Some(format!("{name} to be enabled (SET_VRING_ENABLE)")),
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
        for at in 0..self.vrings.len() {
            match (self.may_run(at), self.vrings.get(at).is_some_and(|vring| vring.live)) {
                (true, false) => self.start(at),
                (false, true) => self.stop(at),
                _ => {}
            }
        }
        self.report();
    }

    fn may_run(&self, at: usize) -> bool {
        let (Some(vring), Some(features)) = (self.vrings.get(at), self.features) else { return false };
        self.memory.is_some() && vring.missing().is_none() && vring.fault.is_none() && vring.is_enabled(features)
    }

    fn start(&mut self, at: usize) {
        let (Some(memory), Some(features)) = (&self.memory, self.features) else { return };
        let Some(vring) = self.vrings.get_mut(at) else { return };
        match vring.activate(memory, features) {
            Ok(ring) => {
                vring.live = true;
                let ring_at = vring.addr.map_or(0, |addr| addr.descriptor);
                self.numa = memory.numa_node_at(Uva(ring_at)).unwrap_or(0);
                self.port.link.start(at, ring);
            }
            Err(e) => self.record_fault(at, &e.to_string()),
        }
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
        self.memory = (!map.is_empty()).then(|| Arc::new(map));
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
            GuestMap::map(specs, self.port.allow_file_memory).map(Some)
        });
        match map {
            Ok(None) => Ok(()),
            Ok(Some(map)) => self.remap(Ok(map)),
            Err(e) => {
                // The table that was is no more, whatever becomes of the new one.
                self.stop_all();
                self.memory = None;
                self.report();
                self.remap(Err(e))
            }
        }
    }

    fn accept_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !features::VIRTIO;
        if unknown != 0 {
            let text = format!("{} accepted features that were not offered: {}", self.peer, features::names(unknown));
            self.refusals.insert(Subject::Features, text.clone());
            return Err(Error::Peer(text));
        }
        self.refusals.remove(&Subject::Features);
        if self.features != Some(features) {
            self.stop_all();
            self.features = Some(features);
        }
        self.reconcile();
        Ok(())
    }

    /// Every vring has to be started again by the front-end.
    fn unstart_all(&mut self) {
        self.stop_all();
        for vring in &mut self.vrings {
            vring.kick = Kick::Stopped;
        }
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

fn not_offered<T>(what: &'static str) -> VhostResult<T> {
    Err(VhostError::InvalidOperation(what))
}

impl NetExt for Handler {
    fn set_mtu(&mut self, mtu: u64) -> VhostResult<()> {
        let mtu = u16::try_from(mtu).ok().filter(|&mtu| mtu >= 68);
        let mtu =
            mtu.ok_or_else(|| wrap(Error::Peer("an MTU outside 68..65535; check host_mtu of the guest".into())))?;
        self.mtu = Some(mtu);
        Ok(())
    }

    fn send_rarp(&mut self, mac: [u8; 6]) -> VhostResult<()> {
        self.announcement = Some(mac);
        self.report();
        Ok(())
    }

    fn set_status(&mut self, status: u64) -> VhostResult<()> {
        let status = u8::try_from(status)
            .map_err(|_| wrap(Error::Peer(format!("a device status of {status:#x}, past its eight bits"))))?;
        // A driver that sees FEATURES_OK gone knows that its choice was refused.
        let refused = self.refusals.contains_key(&Subject::Features);
        self.device_status = if refused { status & !STATUS_FEATURES_OK } else { status };
        if status == 0 {
            self.unstart_all();
        }
        Ok(())
    }

    fn status(&self) -> u64 {
        u64::from(self.device_status)
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.unstart_all();
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        self.stop_all();
        for vring in &mut self.vrings {
            // The front-end does not send the call and error descriptors again, nor the memory table.
            let (call, err, reported) = (vring.call.take(), vring.err.take(), vring.reported);
            *vring = Vring { call, err, reported, ..Vring::default() };
        }
        self.features = None;
        self.offered = false;
        self.device_status = 0;
        self.refusals.remove(&Subject::Features);
        self.report();
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        self.offered = true;
        Ok(features::VIRTIO)
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        self.accept_features(features).map_err(wrap)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.map_table(regions, files).map_err(wrap)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let at = vring_number(index).map_err(wrap)?;
        if !num.is_power_of_two() || num > 32_768 {
            let name = vring::name(at);
            return Err(wrap(Error::Peer(format!("{name}: a size of {num} is not a power of two in 1..32768"))));
        }
        if self.vring(at).size == num {
            return Ok(());
        }
        self.set_up(index, |vring| vring.size = num).map_err(wrap)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> VhostResult<()> {
        let addr = VhostUserVringAddr::new(index, flags, descriptor, used, available, log);
        let at = vring_number(index).map_err(wrap)?;
        let place = |addr: &VhostUserVringAddr| (addr.descriptor, addr.used, addr.available);
        let vring = self.vring(at);
        if vring.addr.as_ref().map(place) == Some(place(&addr)) && vring.fault.is_none() {
            vring.addr = Some(addr);
            return Ok(());
        }
        self.set_up(index, |vring| vring.addr = Some(addr)).map_err(wrap)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let base = u16::try_from(base);
        let base = base.map_err(|_| wrap(Error::Peer(format!("a base past 65535 for vring {index}, a split ring"))))?;
        self.set_up(index, |vring| vring.base = base).map_err(wrap)
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let mut base = 0;
        self.set_up(index, |vring| {
            vring.kick = Kick::Stopped;
            base = vring.base;
        })
        .map_err(wrap)?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let kick = match eventfd("kick", usize::from(index), fd) {
            Ok(Some(file)) => Kick::Eventfd(file),
            Ok(None) => Kick::Timer,
            Err(e) => {
                let text = e.to_string();
                self.set_up(u32::from(index), |vring| (vring.kick, vring.fault) = (Kick::Stopped, Some(text)))
                    .map_err(wrap)?;
                return Err(wrap(e));
            }
        };
        self.set_up(u32::from(index), |vring| vring.kick = kick).map_err(wrap)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let at = usize::from(index);
        let call = eventfd("call", at, fd).map_err(wrap)?;
        let ours = call.as_ref().map(vring::duplicate).transpose().map_err(wrap)?;
        let vring = self.vring(at);
        vring.call = ours;
        if vring.live {
            self.link().set_call(at, call);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> VhostResult<()> {
        let at = usize::from(index);
        let err = eventfd("err", at, fd).map_err(wrap)?;
        self.vring(at).err = err;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(features::PROTOCOL)
    }

    fn set_protocol_features(&mut self, protocol: u64) -> VhostResult<()> {
        let unknown = protocol & !features::PROTOCOL.bits();
        if unknown != 0 {
            let names = features::protocol_names(unknown);
            return Err(wrap(Error::Peer(format!("protocol features that were not offered: {names}"))));
        }
        self.protocol = protocol;
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(features::QUEUE_PAIRS)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        let at = vring_number(index).map_err(wrap)?;
        self.vring(at).enable = Some(enable);
        self.reconcile();
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(features::MEM_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        let allow_file_memory = self.port.allow_file_memory;
        let map = self.spec(region, fd).and_then(|spec| match &self.memory {
            Some(memory) => memory.with_region(spec, allow_file_memory),
            None => GuestMap::map(vec![spec], allow_file_memory),
        });
        self.remap(map).map_err(wrap)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let (gpa, uva, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let map = match &self.memory {
            Some(memory) => memory.without_region(gpa, uva, size),
            None => Err(Error::Peer(format!("guest memory: no region at {gpa:#x} to remove"))),
        };
        self.remap(map).map_err(wrap)
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> VhostResult<Vec<u8>> {
        not_offered("GET_CONFIG")
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> VhostResult<()> {
        not_offered("SET_CONFIG")
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> VhostResult<()> {
        not_offered("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> VhostResult<File> {
        not_offered("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> VhostResult<(VhostUserInflight, File)> {
        not_offered("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> VhostResult<()> {
        not_offered("SET_INFLIGHT_FD")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> VhostResult<Option<File>> {
        not_offered("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        not_offered("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        not_offered("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> VhostResult<()> {
        not_offered("SET_LOG_BASE")
    }
}
