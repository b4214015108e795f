//! From a typed request to a call on whoever holds the protocol state.
//!
//! The requests that every kind of device has go through the trait of the `vhost` crate, those of a network device
//! through [`NetExt`]. What a refusal means (an answer, or the end of the session) is the session's to say.

use std::fs::File;

use vhost::vhost_user::message::{VhostUserLog, VhostUserVringAddrFlags, VhostUserVringState};
use vhost::vhost_user::{Error as VhostError, Result as VhostResult, VhostUserBackendReqHandlerMut};

use super::wire::{Header, Request, name};
use crate::error::Error;

/// The requests of vhost-user that the trait of the `vhost` crate leaves out.
pub(super) trait NetExt {
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
}

/// What to tell the front-end.
pub(super) enum Answer {
    /// Nothing, or "done" if it asked to be told.
    Done,
    /// A number.
    Number(u64),
    /// A vring's index and a number.
    Vring(VhostUserVringState),
    /// A log's size and offset.
    Log(VhostUserLog),
}

/// Carries one of our errors through the trait of the `vhost` crate.
pub(super) fn wrap(error: Error) -> VhostError {
    VhostError::ReqHandlerError(std::io::Error::other(error))
}

/// Calls the one method that `request` means.
pub(super) fn dispatch<H>(handler: &mut H, header: Header, request: Request) -> VhostResult<Answer>
where
    H: VhostUserBackendReqHandlerMut + NetExt,
{
    match request {
        Request::GetFeatures => return handler.get_features().map(Answer::Number),
        Request::SetFeatures(features) => handler.set_features(features)?,
        Request::SetOwner => handler.set_owner()?,
        Request::ResetOwner => handler.reset_owner()?,
        Request::SetMemTable { regions, files } => drop(handler.set_mem_table(&regions, files, None)?),
        Request::SetLogBase { log, file } => {
            return handler.set_log_base(&log, file).map(|()| Answer::Log(log));
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
        Request::AddMemReg { region, file } => drop(handler.add_mem_region(&region, file, None)?),
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
