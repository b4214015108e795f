//! The format of one record: whose it is, and where its words are. Pure; a stranger's bytes give an error, never a guess.
//!
//! ```text
//!   0     magic:8 "ovsvring"  version:4  size:4 (bytes of the file)  checksum:8 (of the first 512 bytes, itself as zeroes)
//!   24    vring:2  socket's bytes:2  ring size:4  features:8  descriptors, available, used: 3 × (device inode offset):24
//!   112   socket path, at most 107 bytes, zeroes to 512
//!   512   state:8                       1 live: a session had it; 2 kept: nobody does
//!   640   the journal's cell:8          a line of its own, and its neighbour
//!   1024  the journal's shadow          one word for each descriptor of a packed ring; up to whole pages
//! ```
//!
//! All but state and journal is written before the file has its name and never changes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::memory::Place;

/// Bytes that never change.
pub(super) const HEADER_SIZE: usize = 512;
/// The word that holds the state.
pub(super) const STATE: usize = 64;
/// The word that is the journal's cell.
pub(super) const CELL: usize = 80;
/// The first word of the journal's shadow.
pub(super) const SHADOW: usize = 128;

const MAGIC: [u8; 8] = *b"ovsvring";
const VERSION: u32 = 1;
const PATH: usize = 112;
const PATH_MAX: usize = 107;
const CHECKSUM: usize = 16;

/// Just made; a process that died here started nothing.
pub(super) const NEW: u64 = 0;
/// A session has the vring.
pub(super) const LIVE: u64 = 1;
/// No session has it; its front-end was not told where it stands.
pub(super) const KEPT: u64 = 2;

/// Which vring of which ring memory: if all of it is the same, a cursor still means the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The port's socket: absolute, at most 107 bytes.
    pub socket: PathBuf,
    /// Number of the vring in its port.
    pub vring: u16,
    /// Elements.
    pub size: u32,
    /// Virtio features accepted that tell how the ring is read.
    pub features: u64,
    /// Where its descriptors, available and used areas are.
    pub areas: [Place; 3],
}

/// Why a file is no record of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// No magic.
    Foreign,
    /// Another version's.
    Version(u32),
    /// Not as many bytes as it says, or as a record has.
    Size,
    /// Its checksum is wrong.
    Checksum,
    /// Sound on the outside, and impossible.
    Content,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Foreign => f.write_str("it is not a record of this switch"),
            Self::Version(version) => write!(f, "it has version {version}, this switch reads {VERSION}"),
            Self::Size => f.write_str("its size is not what it says"),
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Content => f.write_str("what it says is impossible"),
        }
    }
}

/// Bytes of the file for a ring that needs `elements` in its shadow.
pub(super) fn file_size(elements: usize) -> usize {
    (8 * (SHADOW + elements)).next_multiple_of(4096)
}

/// The header of a file with `file_size` bytes. None for a socket path that no socket can have.
pub(super) fn encode(identity: &Identity, file_size: usize) -> Option<[u8; HEADER_SIZE]> {
    let path = identity.socket.as_os_str().as_bytes();
    if path.len() > PATH_MAX {
        return None;
    }
    let mut header = Vec::with_capacity(HEADER_SIZE);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&u32::try_from(file_size).ok()?.to_le_bytes());
    header.extend_from_slice(&[0; 8]);
    header.extend_from_slice(&identity.vring.to_le_bytes());
    header.extend_from_slice(&u16::try_from(path.len()).ok()?.to_le_bytes());
    header.extend_from_slice(&identity.size.to_le_bytes());
    header.extend_from_slice(&identity.features.to_le_bytes());
    for area in identity.areas {
        for word in [area.device, area.inode, area.offset] {
            header.extend_from_slice(&word.to_le_bytes());
        }
    }
    header.extend_from_slice(path);
    header.resize(HEADER_SIZE, 0);
    let mut header: [u8; HEADER_SIZE] = header.try_into().ok()?;
    let sum = fnv(&header);
    header.get_mut(CHECKSUM..CHECKSUM + 8)?.copy_from_slice(&sum.to_le_bytes());
    Some(header)
}

