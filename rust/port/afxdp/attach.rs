//! Taking a device's queues over: the program on the device, a bound socket for each queue; and what is in the way, with
//! its cure.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::frames::Frames;
use super::latency::Latency;
use super::ring::{Consumer, Producer};
use super::xsk::Xsk;
use super::{CHUNK, Gauges, RxQueue, SINGLE_MAX, TxQueue};
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::frame::ethernet;
use crate::memory::Area;
use crate::sys::bpf::{self, SocketMap};
use crate::sys::xdp::{Binding, RingKind, Socket};

/// How long one system call may poll the device, µs (`SO_BUSY_POLL`).
const BUSY_POLL_US: u32 = 20;
/// Descriptors that one kick sends, if the kernel lets us say so: a burst of frames.
const TX_BUDGET: u32 = 64;

/// Which way frames may take (`xdp-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// The fastest that works.
    #[default]
    BestEffort,
    /// In the driver, which reads and writes our memory.
    NativeWithZerocopy,
    /// In the driver, and copied.
    Native,
    /// In the network stack, and copied: any device can.
    Generic,
}

impl XdpMode {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::BestEffort, Self::NativeWithZerocopy, Self::Native, Self::Generic].into_iter().find(|m| m.name() == name)
    }

    /// As Open vSwitch calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "best-effort",
            Self::NativeWithZerocopy => "native-with-zerocopy",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// What to try, best first.
    fn ways(self) -> &'static [Mode] {
        match self {
            Self::BestEffort => &[Mode::NativeWithZerocopy, Mode::Native, Mode::Generic],
            Self::NativeWithZerocopy => &[Mode::NativeWithZerocopy],
            Self::Native => &[Mode::Native],
            Self::Generic => &[Mode::Generic],
        }
    }
}

/// The way that frames take (`xdp-mode-in-use`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As [`XdpMode`], like the rest.
    NativeWithZerocopy,
    /// In the driver, and copied.
    Native,
    /// In the network stack, and copied.
    Generic,
}

impl Mode {
    /// As Open vSwitch calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeWithZerocopy => XdpMode::NativeWithZerocopy.name(),
            Self::Native => XdpMode::Native.name(),
            Self::Generic => XdpMode::Generic.name(),
        }
    }

    /// True if the kernel copies what is sent; else the driver reads it where it is.
    pub fn copies(self) -> bool {
        self != Self::NativeWithZerocopy
    }

    fn program(self) -> bpf::XdpMode {
        if self == Self::Generic { bpf::XdpMode::Generic } else { bpf::XdpMode::Native }
    }
}

/// What is to be taken over, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The device's name, for people.
    pub netdev: String,
    /// The device.
    pub ifindex: u32,
    /// First queue.
    pub start_queue: u32,
    /// Queues, and so sockets; not 0.
    pub queues: u32,
    /// Entries of rx and fill ring, and rx frames; a power of two.
    pub rx_size: u32,
    /// Entries of tx and completion ring, and tx frames; a power of two.
    pub tx_size: u32,
    /// Which way.
    pub mode: XdpMode,
    /// The kernel says when it wants to be woken.
    pub need_wakeup: bool,
    /// Frames that the kernel takes from the device in one of our calls; 0 leaves it to its interrupts.
    pub busy_budget: u32,
    /// Frames longer than one chunk receives.
    pub multi_buffer: bool,
}

impl Plan {
    /// True if frames of this MTU do not fit one chunk.
    pub fn needs_multi_buffer(mtu: u32) -> bool {
        mtu + ethernet::HEADER_SIZE + 2 * ethernet::TAG_SIZE > SINGLE_MAX
    }
}

/// The hold on a device: until it is dropped, frames of its queues come here.
#[derive(Debug)]
pub struct Attachment {
    /// Detached first: a frame that comes now is the host's.
    _link: bpf::Link,
    _map: SocketMap,
    sockets: Vec<Arc<Xsk>>,
    /// Which way frames take.
    pub mode: Mode,
}

