//! The time-stamp counter: the clock of the packet path, a few cycles a reading and no system call.
#![allow(unsafe_code, reason = "rdtsc is an intrinsic")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Cycles since boot.
#[inline]
pub fn now() -> u64 {
    // SAFETY: rdtsc has no preconditions on x86-64.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Cycles per microsecond, measured once against the monotonic clock (takes 2 ms the first time).
pub fn cycles_per_us() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (t0, c0) = (Instant::now(), now());
        while t0.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let us = u64::try_from(t0.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        ((now() - c0) / us).max(1)
    })
}