/// Reads the header of a file with `file_size` bytes.
pub(super) fn parse(bytes: &[u8], file_size: usize) -> Result<Identity, Unreadable> {
    let mut header: [u8; HEADER_SIZE] =
        *bytes.first_chunk().ok_or(if bytes.starts_with(&MAGIC) { Unreadable::Size } else { Unreadable::Foreign })?;
    let mut fields = Fields(&header);
    if fields.take() != MAGIC {
        return Err(Unreadable::Foreign);
    }
    match u32::from_le_bytes(fields.take()) {
        VERSION => {}
        other => return Err(Unreadable::Version(other)),
    }
    let size = u32::from_le_bytes(fields.take()) as usize;
    if size != file_size || !size.is_multiple_of(4096) || size < 8 * (SHADOW + 1) {
        return Err(Unreadable::Size);
    }
    let sum = u64::from_le_bytes(fields.take());
    let vring = u16::from_le_bytes(fields.take());
    let path_len = usize::from(u16::from_le_bytes(fields.take()));
    let ring_size = u32::from_le_bytes(fields.take());
    let features = u64::from_le_bytes(fields.take());
    let mut word = || u64::from_le_bytes(fields.take());
    let areas = [(); 3].map(|()| Place { device: word(), inode: word(), offset: word() });
    let path = header.get(PATH..PATH + path_len).filter(|path| path.len() <= PATH_MAX).map(<[u8]>::to_vec);
    if let Some(field) = header.get_mut(CHECKSUM..CHECKSUM + 8) {
        field.fill(0);
    }
    if fnv(&header) != sum {
        return Err(Unreadable::Checksum);
    }
    let socket = path.map(|path| PathBuf::from(OsStr::from_bytes(&path))).ok_or(Unreadable::Content)?;
    if !(1..=32_768).contains(&ring_size) {
        return Err(Unreadable::Content);
    }
    Ok(Identity { socket, vring, size: ring_size, features, areas })
}

/// Takes a header apart from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field. The header is longer than all of them.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

/// FNV-1a, 64 bits: finds accidents, and is no defence against somebody who may write here anyway.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn identity()(
            path in "/[a-z/]{0,106}", vring: u16, ring_size in 1_u32..=32_768, features: u64,
            places in any::<[(u64, u64, u64); 3]>(),
        ) -> Identity {
            let areas = places.map(|(device, inode, offset)| Place { device, inode, offset });
            Identity { socket: path.into(), vring, size: ring_size, features, areas }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_reads_the_same(identity in identity(), elements in 0_usize..5000) {
            let size = file_size(elements);
            let header = encode(&identity, size).unwrap();
            prop_assert_eq!(parse(&header, size), Ok(identity));
        }

        #[test]
        fn one_byte_changed_is_noticed(identity in identity(), at in 0..HEADER_SIZE, change in 1_u8..) {
            let mut header = encode(&identity, 4096).unwrap();
            header[at] ^= change;
            prop_assert!(parse(&header, 4096).is_err());
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..600), size: usize) {
            prop_assert!(parse(&bytes, size).is_err());
            let mut ours = bytes;
            ours.splice(0..ours.len().min(16), MAGIC.into_iter().chain(VERSION.to_le_bytes()).chain([0, 16, 0, 0]));
            prop_assert!(parse(&ours, 4096).is_err());
        }
    }

    #[test]
    fn another_version_is_named() {
        let place = Place { device: 1, inode: 2, offset: 3 };
        let identity = Identity { socket: "/s".into(), vring: 1, size: 256, features: 0, areas: [place; 3] };
        let mut header = encode(&identity, 4096).unwrap();
        header[8] = 9;
        assert_eq!(parse(&header, 4096), Err(Unreadable::Version(9)));
        assert_eq!(parse(&header[..100], 4096), Err(Unreadable::Size));
        assert_eq!(parse(b"", 0), Err(Unreadable::Foreign));
    }

    #[test]
    fn a_path_that_no_socket_can_have_makes_no_record() {
        let place = Place { device: 1, inode: 2, offset: 3 };
        let socket = format!("/{}", "x".repeat(107)).into();
        assert_eq!(encode(&Identity { socket, vring: 0, size: 1, features: 0, areas: [place; 3] }, 4096), None);
    }
}
