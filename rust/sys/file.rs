//! What kind of file a descriptor that a stranger sent us really is.
#![allow(unsafe_code, reason = "fstatfs(2), madvise(2) and their like are not in std")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// The file system a memory file lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// tmpfs or memfd.
    Shmem,
    /// hugetlbfs, or a memfd with `MFD_HUGETLB`.
    Hugetlb,
    /// Anything else: a disk, a network, FUSE.
    Other,
}

const TMPFS_MAGIC: i64 = 0x0102_1994;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Asks the kernel which file system `file` is on (`fstatfs(2)`).
pub fn backing(file: &File) -> io::Result<Backing> {
    // SAFETY: an all-zero statfs is valid plain data.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as `file` lives and `stat` is a live statfs.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match stat.f_type {
        TMPFS_MAGIC => Backing::Shmem,
        HUGETLBFS_MAGIC => Backing::Hugetlb,
        _ => Backing::Other,
    })
}

/// True if `file` is an eventfd: anything else as a kick or call could block or surprise a poll thread.
pub fn is_eventfd(file: &File) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

/// A second descriptor of whatever `fd` is now.
pub fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: fcntl copies a descriptor number or fails; no memory is involved.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `copy` is fresh and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// Claims `file` for this process alone, until it is closed (`flock(2)`). False if another has it.
pub fn claim(file: &File) -> io::Result<bool> {
    // SAFETY: flock takes a descriptor that is open for as long as `file` lives.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

/// Gives `file` its first `size` bytes, with pages that cannot be missing later (`fallocate(2)`).
pub fn reserve(file: &File, size: usize) -> io::Result<()> {
    let size = libc::off_t::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: fallocate takes a descriptor that is open for as long as `file` lives; no memory is involved.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file of `size` zero bytes that has no name anywhere; `name` is for who looks at this process (`memfd_create(2)`).
pub fn anonymous(name: &str, size: usize) -> io::Result<File> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a NUL-terminated name.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size as u64)?;
    Ok(file)
}

/// The calling process's effective user.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes the count of an eventfd if there is one, and never waits for it.
pub fn read_if_ready(file: &File) {
    let mut count = [0_u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: one live buffer of eight bytes; RWF_NOWAIT returns at once. A refusal leaves things as they are.
    let _ = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

/// True if a write to `file` would not block now.
pub fn is_writable(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one live pollfd; a timeout of zero never waits.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLOUT != 0
}

/// Keeps a guest mapping out of forks and core dumps. Advice only: a refusal changes nothing that matters.
pub fn keep_private(start: *mut u8, size: usize) {
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
        // SAFETY: both advices change bookkeeping only and touch no byte; a range that is not mapped gives ENOMEM.
        let _ = unsafe { libc::madvise(start.cast(), size, advice) };
    }
}

/// Asks for huge pages behind a mapping, before it is touched. Advice only, as [`keep_private`].
pub fn prefer_huge_pages(start: *mut u8, size: usize) {
    // SAFETY: as in `keep_private`.
    let _ = unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
}
