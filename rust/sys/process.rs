//! What the kernel says of this process's threads.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_thread_is_not_asleep() {
        assert!(!is_asleep(thread_id()));
    }
}
