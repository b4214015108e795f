//! Ports that are no guest's: today network devices of the host, through AF_XDP.
//!
//! A port gives the poll threads what a guest's rings give them: something to gather bursts from, and something to
//! deliver groups of frames to. Knows no bridge, no thread, no Python.

pub mod afxdp;
