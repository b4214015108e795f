// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in the front-end, by what happens next.

use std::fmt;
use std::io;

/// The result of everything in the front-end that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, by whose move is next.
#[derive(Debug)]
pub enum Error {
    /// The caller asked for something that cannot be; nothing was changed.
    Config(String),
    /// The back-end broke the protocol, refused, or hung up; the session is over.
    Peer(String),
    /// The kernel said no; the text names the object.
    Kernel(String, io::Error),
}

impl Error {
    /// A kernel error with the object it concerns, from `errno` as it stands now.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::Kernel(what.into(), io::Error::last_os_error())
    }

    /// A kernel error with the object it concerns.
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel(what.into(), source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::Peer(text) => f.write_str(text),
            Self::Kernel(what, source) => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Kernel(_, source) => Some(source),
            Self::Config(_) | Self::Peer(_) => None,
        }
    }
}
