//! Directory watches (`inotify(7)`): who waits for a socket file learns of it at once instead of by polling.
//!
//! A user may have few inotify instances (128 by default) and many watches, so the process has one instance and one
//! thread that reads it, and each watch an eventfd of its own.
#![allow(unsafe_code, reason = "inotify has no wrapper in std or vmm-sys-util")]

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::thread;

use crate::lock::Lock;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A name appeared, or its mode changed; or the directory itself went away.
const EVENTS: u32 = libc::IN_CREATE
    | libc::IN_MOVED_TO
    | libc::IN_ATTRIB
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR;

/// Size of the fixed part of an event: `wd`, `mask`, `cookie`, `len`, four bytes each.
const HEAD: usize = 16;

/// The process's instance. A forked child makes its own: the thread stayed with the parent.
static WATCHER: Lock<Option<Arc<Watcher>>> = Lock::new(None);

/// Who waits for what in one directory.
type Waiting = Vec<(OsString, Arc<EventFd>)>;

#[derive(Debug)]
struct Watcher {
    queue: File,
    /// By watch descriptor.
    waiting: Lock<HashMap<i32, Waiting>>,
    /// The process it was made in.
    process: u32,
}

impl Watcher {
    /// The process's watcher, made when first asked for.
    fn get() -> io::Result<Arc<Self>> {
        let mut place = WATCHER.lock();
        if let Some(watcher) = place.as_ref().filter(|watcher| watcher.process == std::process::id()) {
            return Ok(Arc::clone(watcher));
        }
        // SAFETY: inotify_init1(2) takes no pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        let queue = unsafe { File::from_raw_fd(fd) };
        let watcher = Arc::new(Self { queue, waiting: Lock::default(), process: std::process::id() });
        let reader = Arc::clone(&watcher);
        thread::Builder::new().name("vhost-watch".into()).spawn(move || reader.run())?;
        *place = Some(Arc::clone(&watcher));
        Ok(watcher)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<i32, Waiting>> {
        self.waiting.lock()
    }

    /// Tells everybody what they wait for, for as long as the process lives.
    fn run(&self) {
        let mut buffer = [0_u8; 4096];
        loop {
            let size = match (&self.queue).read(&mut buffer) {
                Ok(size) => size,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Whoever waits looks again by timer as well.
                Err(_) => return,
            };
            let waiting = self.waiting();
            let mut rest = buffer.get(..size).unwrap_or_default();
            while let Some((wd, name, after)) = event(rest) {
                // An overflow of the queue is everybody's business: it has no watch descriptor.
                let concerned = waiting.iter().filter(|(known, _)| wd < 0 || **known == wd);
                for (wanted, told) in concerned.flat_map(|(_, waiting)| waiting) {
                    // An event about the directory itself has no name.
                    if name.is_empty() || name == wanted.as_os_str() {
                        // A counter that is full tells just as well.
                        let _ = told.write(1);
                    }
                }
                rest = after;
            }
        }
    }
}

/// A watch for one name in one directory; readable once something happened to it, or to the directory itself.
#[derive(Debug)]
pub struct DirectoryWatch {
    watcher: Arc<Watcher>,
    wd: i32,
    told: Arc<EventFd>,
}

impl DirectoryWatch {
    /// Watches `directory` for `name` to appear or change.
    ///
    /// # Errors
    /// `EMFILE`: `fs.inotify.max_user_instances` or the limit of open files is used up; `ENOSPC`:
    /// `fs.inotify.max_user_watches` is.
    pub fn new(directory: &Path, name: &OsStr) -> io::Result<Self> {
        let watcher = Watcher::get()?;
        let told = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // Held over both steps: what happens after the first is told to who is entered by the second.
        let mut waiting = watcher.waiting();
        // SAFETY: `path` is a live NUL-terminated string.
        let wd = unsafe { libc::inotify_add_watch(watcher.queue.as_raw_fd(), path.as_ptr(), EVENTS) };
        if wd < 0 {
            return Err(io::Error::last_os_error());
        }
        waiting.entry(wd).or_default().push((name.to_owned(), Arc::clone(&told)));
        drop(waiting);
        Ok(Self { watcher, wd, told })
    }

    /// True if something happened since the last call. Does not wait.
    pub fn take(&self) -> bool {
        self.told.read().is_ok()
    }
}

impl Drop for DirectoryWatch {
    fn drop(&mut self) {
        let mut waiting = self.watcher.waiting();
        let Some(list) = waiting.get_mut(&self.wd) else { return };
        list.retain(|(_, told)| !Arc::ptr_eq(told, &self.told));
        if list.is_empty() {
            waiting.remove(&self.wd);
            // SAFETY: inotify_rm_watch(2) takes no pointers; a watch whose directory went is gone already.
            let _ = unsafe { libc::inotify_rm_watch(self.watcher.queue.as_raw_fd(), self.wd) };
        }
    }
}

impl AsRawFd for DirectoryWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.told.as_raw_fd()
    }
}

/// Splits one event off: its watch descriptor, its name (empty if it has none) and what follows.
fn event(bytes: &[u8]) -> Option<(i32, &OsStr, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let (wd, size) = (head.first_chunk::<4>()?, head.last_chunk::<4>()?);
    let size = usize::try_from(u32::from_ne_bytes(*size)).ok()?;
    let (name, rest) = rest.split_at_checked(size)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((i32::from_ne_bytes(*wd), OsStr::from_bytes(name), rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::socket::wait_for;

    fn wait(watch: &DirectoryWatch) {
        assert!(wait_for(watch, libc::POLLIN, Duration::from_secs(5)).unwrap());
        assert!(watch.take());
    }

    #[test]
    fn a_name_that_appears_is_told_to_who_waits_for_it() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let watch = |name: &str| DirectoryWatch::new(dir.as_path(), OsStr::new(name)).unwrap();
        let (wanted, other) = (watch("wanted"), watch("other"));
        File::create(dir.as_path().join("other")).unwrap();
        wait(&other);
        // The thread tells in order, and has told all of that file.
        assert!(!wanted.take());
        File::create(dir.as_path().join("wanted")).unwrap();
        wait(&wanted);
        std::fs::rename(dir.as_path().join("other"), dir.as_path().join("wanted")).unwrap();
        wait(&wanted);
        drop(other);
        std::fs::remove_file(dir.as_path().join("wanted")).unwrap();
        File::create(dir.as_path().join("wanted")).unwrap();
        wait(&wanted);
    }

    #[test]
    fn a_directory_that_goes_away_is_told_and_may_come_back() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let inner = dir.as_path().join("inner");
        for _ in 0..2 {
            std::fs::create_dir(&inner).unwrap();
            let watch = DirectoryWatch::new(&inner, OsStr::new("anything")).unwrap();
            std::fs::remove_dir(&inner).unwrap();
            wait(&watch);
        }
    }

    #[test]
    fn more_watches_than_a_user_may_have_instances_can_be_had() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let watches: Vec<_> = (0..300)
            .map(|n| {
                let inner = dir.as_path().join(n.to_string());
                std::fs::create_dir(&inner).unwrap();
                DirectoryWatch::new(&inner, OsStr::new("socket")).unwrap()
            })
            .collect();
        File::create(dir.as_path().join("299/socket")).unwrap();
        wait(&watches[299]);
        assert!(!watches[0].take());
    }

    #[test]
    fn a_file_is_no_directory() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let file = dir.as_path().join("file");
        File::create(&file).unwrap();
        let refused = DirectoryWatch::new(&file, OsStr::new("x")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotADirectory);
    }
}
