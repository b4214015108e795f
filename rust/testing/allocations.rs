//! An allocator that counts what poll threads ask of it: the packet path must ask for nothing.
//!
//! A test makes it its own with `#[global_allocator]`; everything is passed on to the system's allocator.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks that threads called `pmd-…` took, gave back or resized so far.
static BY_POLL_THREADS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// How often a poll thread turned to it so far.
    pub fn calls_of_poll_threads() -> u64 {
        BY_POLL_THREADS.load(Ordering::Relaxed)
    }
}

fn count() {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, which `name` has.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"pmd-") {
        BY_POLL_THREADS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator keeps the promises; nothing is added to what it is asked and answers.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}
