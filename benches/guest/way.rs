//! The way of a burst from driver to driver, as a poll thread walks it: gather, classify, deliver, commit.

use ovsvhost::burst::MAX_BURST;
use ovsvhost::switch::classify::{Cache, Output};
use ovsvhost::switch::fdb::{Fdb, Key};

use super::{FRAMES, RECEIVER, ReceivingGuest, SENDER, SendingGuest};

const FROM: u16 = 1;
const TO: u16 = 2;
const NOW_S: u32 = 1;

/// Two guests on a bridge that knows both.
pub(crate) struct Way {
    /// The one that sends.
    pub(crate) from: SendingGuest,
    /// The one that receives.
    pub(crate) to: ReceivingGuest,
    fdb: Fdb,
    cache: Cache,
}

impl Way {
    /// Between these two.
    pub(crate) fn new(from: SendingGuest, to: ReceivingGuest) -> Self {
        let fdb = Fdb::new(8192, 300);
        for (address, port) in [(SENDER, FROM), (RECEIVER, TO)] {
            let mac = ovsvhost::frame::ethernet::Mac::from_bytes(address);
            fdb.learn(Key::new(0, mac), port, NOW_S);
        }
        Self { from, to, fdb, cache: Cache::default() }
    }

    /// Moves what the sender made available; gives the number of frames that went to the receiver.
    #[inline(never)]
    pub(crate) fn walk(&mut self) -> usize {
        let mut moved = 0;
        let mut list = [0_u8; MAX_BURST];
        while let Ok(1..) = self.from.queue.gather() {
            self.cache.refresh(&self.fdb, NOW_S);
            let burst = self.from.queue.burst();
            self.cache.look_ahead(&self.fdb, burst.heads(), NOW_S);
            let mut count = 0;
            for ((index, head), place) in (0_u8..).zip(burst.heads()).zip(&mut list) {
                if self.cache.classify(&self.fdb, FROM, &head.0, false, NOW_S).0 == Output::Port(TO) {
                    *place = index;
                    count += 1;
                }
            }
            moved += self.to.queue.deliver(burst, list.get(..count).unwrap_or_default()).settled;
            self.to.queue.flush();
            self.from.queue.commit();
        }
        moved
    }

    /// Prepares a walk and checks what the one before did.
    pub(crate) fn prepare(&mut self) {
        self.to.empty();
        self.from.fill();
    }

    /// Walks once, and makes sure that every frame arrived.
    pub(crate) fn check(&mut self) {
        self.prepare();
        let moved = self.walk();
        assert_eq!(moved, usize::from(FRAMES), "frames were lost on the way");
    }
}
