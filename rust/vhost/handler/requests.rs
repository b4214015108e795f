//! The requests, each as what it changes in the record. Nothing here decides what runs: that is `reconcile`.

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddr,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::{Handler, Subject, vring_number};
use crate::error::Error;
use crate::memory::GuestMap;
use crate::ring::{check_size, feature};
use crate::vhost::backend::{Beside, wrap};
use crate::vhost::features;
use crate::vhost::vring::{self, Kick, Vring, eventfd};
use crate::vhost::wire::Iotlb;

const STATUS_FEATURES_OK: u8 = 8;

fn not_offered<T>(what: &'static str) -> VhostResult<T> {
    Err(VhostError::InvalidOperation(what))
}

impl Beside for Handler {
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

    fn set_log_fd(&mut self, file: File) -> VhostResult<()> {
        self.take_log_fd(file).map_err(wrap)
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

    fn postcopy_advise(&mut self) -> VhostResult<File> {
        self.advise().map_err(wrap)
    }

    fn postcopy_listen(&mut self) -> VhostResult<()> {
        self.listen().map_err(wrap)
    }

    fn postcopy_end(&mut self) -> VhostResult<()> {
        self.end_postcopy().map_err(wrap)
    }

    fn set_backend_channel(&mut self, file: File) -> VhostResult<()> {
        self.take_channel(file).map_err(wrap)
    }

    fn iotlb_message(&mut self, message: Iotlb) -> VhostResult<()> {
        self.take_iotlb(message).map_err(wrap)
    }

    fn is_listening(&self) -> bool {
        self.incoming().is_some()
    }

    fn bases_are_known(&mut self) {
        self.serve_faults();
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
        for at in 0..self.vrings.len() {
            self.forget(at);
        }
        for vring in &mut self.vrings {
            // The front-end does not send the call and error descriptors again, nor the memory table.
            let (call, err, reported) = (vring.call.take(), vring.err.take(), vring.reported);
            *vring = Vring { call, err, reported, ..Vring::default() };
        }
        self.features = None;
        self.offered = false;
        self.device_status = 0;
        self.refusals.remove(&Subject::Features);
        self.forget_mappings();
        self.report();
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        self.offered = true;
        Ok(self.offer())
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
        Ok(self.bases(regions))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let at = vring_number(index).map_err(wrap)?;
        // Before the features are known it may be a packed ring's; the start judges it again.
        let features = self.features.unwrap_or(feature::RING_PACKED);
        check_size(num, features).map_err(|e| wrap(Error::Peer(format!("{}: {e}", vring::name(at)))))?;
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
        let before = vring.addr.filter(|before| place(before) == place(&addr) && vring.fault.is_none());
        if before.is_some_and(|before| !self.marks_elsewhere(&before, &addr)) {
            // QEMU says it again, with the log flag, to a ring that runs.
            self.vring(at).addr = Some(addr);
            self.reconcile();
            return Ok(());
        }
        self.set_up(index, |vring| vring.addr = Some(addr)).map_err(wrap)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let is_split = self.features.is_some_and(|features| features & feature::RING_PACKED == 0);
        if is_split && base > 0xffff {
            return Err(wrap(Error::Peer(format!("a base past 65535 for vring {index}, a split ring"))));
        }
        // A packed ring's is two of 16 bits, available and used. They are equal, for buffers complete in order; some
        // front-ends (virtio-user) send the first alone.
        #[allow(clippy::cast_possible_truncation, reason = "the low half is meant")]
        self.set_up(index, |vring| vring.base = base as u16).map_err(wrap)
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let mut base = 0;
        self.set_up(index, |vring| {
            vring.kick = Kick::Stopped;
            base = vring.base;
        })
        .map_err(wrap)?;
        self.forget(vring_number(index).map_err(wrap)?);
        self.forget_mappings();
        let is_packed = self.features.is_some_and(|features| features & feature::RING_PACKED != 0);
        let used = if is_packed { u32::from(base) << 16 } else { 0 };
        Ok(VhostUserVringState::new(index, used | u32::from(base)))
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
        Ok(self.protocol_offer())
    }

    fn set_protocol_features(&mut self, protocol: u64) -> VhostResult<()> {
        let unknown = protocol & !self.protocol_offer().bits();
        if unknown != 0 {
            let names = features::protocol_names(unknown);
            return Err(wrap(Error::Peer(format!("protocol features that were not offered: {names}"))));
        }
        self.protocol = protocol;
        self.reconcile();
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
            Some(memory) if memory.len() as u64 >= features::MEM_SLOTS && !memory.holds(&spec) => {
                Err(Error::Peer(format!(
                    "guest memory: the {} slots that were announced are taken; remove a region first",
                    features::MEM_SLOTS
                )))
            }
            Some(memory) => memory.with_region(spec, allow_file_memory),
            None => GuestMap::map_incoming(vec![spec], allow_file_memory, self.incoming()),
        });
        self.remap(map).map_err(wrap)?;
        Ok(self.bases(&[**region]).and_then(|bases| bases.first().copied()))
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

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> VhostResult<()> {
        self.take_log(log, file).map_err(wrap)
    }
}