impl Attachment {
    /// Takes the queues over. Give each side to a poll thread; the attachment ends what is left of the hold when it and all
    /// of those are dropped.
    ///
    /// # Errors
    /// `Kernel`, naming the device, what was refused, and the cure. `EBUSY` may pass by itself.
    pub fn open(plan: &Plan) -> Result<(Self, Vec<(RxQueue, TxQueue)>)> {
        let mut refused = None;
        for &way in plan.mode.ways() {
            match Self::open_as(plan, way) {
                Ok(open) => return Ok(open),
                Err(Refused { step, source }) => {
                    let is_final = matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::EEXIST));
                    refused = Some(explain(plan, way, step, source));
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::Bug(format!("{}: no xdp-mode to try", plan.netdev))))
    }

    fn open_as(plan: &Plan, way: Mode) -> std::result::Result<(Self, Vec<(RxQueue, TxQueue)>), Refused> {
        let map = SocketMap::new(plan.start_queue + plan.queues).map_err(at(Step::Map))?;
        let link = bpf::Link::attach(&map, plan.ifindex, way.program()).map_err(at(Step::Attach))?;
        let (mut sockets, mut sides) = (Vec::new(), Vec::new());
        // The last first: if there are not so many, none was bound yet, and the next attempt does not find one of ours busy.
        for queue in (plan.start_queue..plan.start_queue + plan.queues).rev() {
            let (xsk, rx, tx) = open_queue(plan, way, queue)?;
            sockets.push(xsk);
            sides.push((rx, tx));
        }
        sockets.reverse();
        sides.reverse();
        // All or none: no frame comes here before every queue is ours.
        for (queue, xsk) in (plan.start_queue..).zip(&sockets) {
            map.set(queue, &xsk.socket).map_err(at(Step::Map))?;
        }
        Ok((Self { _link: link, _map: map, sockets, mode: way }, sides))
    }

    /// Whether the kernel polls every queue's device in our calls, as `xdp-busy-budget` has it.
    pub fn is_busy_polled(&self) -> bool {
        self.sockets.iter().all(|xsk| xsk.socket.prefers_busy_poll().unwrap_or(false))
    }

    /// Where each queue's descriptors are.
    pub fn gauges(&self) -> Vec<Gauges> {
        self.sockets.iter().map(|xsk| xsk.gauges()).collect()
    }
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Map,
    Attach,
    Socket,
    Memory,
    Ring,
    Bind(u32),
    BusyPoll,
}

struct Refused {
    step: Step,
    source: io::Error,
}

fn at(step: Step) -> impl Fn(io::Error) -> Refused {
    move |source| Refused { step, source }
}

fn open_queue(plan: &Plan, way: Mode, queue: u32) -> std::result::Result<(Arc<Xsk>, RxQueue, TxQueue), Refused> {
    let frames = plan.rx_size + plan.tx_size;
    let area = Area::new(frames as usize * CHUNK as usize);
    let area = Arc::new(area.map_err(|e| at(Step::Memory)(io::Error::other(e)))?);
    let socket = Socket::new().map_err(at(Step::Socket))?;
    register(&socket, &area).map_err(at(Step::Memory))?;
    let ring = |kind, size| socket.ring(kind, size).map(Arc::new).map_err(at(Step::Ring));
    let (fill, rx) = (ring(RingKind::Fill, plan.rx_size)?, ring(RingKind::Rx, plan.rx_size)?);
    let (tx, completion) = (ring(RingKind::Tx, plan.tx_size)?, ring(RingKind::Completion, plan.tx_size)?);
    // A driver that takes them itself does so when the socket is bound.
    let mut fill = Producer::new(fill);
    (0..plan.rx_size).for_each(|frame| fill.put([u64::from(frame) * u64::from(CHUNK)]));
    fill.publish();
    if plan.busy_budget > 0 {
        socket.prefer_busy_poll(BUSY_POLL_US, plan.busy_budget).map_err(at(Step::BusyPoll))?;
    }
    socket.set_tx_budget(TX_BUDGET);
    let (need_wakeup, multi_buffer) = (plan.need_wakeup, plan.multi_buffer);
    let binding = Binding { zero_copy: !way.copies(), need_wakeup, multi_buffer };
    socket.bind(plan.ifindex, queue, binding).map_err(at(Step::Bind(queue)))?;
    let (posted, inflight_max) = (Counter::default(), AtomicU32::new(0));
    let latency = Latency::new();
    let xsk = Arc::new(Xsk { socket, binding, tx, completion, posted, inflight_max, latency, area });
    let end = u64::from(plan.rx_size) * u64::from(CHUNK);
    let rx = RxQueue::new(Arc::clone(&xsk), fill, Consumer::new(rx), end, plan.busy_budget > 0);
    let (posts, completed) = (Producer::new(Arc::clone(&xsk.tx)), Consumer::new(Arc::clone(&xsk.completion)));
    let tx = TxQueue::new(Arc::clone(&xsk), posts, completed, Frames::new(end, plan.tx_size));
    Ok((xsk, rx, tx))
}

