//! Who sleeps and who wakes: two flags between a poll thread and all who have something for it.
//!
//! ```text
//!   poster:  pending = true;  asleep?  ─ yes ─▶ wake it
//!   thread:  asleep = true;   pending? ─ yes ─▶ do not sleep
//! ```
//!
//! Each side writes its own flag, fences, and reads the other's: one of the two sees the other, so nothing is left to a
//! thread that sleeps. `rust/tests/doze.rs` tries every order there is of this file's steps.

use super::atomic::{AtomicBool, Ordering, fence};

/// The two flags.
#[derive(Debug, Default)]
pub(super) struct Doze {
    pending: AtomicBool,
    asleep: AtomicBool,
}

impl Doze {
    /// Says that there is something to do, after it was put where the thread finds it. True: wake the thread.
    #[must_use]
    pub(super) fn post(&self) -> bool {
        self.pending.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }

    /// The thread's own: true if there may be something to do. One relaxed load.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// The thread's own: it takes what there is, after this and not before.
    pub(super) fn take(&self) {
        // Acquires what was put there before the announcement that this takes back.
        self.pending.swap(false, Ordering::AcqRel);
    }

    /// The thread's own: says that it is about to sleep; false if there is something to do: then do not.
    #[must_use]
    pub(super) fn about_to_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.pending.load(Ordering::Relaxed)
    }

    /// The thread's own: it is up.
    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
