// SPDX-License-Identifier: Apache-2.0
//! Guests that are connected and say nothing.
//!
//! Each has its receive buffers posted and its rings enabled, and the process sleeps: what a switch spends on such
//! guests is then its own doing. They go when the crowd is dropped.

use std::time::{Duration, Instant};

use super::end::End;
use super::link::LinkState;
use super::settings::{EndSettings, Role};
use crate::testing::{Error, Result};

/// Ends have a number that fits their address.
const MOST: usize = 250;
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Silent guests.
#[derive(Debug)]
pub struct Crowd {
    ends: Vec<End>,
}

impl Crowd {
    /// Makes one end for each of `settings`; their sockets listen from here on.
    ///
    /// # Errors
    /// `Config` for none, too many or impossible settings, `Kernel` when memory or sockets cannot be had.
    pub fn new(settings: Vec<EndSettings>) -> Result<Self> {
        if settings.is_empty() || settings.len() > MOST {
            return Err(Error::Config(format!("a crowd has 1 to {MOST} ends: give --end so often")));
        }
        let ends = (1..).zip(settings).map(|(index, mut settings)| {
            settings.role = Some(Role::Receive);
            End::new(index, settings)
        });
        Ok(Self { ends: ends.collect::<Result<_>>()? })
    }

    /// The guests.
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Waits until a switch came to every socket.
    ///
    /// # Errors
    /// `Peer` naming the first socket that nobody came to in `timeout`, and why.
    pub fn join(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let now = Instant::now();
            for end in self.ends.iter_mut().filter(|end| end.link() == LinkState::Down) {
                end.look_after(now);
            }
            let Some(absent) = self.ends.iter().find(|end| end.link() == LinkState::Down) else { return Ok(()) };
            if now > deadline {
                let why = absent.last_error().unwrap_or("nobody came to the socket");
                return Err(Error::Peer(format!("{}: {why}", absent.frontend().config().socket.display())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
