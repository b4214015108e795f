//! AF_XDP sockets: frames between a network device's queue and memory of ours, over four rings shared with the kernel.
//!
//! ```text
//!   Socket ── register(memory) ── map four Rings ── bind(device, queue)
//!              fill ▶ kernel ▶ rx          tx ▶ kernel ▶ completion          (we produce ▶ ▶ we consume)
//! ```
//!
//! What is here are the system calls and the rings' words, every one an atomic: the kernel writes there too. What the
//! words mean is `port::afxdp`'s. Nothing here blocks.
#![allow(unsafe_code, reason = "AF_XDP has no wrapper in std, and its rings are memory shared with the kernel")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): descriptors that one kick sends at most; 32 without it.
const TX_SKB_BUDGET: libc::c_int = 9;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// How a socket is bound to its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The driver itself reads and writes our memory; else the kernel copies.
    pub zero_copy: bool,
    /// The rings say when the kernel wants to be woken.
    pub need_wakeup: bool,
    /// Frames of several descriptors.
    pub multi_buffer: bool,
}

/// Which ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingKind {
    /// Frames that the kernel may fill: we produce, one word each.
    Fill,
    /// Frames that it sent: we consume, one word each.
    Completion,
    /// Frames that it received: we consume, two words each.
    Rx,
    /// Frames to send: we produce, two words each.
    Tx,
}

impl RingKind {
    fn option(self) -> libc::c_int {
        match self {
            Self::Fill => libc::XDP_UMEM_FILL_RING,
            Self::Completion => libc::XDP_UMEM_COMPLETION_RING,
            Self::Rx => libc::XDP_RX_RING,
            Self::Tx => libc::XDP_TX_RING,
        }
    }

    fn page_offset(self) -> libc::off_t {
        match self {
            Self::Rx => libc::XDP_PGOFF_RX_RING,
            Self::Tx => libc::XDP_PGOFF_TX_RING,
            Self::Fill => 0x1_0000_0000,
            Self::Completion => 0x1_8000_0000,
        }
    }

    /// 64-bit words of one entry: an address, or `struct xdp_desc`.
    pub const fn words(self) -> usize {
        match self {
            Self::Fill | Self::Completion => 1,
            Self::Rx | Self::Tx => 2,
        }
    }
}

/// What the kernel counted (`XDP_STATISTICS`), since the socket was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that found no room, in the ring or in memory.
    pub rx_missed: u64,
    /// Descriptors of ours that it refused: there are none unless we are wrong.
    pub invalid: u64,
}

