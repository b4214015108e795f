//! A guest's receiveq as the switch writes it: deliver packets of a burst into the buffers the guest posted.
#![allow(unsafe_code, reason = "writes frames into guest memory")]

use std::ops::Range;
use std::sync::Arc;

use super::chain::{Chain, Direction, INDIRECT, Scratch, WRITE};
use super::kind::{Kind, with_layout};
use super::layout::Layout;
use super::transmitq::header_size;
use super::{Ring, RingFault, feature, offload};
use crate::burst::written::finish_checksum;
use crate::burst::{Burst, Head, MAX_BURST, Packet};
use crate::frame::gso::Idents;
use crate::frame::vnet_hdr::{self, Offload, OffloadSet};
use crate::memory::{GuestMap, Hint, Iova, Marks, Span, Tlb, access, copy};

mod large;
mod segment;

use large::{Window, copy_beside};

/// What came of an attempt to deliver a list of packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delivery {
    /// How many of the list are settled: delivered, or refused as too large for the buffers.
    pub settled: usize,
    /// Bit i set: the i-th of the list did not fit the guest's buffers.
    pub too_small: u64,
    /// Bit i set: the i-th of the list was delivered in the pieces of its [`Plan`](crate::frame::gso::Plan).
    pub in_pieces: u64,
    /// The ring broke at the first one not settled; or, if it [is one to wait for](RingFault::is_wait), its buffer is on
    /// its way.
    pub fault: Option<RingFault>,
}

/// Bytes of each buffer that are asked for as soon as it is known: two lines, all of a small frame.
const LINES_AHEAD: u32 = 2 * LINE;
const LINE: u32 = 64;

/// Posted buffers that are asked for when one turns out to be on its way still.
const ASKED_AHEAD: u16 = 64;
/// Places of a group behind which the next buffer is asked for, and bytes of that: many frames pay for their misses together.
const FEW: u16 = 4;
const BYTES_AHEAD: u32 = 2048;
/// Posted buffers whose mappings are kept at hand before frames need them. A guest with lazy invalidation takes all back some
/// hundred times a second, and its front-end, which is its emulator, spends 0.1 ms on each.
const MAPPED_AHEAD: u16 = 8;

/// A posted buffer, looked at ahead of need.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: *mut u8,
    /// 0 when the chain has more than one buffer, or crosses regions: walk it then.
    len: u32,
    chain: Chain,
}

// SAFETY: as for a span: an address in the memory that the ring keeps mapped, usable from any thread.
unsafe impl Send for Slot {}

impl Slot {
    /// One that has to be walked.
    const fn other(chain: Chain) -> Self {
        Self { start: std::ptr::null_mut(), len: 0, chain }
    }
}

/// The queue. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Receiveq {
    ring: Ring,
    writer: Writer,
    slots: Box<[Slot; MAX_BURST]>,
    /// Places published since the last notification decision.
    pending: u16,
}

impl Receiveq {
    /// Takes a ring over. Its kicks stay off: nobody waits for buffers.
    pub fn new(mut ring: Ring) -> Self {
        ring.disable_kicks();
        let slots = Box::new([Slot::other(Chain::UNKNOWN); MAX_BURST]);
        let mut writer = Writer::new(&ring);
        if writer.tlb.is_on() {
            with_layout!(&mut ring.0, ring => writer.ask_on(ring, 0));
        }
        Self { writer, slots, pending: 0, ring }
    }

    /// Gives the ring back.
    pub fn into_ring(self) -> Ring {
        self.ring
    }

    /// The ring, to replace its call descriptor.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Copies the packets `list` of `burst` into posted buffers, in order, and publishes them together. Stops at the
    /// first that finds no room. `list` has at most 64 indices.
    pub fn deliver(&mut self, burst: &Burst, list: &[u8]) -> Delivery {
        if self.is_guarded() {
            self.catch_up();
        }
        let (delivery, taken) = with_layout!(&mut self.ring.0, ring => {
            self.writer.deliver(ring, &mut self.slots, burst, list)
        });
        self.pending = self.pending.saturating_add(taken);
        if self.is_guarded() {
            self.ask_on(taken);
        }
        delivery
    }

    /// Forgets what the guest's IOMMU took back.
    #[cold]
    #[inline(never)]
    fn catch_up(&mut self) {
        with_layout!(&mut self.ring.0, ring => self.writer.catch_up(ring));
    }

