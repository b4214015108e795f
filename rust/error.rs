//! Four kinds of error, told apart by what happens next.
//!
//! A text is lower case, names the object and the cure. The packet path returns none of these: it drops by name
//! (`drops.rs`) or stops a queue (`ring::RingFault`).

use std::fmt;
use std::io;

/// What a control-side call can fail with.
#[derive(Debug)]
pub enum Error {
    /// Refused; nothing changed.
    Config(String),
    /// A front-end or guest broke the protocol: its queue or session stops.
    Peer(String),
    /// The kernel said no: which object, and its errno.
    Kernel {
        /// What was being done to which object, with the cure where there is one.
        what: String,
        /// The errno.
        source: io::Error,
    },
    /// Ours.
    Bug(String),
}

/// Result of a control-side call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps the current errno of a failed system call.
    pub fn kernel(what: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { what: what.into(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::Peer(text) | Self::Bug(text) => f.write_str(text),
            Self::Kernel { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {}
