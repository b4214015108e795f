// SPDX-License-Identifier: Apache-2.0
//! The packet path allocates nothing: this binary's allocator counts what poll threads ask for while frames flow.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
#![allow(unreachable_pub, dead_code, reason = "rooms shared with the switch's tests, of which this one uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation, reason = "a test")]

#[path = "switch/rig.rs"]
mod rig;
#[path = "switch/traffic.rs"]
mod traffic;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use ovsvhost::vhost::EndpointKind;
use rig::Switch;
use traffic::Crew;

/// What threads called `pmd-…` allocated, grew or freed so far.
static BY_POLL_THREADS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count_if_polling() {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, which `name` has.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"pmd-") {
        BY_POLL_THREADS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_if_polling();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count_if_polling();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_if_polling();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_while_frames_flow(settings: &[(&str, &str)]) -> u64 {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, settings);
    crew.send(0, 1, 50);
    crew.send(1, 0, 50);
    let before = BY_POLL_THREADS.load(Ordering::Relaxed);
    assert!(before > 0, "the counter sees poll threads: they allocate when a queue is given to them");
    crew.send(0, 1, 500);
    crew.send(1, 0, 500);
    let spent = BY_POLL_THREADS.load(Ordering::Relaxed) - before;
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    spent
}

#[test]
fn poll_threads_allocate_nothing_for_frames_of_any_shape() {
    let shapes: [&[(&str, &str)]; 4] = [
        &[("layout", "one"), ("sizes", "mix")],
        &[("layout", "indirect:2"), ("sizes", "mix"), ("checksum", "partial")],
        &[("layout", "chain:5"), ("sizes", "mix")],
        &[("pairs", "2"), ("without", "MRG_RXBUF")],
    ];
    for settings in shapes {
        assert_eq!(allocations_while_frames_flow(settings), 0, "{settings:?}");
    }
}