    /// Asks for the mappings of buffers that come after the `taken` delivered last.
    #[cold]
    #[inline(never)]
    fn ask_on(&mut self, taken: u16) {
        with_layout!(&mut self.ring.0, ring => self.writer.ask_on(ring, taken));
    }

    /// True if the guest's IOMMU guards its memory.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.writer.tlb.is_on()
    }

    /// True if nobody may touch the ring, which is vring `vring` of its port: where it is has no mapping now.
    #[inline]
    pub fn is_shut(&self, vring: u16) -> bool {
        self.is_guarded() && self.ring.memory().iotlb().is_some_and(|iotlb| iotlb.is_shut(vring))
    }

    /// How often something came that its buffers may wait for ([`GuestMap::arrived`]).
    pub fn arrived(&self) -> u64 {
        self.ring.memory().arrived()
    }

    /// Asks for the mappings that the next buffers lack, after some were taken back: they are there when frames come.
    pub fn look_ahead(&mut self, vring: u16) {
        if self.is_guarded() && !self.is_shut(vring) {
            with_layout!(&mut self.ring.0, ring => {
                self.writer.catch_up(ring);
                self.writer.ask_on(ring, 0);
            });
        }
    }

    /// Calls the guest for everything delivered since the last flush, if it wants to be called; true if it was.
    pub fn flush(&mut self) -> bool {
        let places = std::mem::take(&mut self.pending);
        let called = places > 0 && self.ring.notify(places);
        if places <= FEW {
            with_layout!(&mut self.ring.0, ring => self.writer.ask_for_next(ring));
        }
        called
    }
}

/// What it takes to write packets into a ring of any layout.
#[derive(Debug)]
struct Writer {
    header_size: u32,
    mergeable: bool,
    /// What the guest takes as it is.
    takes: OffloadSet,
    hint: Hint,
    tlb: Tlb,
    /// Places from the cursor on whose buffers were asked for, or found, ahead of need.
    asked: u16,
    scratch: Scratch,
    /// The most buffers there can be.
    ring_size: u32,
    idents: Idents,
    /// Buffers of frames that take several.
    window: Window,
    /// Bytes that the next frame may need: what the longest of the burst before did.
    expected: u32,
    /// Bytes of a frame that the buffers from this place on were too small for, as far as this round has found out.
    too_small: (u16, u32),
    /// What was written, on its way into the dirty log.
    marks: Marks,
}

impl Writer {
    fn new(ring: &Ring) -> Self {
        let features = ring.features();
        Self {
            header_size: header_size(features),
            mergeable: features & feature::MRG_RXBUF != 0,
            takes: offload::taken_by(features),
            hint: Hint::NONE,
            tlb: Tlb::new(ring.memory(), Direction::Writable.access()),
            asked: 0,
            scratch: Scratch::new(),
            ring_size: ring.size(),
            idents: Idents::new(),
            window: Window::new(),
            expected: 0,
            too_small: (0, u32::MAX),
            marks: Marks::new(Arc::clone(ring.logging())),
        }
    }

