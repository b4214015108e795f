//! A guest's transmitq as the switch reads it: gather a burst, and give it back once every copy is made.
//!
//! Gathering goes over the burst three times, so that the cache misses of its frames overlap: descriptors, then
//! indirect tables, then heads. One buffer, header and data in two, and the same two in an indirect table are what
//! drivers post; all else takes the slow, equally correct walk.
#![allow(unsafe_code, reason = "reads the virtio header out of guest memory")]

use std::fs::File;
use std::sync::Arc;

use super::chain::{Chain, Desc, Direction, INDIRECT, NEXT, Scratch};
use super::held::{Held, Obstacle, Orphan};
use super::kind::{Kind, with_layout};
use super::layout::Layout;
use super::split::SplitRing;
use super::{Ring, RingFault, feature, offload};
use crate::burst::{Burst, MAX_BURST, MAX_FRAME};
use crate::drops::DropReason;
use crate::frame::ethernet;
use crate::frame::vnet_hdr::{self, Offload, OffloadSet};
use crate::memory::{GuestMap, Hint, Iova, Span, Tlb, access};

mod guarded;

pub(crate) use guarded::TakenBack;

/// What the first passes found out about one chain.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    /// Where the virtio header is, all of it in one place; null if the chain has to be walked. Of an indirect table of two
    /// that was not read yet, where that is.
    header: *mut u8,
    /// The frame, likewise in one place.
    data: Span,
    chain: Chain,
}

// SAFETY: as for a span: addresses in the memory that the burst beside it keeps mapped, usable from any thread.
unsafe impl Send for Ahead {}

impl Ahead {
    /// A chain that has to be walked.
    const fn other(chain: Chain) -> Self {
        Self { header: std::ptr::null_mut(), data: Span::EMPTY, chain }
    }
}

/// The queue and its one burst. Belongs to one thread.
#[derive(Debug)]
pub struct Transmitq {
    ring: Ring,
    gatherer: Gatherer,
    /// The next frame waits for a page or a mapping: [`crate::memory::GuestMap::arrived`] before it was looked for in vain.
    parked: Option<u64>,
    /// What [`crate::memory::GuestMap::arrived`] was when pages of the frames after the next were asked for.
    asked_at: Option<u64>,
    /// How often it had to wait for a mapping since somebody asked.
    misses: u64,
    /// Chains that a process before this one had taken when it died: they are gathered first.
    orphans: Vec<Orphan>,
}

impl Transmitq {
    /// Takes a ring over.
    pub fn new(mut ring: Ring) -> Self {
        ring.disable_kicks();
        let orphans = ring.take_orphans();
        Self { gatherer: Gatherer::new(&ring), ring, parked: None, asked_at: None, misses: 0, orphans }
    }

    /// Gives the ring back, every burst settled and nothing held. Chains of a process before this one that were not
    /// gathered yet go back to the guest unsent.
    pub fn into_ring(mut self) -> Ring {
        self.give_back_orphans(self.orphans.len());
        // Its next start calls.
        self.ring
    }

    /// The memory of a ring that lets chains stay out ([`Held`]).
    ///
    /// # Errors
    /// What is in the way of that.
    pub fn memory_to_hold(&self) -> Result<&Arc<GuestMap>, Obstacle> {
        if matches!(self.ring.0, Kind::Packed(_)) {
            return Err(Obstacle::Packed);
        }
        if self.gatherer.in_order {
            return Err(Obstacle::InOrder);
        }
        let memory = self.ring.memory();
        if memory.is_guarded() {
            return Err(Obstacle::Guarded);
        }
        if memory.is_incoming() { Err(Obstacle::Postcopy) } else { Ok(memory) }
    }

    /// True if chains of the burst gathered last may stay out.
    pub fn may_hold(&self) -> bool {
        self.orphans.is_empty() && !with_layout!(&self.ring.0, ring => ring.logging().is_on())
    }

    /// The eventfd that the guest's kicks arrive on.
    pub fn kick(&self) -> Option<&File> {
        self.ring.kick()
    }

