//! A way from one guest transmitq to a network device on which frames are sent from where the guest put them.
//!
//! ```text
//!   window   pool: heads, and frames that are copied after all │ guest memory
//!   frame    │ head: a copy in the pool, as it was judged      │ tail: its pieces where they lie                     │
//!   tag      none: the pool's frame comes back                   slot of the chain + 1: `Held` is told
//! ```
//!
//! The bytes that were judged are the bytes that are sent; the rest is the guest's own until the device has read it, and
//! what it scribbles there meanwhile it sends. Every frame of the transmitq to the device goes this way, those that are
//! copied too, so that a flow keeps its order. A frame is copied if it is short, asks for a checksum or to be cut, lies in
//! too many pieces, or if as many chains of its ring are out as may be.
#![allow(unsafe_code, reason = "hands guest memory to the kernel")]

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::frames::Frames;
use super::latency::Latency;
use super::ring::{Consumer, Producer};
use super::tx::TxQueue;
use super::xsk::Xsk;
use super::{CHUNK, Gauges, PIECES_MAX};
use crate::burst::{Burst, Head, Packet};
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::memory::{Area, GuestMap, Places, Window};
use crate::ring::{Delivery, HELD_MAX, Held};
use crate::sys::xdp::{Binding, RingKind, Socket};

/// Bytes of the shortest frame that is not copied where the driver reads guest memory by itself: below it the copy costs no
/// more than a second descriptor does. Where the kernel copies there is no such size.
pub const ZERO_COPY_MIN: u32 = 1024;
/// What it can be set to: a frame of which something is left past its head, and longer than any.
pub const ZERO_COPY_MINS: std::ops::RangeInclusive<u32> = 65..=65_535;
/// Descriptors that one kick sends, if the kernel lets us say so.
const TX_BUDGET: u32 = 64;
/// Entries of a fill ring where the kernel copies: nothing ever uses it, and the kernel wants one.
const FILL_SIZE: u32 = 64;
/// Entries where the driver reads by itself. Then it also receives into our memory what comes in on this queue, which no
/// program sends here: it copies that for the host and has the frame again, so they are as many for ever.
const HOST_FRAMES: u32 = 512;
/// How long a queue may stay busy that was let go a moment ago.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at something that nobody announces.
const REST: Duration = Duration::from_micros(200);

/// Which queue of which device, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanePlan {
    /// The device's name, for people.
    pub netdev: String,
    /// The device.
    pub ifindex: u32,
    /// Its queue, which nobody else has.
    pub queue: u32,
    /// Entries of tx and completion ring, and frames of ours in the pool; a power of two.
    pub tx_size: u32,
    /// The kernel says when it wants to be woken.
    pub need_wakeup: bool,
    /// The driver itself reads guest memory; else the kernel copies from there.
    pub zero_copy: bool,
    /// Bytes of the shortest frame that is not copied, in [`ZERO_COPY_MINS`].
    pub least: u32,
}

/// A bound socket and where guest memory is in what it was given. Belongs to the thread that has the transmitq.
#[derive(Debug)]
pub struct Lane {
    queue: TxQueue,
    places: Places,
    /// The frame being posted: its parts in guest memory.
    parts: Vec<(u64, u32)>,
    plan: LanePlan,
    counts: Arc<LaneCounts>,
}

/// What outlives a lane.
#[derive(Debug, Default)]
struct LaneCounts {
    /// Frames that were not copied.
    sent: Counter,
    /// Once it is closed: descriptors that came back, ever, and that did not.
    completed: Counter,
    abandoned: Counter,
    inflight_max: Counter,
}

/// What others may know of a lane, also once it is closed.
#[derive(Debug, Clone)]
pub struct LaneGauges {
    xsk: Weak<Xsk>,
    counts: Arc<LaneCounts>,
}

