//! userfaultfd(2): whoever reads the descriptor fills the pages that are missing in a mapping of this process.
//!
//! A thread that touches a missing page of a registered mapping sleeps in the kernel until the page is there. Nothing
//! here blocks.
#![allow(unsafe_code, reason = "userfaultfd(2), its ioctls and mincore(2) are not in std")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Bytes of the pages that [`pages_at_hand`] knows, as a power of two.
pub const SMALL_PAGE: u32 = 12;

const API: u64 = 0xaa;
/// `UFFD_FEATURE_MISSING_HUGETLBFS` and `UFFD_FEATURE_MISSING_SHMEM`.
const SHARED_MEMORY: u64 = 1 << 4 | 1 << 5;
const MODE_MISSING: u64 = 1;
const USER_MODE_ONLY: libc::c_int = 1;

const NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// A userfaultfd of this process, for shared memory.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Userfault {
    /// Opens one by the best way this process may use: `/dev/userfaultfd`, else the system call, else the system call for
    /// faults of user mode alone, which are the only ones that guest memory has here.
    ///
    /// # Errors
    /// The last refusal; `Unsupported` if the kernel has it not for shared memory (Linux 4.11 and later do).
    pub fn open() -> io::Result<Self> {
        let fd = from_device()
            .or_else(|_| from_system_call(0))
            .or_else(|e| from_system_call(USER_MODE_ONLY).map_err(|_| e))?;
        let this = Self(fd);
        let mut api = ApiArgument { api: API, features: 0, ioctls: 0 };
        this.ioctl(UFFDIO_API, &mut api)?;
        if api.features & SHARED_MEMORY != SHARED_MEMORY {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        Ok(this)
    }

    /// From now on a touch of a missing page in these bytes, whole pages of a mapping, waits for whoever reads the
    /// descriptor.
    pub fn register(&self, start: usize, size: usize) -> io::Result<()> {
        let mut argument = RegisterArgument { range: range(start, size), mode: MODE_MISSING, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut argument)
    }

    /// Lets everybody who waits for a page in these bytes look again.
    pub fn wake(&self, start: usize, size: usize) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut range(start, size))
    }

    fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the descriptor is open, and `argument` is a live structure of the size that is part of the request.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn range(start: usize, size: usize) -> Range {
    Range { start: start as u64, len: size as u64 }
}

fn from_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the device's one ioctl takes flags and gives a descriptor.
    owned(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) }))
}

fn from_system_call(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: userfaultfd(2) takes flags and gives a descriptor.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | flags) })
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True if [`pages_at_hand`] is true of `file`. Of a file that this process may not write to by its owner and mode, a
/// descriptor it was sent or not, the kernel says that every page is there: one past its end, too, which cannot be.
pub fn tells_pages_at_hand(file: &File) -> bool {
    let Ok(size) = file.metadata().map(|meta| meta.len().next_multiple_of(1 << SMALL_PAGE)) else { return false };
    let Ok(past) = libc::off_t::try_from(size) else { return false };
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), 1 << SMALL_PAGE, libc::PROT_READ, flags, file.as_raw_fd(), past) };
    if page == libc::MAP_FAILED {
        return false;
    }
    let mut is_there = [1];
    let is_true = pages_at_hand(page as usize, &mut is_there).is_ok() && is_there[0] & 1 == 0;
    // SAFETY: the mapping just made, which nobody else knows.
    unsafe { libc::munmap(page, 1 << SMALL_PAGE) };
    is_true
}

/// Of each small page from `start` on, one byte whose lowest bit says whether its file has it (`mincore(2)`). Asks only:
/// no page comes of it. Of huge pages it knows only those that were touched here.
pub fn pages_at_hand(start: usize, pages: &mut [u8]) -> io::Result<()> {
    // SAFETY: `pages` has room for one byte a page; a range that is not mapped gives ENOMEM.
    match unsafe { libc::mincore(start as *mut libc::c_void, pages.len() << SMALL_PAGE, pages.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How often the calling thread slept so far: a touch that had to wait for its page is a sleep (`getrusage(2)`).
pub fn sleeps_of_this_thread() -> i64 {
    // SAFETY: an all-zero rusage is valid plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live; RUSAGE_THREAD is always possible.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nvcsw
}