    /// [`Receiveq::deliver`]; gives the places published too.
    #[inline]
    fn deliver<L: Layout>(
        &mut self,
        ring: &mut L,
        slots: &mut [Slot; MAX_BURST],
        burst: &Burst,
        list: &[u8],
    ) -> (Delivery, u16) {
        let mut delivery = Delivery::default();
        // Of a delivery that a bug of ours ended half-way.
        ring.forget(0);
        let ready = match ring.check().and_then(|()| ring.ready(list.len())) {
            Ok(ready) => ready,
            Err(fault) => return (Delivery { fault: Some(fault), ..delivery }, 0),
        };
        let logging = self.marks.are_wanted();
        let wanted = slots.get_mut(..usize::from(ready).min(list.len())).unwrap_or_default();
        let looked = self.look_ahead(ring, wanted, &mut delivery.fault);
        let slots = slots.get(..looked).unwrap_or_default();
        self.window.clear();
        self.too_small = (0, u32::MAX);
        self.expected = self.header_size + burst.longest();
        // Every chain that was looked at takes one place, so a place is a slot's index too.
        let mut taken: u16 = 0;
        for (position, &index) in list.iter().enumerate() {
            let Some((packet, head)) = burst.frame(index) else { break };
            let need = self.header_size + packet.len;
            match slots.get(usize::from(taken)) {
                Some(slot) if slot.len >= need && self.is_simple(packet) => {
                    if need <= LINES_AHEAD && packet.is_plain {
                        self.write_plain(burst, packet, head, slot.start);
                    } else {
                        let next = slots.get(usize::from(taken) + 1).zip(list.get(position + 1));
                        self.write_one(burst, index, packet, *slot, next);
                    }
                    if logging {
                        self.marks.note(ring.memory(), slot.start, need);
                    }
                    ring.put_used(taken, slot.chain, need);
                    taken += 1;
                }
                _ => match self.place(ring, burst, usize::from(index), taken, list.get(position + 1).copied()) {
                    Ok(Some(places)) => {
                        taken += places;
                        delivery.in_pieces |= u64::from(!self.is_simple(packet)) << position;
                    }
                    Ok(None) => delivery.too_small |= 1 << position,
                    Err(stop) => {
                        delivery.fault = match stop {
                            Some(fault) if fault.is_wait() => {
                                ask_ahead(ring, self.hint, &mut self.tlb, 0..ready);
                                stop
                            }
                            _ => delivery.fault.or(stop),
                        };
                        break;
                    }
                },
            }
            delivery.settled = position + 1;
        }
        if delivery.settled == list.len() {
            delivery.fault = None;
        }
        if logging {
            // Before the guest is told: what it was told of is marked, whatever becomes of this process.
            self.marks.settle();
            if delivery.settled < list.len() || delivery.too_small != 0 {
                // A frame that was given up may have left elements that nobody is told of.
                ring.mark_own_areas();
            }
        }
        if taken > 0 {
            ring.publish(taken);
        } else {
            ring.forget(0);
        }
        (delivery, taken)
    }

    /// Forgets what the guest's IOMMU took back.
    #[inline]
    fn catch_up<L: Layout>(&mut self, ring: &L) {
        if self.tlb.is_on() && self.tlb.catch_up(ring.memory()) {
            (self.hint, self.asked) = (Hint::NONE, 0);
        }
    }

    /// Asks for the mappings of buffers that come after those taken, each once: they are there when their frames are.
    #[cold]
    fn ask_on<L: Layout>(&mut self, ring: &mut L, taken: u16) {
        let from = self.asked.saturating_sub(taken);
        let to = ring.ready(usize::from(MAPPED_AHEAD)).map_or(0, |ready| ready.min(MAPPED_AHEAD));
        self.asked = from.max(to);
        ask_ahead(ring, self.hint, &mut self.tlb, from..to);
    }

    /// Asks for what the next group begins with, the descriptor after it too, while nobody waits for it: of frames that come
    /// one by one each would wait for its buffer, line after line. What is read here is forgotten, and judged by nobody.
    #[inline(never)]
    fn ask_for_next<L: Layout>(&self, ring: &mut L) {
        // None is asked of the guest: what it posted since is for later.
        let known = ring.ready(0).unwrap_or(0);
        if known > 1 {
            ring.ask_for(1);
        }
        if known > 0
            && let Ok(Some((_, desc))) = ring.head(0)
            && let Some(buffer) = self.hint.span(desc.addr, desc.len)
        {
            access::prefetch_write_all(buffer.start, buffer.len.min(self.expected).min(BYTES_AHEAD) as usize);
        }
    }

    /// Reads as many posted buffers as there are slots and asks for their lines. Gives how many are good, each in a chain
    /// of one place.
    #[inline]
    fn look_ahead<L: Layout>(&mut self, ring: &L, slots: &mut [Slot], fault: &mut Option<RingFault>) -> usize {
        let (memory, tlb, mut hint, mut looked) = (ring.memory(), &mut self.tlb, self.hint, 0);
        for (place, slot) in (0_u16..).zip(slots) {
            let (chain, desc) = match ring.head(place) {
                Ok(Some((chain, desc))) if L::ends_at(desc) => (chain, desc),
                Ok(_) => break,
                Err(broken) => {
                    *fault = Some(broken);
                    break;
                }
            };
            let mut ahead = Slot::other(chain);
            if desc.flags == WRITE
                && let Some(Span { start, len }) = memory.translate(Iova(desc.addr), desc.len, &mut hint, tlb)
            {
                access::prefetch_write(start);
                access::prefetch_write(start.wrapping_add(LINE as usize));
                ahead = Slot { start, len, chain };
            }
            *slot = ahead;
            looked = usize::from(place) + 1;
        }
        self.hint = hint;
        looked
    }

