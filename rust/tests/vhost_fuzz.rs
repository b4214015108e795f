//! Sessions of messages that nobody means: whatever comes, the port lives, forgets nothing, and serves who comes next.
//!
//! ```text
//!   seed ─▶ a session: an honest beginning, or part of one, or none
//!                      messages with the right shape ─▶ bytes, sizes, numbers and descriptors changed at random
//! ```
//!
//! The front-end's and the guest's words that reach the parser and the handler, among them dirty logs, the steps of a
//! post-copy migration, IOTLB messages and memory tables, with the descriptors they may come with. No instrumentation guides it: shapes do, as most of what a
//! random message could break lies behind the check of its size. A session is its seed, so one that fails can be run
//! again: `OVSVHOST_FUZZ_SEED=<seed> OVSVHOST_FUZZ_S=0`. `make fuzz` runs for a minute from a seed of the day.
//! Rows: C13.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ovsvhost::vhost::{EndpointConfig, EndpointKind, features};
use rig::{GPA, MEMORY, Memory, NEED_REPLY, PLAIN, Port, Raw, SIZE, Told, Vm, eventfd, eventually, memfd};
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempdir::TempDir;

/// Sessions of a short run, and of one on a port that guests may move to.
const SESSIONS: u64 = 1500;
const ARRIVING_SESSIONS: u64 = 300;
/// Messages of a session at most.
const MESSAGES: u64 = 40;
/// Request numbers tried; past the last known one.
const REQUESTS: u64 = 46;

/// splitmix64: enough chance, and one number to begin it again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Descriptors that a message may come with.
struct Files {
    memory: Memory,
    memfds: Vec<File>,
    eventfd: EventFd,
    null: File,
    pipe: UnixStream,
}

impl Files {
    fn new() -> Self {
        Self {
            memory: Memory::new(libc::MAP_SHARED),
            memfds: [0, 1, 4096, MEMORY].map(memfd).into(),
            eventfd: eventfd(),
            null: File::open("/dev/null").unwrap(),
            pipe: UnixStream::pair().unwrap().0,
        }
    }

    fn any(&self, dice: &mut Dice) -> RawFd {
        match dice.below(8) {
            0 => self.null.as_raw_fd(),
            1 => self.pipe.as_raw_fd(),
            2 | 3 => self.eventfd.as_raw_fd(),
            4 | 5 => self.memory.file.as_raw_fd(),
            _ => self.memfds[usize::try_from(dice.below(self.memfds.len() as u64)).unwrap()].as_raw_fd(),
        }
    }
}

/// A number that a check may have forgotten.
fn number(dice: &mut Dice, memory: &Memory) -> u64 {
    let near = dice.one_of(&[
        0,
        1,
        256,
        4096,
        GPA,
        GPA + MEMORY,
        MEMORY,
        memory.uva,
        memory.uva + MEMORY,
        memory.vring(0).used_ring_addr,
        1 << 16,
        1 << 31,
        1 << 32,
        1 << 63,
        u64::MAX,
        u64::from(u32::MAX),
    ]);
    match dice.below(4) {
        0 => near.wrapping_sub(1),
        1 => near.wrapping_add(dice.below(64)),
        2 if dice.once_in(4) => dice.roll(),
        _ => near,
    }
}

