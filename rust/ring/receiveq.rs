//! A guest's receiveq as the switch writes it: deliver packets of a burst into the buffers the guest posted.
#![allow(unsafe_code, reason = "writes frames into guest memory")]

use super::chain::{Chain, Direction, MAX_CHAIN, Scratch, WRITE};
use super::kind::{Kind, with_layout};
use super::layout::Layout;
use super::transmitq::header_size;
use super::{Ring, RingFault, feature};
use crate::burst::{Burst, MAX_BURST, Packet};
use crate::frame::checksum::Sum;
use crate::frame::vnet_hdr::{self, Offload, PartialChecksum};
use crate::memory::{Gpa, Span, access, copy};

/// What came of an attempt to deliver a list of packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delivery {
    /// How many of the list are settled: delivered, or refused as too large for the buffers.
    pub settled: usize,
    /// Bit i set: the i-th of the list did not fit the guest's buffers.
    pub too_small: u64,
    /// The ring broke at the first one not settled.
    pub fault: Option<RingFault>,
}

/// A posted buffer, looked at ahead of need.
#[derive(Debug, Clone, Copy)]
struct Slot {
    chain: Chain,
    /// Empty when the chain has more than one buffer, or crosses regions: walk it then.
    span: Span,
}

/// The queue. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Receiveq {
    ring: Ring,
    writer: Writer,
    /// Places published since the last notification decision.
    pending: u16,
}

impl Receiveq {
    /// Takes a ring over. Its kicks stay off: nobody waits for buffers.
    pub fn new(mut ring: Ring) -> Self {
        ring.disable_kicks();
        Self { writer: Writer::new(ring.features()), pending: 0, ring }
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
        let (delivery, taken) = with_layout!(&mut self.ring.0, ring => self.writer.deliver(ring, burst, list));
        self.pending = self.pending.saturating_add(taken);
        delivery
    }

    /// Calls the guest for everything delivered since the last flush, if it wants to be called; true if it was.
    pub fn flush(&mut self) -> bool {
        let places = std::mem::take(&mut self.pending);
        places > 0 && self.ring.notify(places)
    }
}

/// What it takes to write packets into a ring of any layout.
#[derive(Debug)]
struct Writer {
    header_size: u32,
    mergeable: bool,
    /// The guest takes partial checksums.
    guest_csum: bool,
    slots: Box<[Slot; MAX_BURST]>,
    hint: usize,
    scratch: Scratch,
}

impl Writer {
    fn new(features: u64) -> Self {
        Self {
            header_size: header_size(features),
            mergeable: features & feature::MRG_RXBUF != 0,
            guest_csum: features & feature::GUEST_CSUM != 0,
            slots: Box::new([Slot { chain: Chain::UNKNOWN, span: Span::EMPTY }; MAX_BURST]),
            hint: 0,
            scratch: Scratch::new(),
        }
    }

    /// [`Receiveq::deliver`]; gives the places published too.
    #[inline]
    fn deliver<L: Layout>(&mut self, ring: &mut L, burst: &Burst, list: &[u8]) -> (Delivery, u16) {
        let mut delivery = Delivery::default();
        let ready = match ring.check().and_then(|()| ring.ready(list.len())) {
            Ok(ready) => ready,
            Err(fault) => return (Delivery { fault: Some(fault), ..delivery }, 0),
        };
        let looked = self.look_ahead(ring, usize::from(ready).min(list.len()), &mut delivery.fault);
        // Every chain that was looked at takes one place, so a place is a slot's index too.
        let mut taken: u16 = 0;
        for (position, &index) in list.iter().enumerate() {
            let Some(packet) = burst.packets().get(usize::from(index)) else { break };
            let need = self.header_size + packet.len;
            match self.slots.get(usize::from(taken)) {
                Some(slot) if usize::from(taken) < looked && slot.span.len >= need => {
                    let slot = *slot;
                    self.write_one(burst, usize::from(index), packet, slot.span);
                    ring.put_used(taken, slot.chain, need);
                    taken += 1;
                }
                _ => match self.place(ring, burst, usize::from(index), packet, taken) {
                    Ok(Some(places)) => taken += places,
                    Ok(None) => delivery.too_small |= 1 << position,
                    Err(stop) => {
                        delivery.fault = delivery.fault.or(stop);
                        break;
                    }
                },
            }
            delivery.settled = position + 1;
        }
        if delivery.settled == list.len() {
            delivery.fault = None;
        }
        if taken > 0 {
            ring.publish(taken);
        }
        (delivery, taken)
    }

    /// Reads up to `count` posted buffers and asks for their lines. Gives how many are good, each in a chain of one place.
    #[inline]
    fn look_ahead<L: Layout>(&mut self, ring: &L, count: usize, fault: &mut Option<RingFault>) -> usize {
        for (i, slot) in self.slots.iter_mut().take(count).enumerate() {
            #[allow(clippy::cast_possible_truncation, reason = "below MAX_BURST")]
            let (chain, desc) = match ring.head(i as u16) {
                Ok(Some((chain, desc))) if L::ends_at(desc) => (chain, desc),
                Ok(_) => return i,
                Err(broken) => {
                    *fault = Some(broken);
                    return i;
                }
            };
            let mut span = Span::EMPTY;
            if desc.flags == WRITE
                && let Some(buffer) = ring.memory().translate(Gpa(desc.addr), desc.len, &mut self.hint)
            {
                span = buffer;
                access::prefetch_write(span.start);
                access::prefetch_write(span.start.wrapping_add(64));
            }
            *slot = Slot { chain, span };
        }
        count
    }

