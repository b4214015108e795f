//! AF_PACKET sockets: whole frames of one network device, a burst in one call, with what is left to be done to them.
//!
//! ```text
//!   Inbox   place[i] ◀── recvmmsg ── kernel      frame, virtio header (PACKET_VNET_HDR), VLAN tag (PACKET_AUXDATA)
//!   Outbox  place[i] ── sendmmsg ──▶ kernel      frame behind its virtio header; copied when the call returns
//! ```
//!
//! The kernel's rings (`PACKET_RX_RING`) are not used: a block of version 3 comes after a millisecond at the earliest, and
//! a place of version 2 must hold the longest frame there can be, 64 KiB when checksums and segments are left to be done.
//! Nothing here blocks.
#![allow(unsafe_code, reason = "packet(7), recvmmsg(2) and sendmmsg(2) are not in std")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Bytes of the virtio header in front of every frame (`struct virtio_net_hdr`, without `num_buffers`).
pub const HEADER_SIZE: usize = 10;
/// Words of the control part of a message: room for `struct tpacket_auxdata` behind its header, aligned.
const CONTROL_WORDS: usize = 6;

/// A socket that is bound to one device. The device is promiscuous as long as it is open.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    /// Takes whatever the device with that number receives, nothing that this host sends there.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ENODEV` without such a device, `ENETDOWN` if it is down.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        let socket = Self(promiscuous(ifindex)?);
        let on: libc::c_int = 1;
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
            set(&socket.0, libc::SOL_PACKET, option, &on)?;
        }
        socket.bind(libc::c_int::try_from(ifindex).map_err(io::Error::other)?)?;
        Ok(socket)
    }

    /// Gives the kernel `receive` and `send` bytes for what waits in either direction, as far as it allows.
    pub fn set_buffers(&self, receive: u32, send: u32) {
        let sizes = [(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, receive), (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, send)];
        for (option, forced, size) in sizes {
            // Without CAP_NET_ADMIN up to net.core.rmem_max and wmem_max: then it is less.
            let forced = set(&self.0, libc::SOL_SOCKET, forced, &size);
            let _ = forced.or_else(|_| set(&self.0, libc::SOL_SOCKET, option, &size));
        }
    }

    /// Receives as many frames as there are and `inbox` has places for; 0 if there is none.
    ///
    /// # Errors
    /// `ENETDOWN` once after the device went down.
    pub fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.reset();
        let (messages, count) = (inbox.messages.as_mut_ptr(), u32::try_from(inbox.messages.len()).unwrap_or(u32::MAX));
        // SAFETY: `count` messages, whose pointers `Inbox` keeps right; its maker keeps the places mapped.
        let done = unsafe { libc::recvmmsg(self.0.as_raw_fd(), messages, count, 0, std::ptr::null_mut()) };
        inbox.received = usize::try_from(done).unwrap_or(0);
        match done {
            0.. => Ok(inbox.received),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
                e => Err(e),
            },
        }
    }

    /// Sends frames `[from, to)` of `outbox`; gives how many the kernel took, at least one.
    ///
    /// # Errors
    /// Why it did not take the first: `EAGAIN` and `ENOBUFS` pass by themselves.
    pub fn send(&self, outbox: &mut Outbox, from: usize, to: usize) -> io::Result<usize> {
        let Some(messages) = outbox.messages.get_mut(from..to) else { return Ok(0) };
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        // SAFETY: `count` messages, whose pointers `Outbox` keeps right; its maker keeps the places mapped.
        let done = unsafe { libc::sendmmsg(self.0.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// True if a frame waits.
    pub fn is_readable(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd, and no waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    /// Frames that found no room since the last call (`PACKET_STATISTICS`).
    pub fn take_missed(&self) -> u64 {
        let mut counted = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        #[allow(clippy::cast_possible_truncation, reason = "eight bytes")]
        let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let (level, option, to) = (libc::SOL_PACKET, libc::PACKET_STATISTICS, (&raw mut counted).cast());
        // SAFETY: a live tpacket_stats of `size` bytes.
        let failed = unsafe { libc::getsockopt(self.0.as_raw_fd(), level, option, to, &raw mut size) } != 0;
        if failed { 0 } else { counted.tp_drops.into() }
    }

    fn bind(&self, ifindex: libc::c_int) -> io::Result<()> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "constants of sixteen bits")]
        let (family, protocol) = (libc::AF_PACKET as u16, (libc::ETH_P_ALL as u16).to_be());
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (address.sll_family, address.sll_protocol, address.sll_ifindex) = (family, protocol, ifindex);
        #[allow(clippy::cast_possible_truncation, reason = "twenty bytes")]
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a live sockaddr_ll of `size` bytes.
        match unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Keeps a device promiscuous as long as it lives: what a guest is sent has the guest's address, not the device's.
#[derive(Debug)]
pub struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// The device with that number.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ENODEV` without such a device.
    pub fn hold(ifindex: u32) -> io::Result<Self> {
        promiscuous(ifindex).map(|socket| Self { _socket: socket })
    }
}

/// A socket of no protocol, which receives nothing, and its device promiscuous.
fn promiscuous(ifindex: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let ifindex = libc::c_int::try_from(ifindex).map_err(io::Error::other)?;
    let membership = Membership { ifindex, kind: PROMISCUOUS, address_size: 0, address: [0; 8] };
    set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: a live value of `size` bytes.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const PROMISCUOUS: u16 = 1;

/// `struct packet_mreq`.
#[repr(C)]
struct Membership {
    ifindex: libc::c_int,
    kind: u16,
    address_size: u16,
    address: [u8; 8],
}

/// A frame as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// What is left to be done to it.
    pub header: [u8; HEADER_SIZE],
    /// Bytes, without the header.
    pub len: u32,
    /// There was more of it than its place holds.
    pub is_cut: bool,
    /// The VLAN tag that the kernel took out of it: protocol and TCI.
    pub tag: Option<(u16, u16)>,
}

/// Where frames are received to.
#[derive(Debug)]
pub struct Inbox {
    messages: Box<[libc::mmsghdr]>,
    received: usize,
    headers: Box<[[u8; HEADER_SIZE]]>,
    controls: Box<[[u64; CONTROL_WORDS]]>,
    /// The messages point at them, two each.
    _pieces: Box<[[libc::iovec; 2]]>,
}

// SAFETY: the pointers lead to boxes of its own, and to places that any thread may use.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Receives into `places`, of `size` bytes each.
    ///
    /// # Safety
    /// They are mapped as long as the inbox lives, hold nothing but frames, and no two overlap.
    pub unsafe fn new(places: &[*mut u8], size: usize) -> Self {
        let count = places.len();
        let mut headers = vec![[0; HEADER_SIZE]; count].into_boxed_slice();
        let mut controls = vec![[0; CONTROL_WORDS]; count].into_boxed_slice();
        let pieces = |(header, place): (&mut [u8; HEADER_SIZE], &*mut u8)| {
            let header = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_SIZE };
            [header, libc::iovec { iov_base: place.cast(), iov_len: size }]
        };
        let mut pieces: Box<[_]> = headers.iter_mut().zip(places).map(pieces).collect();
        let messages = pieces.iter_mut().zip(controls.iter_mut());
        let messages = messages.map(|(pieces, control)| {
            let mut message = message(pieces.as_mut_ptr(), pieces.len());
            message.msg_hdr.msg_control = control.as_mut_ptr().cast();
            message
        });
        Self { messages: messages.collect(), received: 0, headers, controls, _pieces: pieces }
    }

    /// What the kernel changes in a message is as before.
    fn reset(&mut self) {
        for message in self.messages.iter_mut().take(self.received) {
            message.msg_hdr.msg_flags = 0;
        }
        for message in &mut self.messages {
            message.msg_hdr.msg_controllen = size_of::<[u64; CONTROL_WORDS]>();
        }
    }

    /// Frame number `index` of those received last.
    pub fn arrival(&self, index: usize) -> Option<Arrival> {
        let message = self.messages.get(..self.received)?.get(index)?;
        #[allow(clippy::cast_possible_truncation, reason = "ten")]
        let len = message.msg_len.saturating_sub(HEADER_SIZE as u32);
        let is_cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        Some(Arrival { header: *self.headers.get(index)?, len, is_cut, tag: self.tag(index, message) })
    }

    /// The tag in the message's control part, if it says that there was one: `struct cmsghdr` and `struct tpacket_auxdata`.
    fn tag(&self, index: usize, message: &libc::mmsghdr) -> Option<(u16, u16)> {
        let [size, kind, first, _, third, _] = *self.controls.get(index)?;
        let kind_wanted = u64::from(SOL_PACKET.to_le()) | u64::from(AUXDATA.to_le()) << 32;
        if message.msg_hdr.msg_controllen < CONTROL_SIZE || size < CONTROL_SIZE as u64 || kind != kind_wanted {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (status, tci, protocol) = (first as u32, third as u16, (third >> 16) as u16);
        let protocol = if status & libc::TP_STATUS_VLAN_TPID_VALID == 0 { VLAN } else { protocol };
        (status & libc::TP_STATUS_VLAN_VALID != 0).then_some((protocol, tci))
    }
}

