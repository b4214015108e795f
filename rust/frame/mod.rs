//! Total parsing of what travels: every function takes any bytes and answers; none keeps state.

pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod gso;
pub mod ip;
pub mod lacp;
pub mod vnet_hdr;
