//! Bytes and descriptors to typed requests, and replies to bytes. Pure and total: any input gives a [`Request`] or a
//! [`Malformed`] that says what is wrong with it; nothing here panics, blocks, or keeps a descriptor it does not return.
//!
//! ```text
//!   ┌─────────┬───────────────────────────────┬──────┐
//!   │ request │ flags: version 1, reply,      │ size │ payload (size bytes) …
//!   │ u32     │        need-reply             │ u32  │ + descriptors beside the stream
//!   └─────────┴───────────────────────────────┴──────┘     all in the machine's own byte order
//! ```
//!
//! Source: vhost-user, "Message Specification". It checks form only; what a request means is the handler's.

use std::fmt;
use std::fs::File;

use vhost::vhost_user::message::{
    BackendReq, FrontendReq, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion, VhostUserMsgValidator,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::features::VRINGS;

/// Bytes of a message header.
pub const HEADER_SIZE: usize = 12;

/// The largest payload accepted, in bytes. The largest we serve, a full memory table, has 1032.
pub const BODY_MAX: usize = 4096;

/// Most descriptors one message may carry: a full memory table.
pub const FILES_MAX: usize = 32;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the payload of a kick, call or error message: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// A message header that made sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The request's number; it may be one nobody knows.
    pub code: u32,
    /// The front-end wants an answer even where the request has none (`REPLY_ACK`).
    pub need_reply: bool,
    /// Bytes of payload that follow, at most [`BODY_MAX`].
    pub size: usize,
}

/// A well-formed request.
#[allow(missing_docs, reason = "the variants are the protocol's own requests, by its own names")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable {
        regions: Vec<VhostUserMemoryRegion>,
        files: Vec<File>,
    },
    SetLogBase {
        log: VhostUserLog,
        file: File,
    },
    SetLogFd(File),
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr(VhostUserVringAddr),
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringKick {
        index: u8,
        file: Option<File>,
    },
    SetVringCall {
        index: u8,
        file: Option<File>,
    },
    SetVringErr {
        index: u8,
        file: Option<File>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enable: bool,
    },
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg {
        region: VhostUserSingleMemoryRegion,
        file: File,
    },
    RemMemReg(VhostUserSingleMemoryRegion),
    SetStatus(u64),
    GetStatus,
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    /// The channel that our own requests go through.
    SetBackendReqFd(File),
    IotlbMsg(Iotlb),
    /// After the last region of a post-copy memory table: the front-end has our addresses, and answers faults from now on.
    RegionsDone,
    /// A request that this back-end never offered; its payload and descriptors are gone.
    Unserved(u32),
}

/// The payload of `IOTLB_MSG`, in either direction (`struct vhost_iotlb_msg`), as it was sent: judged by the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The front-end's address of the memory behind it.
    pub uva: u64,
    /// What the device may do: 1 read, 2 write.
    pub access: u8,
    /// One of [`Iotlb::MISS`] and its like.
    pub kind: u8,
}

impl Iotlb {
    /// From us: what does this address mean?
    pub const MISS: u8 = 1;
    /// To us: this.
    pub const UPDATE: u8 = 2;
    /// To us: these mean nothing any more.
    pub const INVALIDATE: u8 = 3;
    /// From us: what was answered does not allow what the guest asked the device to do.
    pub const ACCESS_FAIL: u8 = 4;
    /// Bytes: three words, two bytes, and what is missing to a word.
    const SIZE: u32 = 32;

    fn read(body: &[u8]) -> Option<Self> {
        let ([iova, size, uva, rest], []) = body.as_chunks::<8>() else { return None };
        let [access, kind, ..] = *rest;
        let [iova, size, uva] = [iova, size, uva].map(|word| u64::from_ne_bytes(*word));
        Some(Self { iova, size, uva, access, kind })
    }
}

/// Why a message is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Flags that a request cannot have.
    Flags {
        /// The request's number.
        code: u32,
        /// As sent.
        flags: u32,
    },
    /// A payload past [`BODY_MAX`].
    TooLarge {
        /// The request's number.
        code: u32,
        /// Bytes announced.
        size: u32,
    },
    /// A payload of another size than its request has.
    Size {
        /// The request's number.
        code: u32,
        /// Bytes sent.
        size: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Descriptors missing or too many.
    Files {
        /// The request's number.
        code: u32,
        /// How many came.
        sent: usize,
        /// How many belong to it.
        needed: usize,
    },
    /// A vring index past the last vring.
    Vring {
        /// The request's number.
        code: u32,
        /// As sent.
        index: u32,
    },
    /// A field that no front-end can mean.
    Field {
        /// The request's number.
        code: u32,
        /// What is wrong.
        what: &'static str,
    },
}

