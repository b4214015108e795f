//! The kernel's words, written by somebody who lies: a socket that is bound to nothing has rings that only we touch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::attach::register;
use super::frames::Frames;
use super::latency::Latency;
use super::ring::{Consumer, Producer};
use super::rx::GOES_ON;
use super::xsk::Xsk;
use super::{CHUNK, PIECES_MAX, RxQueue, TxQueue};
use crate::burst::{Burst, Stop};
use crate::counters::Counter;
use crate::drops::DropReason;
use crate::memory::Area;
use crate::ring::RingFault;
use crate::sys::xdp::{Binding, Ring, RingKind, Socket};

/// Entries of each ring, and frames of each side.
const SIZE: u32 = 64;

struct Queue {
    rx: RxQueue,
    tx: TxQueue,
    rx_ring: Arc<Ring>,
    fill_ring: Arc<Ring>,
    xsk: Arc<Xsk>,
}

impl Queue {
    /// None, having said why, where there are no such sockets.
    fn new() -> Option<Self> {
        let socket = match Socket::new() {
            Ok(socket) => socket,
            Err(e) => {
                eprintln!("skipped: no AF_XDP socket ({e}): it needs root and CONFIG_XDP_SOCKETS");
                return None;
            }
        };
        let area = Arc::new(Area::new((2 * SIZE * CHUNK) as usize).unwrap());
        register(&socket, &area).unwrap();
        let [fill_ring, rx_ring, tx, completion] = [RingKind::Fill, RingKind::Rx, RingKind::Tx, RingKind::Completion]
            .map(|kind| Arc::new(socket.ring(kind, SIZE).unwrap()));
        let binding = Binding { zero_copy: false, need_wakeup: false, multi_buffer: true };
        let (posted, inflight_max) = (Counter::default(), AtomicU32::new(0));
        let latency = Latency::new();
        let xsk = Arc::new(Xsk { socket, binding, tx, completion, posted, inflight_max, latency, area });
        let end = u64::from(SIZE * CHUNK);
        let (fill, rx) = (Producer::new(Arc::clone(&fill_ring)), Consumer::new(Arc::clone(&rx_ring)));
        let rx = RxQueue::new(Arc::clone(&xsk), fill, rx, end, false);
        let (posts, done) = (Producer::new(Arc::clone(&xsk.tx)), Consumer::new(Arc::clone(&xsk.completion)));
        let tx = TxQueue::new(Arc::clone(&xsk), posts, done, Frames::new(end, SIZE));
        Some(Self { rx, tx, rx_ring, fill_ring, xsk })
    }

