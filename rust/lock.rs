//! The one lock of the core.
//!
//! Never poisoned: what it guards is whole between any two steps of whoever holds it, so a panic there is no reason for
//! others to stop. In builds for tests it counts what poll threads ask of it, and a test holds the packet path to one try
//! a group of frames; that those rooms know no other lock is held by a test as well. Otherwise it costs what a mutex does.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A mutex.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits until nobody else has it. Not for a frame: whoever has it may be off its core.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(feature = "testing")]
        count::waited();
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None if somebody else has it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        #[cfg(feature = "testing")]
        count::tried();
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// What poll threads ask of locks.
#[cfg(feature = "testing")]
pub mod count {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    static WAITED: AtomicU64 = AtomicU64::new(0);
    static TRIED: AtomicU64 = AtomicU64::new(0);

    thread_local! {
        static IS_POLL_THREAD: Cell<Option<bool>> = const { Cell::new(None) };
    }

    /// Times that poll threads took a lock, ready to wait for it, and times that they tried one, of all of the process.
    pub fn by_poll_threads() -> (u64, u64) {
        (WAITED.load(Ordering::Relaxed), TRIED.load(Ordering::Relaxed))
    }

    pub(super) fn waited() {
        count(&WAITED);
    }

    pub(super) fn tried() {
        count(&TRIED);
    }

    fn count(counter: &AtomicU64) {
        let is_poll_thread = IS_POLL_THREAD.get().unwrap_or_else(|| {
            let is_it = thread::current().name().is_some_and(|name| name.starts_with("pmd-"));
            IS_POLL_THREAD.set(Some(is_it));
            is_it
        });
        if is_poll_thread {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_who_had_it_stops_nobody_else() {
        let lock = Lock::new(1);
        std::thread::scope(|scope| {
            let fallen = scope.spawn(|| {
                let mut guard = lock.lock();
                *guard = 2;
                panic!("while it holds the lock");
            });
            assert!(fallen.join().is_err());
        });
        assert_eq!(lock.try_lock().as_deref(), Some(&2));
        assert_eq!(*lock.lock(), 2);
    }

    #[test]
    fn a_lock_that_somebody_has_is_not_waited_for() {
        let lock = Lock::new(());
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert!(lock.try_lock().is_some());
    }

    #[cfg(feature = "testing")]
    #[test]
    fn what_poll_threads_ask_is_counted_and_nothing_else() {
        let lock = Lock::new(());
        drop((lock.lock(), lock.try_lock()));
        let (waited, tried) = count::by_poll_threads();
        std::thread::scope(|scope| {
            let ask = || {
                drop(lock.lock());
                (0..3).for_each(|_| drop(lock.try_lock()));
            };
            for name in ["pmd-c0", "vhost-a", "pmd-c1"] {
                std::thread::Builder::new().name(name.into()).spawn_scoped(scope, ask).unwrap();
            }
        });
        assert_eq!(count::by_poll_threads(), (waited + 2, tried + 6));
    }
}
