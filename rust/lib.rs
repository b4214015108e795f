//! The core of ovsvhost: a virtual switch whose ports are vhost-user back-ends.
//!
//! Rooms, from the ground up; each may use those before it and none after it:
//!
//! ```text
//! error, drops, counters, lock: one file each, used from below
//! sys      thin checked system calls              memory   guest regions, translation, copies, dirty log, pages on their
//!                                                          way, SIGBUS
//! frame    total parsing of what travels          burst    a burst of frames: snapshots + where the bytes are
//! ring     virtqueues, device side                switch   FDB and classification; knows port numbers only
//! recovery where each vring stood, for after a crash
//! vhost    the protocol: wire, session, endpoint  port     network devices: AF_XDP
//! pmd      poll threads: who polls what, when to sleep
//! datapath the façade: bridges and ports          py       PyO3, nothing else
//! ```
//!
//! The packet's walk through them is told in `docs/packet-walk.md`.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", target_pointer_width = "64")))]
compile_error!("ovsvhost runs on 64-bit x86 Linux only: its copies are x86 vectors and its ports are Linux sockets");

pub mod burst;
pub mod counters;
pub mod datapath;
pub mod drops;
pub mod error;
pub mod frame;
pub mod lock;
pub mod memory;
pub mod pmd;
pub mod port;
#[cfg(feature = "python")]
mod py;
pub mod recovery;
pub mod ring;
pub mod switch;
pub mod sys;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vhost;
