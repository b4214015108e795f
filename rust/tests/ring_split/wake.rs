// SPDX-License-Identifier: Apache-2.0
//! Eventfds: one side as the ring takes it, the other to wait on or to count.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An eventfd as a file, which is how sessions hand kicks and calls to rings.
#[allow(unsafe_code, reason = "EventFd gives its descriptor away only as a number")]
pub fn eventfd() -> File {
    let fd = EventFd::new(EFD_NONBLOCK).unwrap().into_raw_fd();
    // SAFETY: `into_raw_fd` gave up the only owner of this open descriptor.
    unsafe { File::from_raw_fd(fd) }
}

/// What was written since the last look.
pub fn count(file: &File) -> u64 {
    let mut bytes = [0; 8];
    let mut file = file;
    if file.read_exact(&mut bytes).is_ok() { u64::from_ne_bytes(bytes) } else { 0 }
}

/// Waits for a write and takes it; false when none came before the deadline.
pub fn wait(file: &File, deadline: Duration) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event).unwrap();
    let found = epoll.wait(deadline.as_millis() as i32, &mut [EpollEvent::default()]);
    found.is_ok_and(|n| n > 0) && count(file) > 0
}
