//! A network device through AF_PACKET: any device, any kernel, no program on it. One socket, one queue.
//!
//! ```text
//!            ┌──────────────── Area: 64 places for rx, 64 for tx ────────────────┐
//!            │ gap │ frame          │ …            │ frame          │ …           │
//!            └──▲───────────────────┬──────────────┴──▲──────────────────────┬────┘
//!   recvmmsg ───┘ RxQueue: gather   └─▶ the switch ───┘ TxQueue: deliver      └──▶ sendmmsg
//! ```
//!
//! A call brings or takes a burst, never a frame. What a frame's sender left to be done travels with it in either direction
//! (`PACKET_VNET_HDR`): unfinished checksums and segments of 64 KiB pass from guest to device and back as they are, and the
//! kernel or the device finishes them. A tag that the kernel took out of a frame is put back where it was: the gap is for it.
//!
//! The host sees what the device receives as well; it must have no address there.
#![allow(unsafe_code, reason = "hands places of an area to the kernel")]

mod rx;
mod tx;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use rx::RxQueue;
pub use tx::TxQueue;

use super::afxdp::Gauges;
use crate::burst::MAX_BURST;
use crate::counters::Counter;
use crate::error::{Error, Result};
use crate::memory::Area;
use crate::sys::packet::{Inbox, Outbox, Socket};

/// Bytes of a place: the longest frame, and room for a tag in front of it. Whole pages.
const PLACE: usize = 69_632;
/// Bytes in front of a received frame.
const GAP: usize = 4;
/// Bytes of the kernel's memory that a frame in a socket's buffer is counted with.
const TRUESIZE: u32 = 2304;

/// What is to be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The device's name, for people.
    pub netdev: String,
    /// The device.
    pub ifindex: u32,
    /// Frames of a packet's usual length that may wait to be received.
    pub rx_size: u32,
    /// The same, to be sent.
    pub tx_size: u32,
}

/// What both sides and control share.
#[derive(Debug)]
struct Shared {
    socket: Socket,
    /// Frames that the kernel took.
    sent: Counter,
    /// Frames that it had no room for.
    missed: AtomicU64,
    /// Mapped as long as the socket is open: it is after it in the order of drops.
    area: Arc<Area>,
}

/// The hold on a device: until it and both queues are dropped, frames come here.
#[derive(Debug)]
pub struct Attachment {
    shared: Arc<Shared>,
}

impl Attachment {
    /// Opens the device.
    ///
    /// # Errors
    /// `Kernel`, naming the device, what was refused, and the cure.
    pub fn open(plan: &Plan) -> Result<(Self, RxQueue, TxQueue)> {
        let area = Arc::new(Area::new(2 * MAX_BURST * PLACE)?);
        let socket = Socket::open(plan.ifindex).map_err(|e| explain(&plan.netdev, e))?;
        socket.set_buffers(plan.rx_size.saturating_mul(TRUESIZE), plan.tx_size.saturating_mul(TRUESIZE));
        let places = |from: usize| -> Vec<*mut u8> {
            (from..from + MAX_BURST).map(|place| area.start().wrapping_add(place * PLACE)).collect()
        };
        let (incoming, outgoing) = (places(0), places(MAX_BURST));
        let frames: Vec<*mut u8> = incoming.iter().map(|place| place.wrapping_add(GAP)).collect();
        // SAFETY: places of an area that the queue keeps beside its inbox, a gap in front of each; they hold frames only.
        let inbox = unsafe { Inbox::new(&frames, PLACE - GAP) };
        // SAFETY: as above; the queue writes no more than a place holds.
        let outbox = unsafe { Outbox::new(&outgoing) };
        let (sent, missed) = (Counter::default(), AtomicU64::new(0));
        let shared = Arc::new(Shared { socket, sent, missed, area: Arc::clone(&area) });
        let rx = RxQueue::new(Arc::clone(&shared), inbox, frames);
        let tx = TxQueue::new(Arc::clone(&shared), outbox, outgoing);
        Ok((Self { shared }, rx, tx))
    }

    /// What became of frames: a frame is the kernel's own when the call returns, so none is ever in flight.
    pub fn gauges(&self) -> Gauges {
        let new = self.shared.socket.take_missed();
        let rx_missed = self.shared.missed.fetch_add(new, Ordering::Relaxed) + new;
        Gauges { completed: self.shared.sent.read(), rx_missed, ..Gauges::default() }
    }
}

