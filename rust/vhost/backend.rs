//! From a typed request to a call on whoever holds the protocol state.
//!
//! The requests that the trait of the `vhost` crate knows go through it, those that it leaves out through
//! [`Beside`]. What a refusal means (an answer, or the end of the session) is the session's to say.

use std::fs::File;

use vhost::vhost_user::message::{VhostUserVringAddrFlags, VhostUserVringState};
use vhost::vhost_user::{Error as VhostError, Result as VhostResult, VhostUserBackendReqHandlerMut};

use super::wire::{self, Header, Request, name};
use crate::error::Error;

/// The requests of vhost-user that the trait of the `vhost` crate leaves out.
pub(super) trait Beside {
    /// `vhost-user: NET_SET_MTU`; bytes of IP payload.
    fn set_mtu(&mut self, mtu: u64) -> VhostResult<()>;
    /// `vhost-user: SEND_RARP`.
    fn send_rarp(&mut self, mac: [u8; 6]) -> VhostResult<()>;
    /// `vhost-user: SET_LOG_FD`.
    fn set_log_fd(&mut self, file: File) -> VhostResult<()>;
    /// `vhost-user: SET_STATUS`; the device status field of virtio 1.2 §2.1.
    fn set_status(&mut self, status: u64) -> VhostResult<()>;
    /// `vhost-user: GET_STATUS`.
    fn status(&self) -> u64;
    /// `vhost-user: POSTCOPY_ADVISE`: the userfaultfd that the front-end reads.
    fn postcopy_advise(&mut self) -> VhostResult<File>;
    /// `vhost-user: POSTCOPY_LISTEN`.
    fn postcopy_listen(&mut self) -> VhostResult<()>;
    /// `vhost-user: POSTCOPY_END`.
    fn postcopy_end(&mut self) -> VhostResult<()>;
    /// `vhost-user: SET_BACKEND_REQ_FD`: where our own requests go.
    fn set_backend_channel(&mut self, file: File) -> VhostResult<()>;
    /// `vhost-user: IOTLB_MSG`.
    fn iotlb_message(&mut self, message: wire::Iotlb) -> VhostResult<()>;
    /// True if the front-end has to be told where its regions are mapped here, and says when it knows.
    fn is_listening(&self) -> bool;
    /// The front-end knows.
    fn bases_are_known(&mut self);
}

/// What to tell the front-end.
pub(super) enum Answer {
    /// Nothing, or "done" if it asked to be told.
    Done,
    /// A number.
    Number(u64),
    /// A vring's index and a number.
    Vring(VhostUserVringState),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A descriptor and nothing else.
    File(File),
    /// Nothing, whatever it asked for.
    Silence,
}

/// Carries one of our errors through the trait of the `vhost` crate.
pub(super) fn wrap(error: Error) -> VhostError {
    VhostError::ReqHandlerError(std::io::Error::other(error))
}

/// Calls the one method that `request` means.
pub(super) fn dispatch<H>(handler: &mut H, header: Header, request: Request) -> VhostResult<Answer>
where
    H: VhostUserBackendReqHandlerMut + Beside,
{
    match request {
        Request::GetFeatures => return handler.get_features().map(Answer::Number),
        Request::SetFeatures(features) => handler.set_features(features)?,
        Request::SetOwner => handler.set_owner()?,
        Request::ResetOwner => handler.reset_owner()?,
        // An empty table is what the one with our addresses in it is acknowledged with.
        Request::SetMemTable { regions, .. } if regions.is_empty() && handler.is_listening() => {
            handler.bases_are_known();
            return Ok(Answer::Silence);
        }
        Request::SetMemTable { regions, files } => {
            let bases = handler.set_mem_table(&regions, files, None)?;
            if let Some(bases) = bases {
                return Ok(Answer::Bytes(wire::reply_table(header.code, &regions, &bases)));
            }
        }
        Request::SetLogBase { log, file } => {
            handler.set_log_base(&log, file)?;
            return Ok(Answer::Bytes(wire::reply_log(header.code, log)));
        }
        Request::SetLogFd(file) => handler.set_log_fd(file)?,
        Request::SetVringNum { index, num } => handler.set_vring_num(index, num)?,
        Request::SetVringAddr(addr) => handler.set_vring_addr(
            addr.index,
            VhostUserVringAddrFlags::from_bits_truncate(addr.flags),
            addr.descriptor,
            addr.used,
            addr.available,
            addr.log,
        )?,
        Request::SetVringBase { index, base } => handler.set_vring_base(index, base)?,
        Request::GetVringBase { index } => return handler.get_vring_base(index).map(Answer::Vring),
        Request::SetVringKick { index, file } => handler.set_vring_kick(index, file)?,
        Request::SetVringCall { index, file } => handler.set_vring_call(index, file)?,
        Request::SetVringErr { index, file } => handler.set_vring_err(index, file)?,
        Request::GetProtocolFeatures => {
            return handler.get_protocol_features().map(|features| Answer::Number(features.bits()));
        }
        Request::SetProtocolFeatures(features) => handler.set_protocol_features(features)?,
        Request::GetQueueNum => return handler.get_queue_num().map(Answer::Number),
        Request::SetVringEnable { index, enable } => handler.set_vring_enable(index, enable)?,
        Request::SendRarp(mac) => handler.send_rarp(mac)?,
        Request::NetSetMtu(mtu) => handler.set_mtu(mtu)?,
        Request::ResetDevice => handler.reset_device()?,
        Request::GetMaxMemSlots => return handler.get_max_mem_slots().map(Answer::Number),
        Request::AddMemReg { region, file } => {
            if let Some(base) = handler.add_mem_region(&region, file, None)? {
                return Ok(Answer::Bytes(wire::reply_region(header.code, &region, base)));
            }
        }
        Request::RegionsDone if handler.is_listening() => {
            handler.bases_are_known();
            return Ok(Answer::Silence);
        }
        Request::RegionsDone => {
            let text = format!("{} without a region, which only a post-copy migration has", name(header.code));
            return Err(wrap(Error::Peer(text)));
        }
        Request::PostcopyAdvise => return handler.postcopy_advise().map(Answer::File),
        Request::PostcopyListen => handler.postcopy_listen()?,
        Request::PostcopyEnd => {
            handler.postcopy_end()?;
            return Ok(Answer::Number(0));
        }
        Request::SetBackendReqFd(file) => handler.set_backend_channel(file)?,
        Request::IotlbMsg(message) => handler.iotlb_message(message)?,
        Request::RemMemReg(region) => handler.remove_mem_region(&region)?,
        Request::SetStatus(status) => handler.set_status(status)?,
        Request::GetStatus => return Ok(Answer::Number(handler.status())),
        Request::Unserved(_) => {
            let text = format!("{} was never offered to it", name(header.code));
            return Err(wrap(Error::Peer(text)));
        }
    }
    Ok(Answer::Done)
}
