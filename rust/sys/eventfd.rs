//! The descriptors by which a front-end and a poll thread wake each other.
//!
//! An eventfd's `O_NONBLOCK` belongs to the description both sides share, so a peer can clear it, fill the counter, and
//! make our next call block. A poll thread therefore says which descriptor it is calling ([`Desk`]); somebody else
//! watches, and empties a counter on which a thread hangs. The notifier then counts as jammed, and its queue is stopped.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::sys::{file, process};

/// Where one thread says which descriptor it is calling, for a watcher to see.
#[derive(Debug)]
pub struct Desk {
    /// The thread.
    tid: i32,
    /// The descriptor, or -1.
    calling: AtomicI32,
    /// Calls begun; tells one long call from many short ones.
    calls: AtomicU64,
    /// The call that the watcher had to end.
    ended: AtomicU64,
}

thread_local! {
    static DESK: Cell<Option<&'static Desk>> = const { Cell::new(None) };
}

impl Desk {
    /// A desk for the calling thread, for as long as the process lives: poll threads are few.
    pub fn of_this_thread() -> &'static Self {
        DESK.get().unwrap_or_else(|| {
            let desk: &'static Self = Box::leak(Box::new(Self {
                tid: process::thread_id(),
                calling: AtomicI32::new(-1),
                calls: AtomicU64::new(0),
                ended: AtomicU64::new(0),
            }));
            DESK.set(Some(desk));
            desk
        })
    }

    /// The call under way: its descriptor and number.
    fn call(&self) -> Option<(i32, u64)> {
        let (fd, call) = (self.calling.load(Ordering::Acquire), self.calls.load(Ordering::Acquire));
        (fd >= 0).then_some((fd, call))
    }

    /// Looks at the desk; if it shows the very call that `last` saw, and its thread sleeps in the kernel instead of
    /// waiting for a core, that call hangs: empties its counter. Look at intervals of some milliseconds or more.
    pub fn watch(&self, last: &mut Option<u64>) {
        let Some((fd, call)) = self.call() else {
            *last = None;
            return;
        };
        if last.replace(call) != Some(call) || !process::is_asleep(self.tid) {
            return;
        }
        // The descriptor may be closed and its number taken anew at any moment. A duplicate stays what it is; if the same
        // call still shows after it was made, it is the one that hangs.
        let Ok(counter) = file::duplicate(fd) else { return };
        if self.call() == Some((fd, call)) {
            self.ended.store(call, Ordering::Release);
            file::read_if_ready(&counter);
        }
    }
}

/// The write side of an eventfd that a stranger sent: a call, or an error.
#[derive(Debug)]
pub struct Notifier(File);

impl Notifier {
    /// Takes the descriptor if it is an eventfd.
    ///
    /// # Errors
    /// `Peer` if it is anything else: a write to it could block or have other effects.
    pub fn new(file: File) -> Result<Self> {
        checked(file).map(Self)
    }

    /// True if a call now would find room in the counter, so that it cannot hang unless somebody fills it at once.
    pub fn is_ready(&self) -> bool {
        file::is_writable(&self.0)
    }

    /// Adds one. A full counter already wakes the other side, so its refusal is no loss. False if the call was jammed:
    /// do not call there again.
    pub fn notify(&self) -> bool {
        let Some(desk) = DESK.get() else {
            let _ = (&self.0).write(&1_u64.to_ne_bytes());
            return true;
        };
        let call = desk.calls.load(Ordering::Relaxed) + 1;
        desk.calls.store(call, Ordering::Release);
        desk.calling.store(self.0.as_raw_fd(), Ordering::Release);
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
        desk.calling.store(-1, Ordering::Release);
        desk.ended.load(Ordering::Acquire) != call
    }
}

/// Passes an eventfd through.
///
/// # Errors
/// `Peer` if it is anything else.
pub fn checked(file: File) -> Result<File> {
    if file::is_eventfd(&file) {
        Ok(file)
    } else {
        Err(Error::Peer("the descriptor sent as kick, call or err is not an eventfd".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::time::Duration;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn call_that_its_owner_jams_is_ended_and_named() {
        // A blocking eventfd whose counter is full: the next write hangs.
        let owner = EventFd::new(0).unwrap();
        owner.write(u64::MAX - 1).unwrap();
        let copy = owner.try_clone().unwrap().into_raw_fd();
        #[allow(unsafe_code, reason = "takes a descriptor as a front-end would send it")]
        // SAFETY: the copy was given up by its owner just above.
        let file = unsafe { File::from_raw_fd(copy) };
        let (desks, desk) = std::sync::mpsc::channel();
        let caller = std::thread::spawn(move || {
            desks.send(Desk::of_this_thread()).unwrap();
            Notifier::new(file).unwrap().notify()
        });
        let (desk, mut last) = (desk.recv().unwrap(), None);
        while !caller.is_finished() {
            desk.watch(&mut last);
            std::thread::park_timeout(Duration::from_millis(20));
        }
        assert!(!caller.join().unwrap(), "the jam is named");
    }

    #[test]
    fn honest_call_is_not_jammed() {
        let owner = EventFd::new(0).unwrap();
        let copy = owner.try_clone().unwrap().into_raw_fd();
        #[allow(unsafe_code, reason = "takes a descriptor as a front-end would send it")]
        // SAFETY: the copy was given up by its owner just above.
        let file = unsafe { File::from_raw_fd(copy) };
        let desk = Desk::of_this_thread();
        let notifier = Notifier::new(file).unwrap();
        let mut last = None;
        for _ in 0..3 {
            assert!(notifier.notify());
            desk.watch(&mut last);
        }
        assert_eq!(owner.read().unwrap(), 3);
    }
}
