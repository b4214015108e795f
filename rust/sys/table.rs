//! A table that is looked at in no order, on huge pages where the kernel has some to give.
//!
//! Every page of such a table wants a place in the processor's own table of addresses, and under a hypervisor a miss
//! there costs two walks. Nothing is asked of the administrator: where transparent huge pages are off the advice is
//! ignored (madvise(2), `MADV_HUGEPAGE`).
#![allow(unsafe_code, reason = "memory that is advised before it is first touched has to be allocated by hand")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of `T`s, each a default one at first. `T` has no drop of its own.
#[derive(Debug)]
pub struct Table<T> {
    base: NonNull<T>,
    len: usize,
    layout: Layout,
    owns: PhantomData<T>,
}

// SAFETY: it owns its `T`s and nobody else knows their memory, so it may go wherever they may.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: shared, it gives `&T` and nothing else.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T: Default> Table<T> {
    const PLAIN: () = assert!(!std::mem::needs_drop::<T>() && size_of::<T>() > 0, "what a table holds needs no drop");

    /// `len` default `T`s, one at least; ends the process if there is no memory, as every allocation does.
    pub fn new(len: usize) -> Self {
        let () = Self::PLAIN;
        let len = len.max(1);
        let Ok(needed) = Layout::array::<T>(len) else { handle_alloc_error(Layout::new::<T>()) };
        let is_large = needed.size() >= HUGE_PAGE;
        let layout = if is_large { needed.align_to(HUGE_PAGE).unwrap_or(needed) } else { needed };
        // SAFETY: the layout has a size: one `T` at least, and a `T` has a size.
        let memory = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(memory.cast::<T>()) else { handle_alloc_error(layout) };
        if is_large {
            // SAFETY: advice on whole pages of our own allocation; it changes no byte, nor does a refusal.
            unsafe { libc::madvise(memory.cast(), layout.size() & !(HUGE_PAGE - 1), libc::MADV_HUGEPAGE) };
        }
        for at in 0..len {
            // SAFETY: `at` is one of the `len` allocated here.
            let place = unsafe { base.add(at) };
            // SAFETY: aligned for `T` by the layout, allocated, and read by nobody yet.
            unsafe { place.write(T::default()) };
        }
        Self { base, len, layout, owns: PhantomData }
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` of them, allocated and written in `new`, live until drop.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; what it holds needs no drop.
        unsafe { dealloc(self.base.as_ptr().cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn small_and_large_tables_begin_as_defaults_and_keep_what_is_written() {
        for len in [1, 7, HUGE_PAGE / 8, 3 * HUGE_PAGE / 8 + 5] {
            let table = Table::<AtomicU64>::new(len);
            assert_eq!(table.len(), len);
            assert!(table.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            for (at, word) in table.iter().enumerate() {
                word.store(at as u64, Ordering::Relaxed);
            }
            assert!(table.iter().enumerate().all(|(at, word)| word.load(Ordering::Relaxed) == at as u64));
        }
    }
}
