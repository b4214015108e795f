//! A guest's transmitq as the switch reads it: gather a burst, and give it back once every copy is made.
//!
//! Gathering goes over the burst three times, so that the cache misses of its frames overlap: descriptors, then
//! indirect tables, then heads. One buffer, header and data in two, and the same two in an indirect table are what
//! drivers post; all else takes the slow, equally correct walk.
#![allow(unsafe_code, reason = "reads the virtio header out of guest memory")]

use std::fs::File;

use super::chain::{Chain, Direction, INDIRECT, NEXT, Scratch};
use super::kind::{Kind, with_layout};
use super::layout::Layout;
use super::{Ring, RingFault, feature, offload};
use crate::burst::{Burst, MAX_BURST, MAX_FRAME};
use crate::drops::DropReason;
use crate::frame::ethernet;
use crate::frame::vnet_hdr::{self, Offload, OffloadSet};
use crate::memory::{Gpa, Span, access};

/// What the first pass found out about one chain.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    chain: Chain,
    shape: Shape,
    /// Header, or header and data in one, or the indirect table.
    first: Span,
    data: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Header and data in one buffer.
    One,
    /// Header in the first buffer, data in the second.
    Two,
    /// An indirect table of two, not read yet.
    Table,
    /// Anything else: walk it.
    Other,
}

/// The queue and its one burst. Belongs to one thread.
#[derive(Debug)]
pub struct Transmitq {
    ring: Ring,
    gatherer: Gatherer,
}

impl Transmitq {
    /// Takes a ring over.
    pub fn new(mut ring: Ring) -> Self {
        ring.disable_kicks();
        Self { gatherer: Gatherer::new(&ring), ring }
    }

    /// Gives the ring back, every burst settled.
    pub fn into_ring(self) -> Ring {
        self.ring
    }

    /// The eventfd that the guest's kicks arrive on.
    pub fn kick(&self) -> Option<&File> {
        self.ring.kick()
    }

    /// The ring, to replace its call descriptor or read its counters.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The burst gathered last.
    #[inline]
    pub fn burst(&self) -> &Burst {
        &self.gatherer.burst
    }

    /// Kicks on, before its thread sleeps; true if work came in meanwhile.
    pub fn enable_kicks(&mut self) -> bool {
        self.ring.enable_kicks()
    }

    /// What makes every further look at the ring pointless. Gathering asks it where there are frames; ask where there are
    /// none for long: a packed ring whose memory was taken away reads as one without frames for ever.
    ///
    /// # Errors
    /// `MemoryLost`, `CallJammed`.
    pub fn check(&self) -> Result<(), RingFault> {
        self.ring.check()
    }

    /// Kicks off: we poll.
    pub fn disable_kicks(&mut self) {
        self.ring.disable_kicks();
    }

    /// Fills the burst with up to 64 frames. They stay the guest's until [`Self::commit`].
    ///
    /// # Errors
    /// The ring is broken at its next entry. What came before it was gathered by earlier calls.
    pub fn gather(&mut self) -> Result<usize, RingFault> {
        with_layout!(&mut self.ring.0, ring => self.gatherer.gather(ring))
    }

    /// Gives the burst's buffers back to the guest, in order, and calls it if it wants to be called; true if it was.
    pub fn commit(&mut self) -> bool {
        with_layout!(&mut self.ring.0, ring => self.gatherer.commit(ring))
    }
}

/// How a pass over the next chains ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There are no more, or enough.
    Done,
    /// At a chain that has to be walked before it is known where the next one begins.
    Unknown,
    /// The ring is broken here.
    Fault(RingFault),
}

/// The burst, and what it takes to fill it from a ring of any layout.
#[derive(Debug)]
struct Gatherer {
    burst: Burst,
    header_size: u32,
    /// What the guest may ask of us.
    sender: OffloadSet,
    indirect: bool,
    /// The last of a batch tells that all before it are used too.
    in_order: bool,
    /// Beside the burst's packets: which chain each came in.
    ahead: Box<[Ahead; MAX_BURST]>,
    scratch: Scratch,
}

impl Gatherer {
    fn new(ring: &Ring) -> Self {
        let features = ring.features();
        let empty = Ahead { chain: Chain::UNKNOWN, shape: Shape::Other, first: Span::EMPTY, data: Span::EMPTY };
        Self {
            burst: Burst::new(std::sync::Arc::clone(ring.memory())),
            header_size: header_size(features),
            sender: offload::sent_by(features),
            indirect: features & feature::INDIRECT_DESC != 0,
            in_order: features & feature::IN_ORDER != 0,
            ahead: Box::new([empty; MAX_BURST]),
            scratch: Scratch::new(),
        }
    }

