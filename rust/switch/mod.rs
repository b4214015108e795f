//! Switching: who is where, and where a frame goes. Sees heads of frames and port numbers, nothing else.

pub mod classify;
pub mod fdb;

/// A port's index in the datapath: small, dense, never the `OpenFlow` number.
pub type PortId = u16;
