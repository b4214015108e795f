// SPDX-License-Identifier: Apache-2.0
//! Eventfds: one side as the ring takes it, the other to wait on or to count.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// An eventfd as a file, come the way a front-end's come: over a socket.
pub fn eventfd() -> File {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.send_with_fd(&[0_u8][..], EventFd::new(EFD_NONBLOCK).unwrap().as_raw_fd()).unwrap();
    let (_, file) = theirs.recv_with_fd(&mut [0]).unwrap();
    file.expect("the descriptor came along")
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