    /// [`Transmitq::gather`].
    #[inline]
    fn gather<L: Layout>(&mut self, ring: &mut L) -> Result<usize, RingFault> {
        // The ring alone is touched while there is nothing: a hundred quiet queues must fit the first-level cache.
        let ready = ring.ready(MAX_BURST).map_err(|fault| ring.cause_of(fault))?;
        if ready == 0 {
            return Ok(0);
        }
        self.burst.clear();
        ring.check()?;
        let most = usize::from(ready).min(MAX_BURST);
        let mut end = self.gather_known(ring, 0, most);
        while end == End::Unknown {
            end = self.gather_unknown(ring, most);
        }
        match end {
            End::Fault(fault) if self.burst.is_empty() => Err(fault),
            _ => Ok(self.burst.len()),
        }
    }

    /// Appends the chains from `place` on, up to `most` in the burst, as long as each tells where the next one begins.
    #[inline]
    fn gather_known<L: Layout>(&mut self, ring: &L, place: u16, most: usize) -> End {
        let from = self.burst.len();
        let (count, indirect, end) = self.look_ahead(ring, place, from, most);
        if indirect {
            self.open_tables::<L>(from, count);
        }
        for i in from..count {
            match self.take(ring, i) {
                Ok(()) => {}
                Err(Some(fault)) => return End::Fault(fault),
                Err(None) => return End::Done,
            }
        }
        end
    }

    /// Appends one chain that has to be walked to know where it ends, and goes on after it.
    #[cold]
    fn gather_unknown<L: Layout>(&mut self, ring: &L, most: usize) -> End {
        let place = self.place_of::<L>(self.burst.len());
        match self.take_chain(ring, self.burst.len(), place) {
            Ok(()) => self.gather_known(ring, self.place_of::<L>(self.burst.len()), most),
            Err(Some(fault)) => End::Fault(fault),
            Err(None) => End::Done,
        }
    }

    /// Where the `i`-th chain of the burst begins.
    fn place_of<L: Layout>(&self, i: usize) -> u16 {
        self.ahead.iter().take(i).map(|ahead| L::places(ahead.chain)).sum()
    }

    /// First pass: heads and descriptors, from slot `from` of the burst up to `most`. Gives the slot after the last that is
    /// good, whether any has an indirect table, and what ended it.
    #[inline]
    fn look_ahead<L: Layout>(&mut self, ring: &L, mut place: u16, from: usize, most: usize) -> (usize, bool, End) {
        let mut indirect = false;
        let slots = self.ahead.get_mut(from..most).unwrap_or_default();
        for (i, slot) in slots.iter_mut().enumerate() {
            let (chain, desc) = match ring.head(place) {
                Ok(Some(found)) => found,
                Ok(None) => return (from + i, indirect, End::Done),
                Err(fault) => return (from + i, indirect, End::Fault(fault)),
            };
            let mut ahead = Ahead { chain, shape: Shape::Other, first: Span::EMPTY, data: Span::EMPTY };
            match desc.flags {
                0 => {
                    if let Some(span) = self.burst.translate(Gpa(desc.addr), desc.len) {
                        access::prefetch(span.start);
                        access::prefetch(span.start.wrapping_add(64));
                        (ahead.shape, ahead.first) = (Shape::One, span);
                    }
                }
                NEXT if desc.len == self.header_size => {
                    if let Some((chain, second)) = ring.second(place, chain, desc)
                        && let Some(first) = self.burst.translate(Gpa(desc.addr), desc.len)
                        && let Some(data) = self.burst.translate(Gpa(second.addr), second.len)
                    {
                        access::prefetch(first.start);
                        access::prefetch(data.start);
                        ahead = Ahead { chain, shape: Shape::Two, first, data };
                    }
                }
                INDIRECT if desc.len == 32 && self.indirect => {
                    if let Some(table) = self.burst.translate(Gpa(desc.addr), 32) {
                        access::prefetch(table.start);
                        (ahead.shape, ahead.first) = (Shape::Table, table);
                        indirect = true;
                    }
                }
                _ => {}
            }
            *slot = ahead;
            if ahead.shape == Shape::Other && !L::ends_at(desc) {
                return (from + i, indirect, End::Unknown);
            }
            place += L::places(ahead.chain);
        }
        (most, indirect, End::Done)
    }

    /// Second pass: indirect tables of header and data become the same two buffers.
    fn open_tables<L: Layout>(&mut self, from: usize, to: usize) {
        let slots = self.ahead.get_mut(from..to).unwrap_or_default();
        for ahead in slots.iter_mut().filter(|a| a.shape == Shape::Table) {
            ahead.shape = Shape::Other;
            if let Some((head, tail)) = L::in_table(ahead.first, 0).zip(L::in_table(ahead.first, 1))
                && L::is_pair(head, tail)
                && head.len == self.header_size
                && let Some(first) = self.burst.translate(Gpa(head.addr), head.len)
                && let Some(data) = self.burst.translate(Gpa(tail.addr), tail.len)
            {
                access::prefetch(first.start);
                access::prefetch(data.start);
                (ahead.shape, ahead.first, ahead.data) = (Shape::Two, first, data);
            }
        }
    }

