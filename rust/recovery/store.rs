//! The directory that holds the records: where it is, who may use it, and each file's life.
//!
//! ```text
//!   run directory on tmpfs:   <rundir>/state/            else   /dev/shm/ovsvhost-<uid>-<hash of rundir>/
//!     <hash of socket and vring>          one vring's record, one page or a few
//!     <hash of socket>.arriving           a guest whose memory is on its way
//!     ….new                               one on its way; whoever finds it removes it
//!     ….bad                               one that could not be read; kept for a person
//! ```
//!
//! tmpfs, because a file on a disk would make a poll thread wait for its write-back. It ends with the machine, as every
//! guest does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Key;
use super::arrivals::{self, Files};
use super::record::{self, HEADER_SIZE, Identity};
use crate::error::{Error, Result};
use crate::memory::Words;
use crate::sys::file::{self, Backing};

/// Where tmpfs is, whatever the run directory is on.
const SHARED_MEMORY: &str = "/dev/shm";
/// What the notes of memory on its way end in.
const ARRIVING: &[u8] = b"arriving";

/// The directory of records, ours alone while this lives.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    /// Holds the claim.
    _claim: File,
}

/// What a directory held.
#[derive(Default)]
pub(super) struct Contents {
    /// Oldest first.
    pub(super) records: Vec<(Identity, Words)>,
    /// Guests whose memory was on its way, by socket.
    pub(super) arrivals: BTreeMap<PathBuf, Files>,
    /// What was set aside, a sentence each.
    pub(super) notices: Vec<String>,
}

fn kernel(path: &Path, what: &str, e: io::Error) -> Error {
    Error::kernel(format!("state of the rings: cannot {what} '{}'", path.display()), e)
}

impl Store {
    /// Opens the directory that belongs to `rundir`, made if it is not there.
    ///
    /// # Errors
    /// `Config`: somebody else's directory, or another switch has it. `Kernel`: it cannot be made.
    pub(super) fn open(rundir: &Path) -> Result<Self> {
        let directory = place(rundir)?;
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(kernel(&directory, "make directory", e)),
            _ => {}
        }
        let shown = directory.display();
        let claim = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&directory)
            .map_err(|e| kernel(&directory, "open directory", e))?;
        let meta = claim.metadata().map_err(|e| kernel(&directory, "stat", e))?;
        if meta.uid() != file::effective_user() || meta.mode() & 0o077 != 0 {
            return Err(Error::Config(format!(
                "state of the rings: '{shown}' belongs to uid {} with mode {:o}; it must be this user's alone (0700): \
                 remove it",
                meta.uid(),
                meta.mode() & 0o7777
            )));
        }
        if !file::claim(&claim).map_err(|e| kernel(&directory, "lock", e))? {
            return Err(Error::Config(format!(
                "state of the rings: '{shown}' is in use by another switch; stop that one"
            )));
        }
        Ok(Self { directory, _claim: claim })
    }

    /// Reads every record. What is none is set aside.
    pub(super) fn read(&self) -> Result<Contents> {
        let unlisted = |e| kernel(&self.directory, "list", e);
        let mut contents = Contents::default();
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unlisted)? {
            let path = entry.map_err(unlisted)?.path();
            match path.extension().map(OsStrExt::as_bytes) {
                Some(b"new") => drop(fs::remove_file(&path)),
                Some(b"bad") => {}
                Some(ARRIVING) => match fs::read(&path).ok().and_then(|bytes| arrivals::parse(&bytes)) {
                    Some((socket, files)) => drop(contents.arrivals.insert(socket, files)),
                    None => contents.notices.push(set_aside(&path, "it is no note of memory on its way")),
                },
                _ => found.push((fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok(), path)),
            }
        }
        found.sort();
        for (_, path) in found {
            match read_record(&path) {
                Ok((identity, words)) if self.path_of(&identity.key()) == path => {
                    contents.records.push((identity, words));
                }
                Ok(_) => contents.notices.push(set_aside(&path, "it is another's record under this name")),
                Err(why) => contents.notices.push(set_aside(&path, &why)),
            }
        }
        Ok(contents)
    }

    /// Makes a record with room for `elements`. It takes the place of one of the same vring.
    pub(super) fn create(&self, identity: &Identity, elements: usize) -> Result<Words> {
        let size = record::file_size(elements);
        let path = self.path_of(&identity.key());
        let new = path.with_extension("new");
        let header = record::encode(identity, size)
            .ok_or_else(|| Error::Bug(format!("a socket path too long for a record: {}", identity.socket.display())))?;
        let make = || {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file::reserve(&file, size)?;
            file.write_all(&header)?;
            fs::rename(&new, &path)?;
            Ok(file)
        };
        let file = make().map_err(|e| kernel(&path, "make (is the file system full?)", e))?;
        Words::of_file(file, size)
    }

    /// Removes a record; one that is gone is gone.
    pub(super) fn remove(&self, key: &Key) {
        let _ = fs::remove_file(self.path_of(key));
    }

    /// Writes down that a guest's memory is on its way.
    ///
    /// # Errors
    /// `Kernel`: the file system is full.
    pub(super) fn write_note(&self, socket: &Path, files: &Files) -> Result<()> {
        let path = self.note_of(socket);
        let new = path.with_extension("new");
        let mut options = OpenOptions::new();
        let made = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        made.and_then(|mut file| file.write_all(&arrivals::encode(socket, files)))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| kernel(&path, "make (is the file system full?)", e))
    }

    /// Removes what [`Self::write_note`] wrote.
    pub(super) fn remove_note(&self, socket: &Path) {
        let _ = fs::remove_file(self.note_of(socket));
    }

    fn note_of(&self, socket: &Path) -> PathBuf {
        let name = record::fnv(socket.as_os_str().as_bytes());
        self.directory.join(format!("{name:016x}")).with_extension(OsStr::from_bytes(ARRIVING))
    }

    pub(super) fn path_of(&self, key: &Key) -> PathBuf {
        let mut name = key.socket.as_os_str().as_bytes().to_vec();
        // No path contains NUL.
        name.push(0);
        name.extend_from_slice(&key.vring.to_le_bytes());
        self.directory.join(format!("{:016x}", record::fnv(&name)))
    }
}