    /// Says, as the kernel does, that these frames came.
    fn receive(&self, descriptors: &[(u64, u32, u32)]) {
        let mut index = self.rx_ring.producer().load(Ordering::Relaxed);
        for (address, len, options) in descriptors {
            let at = (index % SIZE) as usize * 2;
            self.rx_ring.words()[at].store(*address, Ordering::Relaxed);
            self.rx_ring.words()[at + 1].store(u64::from(*len) | u64::from(*options) << 32, Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        self.rx_ring.producer().store(index, Ordering::Release);
    }

    /// Says that frames at these addresses were sent.
    fn complete(&self, addresses: &[u64]) {
        let ring = &self.xsk.completion;
        let mut index = ring.producer().load(Ordering::Relaxed);
        for address in addresses {
            ring.words()[(index % SIZE) as usize].store(*address, Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        ring.producer().store(index, Ordering::Release);
    }

    /// Posts one frame; true if there was room.
    fn post(&mut self) -> bool {
        let mut burst = Burst::new(Arc::default());
        burst.push_own(&[2; 60]);
        self.tx.deliver(&burst, &[0]).settled == 1
    }
}

#[test]
fn what_is_honest_is_gathered_and_given_back() {
    let Some(mut queue) = Queue::new() else { return };
    let chunk = u64::from(CHUNK);
    queue.receive(&[(256, 60, 0), (chunk + 256, 3840, GOES_ON), (2 * chunk + 256, 100, 0), (3 * chunk + 256, 13, 0)]);
    assert_eq!(queue.rx.gather(), Ok(3));
    let packets = queue.rx.burst().packets();
    assert_eq!(packets.iter().map(|packet| packet.len).collect::<Vec<_>>(), [60, 3940, 13]);
    let stops: Vec<_> = packets.iter().map(|packet| packet.stop).collect();
    assert_eq!(stops, [None, None, Some(Stop::Drop(DropReason::Runt))]);
    queue.rx.commit();
    let given: Vec<_> = queue.fill_ring.words().iter().take(4).map(|word| word.load(Ordering::Relaxed)).collect();
    assert_eq!(given, [0, chunk, 2 * chunk, 3 * chunk]);
    assert_eq!(queue.fill_ring.producer().load(Ordering::Relaxed), 4);
    assert_eq!(queue.rx.gather(), Ok(0));
}

#[test]
fn a_frame_whose_end_is_on_its_way_waits_for_it() {
    let Some(mut queue) = Queue::new() else { return };
    let chunk = u64::from(CHUNK);
    queue.receive(&[(256, 3840, GOES_ON), (chunk + 256, 3840, GOES_ON)]);
    assert_eq!(queue.rx.gather(), Ok(0));
    queue.receive(&[(2 * chunk + 256, 1, 0), (3 * chunk + 256, 60, GOES_ON)]);
    assert_eq!(queue.rx.gather(), Ok(1));
    assert_eq!(queue.rx.burst().packets()[0].len, 7681);
}

#[test]
fn a_lie_about_what_came_stops_the_queue() {
    let (chunk, end) = (u64::from(CHUNK), u64::from(SIZE * CHUNK));
    for (descriptors, fault) in [
        (vec![(end, 60, 0)], RingFault::Address),
        (vec![(u64::MAX, 60, 0)], RingFault::Address),
        (vec![(end - 1, 2, 0)], RingFault::Address),
        (vec![(256, CHUNK - 255, 0)], RingFault::Address),
        (vec![(0, u32::MAX, 0)], RingFault::Address),
        (vec![(256, 60, GOES_ON), (end + chunk, 60, 0)], RingFault::Address),
        (vec![(256, 60, GOES_ON); PIECES_MAX + 1], RingFault::LongChain),
        (vec![(256, 60, 0); SIZE as usize + 1], RingFault::IndexJump),
    ] {
        let Some(mut queue) = Queue::new() else { return };
        queue.receive(&descriptors);
        assert_eq!(queue.rx.gather(), Err(fault), "{descriptors:x?}");
    }
}

/// Rows: A20, A21.
#[test]
fn a_posted_frame_is_free_once_its_address_came_back_and_only_once() {
    let Some(mut queue) = Queue::new() else { return };
    for n in 0..SIZE {
        assert!(queue.post(), "frame {n}");
    }
    assert!(!queue.post(), "the ring is full");
    let inflight = |queue: &Queue| (queue.xsk.gauges().inflight, queue.xsk.gauges().completed);
    assert_eq!(inflight(&queue), (64, 0));
    let posted: Vec<u64> = (0..SIZE as usize).map(|at| queue.xsk.tx.words()[2 * at].load(Ordering::Relaxed)).collect();
    // The kernel took them all, and says of one again and again, and of frames that are none, that they were sent.
    queue.xsk.tx.consumer().store(SIZE, Ordering::Release);
    queue.complete(&[posted[7], posted[7], posted[7], 0, u64::MAX]);
    assert!(queue.post());
    assert!(!queue.post(), "one frame came back, and no more");
    queue.complete(&[posted[8], posted[9]]);
    assert!(queue.post() && queue.post() && !queue.post());
    assert_eq!(queue.xsk.gauges().inflight_max, u64::from(SIZE));
}
