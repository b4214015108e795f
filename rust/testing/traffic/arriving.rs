// SPDX-License-Identifier: Apache-2.0
//! A guest that moves in by post-copy and whose frames are late.
//!
//! Its transmitq is full of frames, each on a page of its own, and each page comes only so long after the switch asked
//! for it, as from a host far away. What a switch does for its other guests meanwhile is what is to be seen. The frames
//! go to the guest's own address, so that no other guest gets them.

use std::time::{Duration, Instant};

use super::settings::EndSettings;
use crate::testing::driver::{ChainDriver, RingPlace, Segment, SplitDriver};
use crate::testing::frames::{Mac, vnet_header_size};
use crate::testing::frontend::{Frontend, Migration, Serve, Session};
use crate::testing::memory::RegionSpec;
use crate::testing::wire::features::{RING_PACKED, protocol};
use crate::testing::{Error, Result};

/// Rings lie in the first region, frames in the second.
const RINGS: usize = 0;
const FRAMES: usize = 1;
const FRAME: usize = 60;
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The guest, as long as it is kept.
#[derive(Debug)]
pub struct Arriving {
    source: Migration,
    transmitq: SplitDriver,
    sent: usize,
    frontend: Frontend,
}

impl Arriving {
    /// Makes the guest, waits for a switch at most `timeout`, and begins. Its frames come `late`.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Kernel` when memory or userfaultfd cannot be had, `Peer` when nobody comes or
    /// post-copy is not offered.
    pub fn begin(settings: &EndSettings, late: Duration, timeout: Duration) -> Result<Self> {
        let mut config = settings.frontend.clone();
        config.protocol |= protocol::PAGEFAULT;
        config.features &= !RING_PACKED;
        let (size, page) = (config.ring_size, settings.backing.page_size());
        let room = (usize::from(size) * page).max(1 << 20);
        config.regions = RegionSpec::spread(2, room, &settings.backing);
        let mut frontend = Frontend::new(config)?;
        let deadline = Instant::now() + timeout;
        while !frontend.try_connect()? {
            if Instant::now() > deadline {
                return Err(Error::Peer(format!("{}: nobody came", frontend.config().socket.display())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let agreed = frontend.session().map_or(0, Session::features);
        let mut place = || RingPlace::alloc(frontend.ram_mut(), RINGS, size);
        let places @ [receives, sends] = [place()?, place()?];
        // A ring without a buffer: nothing is received.
        SplitDriver::over(frontend.ram(), receives, size, agreed)?;
        let mut transmitq = SplitDriver::over(frontend.ram(), sends, size, agreed)?;
        transmitq.ring_mut().want_calls(false);
        let mac = settings.mac.unwrap_or(Mac([2, 0, 0, 0, 9, 9]));
        let bytes = [&vec![0; vnet_header_size(agreed)], &mac.0[..], &mac.0, &[0x88, 0xb5], &[0; FRAME - 14]].concat();
        let len = u32::try_from(bytes.len()).map_err(|_| Error::Config("a frame past 4 GiB".into()))?;
        for _ in 0..size {
            let gpa = frontend.ram_mut().alloc(FRAMES, bytes.len(), page)?;
            frontend.ram().window(gpa, bytes.len())?.write(0, &bytes);
            transmitq.add(&[Segment { gpa, len, writable: false }])?;
        }
        transmitq.publish();
        let pages = frontend.ram().take_away()?;
        let backend = frontend.postcopy()?;
        let policy = move |region, _| if region == RINGS { Serve::Now } else { Serve::After(late) };
        let source = frontend.serve(pages, backend, policy)?;
        frontend.start(&places, &[SplitDriver::first_base(); 2], 1)?;
        Ok(Self { source, transmitq, sent: usize::from(size), frontend })
    }

    /// Brings all that is late and says that it came, as a migration ends. Gives the pages that the switch asked for and
    /// the frames that it took while they were late.
    ///
    /// # Errors
    /// `Peer` when the back-end hung up.
    pub fn finish(mut self) -> Result<(u64, usize)> {
        while self.transmitq.poll_used().is_some() {
            self.sent -= 1;
        }
        let seen = (self.source.asked(), usize::from(self.transmitq.ring().size()) - self.sent);
        self.source.serve_all();
        // It carries that out before it ends.
        drop(self.source);
        self.frontend.end_postcopy()?;
        Ok(seen)
    }
}