    /// The fast shape: one buffer that holds header and frame.
    #[inline]
    fn write_one(&self, burst: &Burst, index: usize, packet: &Packet, span: Span) {
        let frame = Span { start: span.start.wrapping_add(self.header_size as usize), len: packet.len };
        let header = vnet_hdr::encode(self.receiver_offload(packet));
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let (low, high, buffers) = (header as u64, (header >> 64) as u16, (header >> 64) as u32);
        // SAFETY: the span has the header's bytes and the frame's (checked by the caller), kept mapped by the ring.
        unsafe { access::store::<u64>(span.start, low) };
        if self.header_size == 12 {
            // SAFETY: bytes 8..12 of the same span.
            unsafe { access::store::<u32>(span.start.wrapping_add(8), buffers) };
        } else {
            // SAFETY: bytes 8..10 of the same span.
            unsafe { access::store::<u16>(span.start.wrapping_add(8), high) };
        }
        // SAFETY: `frame` is the rest of the span, `packet.len` bytes.
        unsafe { burst.copy_out(index, 0, frame) };
        if let (Some(partial), false) = (packet.offload.checksum, self.guest_csum) {
            finish_checksum(&[frame], 0, packet.len, partial);
        }
    }

    #[inline]
    fn receiver_offload(&self, packet: &Packet) -> Offload {
        if self.guest_csum { packet.offload } else { Offload::default() }
    }

    /// Any other shape: chains of buffers, several of them if the guest merges. Gives the places used, None if the
    /// frame can never fit, `Err(None)` when the guest has too few buffers now.
    #[cold]
    fn place<L: Layout>(
        &mut self,
        ring: &mut L,
        burst: &Burst,
        index: usize,
        packet: &Packet,
        taken: u16,
    ) -> Result<Option<u16>, Option<RingFault>> {
        let need = self.header_size + packet.len;
        self.scratch.clear();
        let (mut room, mut chains, mut place) = (0_u32, 0_u16, taken);
        // The chains are noted as used as they are found: nothing is published before `deliver` says so, and that stops
        // at the first frame that is given up.
        while room < need {
            if ring.ready(usize::from(place) + 1).map_err(Some)? <= place {
                return Err(None);
            }
            let Some((chain, first)) = ring.head(place).map_err(Some)? else { return Err(None) };
            let walked = ring.walk(place, chain, first, Direction::Writable, &mut self.scratch);
            let (chain, bytes) = walked.map_err(Some)?;
            if chains == 0 && bytes < self.header_size {
                return Err(Some(RingFault::ShortChain));
            }
            if bytes == 0 || usize::from(chains) >= MAX_CHAIN {
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
        self.write_many(burst, index, packet, chains);
        Ok(Some(place - taken))
    }

    fn write_many(&mut self, burst: &Burst, index: usize, packet: &Packet, chains: u16) {
        let raw = vnet_hdr::with_buffers(vnet_hdr::encode(self.receiver_offload(packet)), chains);
        let header = raw.to_le_bytes();
        let (mut at, need) = (0_u32, self.header_size + packet.len);
        for span in &self.scratch.spans {
            let mut span = *span;
            if at < self.header_size {
                let n = span.len.min(self.header_size - at);
                // SAFETY: `n` bytes are inside the header from `at` and inside the span, kept mapped by the ring.
                unsafe { copy::copy(span.start, header.as_ptr().wrapping_add(at as usize), n as usize) };
                at += n;
                span = Span { start: span.start.wrapping_add(n as usize), len: span.len - n };
            }
            span.len = span.len.min(need - at);
            if span.len > 0 {
                // SAFETY: the span, cut to what the frame still has, is kept mapped by the ring.
                unsafe { burst.copy_out(index, at - self.header_size, span) };
                at += span.len;
            }
        }
        if let (Some(partial), false) = (packet.offload.checksum, self.guest_csum) {
            finish_checksum(&self.scratch.spans, self.header_size, packet.len, partial);
        }
    }
}

/// Sums the frame as it was written, `skip` bytes into `spans`, and stores the checksum: never a second look at the
/// sender's bytes. A receiver that scribbles over its buffer meanwhile spoils its own frame.
#[cold]
fn finish_checksum(spans: &[Span], skip: u32, frame_len: u32, partial: PartialChecksum) {
    let (from, to) = (skip + u32::from(partial.start), skip + frame_len);
    let mut sum = Sum::default();
    let mut chunk = [0_u8; 256];
    for_each_byte_range(spans, from, to, |mut start, mut left| {
        while left > 0 {
            let n = left.min(chunk.len());
            // SAFETY: `n` bytes from `start` are inside a span that the caller keeps mapped; the chunk has room.
            unsafe { copy::copy(chunk.as_mut_ptr(), start, n) };
            sum.add(chunk.get(..n).unwrap_or_default());
            (start, left) = (start.wrapping_add(n), left - n);
        }
    });
    let result = sum.finish();
    let field = from + u32::from(partial.offset);
    let mut bytes = result.iter();
    for_each_byte_range(spans, field, field + 2, |start, len| {
        for (i, byte) in bytes.by_ref().take(len).enumerate() {
            // SAFETY: inside the same span.
            unsafe { access::store::<u8>(start.wrapping_add(i), *byte) };
        }
    });
}

/// Calls `f` with each run of bytes `[from, to)` of `spans` laid end to end.
fn for_each_byte_range(spans: &[Span], from: u32, to: u32, mut f: impl FnMut(*mut u8, usize)) {
    let mut base = 0_u32;
    for span in spans {
        let end = base.saturating_add(span.len);
        let (a, b) = (from.max(base), to.min(end));
        if a < b {
            f(span.start.wrapping_add((a - base) as usize), (b - a) as usize);
        }
        base = end;
    }
}
