//! Which cores a thread may and does run on.
//!
//! Poll threads have their cores to themselves as far as this process decides: a thread that is woken often while they poll
//! asks to be kept off them.
#![allow(unsafe_code, reason = "sched_setaffinity(2) takes a raw mask")]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Cores that a mask has room for.
const MOST: usize = libc::CPU_SETSIZE.unsigned_abs() as usize;

/// How many poll threads there are on each core.
static POLLED: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];

/// A core that a poll thread has, as long as this is kept.
#[derive(Debug)]
pub struct Polled(usize);

impl Drop for Polled {
    fn drop(&mut self) {
        if let Some(count) = POLLED.get(self.0) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Cores this process may run on, ascending.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live cpu_set_t of the size given.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET reads one bit of `set`, and `cpu` is below CPU_SETSIZE.
    Ok((0..MOST).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Pins the calling thread to one core, to poll there.
pub fn poll_on(cpu: usize) -> io::Result<Polled> {
    let count = POLLED.get(cpu).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    run_on(&[cpu])?;
    count.fetch_add(1, Ordering::Relaxed);
    Ok(Polled(cpu))
}

/// Keeps the calling thread off the cores that poll threads have now. Where it may use no others it stays where it is.
pub fn leave_polled() -> io::Result<()> {
    let is_free = |&cpu: &usize| POLLED.get(cpu).is_some_and(|count| count.load(Ordering::Relaxed) == 0);
    let free: Vec<_> = allowed_cpus()?.into_iter().filter(is_free).collect();
    if free.is_empty() { Ok(()) } else { run_on(&free) }
}

/// Lets the calling thread run on these cores and no others.
fn run_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < MOST) {
        // SAFETY: CPU_SET writes one bit of `set`, and `cpu` is below CPU_SETSIZE.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is a live cpu_set_t of the size given; pid 0 is the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_keeps_off_polled_cores_while_there_are_others_and_as_long_as_they_are_polled() {
        let all = allowed_cpus().unwrap();
        let elsewhere = || thread::spawn(|| leave_polled().and_then(|()| allowed_cpus()).unwrap()).join().unwrap();
        let polls = |cpu| thread::spawn(move || poll_on(cpu).unwrap()).join().unwrap();
        let [first, .., _] = all[..] else { return assert_eq!(elsewhere(), all) };
        let one = polls(first);
        assert_eq!(elsewhere(), all[1..]);
        let rest: Vec<_> = all[1..].iter().map(|&cpu| polls(cpu)).collect();
        assert_eq!(elsewhere(), all, "there are no others");
        drop((one, rest));
        assert_eq!(elsewhere(), all);
        assert_eq!(poll_on(MOST).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