impl LaneGauges {
    /// Where its descriptors are.
    pub fn gauges(&self) -> Gauges {
        let counts = &self.counts;
        let ended = || Gauges {
            inflight: 0,
            completed: counts.completed.read(),
            inflight_max: counts.inflight_max.read(),
            ..Gauges::default()
        };
        self.xsk.upgrade().map_or_else(ended, |xsk| xsk.gauges())
    }

    /// Frames that were sent without a copy of ours, ever.
    pub fn sent(&self) -> u64 {
        self.counts.sent.read()
    }

    /// Descriptors that were in flight when it was closed.
    pub fn abandoned(&self) -> u64 {
        self.counts.abandoned.read()
    }
}

impl Lane {
    /// Shows `memory` to the device and binds a socket to its queue; waits up to a second for one that was let go of just
    /// now. Takes tens of milliseconds for each GiB, and allocates what of it is not
    /// ([`GuestMap::unallocated`]), in our name.
    ///
    /// # Errors
    /// `Kernel`, naming device and queue, what was refused, and the cure.
    pub fn open(plan: LanePlan, memory: &GuestMap) -> Result<Self> {
        let host_frames = if plan.zero_copy { HOST_FRAMES } else { 0 };
        let pool = Arc::new(Area::shared((plan.tx_size + host_frames) as usize * CHUNK as usize)?);
        let window = Window::new(&pool, memory)?;
        let failed = |what: &str| {
            let (netdev, queue, what) = (plan.netdev.clone(), plan.queue, what.to_owned());
            move |e| Error::kernel(format!("{netdev}, queue {queue}: zero copy: {what}"), e)
        };
        let socket = Socket::new().map_err(failed("no AF_XDP socket"))?;
        // SAFETY: all of the window is mapped, by `window`.
        let registered = unsafe { socket.register_unaligned(window.start(), window.size(), CHUNK) };
        registered.map_err(failed(
            "the kernel does not take guest memory: raise RLIMIT_MEMLOCK (ulimit -l) above the guest's size, or give the \
             guest memory that has all of its pages (prealloc=on; hugepages that are free)",
        ))?;
        // Pinned: no address is needed any more.
        let places = window.close();
        let ring = |kind, size| socket.ring(kind, size).map(Arc::new).map_err(failed("no ring"));
        let mut fill = Producer::new(ring(RingKind::Fill, FILL_SIZE.max(host_frames))?);
        // Behind ours in the pool, and before guest memory, which nobody ever receives into.
        (plan.tx_size..plan.tx_size + host_frames).for_each(|frame| fill.put([u64::from(frame) * u64::from(CHUNK)]));
        fill.publish();
        let (tx, completion) = (ring(RingKind::Tx, plan.tx_size)?, ring(RingKind::Completion, plan.tx_size)?);
        socket.set_tx_budget(TX_BUDGET);
        let binding = Binding { zero_copy: plan.zero_copy, need_wakeup: plan.need_wakeup, multi_buffer: true };
        bind(&socket, &plan, binding).map_err(failed(
            "cannot be bound: it has to be a queue that nobody else has (ethtool -L, xdp-zc-queues), of a driver that sends \
             frames of several buffers",
        ))?;
        let (posted, inflight_max, counts) = (Counter::default(), AtomicU32::new(0), Arc::default());
        let latency = Latency::new();
        let xsk = Arc::new(Xsk { socket, binding, tx, completion, posted, inflight_max, latency, area: pool });
        let (posts, completed) = (Producer::new(Arc::clone(&xsk.tx)), Consumer::new(Arc::clone(&xsk.completion)));
        let mut queue = TxQueue::new(xsk, posts, completed, Frames::new(0, plan.tx_size));
        // No tag is lost: there are never more out.
        queue.keep_tags(HELD_MAX * PIECES_MAX);
        Ok(Self { queue, places, parts: Vec::with_capacity(PIECES_MAX), plan, counts })
    }

