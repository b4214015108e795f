//! Single loads and stores on guest memory.
//!
//! All are volatile or atomic, so the compiler neither splits, repeats nor removes one: what was read is what is
//! judged. Indices are acquire/release, everything else rides on them.
#![allow(unsafe_code, reason = "guest memory is reached by raw address")]

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Loads an index that publishes other memory.
///
/// # Safety
/// `at` is 2-aligned and inside a live guest mapping.
#[inline]
pub unsafe fn load_acquire(at: *const u8) -> u16 {
    // SAFETY: aligned and live by the caller; other threads and processes touch it only as whole u16s or harm themselves.
    unsafe { AtomicU16::from_ptr(at.cast_mut().cast()) }.load(Ordering::Acquire)
}

/// Publishes an index after everything written before it.
///
/// # Safety
/// As [`load_acquire`].
#[inline]
pub unsafe fn store_release(at: *mut u8, value: u16) {
    // SAFETY: as in `load_acquire`.
    unsafe { AtomicU16::from_ptr(at.cast()) }.store(value, Ordering::Release);
}

/// Loads a word that publishes other memory, all of it at once.
///
/// # Safety
/// `at` is 8-aligned and inside a live guest mapping.
#[inline]
pub unsafe fn load_acquire_u64(at: *const u8) -> u64 {
    // SAFETY: aligned and live by the caller; others that touch part of it harm only themselves.
    unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }.load(Ordering::Acquire)
}

/// Stores a word that another publishes.
///
/// # Safety
/// As [`load_acquire_u64`].
#[inline]
pub unsafe fn store_u64(at: *mut u8, value: u64) {
    // SAFETY: as in `load_acquire_u64`.
    unsafe { AtomicU64::from_ptr(at.cast()) }.store(value, Ordering::Relaxed);
}

/// Publishes a word after everything written before it.
///
/// # Safety
/// As [`load_acquire_u64`].
#[inline]
pub unsafe fn store_release_u64(at: *mut u8, value: u64) {
    // SAFETY: as in `load_acquire_u64`.
    unsafe { AtomicU64::from_ptr(at.cast()) }.store(value, Ordering::Release);
}

/// A value at any address: guests align as they like, and only a volatile access is never split or repeated.
#[repr(C, packed)]
struct Anywhere<T>(T);

/// Loads a plain value once.
///
/// # Safety
/// `at` has room for a `T` inside a live guest mapping; any bits make a `T`.
#[inline]
pub unsafe fn load<T: Copy>(at: *const u8) -> T {
    // SAFETY: live by the caller; a packed type needs no alignment.
    unsafe { at.cast::<Anywhere<T>>().read_volatile() }.0
}

/// Stores a plain value once.
///
/// # Safety
/// As [`load`].
#[inline]
pub unsafe fn store<T: Copy>(at: *mut u8, value: T) {
    // SAFETY: live by the caller; a packed type needs no alignment.
    unsafe { at.cast::<Anywhere<T>>().write_volatile(Anywhere(value)) };
}

/// Stores twelve bytes, the first eight and the last four each at once: a header of which nothing is known when the
/// compiler runs would go by way of the stack.
///
/// # Safety
/// `at` has room for them inside a live guest mapping.
#[inline]
pub unsafe fn store_12(at: *mut u8, low: u64, high: u32) {
    // SAFETY: two moves inside the caller's twelve bytes.
    unsafe {
        core::arch::asm!(
            "mov qword ptr [{at}], {low}", "mov dword ptr [{at} + 8], {high:e}",
            at = in(reg) at, low = in(reg) low, high = in(reg) high,
            options(nostack, preserves_flags)
        );
    }
}

/// Stores a value only if the memory holds another one: an unchanged cache line stays shared with the other core.
///
/// # Safety
/// As [`load`].
#[inline]
pub unsafe fn store_if_changed(at: *mut u8, value: u64) {
    // SAFETY: the caller's.
    if unsafe { load::<u64>(at) } != value {
        // SAFETY: the caller's.
        unsafe { store::<u64>(at, value) };
    }
}

/// Asks for a line that will be read.
#[inline]
pub fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address is a hint and never faults.
    unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast()) };
}

/// Asks for the lines of `len` bytes that will be read.
#[inline]
pub fn prefetch_all(at: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        prefetch(at.wrapping_add(line));
    }
}

/// Asks for the lines of `len` bytes that will be written.
#[inline]
pub fn prefetch_write_all(at: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        prefetch_write(at.wrapping_add(line));
    }
}

/// Asks for a line that will be written, so that it arrives owned.
#[inline]
pub fn prefetch_write(at: *const u8) {
    // SAFETY: a prefetch of any address is a hint and never faults; PREFETCHW is a no-op where the core lacks it.
    unsafe { core::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) };
}
