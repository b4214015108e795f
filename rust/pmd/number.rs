//! A small number for each poll thread: which of several receiveqs it writes under `tx-steering=thread`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

static TAKEN: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// The lowest number that was free when the thread began; free again when it ends. Threads are numbered without gaps as
/// long as none ends before those that began later, so as many threads as queues have a queue each.
#[derive(Debug)]
pub(super) struct ThreadNumber(usize);

impl ThreadNumber {
    /// Takes one.
    pub(super) fn take() -> Self {
        let mut taken = taken();
        let free = (0..=taken.len()).find(|number| !taken.contains(number)).unwrap_or(taken.len());
        taken.insert(free);
        Self(free)
    }

    /// The number.
    #[inline]
    pub(super) fn index(&self) -> usize {
        self.0
    }
}

impl Drop for ThreadNumber {
    fn drop(&mut self) {
        taken().remove(&self.0);
    }
}

fn taken() -> MutexGuard<'static, BTreeSet<usize>> {
    // A set of numbers is whole whatever panicked beside it.
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_the_lowest_free_one_is_given_again() {
        let first = ThreadNumber::take();
        let second = ThreadNumber::take();
        assert_ne!(first.index(), second.index());
        let held = (first.index(), second.index());
        drop((first, second));
        // Other tests run in processes of their own, or take and leave numbers meanwhile: low ones come again.
        let again: Vec<_> = (0..64).map(|_| ThreadNumber::take()).collect();
        assert!(again.iter().any(|number| number.index() == held.0 || number.index() == held.1));
    }
}
