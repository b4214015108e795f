//! After a crash: nobody is polled before everybody who was there can receive again, or a time is over.
//!
//! A guest that is back first would send to guests that are not, and the switch would drop what the guest's own ring could
//! have held. The same goes for network devices that are about to carry. Those that stay away are named, and cost the
//! others that time once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::Key;
use crate::lock::Lock;

/// Who is waited for, and who waits.
#[derive(Debug)]
pub(super) struct Hold {
    /// When the first guest asked: until then there is nobody to hold, and ports may be long in coming.
    began: OnceLock<Instant>,
    longest: Duration,
    over: AtomicBool,
    sides: Lock<Sides>,
}

#[derive(Debug)]
struct Sides {
    /// Receiveqs that were live at the crash and are not yet.
    missing: BTreeSet<Key>,
    /// Ports whose devices are being taken over.
    devices: BTreeSet<String>,
    /// Told when it is over.
    waiting: Vec<EventFd>,
}

impl Hold {
    /// Waits for `missing`, at most `longest` from the first time that somebody asks for it.
    pub(super) fn new(missing: BTreeSet<Key>, longest: Duration) -> Self {
        let over = AtomicBool::new(missing.is_empty() || longest.is_zero());
        let sides = Sides { missing, devices: BTreeSet::new(), waiting: Vec::new() };
        Self { began: OnceLock::new(), longest, over, sides: Lock::new(sides) }
    }

    /// How long it can last yet; None once it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        let is_over = self.over.load(Ordering::Acquire);
        (!is_over)
            .then(|| self.longest.saturating_sub(self.began.get_or_init(Instant::now).elapsed()))
            .filter(|left| !left.is_zero())
    }

    /// `waker` is written to when it ends before its time.
    pub(super) fn wake_at_end(&self, waker: EventFd) {
        self.with(|sides| sides.waiting.push(waker));
    }

    /// A vring is live again.
    pub(super) fn returned(&self, key: &Key) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        self.with(|sides| {
            if sides.missing.remove(key) {
                self.end_if_all_are_here(sides);
            }
        });
    }

    /// Waits for the device of this port too, if there is still somebody to hold.
    pub(super) fn expect_device(&self, port: &str) {
        if !self.over.load(Ordering::Acquire) {
            self.with(|sides| sides.devices.insert(port.to_owned()));
        }
    }

    /// It carries, or will not soon.
    pub(super) fn device_settled(&self, port: &str) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        self.with(|sides| {
            if sides.devices.remove(port) {
                self.end_if_all_are_here(sides);
            }
        });
    }

    fn end_if_all_are_here(&self, sides: &mut Sides) {
        if sides.missing.is_empty() && sides.devices.is_empty() {
            self.end(sides);
        }
    }

    /// Ends it if its time is over; gives the sockets of those that did not come back, to the first who asks.
    pub(super) fn expire(&self) -> Option<Vec<PathBuf>> {
        if self.over.load(Ordering::Acquire) || self.left().is_some() {
            return None;
        }
        self.with(|sides| {
            if self.over.load(Ordering::Acquire) {
                return None;
            }
            self.end(sides);
            let mut sockets: Vec<_> = std::mem::take(&mut sides.missing).into_iter().map(|key| key.socket).collect();
            sockets.dedup();
            Some(sockets)
        })
    }

    fn end(&self, sides: &mut Sides) {
        self.over.store(true, Ordering::Release);
        for waker in sides.waiting.drain(..) {
            // A counter that is full wakes just as well.
            let _ = waker.write(1);
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Sides) -> T) -> T {
        f(&mut self.sides.lock())
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn keys(names: &[&str]) -> BTreeSet<Key> {
        names.iter().map(|name| Key::new(name.as_ref(), 0)).collect()
    }

    #[test]
    fn it_ends_with_the_last_one_back_and_tells_who_waits() {
        let hold = Hold::new(keys(&["/a", "/b"]), Duration::from_secs(3600));
        let waker = EventFd::new(EFD_NONBLOCK).unwrap();
        hold.wake_at_end(waker.try_clone().unwrap());
        hold.returned(&Key::new("/a".as_ref(), 0));
        hold.returned(&Key::new("/stranger".as_ref(), 0));
        assert!(hold.left().is_some() && waker.read().is_err());
        hold.returned(&Key::new("/b".as_ref(), 0));
        assert!(hold.left().is_none() && waker.read().is_ok());
        assert_eq!(hold.expire(), None);
    }

    #[test]
    fn devices_that_are_being_taken_over_are_waited_for_as_well() {
        let hold = Hold::new(keys(&["/a"]), Duration::from_secs(3600));
        hold.expect_device("n0");
        hold.returned(&Key::new("/a".as_ref(), 0));
        hold.device_settled("n1");
        assert!(hold.left().is_some());
        hold.device_settled("n0");
        assert!(hold.left().is_none());
        let hold = Hold::new(keys(&["/a"]), Duration::from_secs(3600));
        hold.expect_device("n0");
        hold.device_settled("n0");
        assert!(hold.left().is_some());
        hold.returned(&Key::new("/a".as_ref(), 0));
        assert!(hold.left().is_none());
        hold.expect_device("n0");
        assert!(hold.left().is_none(), "what is over does not begin again");
    }

    #[test]
    fn those_that_stay_away_are_named_once() {
        let hold = Hold::new(keys(&["/a", "/b"]), Duration::from_nanos(1));
        while hold.left().is_some() {}
        assert_eq!(hold.expire(), Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(hold.expire(), None);
    }

    #[test]
    fn without_anybody_to_wait_for_there_is_none() {
        assert!(Hold::new(keys(&[]), Duration::from_secs(3600)).left().is_none());
        assert!(Hold::new(keys(&["/a"]), Duration::ZERO).left().is_none());
    }
}
