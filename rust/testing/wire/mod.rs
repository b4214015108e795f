// SPDX-License-Identifier: Apache-2.0
//! vhost-user messages as bytes, well-formed or not.
//!
//! ```text
//!  0        4        8        12
//!  │request │ flags  │ size   │ payload (size bytes) …        all little-endian
//! ```
//! flags: bits 0-1 version (1), bit 2 reply, bit 3 need-reply. File descriptors travel beside the
//! first byte. Nothing here checks that a message makes sense: the hostile cases need those that
//! do not.

mod channel;
pub mod features;

pub use channel::{Channel, Reply};

use super::memory::Gpa;

/// Bytes of a message header.
pub const HEADER_SIZE: usize = 12;
/// The protocol version in the flags word.
pub const VERSION: u32 = 1;
/// The flag of a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// The flag that asks for an acknowledgement (with `REPLY_ACK`).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;
/// The bit of a vring fd message that says no fd comes with it.
pub const VRING_NO_FD: u64 = 1 << 8;

/// A front-end request number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(pub u32);

macro_rules! requests {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Request {
            $(#[doc = concat!("vhost-user: `", stringify!($name), "`.")]
            pub const $name: Self = Self($number);)*

            /// The name in the specification.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($number => stringify!($name),)*
                    _ => "an unknown request",
                }
            }
        }
    };
}

requests! {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, RESET_OWNER = 4, SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6, SET_LOG_FD = 7, SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_BASE = 10,
    GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13, SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18, SEND_RARP = 19, NET_SET_MTU = 20, SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22, SET_VRING_ENDIAN = 23, GET_CONFIG = 24, SET_CONFIG = 25,
    POSTCOPY_ADVISE = 28, POSTCOPY_LISTEN = 29, POSTCOPY_END = 30, GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32, RESET_DEVICE = 34, GET_MAX_MEM_SLOTS = 36, ADD_MEM_REG = 37,
    REM_MEM_REG = 38, SET_STATUS = 39, GET_STATUS = 40,
}

impl Request {
    /// Every request the front-end knows, for cases that walk over all of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=40).map(Self).filter(|request| request.name() != "an unknown request")
    }
}

/// One message before it becomes bytes.
#[derive(Clone, Debug)]
pub struct Message {
    /// What is asked.
    pub request: Request,
    /// Version and flags, as they go on the wire.
    pub flags: u32,
    /// The bytes behind the header.
    pub payload: Vec<u8>,
    /// The size to claim, when it is to differ from the payload's.
    pub claimed_size: Option<u32>,
}

impl Message {
    /// A message without payload.
    pub fn new(request: Request) -> Self {
        Self { request, flags: VERSION, payload: Vec::new(), claimed_size: None }
    }

    /// A message that carries one 64-bit number.
    pub fn number(request: Request, value: u64) -> Self {
        Self::new(request).words(&[value])
    }

    /// A message that carries a vring index and a number (`SET_VRING_NUM`, `_BASE`, `_ENABLE`).
    pub fn vring(request: Request, index: u32, value: u32) -> Self {
        Self::new(request).halves(&[index, value])
    }

    /// Appends 64-bit words.
    #[must_use]
    pub fn words(mut self, words: &[u64]) -> Self {
        self.payload.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self
    }

    /// Appends 32-bit words.
    #[must_use]
    pub fn halves(mut self, words: &[u32]) -> Self {
        self.payload.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        self
    }

    /// Asks for an acknowledgement.
    #[must_use]
    pub fn need_reply(mut self) -> Self {
        self.flags |= FLAG_NEED_REPLY;
        self
    }

    /// The bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.claimed_size.unwrap_or_else(|| u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.payload.len());
        for word in [self.request.0, self.flags, size] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// One memory region as `SET_MEM_TABLE` and `ADD_MEM_REG` describe it.
#[derive(Clone, Copy, Debug)]
pub struct RegionEntry {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Its bytes.
    pub size: u64,
    /// The front-end's own address of it.
    pub user_address: u64,
    /// Bytes of the file before it.
    pub file_offset: u64,
}

impl RegionEntry {
    fn words(self) -> [u64; 4] {
        [self.gpa.0, self.size, self.user_address, self.file_offset]
    }
}

/// `SET_MEM_TABLE` for these regions; their fds go beside it.
pub fn mem_table(regions: &[RegionEntry]) -> Message {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let words: Vec<u64> = regions.iter().flat_map(|region| region.words()).collect();
    Message::new(Request::SET_MEM_TABLE).halves(&[count, 0]).words(&words)
}

/// `ADD_MEM_REG` or `REM_MEM_REG` for one region.
pub fn mem_region(request: Request, region: RegionEntry) -> Message {
    Message::new(request).words(&[0]).words(&region.words())
}

/// Where the parts of a vring are, as front-end addresses.
#[derive(Clone, Copy, Debug)]
pub struct VringAddresses {
    /// The descriptor table (packed: the descriptor ring).
    pub descriptors: u64,
    /// The used ring (packed: the device event structure).
    pub used: u64,
    /// The available ring (packed: the driver event structure).
    pub available: u64,
    /// Guest physical address for dirty logging of the used ring.
    pub log: u64,
    /// `VHOST_VRING_F_LOG` or nothing.
    pub flags: u32,
}

/// `SET_VRING_ADDR`.
pub fn vring_addresses(index: u32, addresses: VringAddresses) -> Message {
    Message::new(Request::SET_VRING_ADDR).halves(&[index, addresses.flags]).words(&[
        addresses.descriptors,
        addresses.used,
        addresses.available,
        addresses.log,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vring_message_is_header_index_number() {
        let bytes = Message::vring(Request::SET_VRING_NUM, 3, 256).need_reply().encode();
        let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [8, VERSION | FLAG_NEED_REPLY, 8, 3, 256]);
    }

    #[test]
    fn a_claimed_size_overrides_the_real_one() {
        let mut message = Message::number(Request::SET_FEATURES, 1);
        message.claimed_size = Some(u32::MAX);
        assert_eq!(message.encode()[8..12], [0xff; 4]);
    }

    #[test]
    fn a_memory_table_of_two_regions_has_its_size() {
        let region = RegionEntry { gpa: Gpa(0), size: 1, user_address: 2, file_offset: 3 };
        assert_eq!(mem_table(&[region, region]).payload.len(), 8 + 2 * 32);
        assert_eq!(mem_region(Request::ADD_MEM_REG, region).payload.len(), 40);
    }
}
