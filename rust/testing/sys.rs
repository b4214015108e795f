// SPDX-License-Identifier: Apache-2.0
//! The few system calls the front-end needs and std does not have, checked.
#![allow(unsafe_code, reason = "system calls without a safe wrapper in std")]

use std::os::fd::RawFd;
use std::time::Duration;

use super::{Error, Result};

/// Whether the other side of `socket` hung up.
pub(super) fn hung_up(socket: RawFd) -> bool {
    poll_one(socket, libc::POLLRDHUP, 0) & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

fn poll_one(fd: RawFd, events: i16, timeout_ms: i32) -> i16 {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one entry, and the count says so.
    let found = unsafe { libc::poll(&raw mut entry, 1, timeout_ms) };
    if found > 0 { entry.revents } else { 0 }
}

/// Whether the other side of `socket` hangs up within `time`.
pub(super) fn hangs_up_within(socket: RawFd, time: Duration) -> bool {
    let timeout_ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    poll_one(socket, libc::POLLRDHUP, timeout_ms) & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Keeps the calling thread on one processor.
pub(super) fn pin(cpu: usize) -> Result<()> {
    // SAFETY: an all-zero set is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(Error::Config(format!("there is no processor {cpu}")));
    }
    // SAFETY: `cpu` is inside the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the size is that of the set; 0 is the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if rc != 0 {
        return Err(Error::last_os(format!("cannot run on processor {cpu}")));
    }
    Ok(())
}

/// How often the calling thread was taken off its processor for another (`getrusage(2)`).
pub(super) fn times_preempted() -> i64 {
    // SAFETY: an all-zero rusage is valid plain data.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live; RUSAGE_THREAD is always possible.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

/// Makes the calling thread, and those that it starts from now on, a stranger to files of others: user `nobody`, with no
/// rights but those that everybody has (`setresuid(2)`; the C library's would change the whole process).
///
/// # Errors
/// `Kernel` for whoever is not root.
pub fn become_nobody() -> Result<()> {
    const NOBODY: libc::uid_t = 65_534;
    const AS_IT_IS: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: three numbers; it changes what this thread may do and no memory.
    match unsafe { libc::syscall(libc::SYS_setresuid, AS_IT_IS, NOBODY, AS_IT_IS) } {
        0 => Ok(()),
        _ => Err(Error::last_os("cannot become nobody")),
    }
}