    /// What others may know of it.
    pub fn watch(&self) -> LaneGauges {
        LaneGauges { xsk: Arc::downgrade(self.queue.xsk()), counts: Arc::clone(&self.counts) }
    }

    /// Posts the packets `list` of `burst` together, in order; those that `held` takes are not copied. `keeper` is this
    /// lane's name there. Stops at the first that finds no room. `list` has at most 64 indices.
    #[inline(never)]
    pub fn deliver(&mut self, burst: &Burst, list: &[u8], mut held: Option<&mut Held>, keeper: u16) -> Delivery {
        let (mut delivery, mut sent) = (Delivery::default(), 0);
        let mut begun = self.queue.take_begun();
        self.queue.begin();
        for (position, &index) in list.iter().enumerate() {
            let Some((packet, head)) = burst.frame(index) else { break };
            if let Some(held) = held.as_deref_mut()
                && self.post(burst, packet, head, index, held, keeper)
            {
                delivery.settled = position + 1;
                sent += 1;
                continue;
            }
            if !self.queue.send(burst, packet, head, index, std::mem::take(&mut begun)).note(&mut delivery, position) {
                break;
            }
        }
        self.queue.publish();
        self.counts.sent.add(sent);
        delivery
    }

    /// Posts a frame from where it lies; false if it has to be copied.
    #[inline]
    fn post(&mut self, burst: &Burst, packet: &Packet, head: &Head, index: u8, held: &mut Held, keeper: u16) -> bool {
        if packet.len < self.plan.least || !packet.needs.is_empty() || !self.cut(burst, packet) {
            return false;
        }
        if !self.queue.has_room_for(self.parts.len()) {
            return false;
        }
        #[allow(clippy::cast_possible_truncation, reason = "fewer than PIECES_MAX")]
        let pieces = self.parts.len() as u16;
        let Some(slot) = held.take(index, pieces, keeper) else { return false };
        // There is room: it was asked for.
        self.queue.send_parts(head, &self.parts, slot + 1)
    }

    /// Finds the parts of a frame past its head, each for one descriptor. False if they are too many.
    #[inline]
    fn cut(&mut self, burst: &Burst, packet: &Packet) -> bool {
        self.parts.clear();
        for mut piece in burst.tail(packet) {
            while piece.len > 0 {
                let Some((at, len)) = self.places.of(piece.start, piece.len) else { return false };
                let len = len.min(most_at(at, self.plan.zero_copy));
                if self.parts.len() + 1 == PIECES_MAX {
                    return false;
                }
                self.parts.push((at, len));
                (piece.start, piece.len) = (piece.start.wrapping_add(len as usize), piece.len - len);
            }
        }
        true
    }

    /// [`TxQueue::go_on`].
    pub fn go_on(&mut self, begun: u32) {
        self.queue.go_on(begun);
    }

    /// [`TxQueue::take_begun`].
    pub fn take_begun(&mut self) -> u32 {
        self.queue.take_begun()
    }

    /// Has the kernel send what was posted, if it must be told; true if it was.
    #[inline]
    pub fn flush(&mut self) -> bool {
        self.queue.flush()
    }

    /// Tells the kernel again what it did not take, and `held` of what came back.
    #[inline]
    pub fn tend(&mut self, held: &mut Held, keeper: u16) {
        if self.queue.is_stuck() {
            self.queue.push();
        } else {
            self.queue.look();
        }
        self.tell(held, keeper);
    }

    /// Tells `held` of what came back meanwhile.
    #[inline]
    pub fn tell(&mut self, held: &mut Held, keeper: u16) {
        self.queue.returned().for_each(|tag| held.came_back(tag - 1, keeper));
    }

    /// True while the kernel has something of it: look again.
    #[inline]
    pub fn is_busy(&self) -> bool {
        self.queue.out() > 0
    }

