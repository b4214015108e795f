//! The descriptors by which a front-end and a poll thread wake each other.

use std::fs::File;
use std::io::Write;

use crate::error::{Error, Result};
use crate::sys::file;

/// The write side of an eventfd that a stranger sent: a call, or an error.
#[derive(Debug)]
pub struct Notifier(File);

impl Notifier {
    /// Takes the descriptor if it is an eventfd.
    ///
    /// # Errors
    /// `Peer` if it is anything else: a write to it could block or have other effects.
    pub fn new(file: File) -> Result<Self> {
        checked(file).map(Self)
    }

    /// Adds one. A full counter already wakes the other side, so its refusal is no loss.
    pub fn notify(&self) {
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }
}

/// Passes an eventfd through.
///
/// # Errors
/// `Peer` if it is anything else.
pub fn checked(file: File) -> Result<File> {
    if file::is_eventfd(&file) {
        Ok(file)
    } else {
        Err(Error::Peer("the descriptor sent as kick, call or err is not an eventfd".into()))
    }
}
