//! What a device received: gathered like a guest's transmitq, its frames given back once every copy is made.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ring::{Consumer, Producer};
use super::xsk::Xsk;
use super::{CHUNK, PIECES_MAX};
use crate::burst::{Burst, MAX_BURST, MAX_FRAME};
use crate::drops::DropReason;
use crate::frame::ethernet;
use crate::frame::vnet_hdr::Offload;
use crate::memory::{Span, access};
use crate::ring::RingFault;

/// `XDP_PKT_CONTD`, in the options of a descriptor: the frame goes on in the next.
pub(super) const GOES_ON: u32 = 1;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// The rx side of a queue. Belongs to one thread.
#[derive(Debug)]
pub struct RxQueue {
    /// Where the rx frames end, bytes into the area.
    end: u64,
    fill: Producer<1>,
    rx: Consumer<2>,
    burst: Burst,
    /// Beside the burst's frames: its pieces, and how many each frame has.
    spans: Vec<Span>,
    pieces: Box<[u8; MAX_BURST]>,
    /// Has the kernel poll the device whenever there is nothing.
    busy_polls: bool,
    /// Where the next frame is looked for, bytes into the area.
    expected: usize,
    /// The driver takes frames out of the fill ring by itself, and says when it has to be woken for that.
    sleeps: bool,
    xsk: Arc<Xsk>,
}

impl RxQueue {
    /// The fill ring was filled with frames of chunks up to `end`.
    pub(super) fn new(xsk: Arc<Xsk>, fill: Producer<1>, rx: Consumer<2>, end: u64, busy_polls: bool) -> Self {
        let sleeps = xsk.binding.zero_copy && xsk.binding.need_wakeup;
        Self {
            end,
            fill,
            rx,
            burst: Burst::of_area(Arc::clone(&xsk.area)),
            spans: Vec::with_capacity(MAX_BURST * PIECES_MAX),
            pieces: Box::new([0; MAX_BURST]),
            busy_polls,
            expected: 0,
            sleeps,
            xsk,
        }
    }

    /// Readable while there are frames.
    pub fn descriptor(&self) -> &dyn AsRawFd {
        &self.xsk.socket
    }

    /// The burst gathered last.
    #[inline]
    pub fn burst(&self) -> &Burst {
        &self.burst
    }

    /// The same, to refuse frames of it.
    #[inline]
    pub fn burst_mut(&mut self) -> &mut Burst {
        &mut self.burst
    }

    /// Fills the burst with up to 64 frames. They are not received over until [`Self::commit`].
    ///
    /// # Errors
    /// The kernel's ring makes no sense.
    #[inline(never)]
    pub fn gather(&mut self) -> Result<usize, RingFault> {
        // Frames that come one by one would wait for three lines in turn: the index, the descriptor and the frame. The
        // kernel that copies takes frames in the order in which they were given to it, so all three are known before.
        self.rx.ask_for_next();
        if !self.xsk.binding.zero_copy {
            access::prefetch(self.xsk.area.start().wrapping_add(self.expected));
        }
        let mut ready = self.rx.ready()?;
        if ready == 0 {
            if !self.busy_polls {
                return Ok(0);
            }
            self.xsk.socket.kick_rx();
            ready = self.rx.ready()?;
        }
        self.burst.clear();
        self.spans.clear();
        let count = self.look_ahead(ready)?;
        self.take(count);
        Ok(self.burst.len())
    }

