//! What is said is what is heard, and garbage is refused.

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
            for region in &regions {
                body.extend_from_slice(region.as_slice());
            }
            (FrontendReq::SET_MEM_TABLE, (body, files))
        }
        Request::SetLogBase { log, file } => (FrontendReq::SET_LOG_BASE, (log.as_slice().to_vec(), vec![file])),
        Request::SetLogFd(file) => (FrontendReq::SET_LOG_FD, (vec![], vec![file])),
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
        Request::SendRarp(mac) => (FrontendReq::SEND_RARP, ([&mac[..], &[0, 0]].concat(), vec![])),
        Request::NetSetMtu(v) => (FrontendReq::NET_SET_MTU, (number(v), vec![])),
        Request::ResetDevice => (FrontendReq::RESET_DEVICE, (vec![], vec![])),
        Request::GetMaxMemSlots => (FrontendReq::GET_MAX_MEM_SLOTS, (vec![], vec![])),
        Request::AddMemReg { region, file } => (FrontendReq::ADD_MEM_REG, (region.as_slice().to_vec(), vec![file])),
        Request::RemMemReg(region) => (FrontendReq::REM_MEM_REG, (region.as_slice().to_vec(), vec![])),
        Request::SetStatus(v) => (FrontendReq::SET_STATUS, (number(v), vec![])),
        Request::GetStatus => (FrontendReq::GET_STATUS, (vec![], vec![])),
        Request::PostcopyAdvise => (FrontendReq::POSTCOPY_ADVISE, (vec![], vec![])),
        Request::PostcopyListen => (FrontendReq::POSTCOPY_LISTEN, (vec![], vec![])),
        Request::PostcopyEnd => (FrontendReq::POSTCOPY_END, (vec![], vec![])),
        Request::SetBackendReqFd(file) => (FrontendReq::SET_BACKEND_REQ_FD, (vec![], vec![file])),
        Request::IotlbMsg(message) => {
            let words = [message.iova, message.size, message.uva].map(u64::to_ne_bytes).concat();
            (FrontendReq::IOTLB_MSG, ([&words[..], &[message.access, message.kind, 0, 0, 0, 0, 0, 0]].concat(), vec![]))
        }
        Request::RegionsDone => (FrontendReq::ADD_MEM_REG, (number(0), vec![])),
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
            Self::SetLogBase { log, .. } => write!(f, "log {:x?}", log.as_slice()),
            Self::SetLogFd(_) => f.write_str("log fd"),
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
            Self::PostcopyAdvise => f.write_str("advise"),
            Self::PostcopyListen => f.write_str("listen"),
            Self::PostcopyEnd => f.write_str("end"),
            Self::SetBackendReqFd(_) => f.write_str("channel"),
            Self::IotlbMsg(message) => write!(f, "{message:x?}"),
            Self::RegionsDone => f.write_str("regions done"),
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
        Just(()).prop_map(|()| Request::PostcopyAdvise),
        Just(()).prop_map(|()| Request::PostcopyListen),
        Just(()).prop_map(|()| Request::PostcopyEnd),
        Just(()).prop_map(|()| Request::RegionsDone),
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
        any::<[u64; 2]>()
            .prop_map(|[size, offset]| Request::SetLogBase { log: VhostUserLog::new(size, offset), file: null() }),
        Just(()).prop_map(|()| Request::SetLogFd(null())),
        Just(()).prop_map(|()| Request::SetBackendReqFd(null())),
        (any::<[u64; 3]>(), any::<[u8; 2]>()).prop_map(|([iova, size, uva], [access, kind])| {
            Request::IotlbMsg(Iotlb { iova, size, uva, access, kind })
        }),
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
        // That many zeroes end a post-copy table: a message of its own.
        prop_assume!(body != [0; 8]);
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
