//! When a guest's memory file is truncated or punched, touching it raises SIGBUS on whatever thread touched it.
//!
//! One process-wide handler looks the address up in a fixed, lock-free table of guest mappings. A hit maps zeroed
//! anonymous memory over the whole mapping (one fault, however many pages went), marks it broken and returns: the
//! interrupted copy goes on over zeroes and the queue stops at its next burst. A miss goes to whoever handled SIGBUS before. The handler
//! allocates nothing, locks nothing and logs nothing.
#![allow(unsafe_code, reason = "a signal handler and MAP_FIXED are raw by nature")]

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const SLOTS: usize = 8192;

struct Slot {
    /// 0 = free. Written last when a slot is taken, first when it is given back.
    start: AtomicUsize,
    end: AtomicUsize,
    taken: AtomicBool,
    broken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        broken: AtomicBool::new(false),
    }
}; SLOTS];
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
/// Mappings lost so far.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// How many mappings were lost since the process began: while it stands still, none was.
#[inline]
pub fn losses() -> usize {
    LOSSES.load(Ordering::Relaxed)
}

/// A mapping's place in the table; gives it back when dropped.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Registers the mapping `[start, start + size)`.
    ///
    /// # Errors
    /// The handler cannot be installed, or all 8192 places are taken.
    pub fn register(start: usize, size: usize) -> io::Result<Self> {
        install()?;
        for (i, slot) in TABLE.iter().enumerate() {
            if slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                slot.broken.store(false, Ordering::Relaxed);
                slot.end.store(start + size, Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
                HIGH_WATER.fetch_max(i + 1, Ordering::Release);
                return Ok(Self(i));
            }
        }
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, "more than 8192 guest memory regions are mapped"))
    }

    /// True once a page of this mapping was lost.
    #[inline]
    pub fn is_broken(&self) -> bool {
        TABLE.get(self.0).is_some_and(|slot| slot.broken.load(Ordering::Relaxed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = TABLE.get(self.0) {
            slot.start.store(0, Ordering::Release);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

fn install() -> io::Result<()> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: an all-zero sigaction is valid plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: an all-zero sigaction is valid plain data.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reading the present action changes nothing; both pointers are live.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The old handler is stored before ours can run, and only the first caller installs.
    if PREVIOUS.set(previous).is_ok() {
        // SAFETY: `on_sigbus` is async-signal-safe: atomics and mmap(2) only.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a live siginfo_t to an SA_SIGINFO handler.
    let details = unsafe { &*info };
    // SAFETY: SIGBUS fills the address field.
    let address = unsafe { details.si_addr() } as usize;
    for slot in TABLE.iter().take(HIGH_WATER.load(Ordering::Acquire)) {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        if start == 0 || address < start || address >= end {
            continue;
        }
        // SAFETY: [start, end) is one whole mapping that is registered, hence ours and live: a guard is dropped before
        // its mapping is, and the faulting thread is in the middle of using it.
        if unsafe { blank(start, end - start) } {
            slot.broken.store(true, Ordering::Release);
            LOSSES.fetch_add(1, Ordering::Release);
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Maps zeroed memory of our own over a mapping; false if the kernel refuses.
///
/// # Safety
/// `[start, start + size)` is one whole mapping of guest memory that this process has.
pub(super) unsafe fn blank(start: usize, size: usize) -> bool {
    // SAFETY: the caller's; every access to guest memory lives with any bytes there.
    let mapped = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: putting the default back; the instruction faults again and the process dies as it would have.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the previous owner registered this address as an SA_SIGINFO handler.
            let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            call(signal, info, context);
        }
        handler => {
            // SAFETY: the previous owner registered this address as a plain handler.
            let call: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            call(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use vm_memory::{FileOffset, MmapRegion};

    #[test]
    fn truncated_file_reads_as_zeroes_and_marks_the_mapping_broken() {
        // SAFETY: memfd_create has no memory preconditions; the name is a C string.
        let fd = unsafe { libc::memfd_create(c"sigbus-test".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: `fd` is fresh and owned by nobody else.
        let file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        file.set_len(8192).unwrap();
        let map = MmapRegion::<()>::build(
            Some(FileOffset::new(file.try_clone().unwrap(), 0)),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        )
        .unwrap();
        let guard = Guard::register(map.as_ptr() as usize, 8192).unwrap();
        let byte = map.as_ptr().wrapping_add(5000);
        // SAFETY: inside the mapping.
        unsafe { byte.write_volatile(7) };
        assert!(!guard.is_broken());
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::ftruncate(file.as_raw_fd(), 0) }, 0);
        // SAFETY: inside the mapping; the page is gone, which is what the handler is for.
        assert_eq!(unsafe { byte.read_volatile() }, 0);
        assert!(guard.is_broken());
    }
}