    /// Reads the descriptors of up to 64 whole frames and asks for their heads' lines. Gives how many frames.
    #[inline]
    fn look_ahead(&mut self, ready: u32) -> Result<usize, RingFault> {
        let Some(area) = self.burst.area() else { return Ok(0) };
        let (mut used, mut count, mut pieces, mut last) = (0, 0, 0_u8, Span::EMPTY);
        for ahead in 0..ready {
            let [address, rest] = self.rx.entry(ahead);
            #[allow(clippy::cast_possible_truncation, reason = "takes the fields of a descriptor apart")]
            let (len, options) = (rest as u32, (rest >> 32) as u32);
            // Of one frame of the rx part, all of it.
            let is_inside = address < self.end && address % u64::from(CHUNK) + u64::from(len) <= u64::from(CHUNK);
            let span = area.span(address, len).filter(|_| is_inside).ok_or(RingFault::Address)?;
            if pieces == 0 {
                access::prefetch(span.start);
                if count == 0 {
                    // Nothing is copied yet beside which its other lines could come.
                    access::prefetch_all(span.start.wrapping_add(LINE), (len as usize).saturating_sub(LINE));
                }
            }
            last = span;
            if usize::from(pieces) == PIECES_MAX {
                return Err(RingFault::LongChain);
            }
            self.spans.push(span);
            pieces += 1;
            if options & GOES_ON != 0 {
                continue;
            }
            let Some(place) = self.pieces.get_mut(count) else { break };
            *place = pieces;
            (count, used, pieces) = (count + 1, ahead + 1, 0);
            if count == MAX_BURST {
                break;
            }
        }
        let next = (last.start.addr().wrapping_sub(area.start().addr())).wrapping_add(CHUNK as usize);
        self.expected = if (next as u64) < self.end { next } else { next % CHUNK as usize };
        // The rest of a frame is on its way, unless it cannot be.
        self.spans.truncate(used as usize);
        if count == 0 && self.rx.is_full(ready) {
            return Err(RingFault::LongChain);
        }
        self.rx.release(used);
        Ok(count)
    }

    /// Puts the frames looked at into the burst.
    #[inline]
    fn take(&mut self, count: usize) {
        let (mut frame, mut at) = (0, 0);
        while frame < count {
            let lone =
                self.pieces.get(frame..count).unwrap_or_default().iter().zip(self.spans.get(at..).unwrap_or_default());
            let plain = lone.map(|(&pieces, &span)| (pieces == 1 && span.len >= ethernet::HEADER_SIZE).then_some(span));
            let taken = self.burst.push_plain(plain);
            (frame, at) = (frame + taken, at + taken);
            if let Some(pieces) = self.pieces.get(frame..count).and_then(|left| left.first()).map(|n| usize::from(*n)) {
                self.take_other(self.spans.get(at..at + pieces).map_or(0, <[Span]>::len), at);
                (frame, at) = (frame + 1, at + pieces);
            }
        }
    }

    /// A frame in several pieces, or one to be dropped for its length.
    #[cold]
    fn take_other(&mut self, pieces: usize, at: usize) {
        let spans = self.spans.get(at..at + pieces).unwrap_or_default();
        let len = spans.iter().map(|span| span.len).sum();
        let drop = match len {
            0..ethernet::HEADER_SIZE => Some(DropReason::Runt),
            MAX_FRAME.. if len > MAX_FRAME => Some(DropReason::Oversize),
            _ => None,
        };
        self.burst.push_pieces(spans, len, drop, Offload::NONE);
    }

    /// Gives the burst's frames back to the kernel, and wakes it if it waits for them; true if so.
    #[inline(never)]
    pub fn commit(&mut self) -> bool {
        let base = self.xsk.area.start().addr();
        for span in &self.spans {
            // There are no more frames than places, so there is room unless the kernel gave one twice.
            if self.fill.has_room(1) {
                let address = (span.start.addr() - base) as u64;
                self.fill.put([address & !u64::from(CHUNK - 1)]);
            }
        }
        self.spans.clear();
        self.burst.clear();
        if self.fill.unpublished() == 0 {
            return false;
        }
        self.fill.publish();
        if !self.sleeps {
            return false;
        }
        fence(Ordering::SeqCst);
        let wakes = self.fill.wants_wakeup();
        if wakes {
            self.xsk.socket.kick_rx();
        }
        wakes
    }

    /// True if frames came since the last look: the thread is about to sleep, and their arrival from now on wakes it.
    pub fn has_arrivals(&self) -> bool {
        fence(Ordering::SeqCst);
        self.rx.ready() != Ok(0)
    }
}
