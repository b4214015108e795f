//! Whose memory was on its way here when its session ended, or the switch with it: what a migration had not brought by
//! then are holes in the guest's files, and a touch would put zeroes where its own pages are still to come.
//!
//! A note a socket: the files, by device and inode. The front-end that comes back does not say that a migration is on;
//! its files do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::store::Store;
use crate::error::Result;
use crate::lock::Lock;

/// Device and inode of each file of a guest's memory.
pub type Files = BTreeSet<(u64, u64)>;

/// The notes, by socket.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Lock<BTreeMap<PathBuf, Files>>);

impl Arrivals {
    pub(super) fn new(found: BTreeMap<PathBuf, Files>) -> Self {
        Self(Lock::new(found))
    }

    /// Its memory is on its way from now on.
    pub(super) fn begin(&self, store: Option<&Store>, socket: &Path, files: Files) -> Result<()> {
        if let Some(store) = store {
            store.write_note(socket, &files)?;
        }
        self.0.lock().insert(socket.to_owned(), files);
        Ok(())
    }

    /// Its memory is here, or it has another.
    pub(super) fn end(&self, store: Option<&Store>, socket: &Path) {
        if self.0.lock().remove(socket).is_some()
            && let Some(store) = store
        {
            store.remove_note(socket);
        }
    }

    /// True if one of these files was on its way.
    pub(super) fn has(&self, socket: &Path, files: &Files) -> bool {
        self.0.lock().get(socket).is_some_and(|noted| !noted.is_disjoint(files))
    }
}

/// A note's text: the socket's path, NUL, and a line of two numbers for each file.
pub(super) fn encode(socket: &Path, files: &Files) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut text = socket.as_os_str().as_bytes().to_vec();
    // No path contains NUL.
    text.push(0);
    for (device, inode) in files {
        text.extend_from_slice(format!("{device} {inode}\n").as_bytes());
    }
    text
}

/// What [`encode`] made; None of anything else.
pub(super) fn parse(bytes: &[u8]) -> Option<(PathBuf, Files)> {
    use std::os::unix::ffi::OsStrExt;
    let at = bytes.iter().position(|&byte| byte == 0)?;
    let (socket, rest) = (bytes.get(..at)?, bytes.get(at + 1..)?);
    let line = |line: &str| {
        let (device, inode) = line.split_once(' ')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    };
    let files: Files = std::str::from_utf8(rest).ok()?.lines().map(line).collect::<Option<_>>()?;
    Some((Path::new(std::ffi::OsStr::from_bytes(socket)).to_owned(), files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let files = Files::from([(1, 2), (u64::MAX, 0)]);
        let socket = Path::new("/run/a b\n/s");
        assert_eq!(parse(&encode(socket, &files)), Some((socket.to_owned(), files)));
        for bytes in [&b""[..], b"/run/s", b"/run/s\x001", b"/run/s\x001 x\n", b"/run/s\x00\xff 1\n"] {
            assert_eq!(parse(bytes), None);
        }
    }
}