/// An AF_XDP socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` without AF_XDP in the kernel, `EPERM` without `CAP_NET_RAW`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Gives the kernel `size` bytes at `start` to keep frames in, cut into chunks of `chunk` bytes. It pins them.
    ///
    /// # Safety
    /// They are mapped, hold nothing but frames, and stay mapped as long as the socket is open.
    pub unsafe fn register(&self, start: *mut u8, size: usize, chunk: u32) -> io::Result<()> {
        let region =
            libc::xdp_umem_reg_v1 { addr: start.addr() as u64, len: size as u64, chunk_size: chunk, headroom: 0 };
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &region)
    }

    /// As [`Self::register`], of bytes in which a frame's parts may lie anywhere, up to `chunk` bytes each. The kernel reads
    /// them where they are, whether or not anything is mapped there later: they are pinned, and only read.
    ///
    /// # Safety
    /// They are mapped now.
    pub unsafe fn register_unaligned(&self, start: *mut u8, size: usize, chunk: u32) -> io::Result<()> {
        let region = libc::xdp_umem_reg {
            addr: start.addr() as u64,
            len: size as u64,
            chunk_size: chunk,
            headroom: 0,
            flags: libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG,
            tx_metadata_len: 0,
        };
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &region)
    }

    /// Makes a ring of `entries`, a power of two, and maps it.
    pub fn ring(&self, kind: RingKind, entries: u32) -> io::Result<Ring> {
        self.set(libc::SOL_XDP, kind.option(), &entries)?;
        let none = libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
        let mut offsets = libc::xdp_mmap_offsets { rx: none, tx: none, fr: none, cr: none };
        self.get(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
        let places = match kind {
            RingKind::Fill => offsets.fr,
            RingKind::Completion => offsets.cr,
            RingKind::Rx => offsets.rx,
            RingKind::Tx => offsets.tx,
        };
        Ring::map(self, kind, entries, &places)
    }

    /// Binds the socket to a queue of a device.
    ///
    /// # Errors
    /// `EBUSY`: another socket has the queue, or one that was closed a moment ago still gives frames back; `EINVAL`: no
    /// such queue; `EOPNOTSUPP`: not in this mode; `ENODEV`: no such device; `ENETDOWN`: it is down.
    pub fn bind(&self, ifindex: u32, queue: u32, binding: Binding) -> io::Result<()> {
        let mut flags = if binding.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
        if binding.need_wakeup {
            flags |= libc::XDP_USE_NEED_WAKEUP;
        }
        if binding.multi_buffer {
            flags |= libc::XDP_USE_SG;
        }
        let address = libc::sockaddr_xdp {
            sxdp_family: u16::try_from(libc::AF_XDP).unwrap_or_default(),
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
        // SAFETY: `address` is a live sockaddr_xdp of `size` bytes.
        match unsafe { libc::bind(self.as_raw_fd(), (&raw const address).cast(), size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has the kernel poll the device in our system calls, `budget` frames at a time, and hold its interrupts back
    /// meanwhile; for at most `us` microseconds a call.
    pub fn prefer_busy_poll(&self, us: u32, budget: u32) -> io::Result<()> {
        let (us, budget) = (libc::c_int::try_from(us), libc::c_int::try_from(budget));
        let (us, budget) = (us.unwrap_or(libc::c_int::MAX), budget.unwrap_or(libc::c_int::MAX));
        self.set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &(1 as libc::c_int))?;
        self.set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, &us)?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget)
    }

    /// Whether that is in force. The budget itself the kernel tells nobody.
    pub fn prefers_busy_poll(&self) -> io::Result<bool> {
        let (mut prefers, mut us): (libc::c_int, libc::c_int) = (0, 0);
        self.get(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &mut prefers)?;
        self.get(libc::SOL_SOCKET, libc::SO_BUSY_POLL, &mut us)?;
        Ok(prefers != 0 && us > 0)
    }

    /// Lets one kick send `descriptors`, where the kernel knows how; a kernel that does not sends 32.
    pub fn set_tx_budget(&self, descriptors: u32) {
        // What a refusal costs is another kick.
        let _ = self.set(libc::SOL_XDP, TX_SKB_BUDGET, &descriptors);
    }

    /// Has the kernel look at the tx ring, and send if it copies. Never waits.
    #[inline]
    pub fn kick_tx(&self) -> io::Result<()> {
        let nothing = std::ptr::null();
        // SAFETY: a message of no bytes and no address.
        let rc = unsafe { libc::sendto(self.as_raw_fd(), nothing, 0, libc::MSG_DONTWAIT, nothing.cast(), 0) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the kernel look at the fill ring, and poll the device if it was told to. Never waits.
    #[inline]
    pub fn kick_rx(&self) {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        let (no_address, no_size) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a message of no bytes and no address. What a refusal means shows in the rings.
        let _ = unsafe { libc::recvfrom(self.as_raw_fd(), nothing, 0, libc::MSG_DONTWAIT, no_address, no_size) };
    }

    /// What the kernel counted.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let mut counted = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        self.get(libc::SOL_XDP, libc::XDP_STATISTICS, &mut counted)?;
        // A ring that was full and a frame too long are told apart, and both lost; an empty fill ring may be a frame lost.
        let rx_missed = counted.rx_dropped + counted.rx_ring_full + counted.rx_fill_ring_empty_descs;
        Ok(Statistics { rx_missed, invalid: counted.rx_invalid_descs + counted.tx_invalid_descs })
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: `value` is live and has `size` bytes.
        match unsafe { libc::setsockopt(self.as_raw_fd(), level, option, value, size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn get<T>(&self, level: libc::c_int, option: libc::c_int, value: &mut T) -> io::Result<()> {
        let mut size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
        let value = std::ptr::from_mut(value).cast();
        // SAFETY: `value` is live and has `size` bytes, of which the kernel writes no more; any bytes make a `T` here.
        match unsafe { libc::getsockopt(self.as_raw_fd(), level, option, value, &raw mut size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// One ring of a socket, mapped: two indices that run freely, flags, and entries of one or two words.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<libc::c_void>,
    size: usize,
    entries: u32,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    words: NonNull<AtomicU64>,
    word_count: usize,
}

// SAFETY: a shared mapping that any thread may use; every access is atomic.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    fn map(socket: &Socket, kind: RingKind, entries: u32, at: &libc::xdp_ring_offset) -> io::Result<Self> {
        let word_count = entries as usize * kind.words();
        let place = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let (producer, consumer) = (place(at.producer)?, place(at.consumer)?);
        let (flags, words) = (place(at.flags)?, place(at.desc)?);
        let size = words + word_count * size_of::<u64>();
        let is_sound = [producer, consumer, flags].iter().all(|at| at.is_multiple_of(4) && at + 4 <= size);
        if !is_sound || !words.is_multiple_of(8) {
            return Err(io::Error::other("the kernel's places in an AF_XDP ring make no sense"));
        }
        let (access, sharing) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), size, access, sharing, socket.as_raw_fd(), kind.page_offset()) };
        let base = NonNull::new(base).filter(|base| base.as_ptr() != libc::MAP_FAILED);
        let base = base.ok_or_else(io::Error::last_os_error)?;
        let part = |offset: usize| NonNull::new(base.as_ptr().cast::<u8>().wrapping_add(offset)).unwrap_or(base.cast());
        Ok(Self {
            base,
            size,
            entries,
            producer: part(producer).cast(),
            consumer: part(consumer).cast(),
            flags: part(flags).cast(),
            words: part(words).cast(),
            word_count,
        })
    }

    /// Entries, a power of two.
    #[inline]
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Never: a ring has entries.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many entries were ever produced, modulo 2^32.
    #[inline]
    pub fn producer(&self) -> &AtomicU32 {
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; the kernel uses it as an atomic too.
        unsafe { self.producer.as_ref() }
    }

    /// How many entries were ever consumed, modulo 2^32.
    #[inline]
    pub fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    /// `XDP_RING_NEED_WAKEUP` and others to come.
    #[inline]
    pub fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }
    }

    /// Every entry's words.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `word_count` aligned words inside the mapping, which lives as long as `self`; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.word_count) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of which nobody has a reference that outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr(), self.size) };
    }
}