    /// True if a frame goes out as it came, but for its checksum.
    #[inline]
    fn is_simple(&self, packet: &Packet) -> bool {
        packet.is_plain || self.takes_whole(packet)
    }

    /// Of a frame that asks for something.
    #[cold]
    fn takes_whole(&self, packet: &Packet) -> bool {
        !packet.needs.without(self.takes).has_segmentation()
    }

    /// The fast shape: one buffer that holds the header and a plain frame.
    #[allow(clippy::inline_always, reason = "a call costs a frame of 64 bytes as much as its copy")]
    #[inline(always)]
    fn write_plain(&self, burst: &Burst, packet: &Packet, head: &Head, start: *mut u8) {
        self.write_header(start, vnet_hdr::encode(Offload::NONE));
        // SAFETY: the buffer has the header's bytes and the frame's (checked by the caller), kept mapped by the ring.
        unsafe { burst.copy_plain(packet, head, start.wrapping_add(self.header_size as usize)) };
    }

    /// The same for any frame. `next` is the buffer after this one, and the frame that goes there.
    #[inline(never)]
    fn write_one(&self, burst: &Burst, index: u8, packet: &Packet, slot: Slot, next: Option<(&Slot, &u8)>) {
        let (index, header_size) = (usize::from(index), self.header_size as usize);
        let frame = Span { start: slot.start.wrapping_add(header_size), len: packet.len };
        let (offload, lacking) = (burst.offload(index), packet.needs.without(self.takes));
        self.write_header(slot.start, vnet_hdr::encode(if lacking.is_empty() { offload } else { Offload::NONE }));
        let next = next.and_then(|(slot, &frame)| self.next(burst, *slot, usize::from(frame), 0));
        // SAFETY: `frame` is the rest of the buffer that the caller checked, `packet.len` bytes.
        unsafe { copy_beside(burst, index, 0, frame, next) };
        if !lacking.is_empty()
            && let Some(partial) = offload.checksum()
        {
            finish_checksum(&[frame], 0, packet.len, partial);
        }
    }

    /// Writes a virtio header at `start`, which has its bytes in one buffer.
    #[inline]
    fn write_header(&self, start: *mut u8, header: u128) {
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (low, high, buffers) = (header as u64, (header >> 64) as u16, (header >> 64) as u32);
        if self.header_size == 12 {
            // SAFETY: the buffer has the header's bytes (checked by the caller), kept mapped by the ring.
            return unsafe { access::store_12(start, low, buffers) };
        }
        // SAFETY: bytes 0..8 of the same.
        unsafe { access::store::<u64>(start, low) };
        // SAFETY: bytes 8..10 of the same.
        unsafe { access::store::<u16>(start.wrapping_add(8), high) };
    }

    /// Any other shape: chains of buffers, several of them if the guest merges, and what must be segmented. Gives the
    /// places used, None if the frame can never fit, `Err(None)` when the guest has too few buffers now. `next` is the frame
    /// after this one.
    #[inline(never)]
    fn place<L: Layout>(
        &mut self,
        ring: &mut L,
        burst: &Burst,
        index: usize,
        taken: u16,
        next: Option<u8>,
    ) -> Result<Option<u16>, Option<RingFault>> {
        let Some(packet) = burst.packets().get(index) else { return Ok(None) };
        let lacking = packet.needs.without(self.takes);
        if self.mergeable
            && lacking.is_empty()
            && let Some(places) = self.merge(ring, burst, index, taken, next)
        {
            return Ok(Some(places));
        }
        self.window.clear();
        self.scratch.clear();
        if lacking.has_segmentation() {
            return self.segment(ring, burst, index, taken);
        }
        let Some((places, chains)) = self.reserve(ring, taken, self.header_size + packet.len)? else {
            return Ok(None);
        };
        let offload = burst.offload(index);
        let header = vnet_hdr::encode(if lacking.is_empty() { offload } else { Offload::NONE });
        let header = vnet_hdr::with_buffers(header, chains);
        self.write_many(burst, index, header, &[], 0, packet.len);
        if !lacking.is_empty()
            && let Some(partial) = offload.checksum()
        {
            finish_checksum(&self.scratch.spans, self.header_size, packet.len, partial);
        }
        self.note_written(ring.memory(), self.header_size + packet.len);
        Ok(Some(places))
    }

