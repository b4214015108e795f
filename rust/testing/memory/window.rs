// SPDX-License-Identifier: Apache-2.0
//! Raw access to shared memory that another process reads and writes at any time.
//!
//! Invariants: every access is inside the window, checked in release builds too; index words are
//! atomic; bytes are copied in and out, and no Rust reference into the memory ever exists, because
//! the back-end may write any byte of it at any moment.
#![allow(unsafe_code, reason = "the front-end's own guest memory: mapping it and touching it")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::testing::{Error, Result};

/// One `mmap`, unmapped with its last window.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    size: usize,
}

// SAFETY: the mapping is plain memory; `Window` allows only copies and atomic accesses to it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(file: &File, offset: u64, size: usize, private: bool) -> Result<Arc<Self>> {
        let Ok(offset) = libc::off_t::try_from(offset) else {
            return Err(Error::Config(format!("file offset {offset} is too large")));
        };
        let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                sharing | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os(format!("cannot map {size} bytes of guest memory")));
        }
        Ok(Arc::new(Self { base: base.cast(), size }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `size` are the mapping made in `new`, and the last window is gone.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// A checked view of a stretch of guest memory.
///
/// Cloning shares the mapping. All accesses panic outside the window: the caller, not the
/// back-end, chooses offsets, so that is a bug of the front-end.
#[derive(Clone, Debug)]
pub struct Window {
    base: *mut u8,
    size: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: see `Mapping`.
unsafe impl Send for Window {}
// SAFETY: see `Mapping`.
unsafe impl Sync for Window {}

macro_rules! words {
    ($load:ident, $store:ident, $word:ty, $atomic:ty, $what:literal) => {
        #[doc = concat!("Reads the ", $what, " at `at`, relaxed; `at` must be aligned.")]
        #[inline]
        pub fn $load(&self, at: usize) -> $word {
            let place = self.aligned::<$word>(at);
            // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
            let word = unsafe { <$atomic>::from_ptr(place) };
            word.load(Ordering::Relaxed)
        }

        #[doc = concat!("Writes the ", $what, " at `at`, relaxed; `at` must be aligned.")]
        #[inline]
        pub fn $store(&self, at: usize, value: $word) {
            let place = self.aligned::<$word>(at);
            // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
            let word = unsafe { <$atomic>::from_ptr(place) };
            word.store(value, Ordering::Relaxed);
        }
    };
}

impl Window {
    pub(super) fn whole(mapping: Arc<Mapping>) -> Self {
        Self { base: mapping.base, size: mapping.size, mapping }
    }

    /// Bytes in the window.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The front-end's own address of the first byte: for `SET_VRING_ADDR`, and for code under test
    /// that works on the same memory inside this process.
    pub fn user_address(&self) -> u64 {
        self.base.addr() as u64
    }

    /// The first byte, for code under test inside this process.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// `size` bytes from `at` on.
    ///
    /// # Panics
    /// When the part is not inside the window.
    #[must_use]
    pub fn part(&self, at: usize, size: usize) -> Self {
        Self { base: self.place(at, size), size, mapping: Arc::clone(&self.mapping) }
    }

    words!(load_u16, store_u16, u16, AtomicU16, "16-bit word");
    words!(load_u32, store_u32, u32, AtomicU32, "32-bit word");
    words!(load_u64, store_u64, u64, AtomicU64, "64-bit word");

    /// Reads the 16-bit word at `at`; later reads see what was written before its release.
    #[inline]
    pub fn load_u16_acquire(&self, at: usize) -> u16 {
        let place = self.aligned::<u16>(at);
        // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
        let word = unsafe { AtomicU16::from_ptr(place) };
        word.load(Ordering::Acquire)
    }

    /// Reads the 64-bit word at `at`; later reads see what was written before its release.
    #[inline]
    pub fn load_u64_acquire(&self, at: usize) -> u64 {
        let place = self.aligned::<u64>(at);
        // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
        let word = unsafe { AtomicU64::from_ptr(place) };
        word.load(Ordering::Acquire)
    }

    /// Puts 0 into the 64-bit word at `at` and gives what was there; later reads see what was written before it was.
    #[inline]
    pub fn take_u64(&self, at: usize) -> u64 {
        let place = self.aligned::<u64>(at);
        // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
        let word = unsafe { AtomicU64::from_ptr(place) };
        // Most words of a log are clear, and a line that is only read stays with whoever wrote it.
        if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) }
    }

    /// Writes the 16-bit word at `at` after everything written before.
    #[inline]
    pub fn store_u16_release(&self, at: usize, value: u16) {
        let place = self.aligned::<u16>(at);
        // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
        let word = unsafe { AtomicU16::from_ptr(place) };
        word.store(value, Ordering::Release);
    }

    /// Writes the 64-bit word at `at` after everything written before.
    #[inline]
    pub fn store_u64_release(&self, at: usize, value: u64) {
        let place = self.aligned::<u64>(at);
        // SAFETY: in bounds, aligned, alive; all accesses to words are atomic.
        let word = unsafe { AtomicU64::from_ptr(place) };
        word.store(value, Ordering::Release);
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.place(at, bytes.len());
        // SAFETY: `from` is in bounds for the length; `bytes` is ours and cannot overlap it.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.place(at, bytes.len());
        // SAFETY: `to` is in bounds for the length; `bytes` is ours and cannot overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies one cache line in; a fixed size compiles to a few vector stores.
    #[inline]
    pub fn write_line(&self, at: usize, line: &[u8; 64]) {
        self.write(at, line);
    }

    /// Copies one cache line out.
    #[inline]
    pub fn read_line(&self, at: usize) -> [u8; 64] {
        let mut line = [0; 64];
        self.read(at, &mut line);
        line
    }

    /// Asks the processor to fetch the line at `at`; a hint, outside the window it does nothing.
    #[inline]
    pub fn prefetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if at < self.size {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = self.base.wrapping_add(at).cast_const().cast::<i8>();
            // SAFETY: a prefetch reads nothing into the program and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// Asks the processor for the line at `at`, to be written; a hint, as [`prefetch`](Self::prefetch).
    #[inline]
    pub fn prefetch_for_write(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if at < self.size {
            let line = self.base.wrapping_add(at);
            // SAFETY: a prefetch reads nothing into the program and cannot fault. The intrinsic would give a prefetch for
            // reading: it knows no other for processors of unknown make, where this one does nothing at worst.
            unsafe { std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// Writes `value` to every byte.
    pub fn fill(&self, value: u8) {
        // SAFETY: base and size are the window, which is inside a live mapping.
        unsafe { ptr::write_bytes(self.base, value, self.size) };
    }

    #[inline]
    fn place(&self, at: usize, size: usize) -> *mut u8 {
        assert!(at <= self.size && size <= self.size - at, "guest memory access outside its window");
        self.base.wrapping_add(at)
    }

    #[inline]
    fn aligned<T>(&self, at: usize) -> *mut T {
        let place = self.place(at, size_of::<T>()).cast::<T>();
        assert!(place.is_aligned(), "guest memory word is not aligned");
        place
    }
}