const SOL_PACKET: u32 = 263;
const AUXDATA: u32 = 8;
const VLAN: u16 = 0x8100;
/// Of a control message with `struct tpacket_auxdata`: a header of sixteen bytes and twenty.
const CONTROL_SIZE: usize = 36;

/// Where frames to be sent are written.
#[derive(Debug)]
pub struct Outbox {
    messages: Box<[libc::mmsghdr]>,
    headers: Box<[[u8; HEADER_SIZE]]>,
    pieces: Box<[[libc::iovec; 2]]>,
}

// SAFETY: as for `Inbox`.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Sends from `places`.
    ///
    /// # Safety
    /// They are mapped as long as the outbox lives, and hold as many bytes as [`Self::put`] is told.
    pub unsafe fn new(places: &[*mut u8]) -> Self {
        let mut headers = vec![[0; HEADER_SIZE]; places.len()].into_boxed_slice();
        let pieces = |(header, place): (&mut [u8; HEADER_SIZE], &*mut u8)| {
            let header = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_SIZE };
            [header, libc::iovec { iov_base: place.cast(), iov_len: 0 }]
        };
        let mut pieces: Box<[_]> = headers.iter_mut().zip(places).map(pieces).collect();
        let messages = pieces.iter_mut().map(|pieces| message(pieces.as_mut_ptr(), pieces.len())).collect();
        Self { messages, headers, pieces }
    }

    /// Frame number `index` has `len` bytes in its place, and this is left to be done to it.
    pub fn put(&mut self, index: usize, len: u32, header: [u8; HEADER_SIZE]) {
        if let Some((place, [_, frame])) = self.headers.get_mut(index).zip(self.pieces.get_mut(index)) {
            (*place, frame.iov_len) = (header, len as usize);
        }
    }
}

fn message(pieces: *mut libc::iovec, count: usize) -> libc::mmsghdr {
    // SAFETY: all-zero is a valid mmsghdr: no name, no pieces, no control.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = pieces;
    message.msg_hdr.msg_iovlen = count;
    message
}