/// The name of a request by its number: `SET_MEM_TABLE`, or `request 77`.
pub fn name(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(|()| format!("request {code}"), |request| format!("{request:?}"))
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Flags { code, flags } => write!(f, "{} with flags {flags:#x}, which no request has", name(code)),
            Self::TooLarge { code, size } => {
                write!(f, "{} with {size} bytes of payload, more than the {BODY_MAX} accepted", name(code))
            }
            Self::Size { code, size, needed } => {
                write!(f, "{} with {size} bytes of payload instead of {needed}", name(code))
            }
            Self::Files { code, sent, needed } => {
                write!(f, "{} with {sent} file descriptors instead of {needed}", name(code))
            }
            Self::Vring { code, index } => write!(f, "{} for vring {index}, past the last of {VRINGS}", name(code)),
            Self::Field { code, what } => write!(f, "{}: {what}", name(code)),
        }
    }
}

/// Reads a message header.
pub fn header(bytes: [u8; HEADER_SIZE]) -> Result<Header, Malformed> {
    let [c0, c1, c2, c3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
    let code = u32::from_ne_bytes([c0, c1, c2, c3]);
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let size = u32::from_ne_bytes([s0, s1, s2, s3]);
    if flags & !NEED_REPLY != VERSION {
        return Err(Malformed::Flags { code, flags });
    }
    match usize::try_from(size) {
        Ok(size) if size <= BODY_MAX => Ok(Header { code, need_reply: flags & NEED_REPLY != 0, size }),
        _ => Err(Malformed::TooLarge { code, size }),
    }
}

/// Reads the payload of `header` and takes the descriptors that came with it.
pub fn request(header: Header, body: &[u8], files: Vec<File>) -> Result<Request, Malformed> {
    let code = header.code;
    // QEMU's word that it has all base addresses has the number of its last region message, or none if there was none.
    let is_region = [0, FrontendReq::ADD_MEM_REG as u32, FrontendReq::REM_MEM_REG as u32].contains(&code);
    if is_region && body == [0; 8] && files.is_empty() {
        return Ok(Request::RegionsDone);
    }
    let Ok(kind) = FrontendReq::try_from(code) else { return Ok(Request::Unserved(code)) };
    let message = Message { code, body, files };
    match kind {
        FrontendReq::GET_FEATURES => message.empty(Request::GetFeatures),
        FrontendReq::SET_FEATURES => message.number(Request::SetFeatures),
        FrontendReq::SET_OWNER => message.empty(Request::SetOwner),
        FrontendReq::RESET_OWNER => message.empty(Request::ResetOwner),
        FrontendReq::SET_MEM_TABLE => message.mem_table(),
        FrontendReq::SET_LOG_BASE => message.log_base(),
        FrontendReq::SET_LOG_FD => message.file_alone().map(Request::SetLogFd),
        FrontendReq::SET_VRING_NUM => message.vring_state(|index, num| Request::SetVringNum { index, num }),
        FrontendReq::SET_VRING_ADDR => message.vring_addr(),
        FrontendReq::SET_VRING_BASE => message.vring_state(|index, base| Request::SetVringBase { index, base }),
        FrontendReq::GET_VRING_BASE => message.vring_state(|index, _| Request::GetVringBase { index }),
        FrontendReq::SET_VRING_KICK => message.vring_file(|index, file| Request::SetVringKick { index, file }),
        FrontendReq::SET_VRING_CALL => message.vring_file(|index, file| Request::SetVringCall { index, file }),
        FrontendReq::SET_VRING_ERR => message.vring_file(|index, file| Request::SetVringErr { index, file }),
        FrontendReq::GET_PROTOCOL_FEATURES => message.empty(Request::GetProtocolFeatures),
        FrontendReq::SET_PROTOCOL_FEATURES => message.number(Request::SetProtocolFeatures),
        FrontendReq::GET_QUEUE_NUM => message.empty(Request::GetQueueNum),
        FrontendReq::SET_VRING_ENABLE => {
            if message.body.get(4..8).is_some_and(|num| u32::from_ne_bytes(array(num)) > 1) {
                return Err(Malformed::Field { code, what: "neither enable (1) nor disable (0)" });
            }
            message.vring_state(|index, num| Request::SetVringEnable { index, enable: num == 1 })
        }
        FrontendReq::SEND_RARP => message.number(|value| {
            let [mac @ .., _, _] = value.to_ne_bytes();
            Request::SendRarp(mac)
        }),
        FrontendReq::NET_SET_MTU => message.number(Request::NetSetMtu),
        FrontendReq::RESET_DEVICE => message.empty(Request::ResetDevice),
        FrontendReq::GET_MAX_MEM_SLOTS => message.empty(Request::GetMaxMemSlots),
        FrontendReq::ADD_MEM_REG => message.add_mem_reg(),
        FrontendReq::REM_MEM_REG => message.rem_mem_reg(),
        FrontendReq::SET_STATUS => message.number(Request::SetStatus),
        FrontendReq::GET_STATUS => message.empty(Request::GetStatus),
        FrontendReq::POSTCOPY_ADVISE => message.empty(Request::PostcopyAdvise),
        FrontendReq::POSTCOPY_LISTEN => message.empty(Request::PostcopyListen),
        FrontendReq::POSTCOPY_END => message.empty(Request::PostcopyEnd),
        FrontendReq::SET_BACKEND_REQ_FD => message.file_alone().map(Request::SetBackendReqFd),
        FrontendReq::IOTLB_MSG => message.iotlb(),
        _ => Ok(Request::Unserved(code)),
    }
}

/// A reply to request `code`.
pub fn reply(code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
    for word in [code, VERSION | REPLY, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// A reply that is the memory table as it was sent, with our addresses in place of the front-end's.
pub fn reply_table(code: u32, regions: &[VhostUserMemoryRegion], bases: &[u64]) -> Vec<u8> {
    let head = VhostUserMemory::new(u32::try_from(regions.len()).unwrap_or(u32::MAX));
    let mut body = head.as_slice().to_vec();
    for (region, &base) in regions.iter().zip(bases) {
        body.extend_from_slice(VhostUserMemoryRegion { user_addr: base, ..*region }.as_slice());
    }
    reply(code, &body)
}

/// A reply that is one region as it was sent, with our address in place of the front-end's.
pub fn reply_region(code: u32, region: &VhostUserSingleMemoryRegion, base: u64) -> Vec<u8> {
    let ours = VhostUserSingleMemoryRegion::new(region.guest_phys_addr, region.memory_size, base, region.mmap_offset);
    reply(code, ours.as_slice())
}

/// A reply that is one number.
pub fn reply_number(code: u32, value: u64) -> Vec<u8> {
    reply(code, &value.to_ne_bytes())
}

/// A reply that is a vring's index and a number.
pub fn reply_vring(code: u32, state: VhostUserVringState) -> Vec<u8> {
    reply(code, state.as_slice())
}

/// A request of ours to the front-end, which it does not answer (`vhost-user: BACKEND_IOTLB_MSG`).
pub fn backend_iotlb(message: Iotlb) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [BackendReq::IOTLB_MSG as u32, VERSION, Iotlb::SIZE] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [message.iova, message.size, message.uva] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&[message.access, message.kind, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// A reply that says a log's size and offset again: what `vhost`'s front-end waits for, and more than QEMU looks at.
pub fn reply_log(code: u32, log: VhostUserLog) -> Vec<u8> {
    reply(code, log.as_slice())
}

struct Message<'a> {
    code: u32,
    body: &'a [u8],
    files: Vec<File>,
}

fn array(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().unwrap_or_default()
}

/// Reads a structure from bytes of exactly its size.
fn read<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let into = value.as_mut_slice();
    (into.len() == bytes.len()).then(|| into.copy_from_slice(bytes))?;
    Some(value)
}

impl Message<'_> {
    fn body<T: ByteValued + Default>(&self) -> Result<T, Malformed> {
        read(self.body).ok_or(Malformed::Size { code: self.code, size: self.body.len(), needed: size_of::<T>() })
    }

    fn no_files(&self) -> Result<(), Malformed> {
        self.some_files(0)
    }

    fn some_files(&self, needed: usize) -> Result<(), Malformed> {
        let sent = self.files.len();
        if sent == needed { Ok(()) } else { Err(Malformed::Files { code: self.code, sent, needed }) }
    }

    fn vring(&self, index: u32) -> Result<u32, Malformed> {
        match usize::try_from(index) {
            Ok(at) if at < VRINGS => Ok(index),
            _ => Err(Malformed::Vring { code: self.code, index }),
        }
    }

    fn empty(self, request: Request) -> Result<Request, Malformed> {
        self.no_files()?;
        match self.body.len() {
            0 => Ok(request),
            size => Err(Malformed::Size { code: self.code, size, needed: 0 }),
        }
    }

    fn number(self, request: impl FnOnce(u64) -> Request) -> Result<Request, Malformed> {
        self.no_files()?;
        Ok(request(self.body::<VhostUserU64>()?.value))
    }

    fn vring_state(self, request: impl FnOnce(u32, u32) -> Request) -> Result<Request, Malformed> {
        self.no_files()?;
        let state: VhostUserVringState = self.body()?;
        Ok(request(self.vring(state.index)?, state.num))
    }

    fn vring_addr(self) -> Result<Request, Malformed> {
        self.no_files()?;
        let addr: VhostUserVringAddr = self.body()?;
        self.vring(addr.index)?;
        if !addr.is_valid() {
            let what = "unknown flags, or a descriptor, available or used address that is not aligned to 16, 2 and 4";
            return Err(Malformed::Field { code: self.code, what });
        }
        Ok(Request::SetVringAddr(addr))
    }

    fn vring_file(mut self, request: impl FnOnce(u8, Option<File>) -> Request) -> Result<Request, Malformed> {
        let value = self.body::<VhostUserU64>()?.value;
        if value & !(NO_FD | 0xff) != 0 {
            return Err(Malformed::Field { code: self.code, what: "bits besides the vring index and the no-fd flag" });
        }
        let [index, ..] = value.to_le_bytes();
        self.some_files(usize::from(value & NO_FD == 0))?;
        Ok(request(index, self.files.pop()))
    }

    fn one_file(mut self) -> Result<File, Malformed> {
        self.some_files(1)?;
        self.files.pop().ok_or(Malformed::Files { code: self.code, sent: 0, needed: 1 })
    }

    fn log_base(self) -> Result<Request, Malformed> {
        let log: VhostUserLog = self.body()?;
        Ok(Request::SetLogBase { log, file: self.one_file()? })
    }

    fn file_alone(self) -> Result<File, Malformed> {
        match self.body.len() {
            0 => self.one_file(),
            size => Err(Malformed::Size { code: self.code, size, needed: 0 }),
        }
    }

    fn iotlb(self) -> Result<Request, Malformed> {
        self.no_files()?;
        let (code, size) = (self.code, self.body.len());
        let message = Iotlb::read(self.body);
        message.map(Request::IotlbMsg).ok_or(Malformed::Size { code, size, needed: Iotlb::SIZE as usize })
    }

    fn mem_table(self) -> Result<Request, Malformed> {
        const HEAD: usize = size_of::<VhostUserMemory>();
        const REGION: usize = size_of::<VhostUserMemoryRegion>();
        let size = self.body.len();
        let (head, rest) =
            self.body.split_at_checked(HEAD).ok_or(Malformed::Size { code: self.code, size, needed: HEAD })?;
        let count = u32::from_ne_bytes(array(head.get(..4).unwrap_or_default()));
        let count = usize::try_from(count).ok().filter(|&count| count <= FILES_MAX);
        let count = count.ok_or(Malformed::Field { code: self.code, what: "more than 32 memory regions" })?;
        if rest.len() != count * REGION {
            return Err(Malformed::Size { code: self.code, size, needed: HEAD + count * REGION });
        }
        self.some_files(count)?;
        let regions: Vec<VhostUserMemoryRegion> = rest.chunks_exact(REGION).filter_map(read).collect();
        regions.iter().try_for_each(|region| self.region(region))?;
        Ok(Request::SetMemTable { regions, files: self.files })
    }

    fn region(&self, region: &VhostUserMemoryRegion) -> Result<(), Malformed> {
        let what = "a memory region of no bytes, or one that wraps around";
        if region.is_valid() { Ok(()) } else { Err(Malformed::Field { code: self.code, what }) }
    }

    fn add_mem_reg(self) -> Result<Request, Malformed> {
        let region: VhostUserSingleMemoryRegion = self.body()?;
        self.region(&region)?;
        Ok(Request::AddMemReg { region, file: self.one_file()? })
    }

    fn rem_mem_reg(self) -> Result<Request, Malformed> {
        let region: VhostUserSingleMemoryRegion = self.body()?;
        self.region(&region)?;
        // Some front-ends send the region's descriptor once more; it says nothing and is closed.
        if self.files.len() > 1 {
            return Err(Malformed::Files { code: self.code, sent: self.files.len(), needed: 0 });
        }
        Ok(Request::RemMemReg(region))
    }
}

#[cfg(test)]
mod tests;
