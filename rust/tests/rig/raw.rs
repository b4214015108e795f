//! A front-end that says whatever bytes a test likes.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{GPA, MEMORY, Memory, SIZE, eventfd};

/// A message as bytes.
pub(crate) fn message(request: FrontendReq, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request.into(), flags, u32::try_from(body.len()).unwrap()] {
        bytes.extend_from_slice(&u32::to_ne_bytes(word));
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) const PLAIN: u32 = 1;
pub(crate) const NEED_REPLY: u32 = 9;

/// A front-end that speaks in bare bytes.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn send(&mut self, request: FrontendReq, body: &[u8]) {
        self.0.write_all(&message(request, PLAIN, body)).unwrap();
    }

    pub(crate) fn send_number(&mut self, request: FrontendReq, value: u64) {
        self.send(request, &value.to_ne_bytes());
    }

    pub(crate) fn send_vring(&mut self, request: FrontendReq, index: u32, num: u32) {
        let mut body = index.to_ne_bytes().to_vec();
        body.extend_from_slice(&num.to_ne_bytes());
        self.send(request, &body);
    }

    pub(crate) fn send_with(&mut self, request: FrontendReq, flags: u32, body: &[u8], fds: &[RawFd]) {
        self.0.send_with_fds(&[message(request, flags, body).as_slice()], fds).unwrap();
    }

    /// The payload of the next reply.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_ne_bytes(head[8..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(size).unwrap()];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    pub(crate) fn reply_number(&mut self) -> u64 {
        u64::from_ne_bytes(self.reply().try_into().unwrap())
    }

    /// Asks something, so that everything sent before has been handled when this returns.
    pub(crate) fn settle(&mut self) {
        self.send(FrontendReq::GET_FEATURES, &[]);
        self.reply();
    }

    /// Waits until the back-end hangs up.
    pub(crate) fn wait_hang_up(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
    }

    /// Shares memory, then starts the first pair of rings, all without asking for answers.
    pub(crate) fn share_and_start(&mut self, memory: &Memory) {
        self.share(memory);
        self.start_rings(memory);
        self.settle();
    }

    pub(crate) fn share(&mut self, memory: &Memory) {
        let mut body = [1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
        body.extend([GPA, MEMORY, memory.uva, 0].iter().flat_map(|word| word.to_ne_bytes()));
        self.send_with(FrontendReq::SET_MEM_TABLE, PLAIN, &body, &[memory.file.as_raw_fd()]);
    }

    pub(crate) fn start_rings(&mut self, memory: &Memory) {
        for at in 0..2_u32 {
            self.send_vring(FrontendReq::SET_VRING_NUM, at, u32::from(SIZE));
            let vring = memory.vring(usize::try_from(at).unwrap());
            let mut body = [at.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
            for word in [vring.desc_table_addr, vring.used_ring_addr, vring.avail_ring_addr, 0] {
                body.extend(word.to_ne_bytes());
            }
            self.send(FrontendReq::SET_VRING_ADDR, &body);
            let kick = eventfd();
            self.send_with(FrontendReq::SET_VRING_KICK, PLAIN, &u64::from(at).to_ne_bytes(), &[kick.as_raw_fd()]);
        }
    }
}
