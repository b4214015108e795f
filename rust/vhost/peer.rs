//! Who is at the other end of a session, told from the kernel's records and `/proc`; never from what it says itself.

use std::fmt;
use std::fs::{self, File};
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sys::socket;

/// The process that made, or listens on, the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// 0 if it lives in a pid namespace we cannot see.
    pub(super) pid: i32,
    /// Its effective user.
    pub(super) uid: u32,
    /// File name of its program; empty if we may not know.
    pub(super) program: String,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Result<Self> {
        let credentials = socket::peer(stream).map_err(|e| {
            Error::kernel("cannot tell who is at the other end of a vhost-user socket (SO_PEERCRED)", e)
        })?;
        Ok(Self { pid: credentials.pid, uid: credentials.uid, program: program(credentials.pid) })
    }

    /// True if the process is gone, or goes within `wait`.
    pub(super) fn exits_within(&self, wait: Duration) -> bool {
        self.pid > 0 && socket::exits_within(self.pid, wait)
    }

    /// True if the process maps `file` at its address `uva` as private memory: what its guest writes never reaches the
    /// file, and so never us. False where `/proc` does not tell.
    pub(super) fn maps_privately(&self, uva: u64, file: &File) -> bool {
        let Ok(inode) = file.metadata().map(|meta| meta.st_ino()) else { return false };
        let maps = match fs::read_to_string(format!("/proc/{}/maps", self.pid)) {
            Ok(maps) if self.pid > 0 => maps,
            _ => return false,
        };
        maps.lines().filter_map(Mapping::parse).any(|map| {
            // The inode is compared too: a socket passed on by another process names that process, not the VMM.
            map.start <= uva && uva < map.end && map.inode == inode && map.private
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.program.as_str()) {
            (0, _) => f.write_str("a process in another pid namespace"),
            (pid, "") => write!(f, "pid {pid}"),
            (pid, program) => write!(f, "pid {pid} ({program})"),
        }
    }
}

fn program(pid: i32) -> String {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let name = exe.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    // Without the right to see the file, its 15-byte command name is for everybody.
    name.or_else(|| fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|comm| comm.trim_end().to_owned()))
        .unwrap_or_default()
}

/// One line of `/proc/PID/maps` (`proc(5)`).
struct Mapping {
    start: u64,
    end: u64,
    private: bool,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let private = fields.next()?.ends_with('p');
        let inode = fields.nth(2)?.parse().ok()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { start: hex(start)?, end: hex(end)?, private, inode })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{FileOffset, MmapRegion};

    use super::*;

    fn ourselves() -> Peer {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        Peer::of(&ours).unwrap()
    }

    #[test]
    fn a_peer_is_named_by_pid_and_program() {
        let us = ourselves();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(us.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(us.program, exe.file_name().unwrap().to_str().unwrap());
        assert_eq!(us.to_string(), format!("pid {} ({})", us.pid, us.program));
    }

    #[test]
    fn private_memory_is_told_from_shared() {
        let us = ourselves();
        for (flags, private) in [(libc::MAP_SHARED, false), (libc::MAP_PRIVATE, true)] {
            let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
            file.set_len(8192).unwrap();
            let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
            let region: MmapRegion<()> =
                MmapRegion::build(Some(mapped), 8192, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap();
            let uva = region.as_ptr() as u64;
            assert_eq!(us.maps_privately(uva + 4096, &file), private);
            // Another file at that address says nothing about ours.
            assert!(!us.maps_privately(uva, &File::open("/dev/null").unwrap()));
        }
    }

    #[test]
    fn a_line_of_proc_maps_is_read() {
        let line = "7f0000000000-7f0000200000 rw-p 00000000 00:01 1034 /memfd:pc.ram (deleted)";
        let map = Mapping::parse(line).unwrap();
        assert_eq!((map.start, map.end, map.private, map.inode), (0x7f00_0000_0000, 0x7f00_0020_0000, true, 1034));
        assert!(Mapping::parse("garbage").is_none());
    }
}
