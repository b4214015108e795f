// SPDX-License-Identifier: Apache-2.0
//! What guest memory is made of: good kinds, and kinds a back-end should refuse or notice.
#![allow(unsafe_code, reason = "memfd_create and fallocate have no safe wrapper in std")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::testing::{Error, Result};

const MIB: usize = 1 << 20;

/// What a region of guest memory is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous shared memory in small pages.
    Memfd,
    /// The same, which has all of its pages from the beginning.
    Prealloc,
    /// Anonymous shared memory in 2 MiB pages.
    Huge2M,
    /// Anonymous shared memory in 1 GiB pages.
    Huge1G,
    /// An unlinked file under a directory: a hugetlbfs mount, tmpfs, or a disk.
    Directory(PathBuf),
    /// A memfd that the guest maps privately, as QEMU does without `share=on`: the back-end is
    /// handed a file that never changes.
    Private,
}

impl Backing {
    /// Reads `memfd`, `prealloc`, `huge2m`, `huge1g`, `private` or an absolute directory.
    ///
    /// # Errors
    /// `Config` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "memfd" => Self::Memfd,
            "prealloc" => Self::Prealloc,
            "huge2m" => Self::Huge2M,
            "huge1g" => Self::Huge1G,
            "private" => Self::Private,
            path if path.starts_with('/') => Self::Directory(path.into()),
            other => {
                return Err(Error::Config(format!(
                    "memory '{other}' is not known: memfd, prealloc, huge2m, huge1g, private or a directory"
                )));
            }
        })
    }

    pub(super) fn is_private(&self) -> bool {
        matches!(self, Self::Private)
    }

    /// Bytes of one page, to which a region's size is rounded up.
    pub fn page_size(&self) -> usize {
        match self {
            Self::Memfd | Self::Prealloc | Self::Private => 4096,
            Self::Huge2M => 2 * MIB,
            Self::Huge1G => 1024 * MIB,
            Self::Directory(path) => directory_page(path),
        }
    }

    /// The file that holds `size` bytes of this memory.
    pub(super) fn open(&self, size: u64) -> Result<File> {
        let file = match self {
            Self::Memfd | Self::Prealloc | Self::Private => memfd(0)?,
            Self::Huge2M => memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?,
            Self::Huge1G => memfd(libc::MFD_HUGETLB | libc::MFD_HUGE_1GB)?,
            Self::Directory(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o600)
                .open(path)
                .map_err(Error::kernel(format!("cannot make a memory file in {}", path.display())))?,
        };
        file.set_len(size).map_err(Error::kernel(format!("cannot size guest memory to {size} bytes")))?;
        if *self == Self::Prealloc {
            allocate(&file, size)?;
        }
        Ok(file)
    }
}

/// Makes all pages of a file.
pub(super) fn allocate(file: &File, size: u64) -> Result<()> {
    let bytes = libc::off_t::try_from(size).map_err(|_| Error::Config(format!("guest memory of {size} bytes")))?;
    // SAFETY: the descriptor is open; no memory of this process is involved.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) } < 0 {
        return Err(Error::last_os("cannot allocate guest memory"));
    }
    Ok(())
}

fn directory_page(path: &Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    // hugetlbfs reports its page size as the block size; other file systems report 4 KiB or so.
    std::fs::metadata(path)
        .ok()
        .and_then(|data| usize::try_from(data.blksize()).ok())
        .filter(|size| size.is_power_of_two())
        .map_or(4096, |size| size.max(4096))
}

fn memfd(flags: libc::c_uint) -> Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os("cannot create a memory file"));
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}