#[allow(unsafe_code, reason = "hands memory to the kernel")]
pub(super) fn register(socket: &Socket, area: &Area) -> io::Result<()> {
    // SAFETY: an area is mapped until it is dropped, which the `Xsk` that both go into does after it closed the socket; it
    // holds frames and nothing else, and they are read and written through raw addresses only.
    unsafe { socket.register(area.start(), area.size(), CHUNK) }
}

/// What was refused, and what to do about it.
fn explain(plan: &Plan, way: Mode, step: Step, source: io::Error) -> Error {
    let Plan { netdev, start_queue, queues, .. } = plan;
    let mode = way.name();
    let code = source.raw_os_error();
    let text = match (step, code) {
        (_, Some(libc::EPERM)) => {
            format!("{netdev}: this process may not attach to it: give it CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF")
        }
        (Step::Socket, Some(libc::EAFNOSUPPORT)) => {
            format!("{netdev}: this kernel has no AF_XDP (CONFIG_XDP_SOCKETS): use another kernel, or type=system")
        }
        (Step::Memory, Some(libc::ENOBUFS | libc::ENOMEM)) => format!(
            "{netdev}: the kernel does not let us lock memory for its frames: raise RLIMIT_MEMLOCK (ulimit -l), or lower \
             n_rxq_desc and n_txq_desc"
        ),
        (Step::Attach, Some(libc::EBUSY | libc::EEXIST)) => {
            format!("{netdev} has another XDP program: take it off (ip link set {netdev} xdp off)")
        }
        (Step::Attach, Some(libc::EOPNOTSUPP)) => {
            format!(
                "{netdev}: its driver runs no XDP programs (xdp-mode {mode}): set xdp-mode to generic or best-effort"
            )
        }
        (Step::Attach, _) => format!(
            "{netdev} takes no XDP program in mode {mode}: a smaller mtu_request, fewer queues (ethtool -L) or frames that it does \
             not join (ethtool -K {netdev} lro off rx-gro-hw off) may help; xdp-mode=generic does without the driver"
        ),
        (Step::Bind(queue), Some(libc::EBUSY)) => {
            format!("queue {queue} of {netdev} belongs to another AF_XDP socket: end the process that has it")
        }
        (Step::Bind(queue), Some(libc::EINVAL)) => format!(
            "{netdev} has no queue {queue}: queues {start_queue} to {} are asked for; set n_rxq and xdp-start-queue, or give \
             it more (ethtool -L {netdev} combined {})",
            start_queue + queues - 1,
            start_queue + queues
        ),
        (Step::Bind(queue), Some(libc::EOPNOTSUPP)) => format!(
            "queue {queue} of {netdev} cannot be had in mode {mode}: set xdp-mode to another, best-effort finds it{}",
            if plan.multi_buffer {
                ", or lower the MTU: its driver may not take frames of several buffers"
            } else {
                ""
            }
        ),
        (Step::Bind(_), Some(libc::ENETDOWN)) => format!("{netdev} is down: bring it up (ip link set {netdev} up)"),
        (Step::BusyPoll, _) => {
            format!("{netdev}: this kernel does not take xdp-busy-budget {}: set it to 0", plan.busy_budget)
        }
        (step, _) => format!("{netdev}: AF_XDP in mode {mode} failed ({step:?})"),
    };
    Error::kernel(text, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_known_by_open_vswitchs_names() {
        for name in ["best-effort", "native-with-zerocopy", "native", "generic"] {
            assert_eq!(XdpMode::named(name).unwrap().name(), name);
        }
        assert_eq!(XdpMode::named("zero-copy"), None);
    }

    #[test]
    fn frames_that_one_chunk_holds_are_received_in_one() {
        assert!(!Plan::needs_multi_buffer(1500));
        assert!(!Plan::needs_multi_buffer(3818));
        assert!(Plan::needs_multi_buffer(3819));
        assert!(Plan::needs_multi_buffer(9000));
    }
}