    /// Ends it: waits up to `until` for what is on its way, closes the socket, and waits until no device reads guest memory
    /// through it any more. Gives how many descriptors were not sent.
    ///
    /// Blocks: not on a poll thread.
    ///
    /// # Errors
    /// `Kernel`: the device may read guest memory still.
    pub fn close(mut self, until: Instant) -> Result<u32> {
        while self.is_busy() && Instant::now() < until {
            self.queue.push();
            if self.is_busy() {
                std::thread::sleep(REST);
            }
        }
        let (left, plan, gauges) = (self.queue.out(), self.plan.clone(), self.queue.xsk().gauges());
        self.counts.completed.add(gauges.completed);
        self.counts.abandoned.add(gauges.inflight);
        self.counts.inflight_max.add(gauges.inflight_max);
        // With its rings unmapped nothing holds the socket but us. Where the kernel copies, it does so while it is told to
        // send, and what it has not taken then it never takes.
        drop(self);
        if plan.zero_copy { wait_until_free(&plan).map(|()| left) } else { Ok(left) }
    }
}

/// Bytes from `at` on that one descriptor may have. A driver is shown guest memory page by page, whatever the size of a
/// huge page is: behind an IOMMU of the host pages that follow one another here need not do so for the device, and the
/// kernel refuses a descriptor over their border without giving it back.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "below a page")]
fn most_at(at: u64, zero_copy: bool) -> u32 {
    if zero_copy { CHUNK - (at % u64::from(CHUNK)) as u32 } else { CHUNK }
}

/// Waits until nobody has the queue: the driver gave back everything, and knows no memory of ours.
fn wait_until_free(plan: &LanePlan) -> Result<()> {
    let probe = || -> io::Result<()> {
        let area = Area::new(FILL_SIZE as usize * CHUNK as usize).map_err(io::Error::other)?;
        let socket = Socket::new()?;
        super::attach::register(&socket, &area)?;
        let _rings = [RingKind::Fill, RingKind::Completion, RingKind::Tx]
            .into_iter()
            .map(|kind| socket.ring(kind, FILL_SIZE))
            .collect::<io::Result<Vec<_>>>()?;
        bind(&socket, plan, Binding { zero_copy: false, need_wakeup: false, multi_buffer: false })
    };
    match probe() {
        Err(e) if !reads_nothing(&e) => {
            let text = format!("{}, queue {}: the device may still read guest memory", plan.netdev, plan.queue);
            Err(Error::kernel(text, e))
        }
        _ => Ok(()),
    }
}

/// True of a device that is gone or down. Whatever else refuses a socket, one too many for this process among it, says
/// nothing about the device.
fn reads_nothing(refusal: &io::Error) -> bool {
    matches!(refusal.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN))
}

/// Binds, with patience for a queue that is on its way to be free.
fn bind(socket: &Socket, plan: &LanePlan, binding: Binding) -> io::Result<()> {
    let until = Instant::now() + BUSY_PATIENCE;
    loop {
        match socket.bind(plan.ifindex, plan.queue, binding) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => std::thread::sleep(REST),
            end => return end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: A19.
    #[test]
    fn a_driver_gets_no_descriptor_over_the_border_of_a_page_and_the_kernel_any_of_a_pages_length() {
        for (at, whole) in [(0, 4096), (1, 4095), (4095, 1), (4096, 4096), ((2 << 20) - 64, 64)] {
            assert_eq!((most_at(at, true), most_at(at, false)), (whole, 4096), "{at}");
        }
    }

    /// Rows: A21.
    #[test]
    fn only_a_queue_that_was_had_or_a_device_that_is_gone_or_down_says_that_nobody_reads() {
        for code in [libc::ENODEV, libc::ENXIO, libc::ENETDOWN] {
            assert!(reads_nothing(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [libc::EBUSY, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EPERM, libc::EINVAL] {
            assert!(!reads_nothing(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!reads_nothing(&io::Error::other("no memory for a probe")));
    }
}
