// SPDX-License-Identifier: Apache-2.0
//! The front-end's end of a vhost-user socket: send with fds, await the one reply.
//!
//! Invariant: a reply is read whole or the channel is dead; every wait has a deadline.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{FLAG_REPLY, HEADER_SIZE, Message, Request};
use crate::testing::{Error, Result};

/// The largest reply payload that is believed.
const REPLY_LIMIT: usize = 4096;

/// What came back for a request.
#[derive(Debug)]
pub struct Reply {
    /// Bytes behind the header.
    pub payload: Vec<u8>,
    /// A file descriptor that came along.
    pub file: Option<File>,
}

impl Reply {
    /// The first 64-bit word.
    ///
    /// # Errors
    /// `Peer` when the payload is shorter.
    pub fn number(&self) -> Result<u64> {
        match self.payload.first_chunk() {
            Some(word) => Ok(u64::from_le_bytes(*word)),
            None => Err(short_reply(self.payload.len())),
        }
    }

    /// Vring index and number.
    ///
    /// # Errors
    /// `Peer` when the payload is shorter than two 32-bit words.
    pub fn vring(&self) -> Result<(u32, u32)> {
        let word = self.number()?;
        // Both halves fit by construction.
        #[expect(clippy::cast_possible_truncation, reason = "the low and the high half")]
        Ok((word as u32, (word >> 32) as u32))
    }
}

fn short_reply(size: usize) -> Error {
    Error::Peer(format!("the back-end's reply is too short: {size} bytes"))
}

/// A connected vhost-user socket.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// Messages that may still be sent before the socket is closed in place of one.
    left: Cell<Option<u32>>,
}

impl Channel {
    /// Takes a connected socket; each later wait for a reply, or for room to send, ends after
    /// `deadline`.
    ///
    /// # Errors
    /// `Kernel` when the socket refuses a timeout.
    pub fn new(stream: UnixStream, deadline: Duration) -> Result<Self> {
        let refused = || Error::kernel("cannot set a deadline on the vhost-user socket");
        stream.set_nonblocking(false).map_err(refused())?;
        stream.set_read_timeout(Some(deadline)).map_err(refused())?;
        stream.set_write_timeout(Some(deadline)).map_err(refused())?;
        Ok(Self { stream, left: Cell::new(None) })
    }

    /// Has the socket closed instead of sending the message with this number from now, counted
    /// from 0.
    pub fn hang_up_at(&mut self, number: Option<u32>) {
        self.left.set(number);
    }

    /// The socket itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message and the fds beside it.
    ///
    /// # Errors
    /// `Peer` when the back-end hung up or does not read.
    pub fn send(&self, message: &Message, fds: &[RawFd]) -> Result<()> {
        if let Some(left) = self.left.get() {
            if left == 0 {
                // The back-end sees the same end of file whatever shutdown says here.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            self.left.set(left.checked_sub(1));
        }
        self.send_bytes(&message.encode(), fds)
            .map_err(|error| Error::Peer(format!("cannot send {}: {error}", message.request.name())))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// `Peer` when the back-end hung up or does not read.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut rest = bytes;
        let mut fds = fds;
        while !rest.is_empty() {
            let sent = self
                .stream
                .send_with_fds(&[rest], fds)
                .map_err(|error| Error::Peer(format!("the back-end is gone: {error}")))?;
            rest = rest.get(sent..).unwrap_or_default();
            fds = &[];
        }
        Ok(())
    }

    /// Sends a message and waits for its reply.
    ///
    /// # Errors
    /// `Peer` when the back-end hangs up, is silent past the deadline, or answers something else.
    pub fn ask(&self, message: &Message) -> Result<Reply> {
        self.send(message, &[])?;
        self.reply(message.request)
    }

    /// Waits for the reply to `request`.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub fn reply(&self, request: Request) -> Result<Reply> {
        let mut header = [0; HEADER_SIZE];
        let (got, file) = self
            .stream
            .recv_with_fd(&mut header)
            .map_err(|error| silent(request, &std::io::Error::from_raw_os_error(error.errno())))?;
        if got == 0 {
            return Err(Error::Peer(format!("the back-end hung up on {}", request.name())));
        }
        self.fill(request, header.get_mut(got..).unwrap_or_default())?;
        let [number, flags, size] = words(header);
        if number != request.0 || flags & FLAG_REPLY == 0 {
            return Err(Error::Peer(format!(
                "the back-end answered {} with message {number}, flags {flags:#x}",
                request.name()
            )));
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > REPLY_LIMIT {
            return Err(Error::Peer(format!("the back-end's reply to {} claims {size} bytes", request.name())));
        }
        let mut payload = vec![0; size];
        self.fill(request, &mut payload)?;
        Ok(Reply { payload, file })
    }

    fn fill(&self, request: Request, bytes: &mut [u8]) -> Result<()> {
        (&self.stream).read_exact(bytes).map_err(|error| silent(request, &error))
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn words(header: [u8; HEADER_SIZE]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(header.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

fn silent(request: Request, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Error::Peer(format!("the back-end did not answer {} in time", request.name()))
        }
        ErrorKind::UnexpectedEof => Error::Peer(format!("the back-end hung up in its reply to {}", request.name())),
        _ => Error::Peer(format!("the back-end is gone at {}: {error}", request.name())),
    }
}
