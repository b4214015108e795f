//! What the kernel says of this process and its threads.
#![allow(unsafe_code, reason = "gettid(2) is a raw call")]

use std::fs;

/// The calling thread, as the kernel numbers it.
pub fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// True if a thread of this process sleeps in the kernel: it waits for something other than a core (`proc(5)`, stat).
pub fn is_asleep(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // The name before it may hold anything, blanks and parentheses included.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('S' | 'D'))
}

/// True if memory of this process is locked (`mlock(2)`, `mlockall(2)`; `proc(5)`, status).
pub fn locks_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    locked.and_then(|text| text.split_whitespace().next()).is_some_and(|kib| kib != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_noticed() {
        let page = vec![0_u8; 4096];
        assert!(!locks_memory());
        // SAFETY: the page is live; locking it changes no byte.
        if unsafe { libc::mlock(page.as_ptr().cast(), page.len()) } != 0 {
            eprintln!("skipped: this user may lock no memory; raise RLIMIT_MEMLOCK");
            return;
        }
        assert!(locks_memory());
    }

    #[test]
    fn running_thread_is_not_asleep() {
        assert!(!is_asleep(thread_id()));
    }
}
