// SPDX-License-Identifier: Apache-2.0
//! The other side of a network device: a network namespace of one's own, and a packet socket on the far end of a cable.
//!
//! A [`FarEnd`] is a `packet(7)` socket: it sends bytes as they are, and sees every frame that its device receives, its
//! VLAN tag put back where the kernel took it out. Nothing of the crate's own AF_XDP code is used here.
#![allow(unsafe_code, reason = "unshare(2) and packet(7) have no wrapper in std")]

use std::ffi::CString;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Error, Result};

/// `PACKET_IGNORE_OUTGOING`: what we send is not what we receive.
const IGNORE_OUTGOING: libc::c_int = 23;
/// `PACKET_AUXDATA`, and in it `TP_STATUS_VLAN_VALID`.
const AUXDATA: libc::c_int = 8;
const VLAN_VALID: u32 = 1 << 4;
/// Longest frame that can arrive.
const FRAME_MAX: usize = 66_000;

/// `struct tpacket_auxdata`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    len: u32,
    captured: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Runs `f` in a thread of its own, in a network namespace of its own, which goes with the last thread in it. Threads and
/// processes that it starts are in that namespace too.
///
/// # Errors
/// `Kernel`: this process may not (`CAP_SYS_ADMIN`).
///
/// # Panics
/// As `f` does.
pub fn in_own_namespace<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let body = move || {
        // SAFETY: unshare(2) takes no pointers and concerns the calling thread.
        let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if rc != 0 { Err(Error::last_os("no network namespace of one's own")) } else { Ok(f()) }
    };
    let thread = std::thread::Builder::new().name("namespace".into()).spawn(body);
    match thread.map_err(Error::kernel("no thread"))?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A packet socket on a device.
#[derive(Debug)]
pub struct FarEnd {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl FarEnd {
    /// On the device of this name in the calling thread's namespace. It sees what comes from now on.
    ///
    /// # Errors
    /// `Kernel`: there is no such device, or this process may not (`CAP_NET_RAW`).
    pub fn open(name: &str) -> Result<Self> {
        let c_name = CString::new(name).map_err(|_| Error::Config(format!("no device has the name {name:?}")))?;
        // SAFETY: a NUL-terminated name.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if index == 0 {
            return Err(Error::last_os(format!("no device {name}")));
        }
        let protocol = libc::c_int::from(0x0003_u16.to_be());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(Error::last_os(format!("no packet socket for {name}")));
        }
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let end = Self { socket, buffer: vec![0; FRAME_MAX] };
        for (level, option, value) in [
            (libc::SOL_PACKET, IGNORE_OUTGOING, 1),
            (libc::SOL_PACKET, AUXDATA, 1),
            // Room for every frame of a test: what is lost was lost before.
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20),
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20),
        ] {
            end.set(level, option, value)
                .map_err(Error::kernel(format!("packet socket of {name}, option {option}")))?;
        }
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
        address.sll_protocol = u16::try_from(protocol).unwrap_or_default();
        address.sll_ifindex = index.try_into().unwrap_or_default();
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
        // SAFETY: `address` is a live sockaddr_ll of `size` bytes.
        let rc = unsafe { libc::bind(end.socket.as_raw_fd(), (&raw const address).cast(), size) };
        if rc != 0 { Err(Error::last_os(format!("packet socket of {name}"))) } else { Ok(end) }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: `value` is live and has `size` bytes.
        match unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, option, (&raw const value).cast(), size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends a frame as it is; false if there is no room for it now.
    ///
    /// # Errors
    /// `Kernel`: too long for the device, or the device is down.
    pub fn send(&self, frame: &[u8]) -> Result<bool> {
        // SAFETY: a live buffer of that many bytes.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent >= 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => Ok(false),
            e => Err(Error::Kernel(format!("cannot send {} bytes", frame.len()), e)),
        }
    }

    /// The next frame that the device received, if there is one.
    ///
    /// # Errors
    /// `Kernel`: the device is gone or down.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        // As u64s, so that it is aligned for a cmsghdr.
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: `message` points at two live buffers, with their sizes.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(len) = usize::try_from(len) else {
            return match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(Error::Kernel("cannot receive from a packet socket".into(), e)),
            };
        };
        let mut frame = self.buffer.get(..len).unwrap_or_default().to_vec();
        // SAFETY: recvmsg(2) filled `message`; its control buffer is live.
        let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if head.is_null() {
            return Ok(Some(frame));
        }
        // SAFETY: a whole cmsghdr inside the control buffer, aligned by its type.
        let header = unsafe { head.read() };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, AUXDATA) {
            // SAFETY: as above; it only computes where the data starts.
            let data = unsafe { libc::CMSG_DATA(head) };
            // SAFETY: the kernel wrote an auxiliary structure there.
            let auxiliary = unsafe { data.cast::<Auxiliary>().read_unaligned() };
            const { assert!(offset_of!(Auxiliary, vlan_tpid) == 18 && size_of::<Auxiliary>() == 20) };
            if auxiliary.status & VLAN_VALID != 0 && frame.len() >= 12 {
                let tag = [auxiliary.vlan_tpid.to_be_bytes(), auxiliary.vlan_tci.to_be_bytes()].concat();
                frame.splice(12..12, tag);
            }
        }
        Ok(Some(frame))
    }
}
