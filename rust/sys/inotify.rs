//! Directory watches (`inotify(7)`): who waits for a socket file learns of it at once instead of by polling.
#![allow(unsafe_code, reason = "inotify has no wrapper in std or vmm-sys-util")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A name appeared, or its mode changed; or the directory itself went away.
const EVENTS: u32 = libc::IN_CREATE
    | libc::IN_MOVED_TO
    | libc::IN_ATTRIB
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR;

/// Size of the fixed part of an event: `wd`, `mask`, `cookie`, `len`, four bytes each.
const HEAD: usize = 16;

/// A watch on one directory.
#[derive(Debug)]
pub struct DirectoryWatch {
    queue: File,
}

impl DirectoryWatch {
    /// Watches `directory` for names that appear or change.
    ///
    /// # Errors
    /// `EMFILE`: `fs.inotify.max_user_instances` is used up; `ENOSPC`: `fs.inotify.max_user_watches` is.
    pub fn new(directory: &Path) -> io::Result<Self> {
        // SAFETY: inotify_init1(2) takes no pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        let queue = unsafe { File::from_raw_fd(fd) };
        let name = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: `name` is a live NUL-terminated string.
        if unsafe { libc::inotify_add_watch(queue.as_raw_fd(), name.as_ptr(), EVENTS) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { queue })
    }

    /// Takes everything that happened since the last call; true if some of it concerns `name`, or the directory
    /// itself. Does not wait.
    pub fn drain_for(&mut self, name: &OsStr) -> bool {
        let mut hit = false;
        let mut buffer = [0_u8; 4096];
        while let Ok(size) = self.queue.read(&mut buffer) {
            let mut rest = buffer.get(..size).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            while let Some((named, after)) = event(rest) {
                // An event about the directory itself, or an overflow of the queue, has no name.
                hit |= named.is_empty() || named == name;
                rest = after;
            }
        }
        hit
    }
}

impl AsRawFd for DirectoryWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

/// Splits one event off: its name (empty if it has none) and what follows.
fn event(bytes: &[u8]) -> Option<(OsString, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let [.., a, b, c, d] = *head;
    let size = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
    let (name, rest) = rest.split_at_checked(size)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((OsString::from_vec(name.to_vec()), rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::socket::wait_for;

    #[test]
    fn a_name_that_appears_is_told_apart_from_another() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let mut watch = DirectoryWatch::new(dir.as_path()).unwrap();
        assert!(!watch.drain_for(OsStr::new("wanted")));
        File::create(dir.as_path().join("other")).unwrap();
        assert!(wait_for(&watch, libc::POLLIN, Duration::from_secs(5)).unwrap());
        assert!(!watch.drain_for(OsStr::new("wanted")));
        File::create(dir.as_path().join("wanted")).unwrap();
        assert!(wait_for(&watch, libc::POLLIN, Duration::from_secs(5)).unwrap());
        assert!(watch.drain_for(OsStr::new("wanted")));
        std::fs::rename(dir.as_path().join("other"), dir.as_path().join("wanted")).unwrap();
        assert!(watch.drain_for(OsStr::new("wanted")));
    }

    #[test]
    fn a_directory_that_goes_away_is_told() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let inner = dir.as_path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mut watch = DirectoryWatch::new(&inner).unwrap();
        std::fs::remove_dir(&inner).unwrap();
        assert!(watch.drain_for(OsStr::new("anything")));
    }

    #[test]
    fn a_file_is_no_directory() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let file = dir.as_path().join("file");
        File::create(&file).unwrap();
        assert_eq!(DirectoryWatch::new(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
