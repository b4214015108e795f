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
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserMsgValidator, VhostUserSingleMemoryRegion,
    VhostUserU64, VhostUserVringAddr, VhostUserVringState,
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
    /// A request that this back-end never offered; its payload and descriptors are gone.
    Unserved(u32),
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
    let Ok(kind) = FrontendReq::try_from(code) else { return Ok(Request::Unserved(code)) };
    let message = Message { code, body, files };
    match kind {
        FrontendReq::GET_FEATURES => message.empty(Request::GetFeatures),
        FrontendReq::SET_FEATURES => message.number(Request::SetFeatures),
        FrontendReq::SET_OWNER => message.empty(Request::SetOwner),
        FrontendReq::RESET_OWNER => message.empty(Request::ResetOwner),
        FrontendReq::SET_MEM_TABLE => message.mem_table(),
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

/// A reply that is one number.
pub fn reply_number(code: u32, value: u64) -> Vec<u8> {
    reply(code, &value.to_ne_bytes())
}

/// A reply that is a vring's index and a number.
pub fn reply_vring(code: u32, state: VhostUserVringState) -> Vec<u8> {
    reply(code, state.as_slice())
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

    fn add_mem_reg(mut self) -> Result<Request, Malformed> {
        let region: VhostUserSingleMemoryRegion = self.body()?;
        self.region(&region)?;
        self.some_files(1)?;
        match self.files.pop() {
            Some(file) => Ok(Request::AddMemReg { region, file }),
            None => Err(Malformed::Files { code: self.code, sent: 0, needed: 1 }),
        }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    fn head(code: u32, flags: u32, size: u32) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (to, from) in bytes.chunks_exact_mut(4).zip([code, flags, size]) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }

    /// What a front-end puts on the wire for a request.
    fn encode(request: Request) -> (u32, Vec<u8>, Vec<File>) {
        let number = |value: u64| value.to_ne_bytes().to_vec();
        let pair = |index, num| VhostUserVringState::new(index, num).as_slice().to_vec();
        let fd = |index: u8, file: Option<File>| {
            let flag = if file.is_none() { NO_FD } else { 0 };
            ((u64::from(index) | flag).to_ne_bytes().to_vec(), file.into_iter().collect::<Vec<_>>())
        };
        let (kind, (body, files)) = match request {
            Request::GetFeatures => (FrontendReq::GET_FEATURES, (vec![], vec![])),
            Request::SetFeatures(v) => (FrontendReq::SET_FEATURES, (number(v), vec![])),
            Request::SetOwner => (FrontendReq::SET_OWNER, (vec![], vec![])),
            Request::ResetOwner => (FrontendReq::RESET_OWNER, (vec![], vec![])),
            Request::SetMemTable { regions, files } => {
                let mut body = VhostUserMemory::new(u32::try_from(regions.len()).unwrap()).as_slice().to_vec();
                regions.iter().for_each(|region| body.extend_from_slice(region.as_slice()));
                (FrontendReq::SET_MEM_TABLE, (body, files))
            }
            Request::SetVringNum { index, num } => (FrontendReq::SET_VRING_NUM, (pair(index, num), vec![])),
            Request::SetVringAddr(addr) => (FrontendReq::SET_VRING_ADDR, (addr.as_slice().to_vec(), vec![])),
            Request::SetVringBase { index, base } => (FrontendReq::SET_VRING_BASE, (pair(index, base), vec![])),
            Request::GetVringBase { index } => (FrontendReq::GET_VRING_BASE, (pair(index, 0), vec![])),
            Request::SetVringKick { index, file } => (FrontendReq::SET_VRING_KICK, fd(index, file)),
            Request::SetVringCall { index, file } => (FrontendReq::SET_VRING_CALL, fd(index, file)),
            Request::SetVringErr { index, file } => (FrontendReq::SET_VRING_ERR, fd(index, file)),
            Request::GetProtocolFeatures => (FrontendReq::GET_PROTOCOL_FEATURES, (vec![], vec![])),
            Request::SetProtocolFeatures(v) => (FrontendReq::SET_PROTOCOL_FEATURES, (number(v), vec![])),
            Request::GetQueueNum => (FrontendReq::GET_QUEUE_NUM, (vec![], vec![])),
            Request::SetVringEnable { index, enable } => {
                (FrontendReq::SET_VRING_ENABLE, (pair(index, u32::from(enable)), vec![]))
            }
            Request::SendRarp([a, b, c, d, e, f]) => (FrontendReq::SEND_RARP, (vec![a, b, c, d, e, f, 0, 0], vec![])),
            Request::NetSetMtu(v) => (FrontendReq::NET_SET_MTU, (number(v), vec![])),
            Request::ResetDevice => (FrontendReq::RESET_DEVICE, (vec![], vec![])),
            Request::GetMaxMemSlots => (FrontendReq::GET_MAX_MEM_SLOTS, (vec![], vec![])),
            Request::AddMemReg { region, file } => (FrontendReq::ADD_MEM_REG, (region.as_slice().to_vec(), vec![file])),
            Request::RemMemReg(region) => (FrontendReq::REM_MEM_REG, (region.as_slice().to_vec(), vec![])),
            Request::SetStatus(v) => (FrontendReq::SET_STATUS, (number(v), vec![])),
            Request::GetStatus => (FrontendReq::GET_STATUS, (vec![], vec![])),
            Request::Unserved(code) => return (code, vec![], vec![]),
        };
        (kind.into(), body, files)
    }

    /// What a request says; of its files, that they are there.
    impl fmt::Debug for Request {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let region = |r: &VhostUserMemoryRegion| (r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset);
            match self {
                Self::SetMemTable { regions, files } => {
                    write!(f, "table {:x?} {}", regions.iter().map(region).collect::<Vec<_>>(), files.len())
                }
                Self::AddMemReg { region: r, .. } => write!(f, "add {:x?}", region(r)),
                Self::RemMemReg(r) => write!(f, "remove {:x?}", region(r)),
                Self::SetVringNum { index, num } => write!(f, "num {index} {num}"),
                Self::SetVringAddr(addr) => write!(f, "addr {:x?}", addr.as_slice()),
                Self::SetVringBase { index, base } => write!(f, "base {index} {base}"),
                Self::GetVringBase { index } => write!(f, "base? {index}"),
                Self::SetVringKick { index, file } => write!(f, "kick {index} {}", file.is_some()),
                Self::SetVringCall { index, file } => write!(f, "call {index} {}", file.is_some()),
                Self::SetVringErr { index, file } => write!(f, "err {index} {}", file.is_some()),
                Self::SetVringEnable { index, enable } => write!(f, "enable {index} {enable}"),
                Self::SetFeatures(value) => write!(f, "features {value:x}"),
                Self::SetProtocolFeatures(value) => write!(f, "protocol features {value:x}"),
                Self::NetSetMtu(value) => write!(f, "mtu {value}"),
                Self::SetStatus(value) => write!(f, "status {value:x}"),
                Self::SendRarp(mac) => write!(f, "rarp {mac:x?}"),
                Self::Unserved(code) => write!(f, "unserved {code}"),
                Self::GetFeatures => f.write_str("features?"),
                Self::SetOwner => f.write_str("owner"),
                Self::ResetOwner => f.write_str("no owner"),
                Self::GetProtocolFeatures => f.write_str("protocol features?"),
                Self::GetQueueNum => f.write_str("queues?"),
                Self::ResetDevice => f.write_str("reset"),
                Self::GetMaxMemSlots => f.write_str("slots?"),
                Self::GetStatus => f.write_str("status?"),
            }
        }
    }

    /// Guest address, size, front-end address, file offset: none of them wraps.
    fn region() -> impl Strategy<Value = (u64, u64, u64, u64)> {
        let half = 0..u64::MAX / 2;
        (half.clone(), 1..u64::MAX / 2, half.clone(), half)
    }

    fn well_formed() -> impl Strategy<Value = Request> {
        let vring = 0..256_u32;
        let file = || any::<bool>().prop_map(|some| some.then(null));
        prop_oneof![
            Just(()).prop_map(|()| Request::GetFeatures),
            any::<u64>().prop_map(Request::SetFeatures),
            Just(()).prop_map(|()| Request::SetOwner),
            Just(()).prop_map(|()| Request::ResetOwner),
            proptest::collection::vec(region(), 0..=32).prop_map(|regions| {
                let files = regions.iter().map(|_| null()).collect();
                let regions = regions.into_iter().map(|(g, s, u, o)| VhostUserMemoryRegion::new(g, s, u, o)).collect();
                Request::SetMemTable { regions, files }
            }),
            (vring.clone(), any::<u32>()).prop_map(|(index, num)| Request::SetVringNum { index, num }),
            (vring.clone(), 0..2_u32, any::<[u64; 4]>()).prop_map(|(index, flags, [d, u, a, log])| {
                let mut addr = VhostUserVringAddr { index, flags, ..Default::default() };
                (addr.descriptor, addr.used, addr.available, addr.log) = (d & !15, u & !3, a & !1, log);
                Request::SetVringAddr(addr)
            }),
            (vring.clone(), any::<u32>()).prop_map(|(index, base)| Request::SetVringBase { index, base }),
            vring.clone().prop_map(|index| Request::GetVringBase { index }),
            (any::<u8>(), file()).prop_map(|(index, file)| Request::SetVringKick { index, file }),
            (any::<u8>(), file()).prop_map(|(index, file)| Request::SetVringCall { index, file }),
            (any::<u8>(), file()).prop_map(|(index, file)| Request::SetVringErr { index, file }),
            Just(()).prop_map(|()| Request::GetProtocolFeatures),
            any::<u64>().prop_map(Request::SetProtocolFeatures),
            Just(()).prop_map(|()| Request::GetQueueNum),
            (vring, any::<bool>()).prop_map(|(index, enable)| Request::SetVringEnable { index, enable }),
            any::<[u8; 6]>().prop_map(Request::SendRarp),
            any::<u64>().prop_map(Request::NetSetMtu),
            Just(()).prop_map(|()| Request::ResetDevice),
            Just(()).prop_map(|()| Request::GetMaxMemSlots),
            region().prop_map(|(g, s, u, o)| {
                Request::AddMemReg { region: VhostUserSingleMemoryRegion::new(g, s, u, o), file: null() }
            }),
            region().prop_map(|(g, s, u, o)| Request::RemMemReg(VhostUserSingleMemoryRegion::new(g, s, u, o))),
            any::<u64>().prop_map(Request::SetStatus),
            Just(()).prop_map(|()| Request::GetStatus),
            (45..u32::MAX).prop_map(Request::Unserved),
        ]
    }

    proptest! {
        #[test]
        fn what_a_front_end_says_is_what_is_heard(request in well_formed(), need_reply in any::<bool>()) {
            let said = format!("{request:?}");
            let (code, body, files) = encode(request);
            let flags = VERSION | if need_reply { NEED_REPLY } else { 0 };
            let head = header(head(code, flags, u32::try_from(body.len()).unwrap())).unwrap();
            prop_assert_eq!(head, Header { code, need_reply, size: body.len() });
            prop_assert_eq!(format!("{:?}", super::request(head, &body, files).unwrap()), said);
        }

        #[test]
        fn garbage_is_refused_or_heard_and_never_more(
            code in prop_oneof![0..60_u32, any::<u32>()],
            flags in prop_oneof![Just(VERSION), Just(VERSION | NEED_REPLY), any::<u32>()],
            body in proptest::collection::vec(any::<u8>(), 0..200),
            files in 0..4_usize,
        ) {
            if let Ok(head) = header(head(code, flags, u32::try_from(body.len()).unwrap())) {
                let files = (0..files).map(|_| null()).collect();
                if let Err(malformed) = request(head, &body, files) {
                    prop_assert!(!malformed.to_string().is_empty());
                }
            }
        }

        #[test]
        fn a_body_cut_short_is_refused(request in well_formed(), cut in 1..40_usize) {
            let (code, mut body, files) = encode(request);
            let whole = body.len();
            body.truncate(whole.saturating_sub(cut));
            prop_assume!(body.len() < whole);
            let head = Header { code, need_reply: false, size: body.len() };
            prop_assert!(super::request(head, &body, files).is_err());
        }
    }

    #[test]
    fn a_header_with_a_wrong_version_a_reply_flag_or_a_huge_size_is_refused() {
        for flags in [0, 2, 3, VERSION | REPLY, VERSION | 16, u32::MAX] {
            assert_eq!(header(head(1, flags, 0)), Err(Malformed::Flags { code: 1, flags }));
        }
        assert_eq!(header(head(5, VERSION, 4097)), Err(Malformed::TooLarge { code: 5, size: 4097 }));
        assert_eq!(header(head(5, VERSION, u32::MAX)), Err(Malformed::TooLarge { code: 5, size: u32::MAX }));
        assert!(header(head(5, VERSION, 4096)).is_ok());
    }

    #[test]
    fn a_vring_past_the_last_is_refused() {
        let body = VhostUserVringState::new(256, 0);
        let code = FrontendReq::GET_VRING_BASE.into();
        let head = Header { code, need_reply: false, size: 8 };
        let refused = request(head, body.as_slice(), vec![]).unwrap_err();
        assert_eq!(refused.to_string(), "GET_VRING_BASE for vring 256, past the last of 256");
    }

    #[test]
    fn descriptors_that_do_not_belong_are_refused_and_closed() {
        let head = Header { code: FrontendReq::GET_FEATURES.into(), need_reply: false, size: 0 };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(theirs));
        assert!(matches!(request(head, &[], vec![file]), Err(Malformed::Files { sent: 1, needed: 0, .. })));
        // The other end sees the hang-up, so the descriptor was closed.
        assert_eq!(std::io::Read::read(&mut &ours, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_memory_table_needs_one_descriptor_a_region() {
        let region = VhostUserMemoryRegion::new(0, 4096, 0, 0);
        let mut body = VhostUserMemory::new(2).as_slice().to_vec();
        body.extend_from_slice(region.as_slice());
        body.extend_from_slice(region.as_slice());
        let head = Header { code: FrontendReq::SET_MEM_TABLE.into(), need_reply: false, size: body.len() };
        let refused = request(head, &body, vec![null()]).unwrap_err();
        assert_eq!(refused.to_string(), "SET_MEM_TABLE with 1 file descriptors instead of 2");
        assert!(request(head, &body, vec![null(), null()]).is_ok());
    }

    #[test]
    fn a_reply_has_the_request_the_reply_flag_and_the_size() {
        let bytes = reply_number(FrontendReq::GET_FEATURES.into(), 0x1234);
        assert_eq!(bytes.get(..HEADER_SIZE), Some(&head(1, VERSION | REPLY, 8)[..]));
        assert_eq!(bytes.get(HEADER_SIZE..), Some(&0x1234_u64.to_ne_bytes()[..]));
    }
}
