//! bpf(2), as far as AF_XDP needs it: a map of sockets by queue, the program that sends frames there, and its attachment
//! to a network device.
//!
//! The program is six instructions, encoded here: there is no compiler and no object file to carry along. Attached by a
//! link it goes when its descriptor is closed, so also when this process dies.
#![allow(unsafe_code, reason = "bpf(2) takes raw structures")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// The program takes frames of several buffers: drivers refuse others where the MTU is large.
const XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack, for any device.
    Generic,
}

/// `struct xdp_md`: the offset of `rx_queue_index`.
const RX_QUEUE_INDEX: i16 = 16;
const BPF_REDIRECT_MAP: i32 = 51;
/// What becomes of a frame whose queue has no socket: the host gets it.
const XDP_PASS: i32 = 2;

/// One instruction (`struct bpf_insn`): operation, registers, offset, immediate.
fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [offset_lo, offset_hi] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, src << 4 | dst, offset_lo, offset_hi, a, b, c, d])
}

/// `return bpf_redirect_map(&map, ctx->rx_queue_index, XDP_PASS)`.
fn redirect(map: RawFd) -> [u64; 6] {
    const LOAD_WORD: u8 = 0x61;
    const LOAD_IMMEDIATE: u8 = 0x18;
    const PSEUDO_MAP_FD: u8 = 1;
    const MOVE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    [
        instruction(LOAD_WORD, 2, 1, RX_QUEUE_INDEX, 0),
        instruction(LOAD_IMMEDIATE, 1, PSEUDO_MAP_FD, 0, map),
        0,
        instruction(MOVE, 3, 0, 0, XDP_PASS),
        instruction(CALL, 0, 0, 0, BPF_REDIRECT_MAP),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// For `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// For `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
/// `A` is the kernel's structure for `command`, and the addresses in it are live for the kernel's reads.
unsafe fn bpf<A>(command: libc::c_int, attributes: &A) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes of a live structure; what that points at is the caller's word.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: bpf(2) just made `fd`, close-on-exec, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Sockets by queue (`BPF_MAP_TYPE_XSKMAP`).
#[derive(Debug)]
pub struct SocketMap(OwnedFd);

impl SocketMap {
    /// For queues below `queues`; none has a socket.
    pub fn new(queues: u32) -> io::Result<Self> {
        let attributes = MapCreate { map_type: MAP_TYPE_XSKMAP, key_size: 4, value_size: 4, max_entries: queues };
        // SAFETY: the structure of this command; it holds no address.
        owned(unsafe { bpf(MAP_CREATE, &attributes) }?).map(Self)
    }

    /// Frames of `queue` go to `socket` from now on. The map holds no claim on it: a socket that is closed leaves.
    pub fn set(&self, queue: u32, socket: &impl AsRawFd) -> io::Result<()> {
        let value = number(socket);
        let (key, value) = ((&raw const queue) as u64, (&raw const value) as u64);
        let attributes = MapUpdate { map_fd: number(&self.0), pad: 0, key, value, flags: 0 };
        // SAFETY: the structure of this command; key and value are four live bytes each, as the map was made.
        unsafe { bpf(MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }
}

/// An attached program. Dropping it detaches the program; a device that is gone did so already.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Runs "to the socket of its queue, else to the host" for every frame that the device receives.
    ///
    /// # Errors
    /// `EBUSY`: another program is attached; `EOPNOTSUPP`: the driver runs none; `EINVAL`, `ERANGE`: not with its present
    /// settings; `EPERM`: without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn attach(map: &SocketMap, ifindex: u32, mode: XdpMode) -> io::Result<Self> {
        let program = load(map)?;
        let flags = match mode {
            XdpMode::Native => XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let prog_fd = number(&program);
        let attributes = LinkCreate { prog_fd, target_ifindex: ifindex, attach_type: ATTACH_TYPE_XDP, flags };
        // SAFETY: the structure of this command; it holds no address.
        owned(unsafe { bpf(LINK_CREATE, &attributes) }?).map(Self)
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn load(map: &SocketMap) -> io::Result<OwnedFd> {
    let instructions = redirect(map.0.as_raw_fd());
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().zip(b"ovsvhost") {
        *to = *from;
    }
    let attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        insn_cnt: 6,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: XDP_HAS_FRAGS,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: ATTACH_TYPE_XDP,
    };
    // SAFETY: the structure of this command; instructions and licence are live, as long as it says or NUL-terminated.
    owned(unsafe { bpf(PROG_LOAD, &attributes) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_an_assembler_makes_of_it() {
        // r2 = *(u32 *)(r1 + 16); r1 = map 7 ll; r3 = 2; call 51; exit
        let bytes: Vec<u8> = redirect(7).iter().flat_map(|word| word.to_le_bytes()).collect();
        let expected = [
            [0x61, 0x12, 16, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 7, 0, 0, 0],
            [0; 8],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }
}
