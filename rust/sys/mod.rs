//! Thin, checked system calls: what std and vmm-sys-util do not wrap. Each file wraps one kernel object; `table` is memory of
//! our own, on huge pages.

pub mod bpf;
pub mod cpu;
pub mod eventfd;
pub mod features;
pub mod file;
pub mod inotify;
pub mod netdev;
pub mod numa;
pub mod packet;
pub mod process;
pub mod socket;
pub mod table;
pub mod tsc;
pub mod userfault;
pub mod xdp;
