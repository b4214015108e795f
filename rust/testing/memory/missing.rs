// SPDX-License-Identifier: Apache-2.0
//! Guest memory whose pages are elsewhere: taken out of the files, and put back one by one.
#![allow(unsafe_code, reason = "userfaultfd(2) and its ioctls have no safe wrapper in std")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

use super::{GuestRam, Region, Window};
use crate::testing::{Error, Result};

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const API: u64 = 0xaa;
const MISSING: u64 = 1;
const PAGEFAULT: u8 = 0x12;

/// A userfaultfd, ours or the back-end's.
#[derive(Debug)]
pub struct Userfault(File);

impl From<File> for Userfault {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl Userfault {
    fn new() -> Result<Self> {
        // SAFETY: userfaultfd(2) takes flags and gives a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0);
        let fd =
            fd.ok_or_else(|| Error::last_os("cannot make a userfaultfd; set sysctl vm.unprivileged_userfaultfd=1"))?;
        // SAFETY: the descriptor was just made and has no other owner.
        let this = Self(unsafe { File::from_raw_fd(fd) });
        this.call(UFFDIO_API, &mut [API, 0, 0])?;
        Ok(this)
    }

    fn call<const N: usize>(&self, request: libc::c_ulong, argument: &mut [u64; N]) -> Result<()> {
        // SAFETY: the descriptor is open; the argument has the words that are part of the request.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(Error::last_os("userfaultfd refuses")),
        }
    }

    /// The address of one fault that nobody has read yet; None if there is none.
    pub fn fault(&self) -> Option<u64> {
        let mut message = [0_u8; 32];
        match (&self.0).read(&mut message) {
            Ok(32) if message.first() == Some(&PAGEFAULT) => {
                message.get(16..24).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// Waits until one has a fault or `bell` was rung, for `time` at most.
    pub fn wait_any(all: &[&Self; 2], bell: &impl AsRawFd, time: Option<Duration>) {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let [ours, theirs] = all.map(|one| entry(one.0.as_raw_fd()));
        let mut entries = [ours, theirs, entry(bell.as_raw_fd())];
        let time = time.map(|time| libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: three live entries, and the count says so; the time, if any, lives as long as the call; no signal mask.
        unsafe { libc::ppoll(entries.as_mut_ptr(), 3, limit, std::ptr::null()) };
    }

    fn wake(&self, start: u64, size: u64) {
        // Whoever does not wait need not be woken.
        let _ = self.call(UFFDIO_WAKE, &mut [start, size]);
    }
}

/// What was in guest memory, and the way back into it.
#[derive(Debug)]
pub struct MissingPages {
    userfault: Userfault,
    regions: Vec<(Window, usize, Vec<u8>)>,
}

impl Region {
    /// Takes every page out of the file: there are holes now.
    ///
    /// # Errors
    /// `Kernel` when the file cannot have holes.
    pub fn punch(&self) -> Result<()> {
        let [from, bytes] =
            [self.file_offset(), self.size() as u64].map(|n| libc::off_t::try_from(n).unwrap_or(libc::off_t::MAX));
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open; the windows on the memory bear any content.
        match unsafe { libc::fallocate(self.file().as_raw_fd(), mode, from, bytes) } {
            0 => Ok(()),
            _ => Err(Error::last_os("cannot take pages out of guest memory")),
        }
    }

    /// Makes every page of the file: a guest that has used all of its memory. What is there stays.
    ///
    /// # Errors
    /// `Kernel` without memory for it.
    pub fn populate(&self) -> Result<()> {
        super::backing::allocate(self.file(), self.file_offset() + self.size() as u64)
    }
}

impl GuestRam {
    /// Takes every page out of the files: whoever touches the memory from now on waits until the page is
    /// [placed](MissingPages::place).
    ///
    /// # Errors
    /// `Kernel` when files cannot have holes, or userfaultfd is not permitted.
    pub fn take_away(&self) -> Result<MissingPages> {
        let userfault = Userfault::new()?;
        let mut regions = Vec::new();
        for region in self.regions() {
            let mut content = vec![0; region.size()];
            region.window().read(0, &mut content);
            region.punch()?;
            let size = region.size() as u64;
            userfault.call(UFFDIO_REGISTER, &mut [region.user_address(), size, MISSING, 0])?;
            regions.push((region.window().clone(), region.page_size(), content));
        }
        Ok(MissingPages { userfault, regions })
    }
}

impl MissingPages {
    /// What tells of touches through our own mapping.
    pub fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    /// Region and page of an address of ours.
    pub fn find_own(&self, address: u64) -> Option<(usize, usize)> {
        let starts: Vec<u64> = self.regions.iter().map(|(window, ..)| window.user_address()).collect();
        self.find(&starts, address)
    }

    /// Region and page of an address, when regions begin at `starts`.
    pub fn find(&self, starts: &[u64], address: u64) -> Option<(usize, usize)> {
        let mut all = starts.iter().zip(&self.regions).enumerate();
        all.find_map(|(number, (start, (window, page_size, _)))| {
            let into = usize::try_from(address.checked_sub(*start)?).ok().filter(|&into| into < window.size())?;
            Some((number, into / page_size))
        })
    }

    /// Puts a page back, and wakes who waits for it here and in the back-end.
    pub fn place(&mut self, backend: &Userfault, bases: &[u64], region: usize, page: usize) {
        let Some((window, page_size, content)) = self.regions.get(region) else { return };
        let (into, size) = ((page * page_size) as u64, *page_size as u64);
        let Some(bytes) = content.get(page * page_size..(page + 1) * page_size) else { return };
        // One that is there already is as it should be.
        let _ =
            self.userfault.call(UFFDIO_COPY, &mut [window.user_address() + into, bytes.as_ptr() as u64, size, 0, 0]);
        self.userfault.wake(window.user_address() + into, size);
        if let Some(base) = bases.get(region) {
            backend.wake(base + into, size);
        }
    }

    /// Puts every page back.
    pub fn place_all(&mut self, backend: &Userfault, bases: &[u64]) {
        for region in 0..self.regions.len() {
            let pages = self.regions.get(region).map_or(0, |(window, page_size, _)| window.size() / page_size);
            (0..pages).for_each(|page| self.place(backend, bases, region, page));
        }
    }
}