/// The payload that a request has, with numbers of any kind in it; and how many descriptors it wants.
fn shape(code: u32, dice: &mut Dice, memory: &Memory) -> (Vec<u8>, usize) {
    let words = |count: u64, dice: &mut Dice| -> Vec<u8> {
        (0..count).flat_map(|_| number(dice, memory).to_ne_bytes()).collect()
    };
    match FrontendReq::try_from(code) {
        Ok(FrontendReq::SET_MEM_TABLE) => {
            let count = dice.below(4);
            let mut body = count.to_ne_bytes().to_vec();
            for _ in 0..count {
                body.extend(region(dice, memory));
            }
            (body, usize::try_from(count).unwrap())
        }
        Ok(FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG) => {
            ([0_u64.to_ne_bytes().to_vec(), region(dice, memory)].concat(), 1)
        }
        Ok(FrontendReq::SET_LOG_BASE) => (words(2, dice), 1),
        Ok(FrontendReq::SET_LOG_FD | FrontendReq::SET_BACKEND_REQ_FD) => (Vec::new(), 1),
        Ok(FrontendReq::SET_VRING_ADDR) => {
            let vring = memory.vring(usize::try_from(dice.below(2)).unwrap());
            let mut body = [u32::try_from(dice.below(4)).unwrap().to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
            for honest in [vring.desc_table_addr, vring.used_ring_addr, vring.avail_ring_addr, GPA] {
                let word = if dice.once_in(4) { number(dice, memory) } else { honest };
                body.extend(word.to_ne_bytes());
            }
            (body, 0)
        }
        Ok(FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR) => {
            (dice.below(4).to_ne_bytes().to_vec(), 1)
        }
        Ok(
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::GET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE,
        ) => {
            let value = dice.one_of(&[0, 1, 256, 32768, 65536, u32::MAX]);
            ([u32::try_from(dice.below(4)).unwrap().to_ne_bytes(), value.to_ne_bytes()].concat(), 0)
        }
        Ok(FrontendReq::IOTLB_MSG) => {
            let mut body = words(3, dice);
            body.extend((dice.below(4) | dice.below(6) << 8).to_ne_bytes());
            (body, 0)
        }
        Ok(FrontendReq::SET_FEATURES | FrontendReq::SET_PROTOCOL_FEATURES) => (dice.roll().to_ne_bytes().to_vec(), 0),
        Ok(FrontendReq::SEND_RARP | FrontendReq::NET_SET_MTU | FrontendReq::SET_STATUS) => (words(1, dice), 0),
        _ => {
            let count = dice.one_of(&[0, 0, 0, 1, 2, 5]);
            (words(count, dice), usize::from(dice.once_in(8)))
        }
    }
}

fn region(dice: &mut Dice, memory: &Memory) -> Vec<u8> {
    let honest = [GPA, MEMORY, memory.uva, 0];
    honest
        .into_iter()
        .flat_map(|word| if dice.once_in(6) { number(dice, memory) } else { word }.to_ne_bytes())
        .collect()
}

/// One message, as the dice have it.
fn message(dice: &mut Dice, files: &Files) -> (Vec<u8>, Vec<RawFd>) {
    let code = match u32::try_from(dice.below(REQUESTS)).unwrap() {
        // As below: seldom.
        1 if !dice.once_in(8) => 2,
        code => code,
    };
    let (mut body, wanted) = shape(code, dice, &files.memory);
    if dice.once_in(12) {
        body.resize(usize::try_from(dice.one_of(&[0, 1, 7, 8, 9, 40, 500, 5000])).unwrap(), 0xff);
    }
    if dice.once_in(8) && !body.is_empty() {
        let at = usize::try_from(dice.below(body.len() as u64)).unwrap();
        body[at] = body[at].wrapping_add(u8::try_from(dice.below(256)).unwrap());
    }
    let flags =
        if dice.once_in(20) { u32::try_from(dice.below(1 << 32)).unwrap() } else { dice.one_of(&[PLAIN, NEED_REPLY]) };
    let mut bytes = rig::message(FrontendReq::GET_FEATURES, flags, &body);
    bytes[..4].copy_from_slice(&code.to_ne_bytes());
    if dice.once_in(30) {
        let claimed = dice.one_of(&[0, 1, 4, 4096, 4097, u32::MAX]);
        bytes[8..12].copy_from_slice(&claimed.to_ne_bytes());
    }
    let count = if dice.once_in(10) { usize::try_from(dice.one_of(&[0, 1, 2, 9, 33])).unwrap() } else { wanted };
    let fds = (0..count).map(|_| files.any(dice)).collect();
    (bytes, fds)
}

/// A request, its payload and its descriptors.
type Said = (FrontendReq, Vec<u8>, Vec<RawFd>);

/// How most sessions begin: what was not agreed on would be refused at the door. On a port that guests may move to, half
/// of them have a guest come whose memory nobody brings.
fn opening(dice: &mut Dice, files: &Files, may_arrive: bool) -> Vec<Said> {
    if dice.once_in(4) {
        return Vec::new();
    }
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let pair = |at: u32, number: u32| [at.to_ne_bytes(), number.to_ne_bytes()].concat();
    let memory = &files.memory;
    let arrives = may_arrive && dice.once_in(2);
    let log_all = if dice.once_in(2) { features::LOG_ALL } else { 0 };
    let mut said = vec![
        (FrontendReq::SET_PROTOCOL_FEATURES, words(&[features::protocol(may_arrive, false).bits()]), vec![]),
        (FrontendReq::SET_FEATURES, words(&[rig::VERSION_1 | rig::PROTOCOL_FEATURES | log_all]), vec![]),
    ];
    if dice.once_in(2) {
        // Each byte of it is 32 KiB of the guest's.
        said.push((FrontendReq::SET_LOG_BASE, words(&[(GPA + MEMORY) >> 15, 0]), vec![files.memfds[3].as_raw_fd()]));
    }
    if arrives {
        said.push((FrontendReq::POSTCOPY_ADVISE, vec![], vec![]));
        said.push((FrontendReq::POSTCOPY_LISTEN, vec![], vec![]));
    }
    let table = words(&[1, GPA, MEMORY, memory.uva, 0]);
    said.push((FrontendReq::SET_MEM_TABLE, table, vec![memory.file.as_raw_fd()]));
    if arrives {
        // It knows the addresses.
        said.push((FrontendReq::SET_MEM_TABLE, words(&[0]), vec![]));
    }
    for at in 0..2_u32 {
        let vring = memory.vring(usize::try_from(at).unwrap());
        let places = [vring.desc_table_addr, vring.used_ring_addr, vring.avail_ring_addr, GPA];
        let flags = u32::from(log_all != 0);
        said.extend([
            (FrontendReq::SET_VRING_NUM, pair(at, u32::from(SIZE)), vec![]),
            (FrontendReq::SET_VRING_ADDR, [pair(at, flags), words(&places)].concat(), vec![]),
            (FrontendReq::SET_VRING_KICK, words(&[at.into()]), vec![files.eventfd.as_raw_fd()]),
            (FrontendReq::SET_VRING_ENABLE, pair(at, 1), vec![]),
        ]);
    }
    if dice.once_in(4) {
        said.truncate(usize::try_from(dice.below(said.len() as u64)).unwrap());
    }
    said
}

/// One front-end that comes, talks and leaves.
fn session(seed: u64, door: &Door, may_arrive: bool) {
    let mut dice = Dice(seed);
    let files = Files::new();
    let stream = door.meet();
    // A back-end that hung up, or waits for the rest of a message, has answered in its way.
    stream.set_nonblocking(true).unwrap();
    let honest = opening(&mut dice, &files, may_arrive);
    let honest = honest.iter().map(|(request, body, fds)| (rig::message(*request, PLAIN, body), fds.clone()));
    let messages = dice.below(MESSAGES) + 1;
    let wild = std::iter::repeat_with(|| message(&mut dice, &files)).take(usize::try_from(messages).unwrap());
    for (bytes, fds) in honest.chain(wild) {
        if stream.send_with_fds(&[bytes.as_slice()], &fds).is_err() {
            break;
        }
    }
}

/// Sessions of guests with an IOMMU: each has to be waited for, as the port is the one that connects.
const GUARDED_SESSIONS: u64 = 300;

/// A session that begins as a guest with an IOMMU whose rings run, and goes on as the dice have it.
fn guarded_session(seed: u64, stream: &UnixStream) {
    let mut dice = Dice(seed);
    let files = Files::new();
    let memory = &files.memory;
    let word = |value: u64| value.to_ne_bytes().to_vec();
    let pair = |index: u32, value: u32| [index.to_ne_bytes(), value.to_ne_bytes()].concat();
    let iotlb = |iova: u64, size: u64, uva: u64, last: u64| [iova, size, uva, last].map(u64::to_ne_bytes).concat();
    let (kick, channel) = (files.eventfd.as_raw_fd(), files.pipe.as_raw_fd());
    let region = [1_u64, GPA, MEMORY, memory.uva, 0].map(u64::to_ne_bytes).concat();
    let mut all = vec![
        (FrontendReq::SET_PROTOCOL_FEATURES, word(PROTOCOL), None),
        (FrontendReq::SET_FEATURES, word(FEATURES), None),
        (FrontendReq::SET_BACKEND_REQ_FD, Vec::new(), Some(channel)),
        (FrontendReq::SET_MEM_TABLE, region, Some(memory.file.as_raw_fd())),
    ];
    for index in 0..2 {
        let vring = memory.vring(usize::try_from(index).unwrap());
        let addresses = [vring.desc_table_addr, vring.used_ring_addr, vring.avail_ring_addr, 0].map(u64::to_ne_bytes);
        all.extend([
            (FrontendReq::SET_VRING_NUM, pair(index, u32::from(vring.queue_size)), None),
            (FrontendReq::SET_VRING_BASE, pair(index, 0), None),
            (FrontendReq::SET_VRING_ADDR, [pair(index, 0), addresses.concat()].concat(), None),
            (FrontendReq::SET_VRING_KICK, word(index.into()), Some(kick)),
            (FrontendReq::SET_VRING_ENABLE, pair(index, 1), None),
        ]);
    }
    // Every address is its own.
    all.push((FrontendReq::IOTLB_MSG, iotlb(memory.uva, MEMORY, memory.uva, 0x203), None));
    for (code, body, fd) in all {
        stream.send_with_fds(&[rig::message(code, PLAIN, &body).as_slice()], fd.as_slice()).unwrap();
    }
    stream.set_nonblocking(true).unwrap();
    for _ in 0..=dice.below(MESSAGES) {
        let (bytes, fds) = if dice.once_in(2) {
            let (body, _) = shape(FrontendReq::IOTLB_MSG.into(), &mut dice, memory);
            (rig::message(FrontendReq::IOTLB_MSG, NEED_REPLY, &body), Vec::new())
        } else {
            message(&mut dice, &files)
        };
        if stream.send_with_fds(&[bytes.as_slice()], &fds).is_err() {
            break;
        }
    }
}

/// `MQ`, `REPLY_ACK` and `BACKEND_REQ`.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5;
/// `VERSION_1`, `PROTOCOL_FEATURES` and `IOMMU_PLATFORM`.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 33;

/// How front-ends and the port under test meet.
enum Door<'a> {
    /// The port made the socket.
    Theirs(&'a Path),
    /// Each front-end makes it anew, which the port sees at once.
    Ours(&'a Path),
}

impl Door<'_> {
    fn meet(&self) -> UnixStream {
        match self {
            Self::Theirs(socket) => UnixStream::connect(socket).unwrap(),
            Self::Ours(socket) => {
                if socket.exists() {
                    fs::remove_file(socket).unwrap();
                }
                rig::accept(&UnixListener::bind(socket).unwrap())
            }
        }
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// True once the port watches the directory where its front-end's socket has to appear.
fn is_watching() -> bool {
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.ends_with("anon_inode:inotify"))
}

#[test]
fn a_port_outlives_whatever_it_is_told_and_keeps_nothing_of_it() {
    let port = Port::new(EndpointKind::Server);
    let door = Door::Theirs(&port.socket);
    outlive(&port, &door, SESSIONS, false);
    // Nothing of them is left, and a guest comes up.
    port.wait_status("status", "disconnected");
    let mut vm = Vm::new(door.meet());
    vm.start(1);
    assert!(port.endpoint.link_up());
}

/// Rows: A15.
#[test]
fn a_port_that_guests_move_to_outlives_whatever_it_is_told_and_keeps_nothing_of_it() {
    if let Err(e) = ovsvhost::vhost::check_postcopy() {
        eprintln!("skipped: {e}");
        return;
    }
    let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
    let socket = dir.as_path().join("v0");
    let config = EndpointConfig { postcopy: true, ..rig::config(EndpointKind::Client, &socket) };
    let port = Port::with(config, dir);
    let door = Door::Ours(&port.socket);
    // What it has open then is what it may have open at the end.
    eventually("the port to watch", || is_watching().then_some(()));
    outlive(&port, &door, ARRIVING_SESSIONS, true);
    let mut vm = Vm::new(door.meet());
    vm.start(1);
    assert!(port.endpoint.link_up());
}

/// Rows: A14.
#[test]
fn a_port_that_serves_an_iommu_outlives_whatever_it_is_told() {
    let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
    let socket = dir.as_path().join("v0");
    let listener = UnixListener::bind(&socket).unwrap();
    let port = Port::with(EndpointConfig { iommu: true, ..rig::config(EndpointKind::Client, &socket) }, dir);
    let mut began = 0_usize;
    for seed in 1..=GUARDED_SESSIONS {
        guarded_session(seed, &rig::accept(&listener));
        // One that ended before it is noticed here is counted with the next.
        began += port.recorder.told().iter().filter(|told| matches!(told, Told::Start(_))).count();
        port.recorder.forget();
    }
    let mut vm = Vm::new(rig::accept(&listener));
    vm.start(1);
    assert!(port.endpoint.link_up());
    assert!(began > 0, "no ring ever ran");
}

/// Sessions, each followed by an honest question; at the end every descriptor is closed.
fn outlive(port: &Port, door: &Door<'_>, sessions: u64, may_arrive: bool) {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, seconds) = (setting("OVSVHOST_FUZZ_SEED").unwrap_or(1), setting("OVSVHOST_FUZZ_S"));
    let before = open_files();
    let began = Instant::now();
    let mut moves = 0;
    for seed in first.. {
        let over = match seconds {
            Some(seconds) => seed > first && began.elapsed() >= Duration::from_secs(seconds),
            None => seed >= first + sessions,
        };
        if over {
            println!("{} sessions from seed {first}, {moves} with a move in them", seed - first);
            assert!(moves > 0 || seconds.is_some(), "no log was turned on and no guest came");
            break;
        }
        session(seed, door, may_arrive);
        // Its turn comes when the one before is over: an honest question is answered.
        let honest = eventually(&format!("an answer after seed {seed}"), || {
            let mut raw = Raw(door.meet());
            raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            raw.0.set_nonblocking(false).unwrap();
            answers(&mut raw).then_some(raw)
        });
        drop(honest);
        moves += u64::from(port.recorder.events().iter().any(|(_, kind, _)| *kind == "migration"));
        port.recorder.forget();
    }
    eventually("every descriptor to be closed", || (open_files() <= before).then_some(()));
}

/// False where another front-end is being served yet: that one is turned away.
fn answers(raw: &mut Raw) -> bool {
    use std::io::{Read, Write};
    // Who asks for the features and leaves is waited for, in case its process dies.
    let question = rig::message(FrontendReq::GET_QUEUE_NUM, PLAIN, &[]);
    raw.0.write_all(&question).is_ok() && raw.0.read_exact(&mut [0; 20]).is_ok()
}