    /// Elements of its ring.
    pub fn size(&self) -> u32 {
        self.ring.size()
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

    /// The same, to refuse frames of it.
    #[inline]
    pub fn burst_mut(&mut self) -> &mut Burst {
        &mut self.gatherer.burst
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
    #[inline]
    pub fn gather(&mut self) -> Result<usize, RingFault> {
        if self.is_parked() {
            return Ok(0);
        }
        if !self.orphans.is_empty() {
            return self.gather_orphans();
        }
        match with_layout!(&mut self.ring.0, ring => self.gatherer.gather(ring)) {
            Err(fault) if fault.is_wait() => self.park(fault),
            gathered => gathered,
        }
    }

    /// True while the next frame waits for a page or a mapping that is on its way.
    #[inline]
    pub fn is_parked(&self) -> bool {
        self.parked.is_some_and(|seen| seen == self.gatherer.burst.memory().arrived())
    }

    /// Gives the burst's buffers back to the guest, in order, and calls it if it wants to be called; true if it was.
    pub fn commit(&mut self) -> bool {
        if !self.orphans.is_empty() {
            return self.commit_orphans();
        }
        with_layout!(&mut self.ring.0, ring => self.gatherer.commit(ring))
    }

    /// As [`Self::commit`], but for the frames that `held` has taken: their buffers stay out, and are given back by
    /// [`Self::give_back`].
    pub fn commit_all_but(&mut self, held: &mut Held) -> bool {
        match &mut self.ring.0 {
            Kind::Split(ring) if held.has_fresh() => self.gatherer.commit_all_but(ring, held),
            _ => self.commit(),
        }
    }

    /// Gives the guest the buffers that came back; `calls` it if it wants to be called. True if it was. Whoever may not call
    /// leaves that to the greeting of the ring's next start.
    pub fn give_back(&mut self, held: &mut Held, calls: bool) -> bool {
        let Kind::Split(ring) = &mut self.ring.0 else { return false };
        let (mut batch, mut called) = ([(0, 0); MAX_BURST], false);
        for chains in held.take_done().chunks(MAX_BURST) {
            for (place, &(slot, head)) in batch.iter_mut().zip(chains) {
                *place = (usize::from(slot), head);
            }
            let places = ring.give_back(batch.get(..chains.len()).unwrap_or_default());
            called |= calls && ring.notify(places);
        }
        called
    }

    /// [`Self::gather`] of what a process before this one had taken: heads that are in the available ring no longer.
    #[cold]
    fn gather_orphans(&mut self) -> Result<usize, RingFault> {
        let Kind::Split(ring) = &self.ring.0 else { return Ok(0) };
        self.gatherer.gather_heads(ring, self.orphans.iter().map(|orphan| orphan.head))
    }

    #[cold]
    fn commit_orphans(&mut self) -> bool {
        let count = self.gatherer.burst.len();
        self.gatherer.burst.clear();
        let places = self.give_back_orphans(count);
        places > 0 && self.ring.notify(places)
    }

    /// Gives the guest the first `count` chains of a process before this one; gives how many there were.
    fn give_back_orphans(&mut self, count: usize) -> u16 {
        let Kind::Split(ring) = &mut self.ring.0 else { return 0 };
        let count = count.min(self.orphans.len());
        let chains: Vec<(usize, u16)> = self.orphans.drain(..count).map(|orphan| (orphan.word, orphan.head)).collect();
        ring.give_back(&chains)
    }
}

/// How a pass over the next chains ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There are no more, or enough.
    Done,
    /// At a chain that has to be walked before it is known where the next one begins, or whether to look at that now.
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
    tlb: Tlb,
    /// [`GuestMap::generation`] when the burst was looked at last.
    generation: u64,
    /// Frames of the burst whose mappings were taken back: bit i for frame i.
    suspects: u64,
}

impl Gatherer {
    fn new(ring: &Ring) -> Self {
        let features = ring.features();
        Self {
            burst: Burst::new(Arc::clone(ring.memory())),
            header_size: header_size(features),
            sender: offload::sent_by(features),
            indirect: features & feature::INDIRECT_DESC != 0,
            in_order: features & feature::IN_ORDER != 0,
            ahead: Box::new([Ahead::other(Chain::UNKNOWN); MAX_BURST]),
            scratch: Scratch::new(),
            tlb: Tlb::new(ring.memory(), Direction::Readable.access()),
            generation: 0,
            suspects: 0,
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
        if self.tlb.is_on() {
            self.catch_up();
        }
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
        let mut hint = self.burst.hint();
        let (count, tables, end) = self.look_ahead(ring, place, from, most, &mut hint);
        if tables != 0 {
            self.open_tables::<L>(tables, &mut hint);
        }
        self.burst.set_hint(hint);
        let (mut i, mut header) = (from, 0);
        while i < count {
            let ahead = self.ahead.get(i..count).unwrap_or_default();
            i += self.burst.push_plain(ahead.iter().map(|ahead| Self::plain_frame(ahead, &mut header)));
            if i < count {
                match self.take(ring, i, header) {
                    Ok(()) => i += 1,
                    Err(Some(fault)) => return End::Fault(fault),
                    Err(None) => return End::Done,
                }
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
    /// good, which of them are indirect tables (bit i for slot i), and what ended it.
    #[inline]
    fn look_ahead<L: Layout>(
        &mut self,
        ring: &L,
        mut place: u16,
        from: usize,
        most: usize,
        hint: &mut Hint,
    ) -> (usize, u64, End) {
        let (memory, tlb, mut tables) = (self.burst.memory(), &mut self.tlb, 0_u64);
        let slots = self.ahead.get_mut(from..most).unwrap_or_default();
        for (i, slot) in slots.iter_mut().enumerate() {
            let (chain, desc) = match ring.head(place) {
                Ok(Some(found)) => found,
                Ok(None) => return (from + i, tables, End::Done),
                Err(fault) => return (from + i, tables, End::Fault(fault)),
            };
            let known = match desc.flags {
                0 if desc.len >= self.header_size => {
                    memory.translate(Iova(desc.addr), desc.len, hint, tlb).map(|span| {
                        access::prefetch(span.start);
                        access::prefetch(span.start.wrapping_add(64));
                        let start = span.start.wrapping_add(self.header_size as usize);
                        Ahead { header: span.start, data: Span { start, len: span.len - self.header_size }, chain }
                    })
                }
                NEXT if desc.len == self.header_size => ring
                    .second(place, chain, desc)
                    .and_then(|(chain, second)| Self::header_and_data(memory, [desc, second], chain, hint, tlb)),
                INDIRECT if desc.len == 32 && self.indirect => {
                    memory.translate(Iova(desc.addr), 32, hint, tlb).map(|table| {
                        access::prefetch(table.start);
                        tables |= 1 << ((from + i) % MAX_BURST);
                        Ahead { header: table.start, data: Span::EMPTY, chain }
                    })
                }
                _ => None,
            };
            let ahead = known.unwrap_or(Ahead::other(chain));
            *slot = ahead;
            // Of memory that is on its way, all that follows may be missing too: a look at each, in every turn, would keep
            // other guests waiting.
            if ahead.header.is_null() && (!L::ends_at(desc) || memory.is_incoming()) {
                return (from + i, tables, End::Unknown);
            }
            place += L::places(ahead.chain);
        }
        (most, tables, End::Done)
    }

    /// A chain whose header and frame are each in one place.
    #[inline]
    fn header_and_data(
        memory: &GuestMap,
        [first, second]: [Desc; 2],
        chain: Chain,
        hint: &mut Hint,
        tlb: &mut Tlb,
    ) -> Option<Ahead> {
        let header = memory.translate(Iova(first.addr), first.len, hint, tlb)?.start;
        let data = memory.translate(Iova(second.addr), second.len, hint, tlb)?;
        access::prefetch(header);
        access::prefetch(data.start);
        Some(Ahead { header, data, chain })
    }

    /// Second pass: indirect tables of header and data become the same two buffers.
    fn open_tables<L: Layout>(&mut self, mut tables: u64, hint: &mut Hint) {
        let (memory, tlb) = (self.burst.memory(), &mut self.tlb);
        while tables != 0 {
            let place = tables.trailing_zeros() as usize;
            tables &= tables - 1;
            let Some(ahead) = self.ahead.get_mut(place) else { return };
            let table = Span { start: ahead.header, len: 32 };
            let pair = L::in_table(table, 0).zip(L::in_table(table, 1));
            let known = pair
                .filter(|&(first, second)| L::is_pair(first, second) && first.len == self.header_size)
                .and_then(|(first, second)| Self::header_and_data(memory, [first, second], ahead.chain, hint, tlb));
            *ahead = known.unwrap_or(Ahead::other(ahead.chain));
        }
    }

    /// Third pass, most chains: the header, read once, asks for nothing. None if it does, or the chain has to be walked, or
    /// its frame is to be dropped for its length: then [`Self::take`] judges.
    #[inline]
    fn plain_frame(ahead: &Ahead, header: &mut u128) -> Option<Span> {
        if ahead.header.is_null() {
            return None;
        }
        *header = Self::header_at(ahead.header);
        let is_sound = ahead.data.len.wrapping_sub(ethernet::HEADER_SIZE) <= MAX_FRAME - ethernet::HEADER_SIZE;
        (is_sound && *header == 0).then_some(ahead.data)
    }

    /// Third pass, any other chain: judges its header `raw`, which was read if it is in one place. `Err(None)`: the burst has
    /// no room for its pieces.
    fn take<L: Layout>(&mut self, ring: &L, i: usize, raw: u128) -> Result<(), Option<RingFault>> {
        let Some(&Ahead { header, data, .. }) = self.ahead.get(i) else { return Err(None) };
        if header.is_null() {
            return self.take_chain(ring, i, self.place_of::<L>(i));
        }
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

    /// The chains that begin at `heads`, as many as the burst holds.
    fn gather_heads(&mut self, ring: &SplitRing, heads: impl Iterator<Item = u16>) -> Result<usize, RingFault> {
        self.burst.clear();
        ring.check()?;
        for (i, head) in heads.take(MAX_BURST).enumerate() {
            let found = ring.chain_of(head).map_err(Some);
            match found.and_then(|(chain, first)| {
                if let Some(ahead) = self.ahead.get_mut(i) {
                    *ahead = Ahead::other(chain);
                }
                self.take_known(ring, i, 0, chain, first)
            }) {
                Ok(()) => {}
                Err(Some(fault)) if self.burst.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        Ok(self.burst.len())
    }

    /// A chain of any shape, which begins at `place`, into slot `i` of the burst.
    #[cold]
    fn take_chain<L: Layout>(&mut self, ring: &L, i: usize, place: u16) -> Result<(), Option<RingFault>> {
        let Some((chain, first)) = ring.head(place).map_err(Some)? else { return Err(Some(RingFault::Changed)) };
        self.take_known(ring, i, place, chain, first)
    }

    /// A chain whose first descriptor is known.
    fn take_known<L: Layout>(
        &mut self,
        ring: &L,
        i: usize,
        place: u16,
        chain: Chain,
        first: Desc,
    ) -> Result<(), Option<RingFault>> {
        let Some(ahead) = self.ahead.get_mut(i) else { return Err(None) };
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
        let places = if self.in_order {
            // virtio 1.2 §2.7.9, §2.8.9: one entry in the place of the batch's first says that all up to its id are used.
            ring.put_used(0, last.chain, 0);
            chains.iter().map(|ahead| L::places(ahead.chain)).sum()
        } else {
            ring.put_all_used(chains.iter().map(|ahead| ahead.chain))
        };
        self.burst.clear();
        ring.publish(places);
        ring.notify(places)
    }
}

impl Gatherer {
    /// [`Transmitq::commit_all_but`].
    #[cold]
    fn commit_all_but(&mut self, ring: &mut SplitRing, held: &mut Held) -> bool {
        let chains = self.ahead.get(..self.burst.len()).unwrap_or_default();
        let stays = held.commit(|frame| chains.get(usize::from(frame)).map(|ahead| ahead.chain.id));
        let mut list = [(0, None); MAX_BURST];
        for (place, (ahead, stay)) in list.iter_mut().zip(chains.iter().zip(stays)) {
            *place = (ahead.chain.id, stay);
        }
        let places = ring.hold(list.get(..chains.len()).unwrap_or_default());
        self.burst.clear();
        places > 0 && ring.notify(places)
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
