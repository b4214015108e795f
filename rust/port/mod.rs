//! Ports that are no guest's: network devices of the host, through AF_XDP or AF_PACKET.
//!
//! A port gives the poll threads what a guest's rings give them: something to gather bursts from, and something to
//! deliver groups of frames to. Knows no bridge, no thread, no Python.

pub mod afxdp;
mod device;
pub mod packet;

pub use device::{Attachment, Driver, Plan, RxQueue, TxQueue};