fn explain(netdev: &str, source: io::Error) -> Error {
    let text = match source.raw_os_error() {
        Some(libc::EPERM) => format!("{netdev}: this process may not open it: give it CAP_NET_RAW"),
        Some(libc::ENETDOWN) => format!("{netdev} is down: bring it up (ip link set {netdev} up)"),
        Some(libc::EAFNOSUPPORT) => format!("{netdev}: this kernel has no AF_PACKET (CONFIG_PACKET): use type=afxdp"),
        _ => format!("{netdev}: AF_PACKET refused it"),
    };
    Error::kernel(text, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::Burst;
    use crate::frame::vnet_hdr::{Offload, OffloadSet, judge};
    use crate::memory::Span;
    use std::time::{Duration, Instant};

    /// An EtherType for experiments: nobody else on the machine sends it.
    const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
    const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x2a];

    /// The loopback device: what is sent there comes in. None without the right to open it.
    fn loopback() -> Option<(Attachment, RxQueue, TxQueue)> {
        let ifindex = crate::sys::netdev::Asker::new().unwrap().find("lo").unwrap()?.index;
        let plan = Plan { netdev: "lo".into(), ifindex, rx_size: 2048, tx_size: 2048 };
        match Attachment::open(&plan) {
            Err(e) if e.to_string().contains("CAP_NET_RAW") => {
                eprintln!("skipped: {e}");
                None
            }
            opened => Some(opened.unwrap()),
        }
    }

    /// Of one test in one process: others are on the same device.
    fn addresses(test: u8) -> Vec<u8> {
        [&[2, test][..], &std::process::id().to_be_bytes(), &[2, 0, 0, 0, 0, 2]].concat()
    }

    fn frame(test: u8, tag: &[u8], len: usize, seed: u8) -> Vec<u8> {
        let head = [&addresses(test)[..], tag, &EXPERIMENT, &[seed]].concat();
        let body = (0..len - head.len()).map(|i| (i * 7 + usize::from(seed)).to_le_bytes()[0]);
        head.iter().copied().chain(body).collect()
    }

    /// A burst of `frames`, and what it lies in.
    fn burst(frames: &[(Vec<u8>, Offload)]) -> Burst {
        let area = Arc::new(Area::new(MAX_BURST * PLACE).unwrap());
        let mut burst = Burst::of_area(Arc::clone(&area));
        for (i, (bytes, offload)) in frames.iter().enumerate() {
            let span = area.span((i * PLACE) as u64, u32::try_from(bytes.len()).unwrap()).unwrap();
            // SAFETY: the span has as many bytes, in an area that the burst keeps.
            unsafe { crate::memory::copy::copy(span.start, bytes.as_ptr(), bytes.len()) };
            burst.push(span, None, *offload);
        }
        burst
    }

    fn bytes_of(burst: &Burst, index: u8) -> Vec<u8> {
        let (packet, _) = burst.frame(index).unwrap();
        let mut bytes = vec![0; packet.len as usize];
        // SAFETY: the vector has as many bytes.
        unsafe { burst.copy_out(index.into(), 0, Span { start: bytes.as_mut_ptr(), len: packet.len }) };
        bytes
    }

    /// What comes in of a test, until there are `count`.
    fn receive(test: u8, rx: &mut RxQueue, count: usize) -> Vec<(Vec<u8>, Offload)> {
        let until = Instant::now() + Duration::from_secs(10);
        let mut found = Vec::new();
        while found.len() < count {
            assert!(Instant::now() < until, "{} of {count} frames came", found.len());
            let gathered = rx.gather().unwrap();
            for index in 0..u8::try_from(gathered).unwrap() {
                let bytes = bytes_of(rx.burst(), index);
                if bytes[..12] == addresses(test) {
                    found.push((bytes, rx.burst().offload(index.into())));
                }
            }
            rx.commit();
        }
        found
    }

    /// Rows: A22, B6.
    #[test]
    fn frames_of_every_length_come_as_they_were_sent_and_in_order() {
        let Some((attachment, mut rx, mut tx)) = loopback() else { return };
        let mut sent: Vec<_> =
            [60, 64, 65, 1514, 9014, 60_000].iter().zip(1..).map(|(&len, i)| frame(1, &[], len, i)).collect();
        sent.push(frame(1, &TAG, 1518, 9));
        let burst = burst(&sent.iter().map(|bytes| (bytes.clone(), Offload::NONE)).collect::<Vec<_>>());
        let list: Vec<u8> = (0..u8::try_from(sent.len()).unwrap()).collect();
        let delivery = tx.deliver(&burst, &list);
        assert_eq!((delivery.settled, delivery.too_small), (sent.len(), 0));
        assert_eq!(attachment.gauges().completed, sent.len() as u64);
        let received = receive(1, &mut rx, sent.len());
        for ((bytes, offload), expected) in received.iter().zip(&sent) {
            assert!(bytes == expected, "{} bytes, sent {}", bytes.len(), expected.len());
            assert_eq!(*offload, Offload::NONE);
        }
        assert_eq!(attachment.gauges().rx_missed, 0);
    }

    /// Rows: A22, B6.
    #[test]
    fn what_a_sender_left_to_be_done_is_left_to_the_receiver() {
        let Some((_attachment, mut rx, mut tx)) = loopback() else { return };
        let bytes = frame(2, &[], 200, 5);
        let mut raw = [0; 16];
        (raw[0], raw[6], raw[8]) = (1, 34, 6);
        let offload = judge(u128::from_le_bytes(raw), 200, OffloadSet::ALL).unwrap();
        assert_eq!(tx.deliver(&burst(&[(bytes.clone(), offload)]), &[0]).settled, 1);
        let received = receive(2, &mut rx, 1);
        assert_eq!(received[0].0, bytes);
        assert_eq!((received[0].1.needs(), received[0].1.checksum()), (offload.needs(), offload.checksum()));
    }

    /// Rows: A22.
    #[test]
    fn a_frame_that_the_device_does_not_take_is_refused_and_the_next_one_sent() {
        let Some((_attachment, mut rx, mut tx)) = loopback() else { return };
        // lo takes packets of 65536 bytes.
        let frames = [(frame(3, &[], 65_555, 1), Offload::NONE), (frame(3, &[], 100, 2), Offload::NONE)];
        let delivery = tx.deliver(&burst(&frames), &[0, 1]);
        assert_eq!((delivery.settled, delivery.too_small), (2, 1));
        assert_eq!(receive(3, &mut rx, 1)[0].0, frames[1].0);
    }
}