    /// Notes for the dirty log that the buffers reserved hold `bytes` bytes.
    fn note_written(&mut self, memory: &GuestMap, bytes: u32) {
        if !self.marks.are_wanted() {
            return;
        }
        let mut left = bytes;
        for span in &self.scratch.spans {
            let len = span.len.min(left);
            self.marks.note(memory, span.start, len);
            left -= len;
        }
    }

    /// Takes buffers for `need` bytes, the virtio header's included, from place `taken` on: they are in the scratch then.
    /// Gives the places and the chains; None and `Err(None)` as [`Self::place`].
    fn reserve<L: Layout>(
        &mut self,
        ring: &mut L,
        taken: u16,
        need: u32,
    ) -> Result<Option<(u16, u16)>, Option<RingFault>> {
        if self.too_small.0 == taken && need >= self.too_small.1 {
            return Ok(None);
        }
        let (mut room, mut chains, mut place) = (0_u32, 0_u16, taken);
        // The chains are noted as used as they are found: nothing is published before `deliver` says so, and that stops
        // at the first frame that is given up.
        while room < need {
            if ring.ready(usize::from(place) + 1).map_err(Some)? <= place {
                return Err(None);
            }
            let Some((chain, first)) = ring.head(place).map_err(Some)? else { return Err(None) };
            let is_alone = self.scratch.is_fresh();
            let (chain, bytes) = match ring.walk(place, chain, first, Direction::Writable, &mut self.scratch) {
                // Buffers so small are the guest's choice, if each is one: they hold other frames.
                Err(RingFault::LongChain) if !is_alone => {
                    ring.forget(taken);
                    self.too_small = (taken, need);
                    return Ok(None);
                }
                walked => walked.map_err(Some)?,
            };
            if chains == 0 && bytes < self.header_size {
                return Err(Some(RingFault::ShortChain));
            }
            if bytes == 0 {
                return Err(Some(RingFault::LongChain));
            }
            let written = bytes.min(need - room);
            room = room.checked_add(bytes).ok_or(Some(RingFault::LongChain))?;
            if room < need && !self.mergeable {
                return Ok(None);
            }
            ring.put_used(place, chain, written);
            (place, chains) = (place + L::places(chain), chains + 1);
        }
        Ok(Some((place - taken, chains)))
    }

    /// Writes the virtio header, `head` and then `len` bytes of the frame from `from` on into the buffers reserved.
    fn write_many(&self, burst: &Burst, index: usize, header: u128, head: &[u8], from: u32, len: u32) {
        let (header, header_size) = (header.to_le_bytes(), self.header_size as usize);
        let own = header_size + head.len();
        let end = own + len as usize;
        let mut at = 0;
        for (i, span) in self.scratch.spans.iter().enumerate() {
            let (mut start, mut left) = (span.start, (span.len as usize).min(end - at));
            // What this buffer does not hold goes into the next.
            if let Some(next) = self.scratch.spans.get(i + 1) {
                access::prefetch_write_all(next.start, (next.len as usize).min(end - at - left));
            }
            while at < own && left > 0 {
                let (bytes, n) = if at < header_size {
                    (header.as_ptr().wrapping_add(at), header_size - at)
                } else {
                    (head.as_ptr().wrapping_add(at - header_size), own - at)
                };
                let n = n.min(left);
                // SAFETY: `n` bytes are inside the header or `head` from `at`, and inside the span, kept mapped by the
                // ring.
                unsafe { copy::copy(start, bytes, n) };
                (at, start, left) = (at + n, start.wrapping_add(n), left - n);
            }
            if left > 0 {
                #[allow(clippy::cast_possible_truncation, reason = "no more than `len` and the span's")]
                let (skip, to) = ((at - own) as u32, Span { start, len: left as u32 });
                // SAFETY: the span, cut to what the frame still has, is kept mapped by the ring.
                unsafe { burst.copy_out(index, from + skip, to) };
                at += left;
            }
        }
    }
}

/// A posted buffer is still on its way here: asks for those at these places too, so that they come together.
#[cold]
fn ask_ahead<L: Layout>(ring: &L, hint: Hint, tlb: &mut Tlb, places: Range<u16>) {
    for place in places.start..places.end.min(ASKED_AHEAD) {
        if let Ok(Some((_, desc))) = ring.head(place) {
            // A buffer or an indirect table; either is touched next.
            let direction = if desc.flags & INDIRECT == 0 { Direction::Writable } else { Direction::Readable };
            ring.memory().ask_for(Iova(desc.addr), desc.len, direction.access(), hint, tlb);
        }
    }
}