    /// Third pass, one chain: header judged, head copied. `Ok` when the chain is in the burst, `Err(None)` when the
    /// burst has no room for its pieces.
    #[inline]
    fn take<L: Layout>(&mut self, ring: &L, i: usize) -> Result<(), Option<RingFault>> {
        let Some(&Ahead { shape, first, data, .. }) = self.ahead.get(i) else { return Err(None) };
        let data = match shape {
            Shape::Two => data,
            Shape::One if first.len >= self.header_size => {
                Span { start: first.start.wrapping_add(self.header_size as usize), len: first.len - self.header_size }
            }
            _ => return self.take_chain(ring, i, self.place_of::<L>(i)),
        };
        let raw = Self::header_at(first.start);
        let (drop, offload) = judge(raw, data.len, self.sender);
        self.burst.push(data, drop, offload);
        Ok(())
    }

    #[inline]
    fn header_at(at: *const u8) -> u128 {
        // SAFETY: the caller's buffer has at least `header_size` (10 or 12) bytes, kept mapped by the ring's memory.
        let low = unsafe { access::load::<u64>(at) };
        // SAFETY: bytes 8 and 9 of the same.
        let high = unsafe { access::load::<u16>(at.wrapping_add(8)) };
        u128::from(low) | u128::from(high) << 64
    }

    /// A chain of any shape, which begins at `place`, into slot `i` of the burst.
    #[cold]
    fn take_chain<L: Layout>(&mut self, ring: &L, i: usize, place: u16) -> Result<(), Option<RingFault>> {
        let Some(ahead) = self.ahead.get_mut(i) else { return Err(None) };
        let Some((chain, first)) = ring.head(place).map_err(Some)? else { return Err(Some(RingFault::Changed)) };
        self.scratch.clear();
        let walked = ring.walk(place, chain, first, Direction::Readable, &mut self.scratch);
        let (chain, bytes) = walked.map_err(Some)?;
        if ahead.chain != Chain::UNKNOWN && L::places(ahead.chain) != L::places(chain) {
            return Err(Some(RingFault::Changed));
        }
        ahead.chain = chain;
        if bytes < self.header_size {
            return Err(Some(RingFault::ShortChain));
        }
        if self.scratch.spans.len() > self.burst.span_room() {
            return Err(None);
        }
        // The header may lie anywhere in the first pieces: collect it and cut it off.
        let mut header = [0_u8; 16];
        let (mut at, mut used, need) = (0, 0, self.header_size as usize);
        for span in &mut self.scratch.spans {
            let n = (span.len as usize).min(need - at);
            // SAFETY: `n` bytes are inside the span, kept mapped by the ring's memory, and inside `header`.
            unsafe { crate::memory::copy::copy(header.as_mut_ptr().wrapping_add(at), span.start, n) };
            at += n;
            #[allow(clippy::cast_possible_truncation, reason = "at most 12")]
            let cut = n as u32;
            *span = Span { start: span.start.wrapping_add(n), len: span.len - cut };
            used += usize::from(span.len == 0);
            if at == need {
                break;
            }
        }
        let len = bytes - self.header_size;
        let raw = u128::from_le_bytes(header) & ((1 << 80) - 1);
        let (drop, offload) = judge(raw, len, self.sender);
        let pieces = self.scratch.spans.get(used..).unwrap_or_default();
        self.burst.push_pieces(pieces, len, drop, offload);
        Ok(())
    }

    /// [`Transmitq::commit`].
    #[inline]
    fn commit<L: Layout>(&mut self, ring: &mut L) -> bool {
        let chains = self.ahead.get(..self.burst.len()).unwrap_or_default();
        let Some(last) = chains.last() else { return false };
        let mut places = 0;
        if self.in_order {
            // virtio 1.2 §2.7.9, §2.8.9: one entry in the place of the batch's first says that all up to its id are used.
            ring.put_used(0, last.chain, 0);
            places = chains.iter().map(|ahead| L::places(ahead.chain)).sum();
        } else {
            for ahead in chains {
                ring.put_used(places, ahead.chain, 0);
                places += L::places(ahead.chain);
            }
        }
        self.burst.clear();
        ring.publish(places);
        ring.notify(places)
    }
}

/// What a frame's length and header say about it.
#[inline]
fn judge(raw: u128, len: u32, sender: OffloadSet) -> (Option<DropReason>, Offload) {
    if len < ethernet::HEADER_SIZE {
        return (Some(DropReason::Runt), Offload::default());
    }
    if len > MAX_FRAME {
        return (Some(DropReason::Oversize), Offload::default());
    }
    match vnet_hdr::judge(raw, len, sender) {
        Ok(offload) => (None, offload),
        Err(drop) => (Some(drop), Offload::default()),
    }
}

/// Bytes of the virtio header under these features (virtio 1.2 §5.1.6.1).
#[inline]
pub(super) fn header_size(features: u64) -> u32 {
    let modern = features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0;
    if modern { 12 } else { 10 }
}