/// An empty directory is of no use to whoever comes next.
impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Where the records of the switch in `rundir` lie.
fn place(rundir: &Path) -> Result<PathBuf> {
    let is_shared = |path: &Path| {
        let opened = File::open(path).map_err(|e| kernel(path, "open", e))?;
        file::backing(&opened)
            .map(|kind| kind == Backing::Shmem)
            .map_err(|e| kernel(path, "tell the file system of", e))
    };
    if is_shared(rundir)? {
        return Ok(rundir.join("state"));
    }
    let top = Path::new(SHARED_MEMORY);
    if !is_shared(top)? {
        return Err(Error::Config(format!(
            "state of the rings: neither '{}' nor {SHARED_MEMORY} is on tmpfs; mount one there",
            rundir.display()
        )));
    }
    let whole = fs::canonicalize(rundir).map_err(|e| kernel(rundir, "resolve", e))?;
    let hash = record::fnv(whole.as_os_str().as_bytes());
    Ok(top.join(format!("ovsvhost-{}-{hash:016x}", file::effective_user())))
}

fn read_record(path: &Path) -> std::result::Result<(Identity, Words), String> {
    let told = |e: io::Error| e.to_string();
    // Not through a link, and not into a pipe without a writer.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(told)?;
    let meta = file.metadata().map_err(told)?;
    if !meta.is_file() {
        return Err("it is not a plain file".into());
    }
    let mut header = Vec::with_capacity(HEADER_SIZE);
    (&file).take(HEADER_SIZE as u64).read_to_end(&mut header).map_err(told)?;
    let size = usize::try_from(meta.len()).map_err(|_| "it is too long".to_owned())?;
    let identity = record::parse(&header, size).map_err(|why| why.to_string())?;
    // A hole would be a fault in a poll thread.
    file::reserve(&file, size).map_err(told)?;
    let words = Words::of_file(file, size).map_err(|e| e.to_string())?;
    Ok((identity, words))
}

/// Renames what cannot be read; gives the sentence about it.
fn set_aside(path: &Path, why: &str) -> String {
    let bad = path.with_extension("bad");
    let done = match fs::rename(path, &bad) {
        Ok(()) => format!("it is set aside as '{}'", bad.display()),
        Err(e) => format!("it cannot be set aside ({e})"),
    };
    format!("state of the rings: '{}' cannot be used: {why}; {done}", path.display())
}
