//! The split ring's three areas (virtio 1.2 §2.7).
//!
//! ```text
//!   descriptor table  16 × size        addr:8 len:4 flags:2 next:2
//!   available ring    6 + 2 × size     flags:2 idx:2 ring[size]:2 used_event:2     driver writes
//!   used ring         6 + 8 × size     flags:2 idx:2 ring[size]:(id:4 len:4) avail_event:2   we write
//! ```
#![allow(unsafe_code, reason = "rings are guest memory")]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, DESC_SIZE, Desc, Direction, INDIRECT, NEXT, Scratch, words_in_table};
use super::doorbell::Doorbell;
use super::held::{self, HELD_MAX, Orphan};
use super::journal::{Intent, Journal, Past};
use super::layout::Layout;
use super::log::RingLog;
use super::notify;
use super::{RingConfig, RingFault, area, feature};
use crate::burst::MAX_BURST;
use crate::error::{Error, Result};
use crate::memory::{GuestMap, Logging, Span, access};

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Bytes of the descriptor table, the available and the used ring.
pub(super) fn sizes(size: u32) -> [u32; 3] {
    let size = size.min(32_768);
    [DESC_SIZE * size, 6 + 2 * size, 6 + 8 * size]
}

/// The fields of a descriptor (virtio 1.2 §2.7.5).
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
fn desc_of((addr, rest): (u64, u64)) -> Desc {
    Desc { addr, len: rest as u32, flags: (rest >> 32) as u16, link: (rest >> 48) as u16 }
}

#[allow(clippy::cast_possible_truncation, reason = "no more than a journal has words for")]
fn places_of(orphans: &[Orphan]) -> u16 {
    orphans.len() as u16
}

/// A split ring that was checked and translated. Owned by one thread at a time.
#[derive(Debug)]
pub(super) struct SplitRing {
    desc: *const u8,
    avail: *const u8,
    used: *mut u8,
    mask: u16,
    /// The next available entry to take; between bursts the used index, less the chains that are held.
    next: u16,
    /// The next used element to write.
    used_next: u16,
    /// The last available index read: re-read only when it is used up.
    seen: u16,
    event_idx: bool,
    features: u64,
    journal: Journal,
    /// Chains that were held when the process before this one died, oldest first.
    orphans: Vec<Orphan>,
    log: RingLog,
    memory: Arc<GuestMap>,
    doorbell: Doorbell,
}

// SAFETY: the pointers are into mappings that `memory` keeps, usable from any thread; the ring moves whole.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// `RingConfig::activate`, once the size is known to be good.
    ///
    /// Where to start: at the used index in memory if it differs from the base sent (virtio-user sends 0 on every
    /// reconnect, and a crash leaves buffers between the two), else at the base.
    pub(super) fn new(config: &RingConfig, memory: &Arc<GuestMap>, doorbell: Doorbell) -> Result<Self> {
        let size = config.size;
        let [desc, avail, used] = sizes(size);
        let desc = area(memory, "descriptor table", config.desc_uva, desc, 16)?;
        let avail = area(memory, "available ring", config.avail_uva, avail, 2)?;
        let used = area(memory, "used ring", config.used_uva, used, 4)?;
        let used_idx = if memory.is_incoming() {
            // The ring moved here whole, and the front-end says where it stands.
            config.base
        } else {
            // SAFETY: the index is two bytes into the used ring translated above.
            unsafe { access::load_acquire(used.start.wrapping_add(2)) }
        };
        let mask = u16::try_from(size - 1).map_err(|_| Error::Bug(format!("ring size {size} passed the check")))?;
        Ok(Self {
            desc: desc.start,
            avail: avail.start,
            used: used.start,
            mask,
            next: used_idx,
            used_next: used_idx,
            seen: used_idx,
            event_idx: config.features & feature::EVENT_IDX != 0,
            features: config.features,
            journal: Journal::private(0)?,
            orphans: Vec::new(),
            log: RingLog::default(),
            memory: Arc::clone(memory),
            doorbell,
        })
    }

    /// The index to answer when the ring stops: available = used, for nothing is held then.
    pub(super) fn next_index(&self) -> u16 {
        self.next
    }

    /// Writes down from now on, in another's memory, where the ring stands, and says what that held against it. The used
    /// index is the guest's memory's own word for where it stood, and the commit itself: the journal only confirms it, and
    /// knows which chains were held.
    #[allow(clippy::unnecessary_wraps, reason = "a packed ring may have to refuse")]
    pub(super) fn take_up(&mut self, past: Past) -> Result<Option<String>> {
        let Intent { old, new, .. } = past.journal.intent();
        let at = self.used_next;
        let is_new = past.is_known && at != old && at != new;
        let orphans = if past.is_known && !is_new {
            held::left_behind(&past.journal, at == new && old != new)
        } else {
            Vec::new()
        };
        let is_sound = self.can_have_taken(&orphans);
        held::forget(&past.journal, if is_sound { &orphans } else { &[] });
        past.journal.settle(at);
        self.journal = past.journal;
        if is_sound {
            self.next = at.wrapping_add(places_of(&orphans));
            self.seen = self.next;
            self.orphans = orphans;
        }
        let note = || format!("its used index is {at}, not {new} as written down: the guest set it up anew");
        let strange =
            || format!("buffers written down as taken are not those that its driver offers: it goes on at {at}");
        Ok(is_new.then(note).or_else(|| (!is_sound).then(strange)))
    }

    /// True if the driver's available ring may be one of which these were taken and the rest was not.
    fn can_have_taken(&self, orphans: &[Orphan]) -> bool {
        if orphans.is_empty() {
            return true;
        }
        // SAFETY: the index is two bytes into the available ring, mapped by `memory`.
        let available = unsafe { access::load_acquire(self.avail.wrapping_add(2)) }.wrapping_sub(self.used_next);
        let taken = places_of(orphans);
        let mut heads: Vec<u16> = orphans.iter().map(|orphan| orphan.head).collect();
        heads
            .extend((taken..available.min(self.mask.wrapping_add(1))).map(|place| self.offered(self.used_next, place)));
        let count = heads.len();
        heads.sort_unstable();
        heads.dedup();
        available >= taken
            && available <= self.mask.wrapping_add(1)
            && heads.len() == count
            && heads.iter().all(|head| *head <= self.mask)
    }

    /// The head in entry `from` + `place` of the available ring.
    #[inline]
    fn offered(&self, from: u16, place: u16) -> u16 {
        let slot = usize::from(from.wrapping_add(place) & self.mask);
        // SAFETY: the slot is masked to the ring, which `memory` keeps mapped.
        unsafe { access::load::<u16>(self.avail.wrapping_add(4 + 2 * slot)) }
    }

    /// Chains that were taken by the process before this one, and not given back: they come before all others.
    pub(super) fn take_orphans(&mut self) -> Vec<Orphan> {
        std::mem::take(&mut self.orphans)
    }

    /// The chain that begins at `head`, for one whose entry in the available ring is gone.
    pub(super) fn chain_of(&self, head: u16) -> std::result::Result<(Chain, Desc), RingFault> {
        Ok((Chain { id: head, count: 1 }, self.desc(head)?))
    }

    /// Moves past the chains of a burst, of which those with a slot stay out and the others are used. Gives how many are.
    ///
    /// Each is written down as out before any is used, in the order in which they were taken: wherever that ends, what is
    /// written down are the first that were available after the used index.
    pub(super) fn hold(&mut self, chains: &[(u16, Option<u16>)]) -> u16 {
        let (mut used, mut count) = ([(0, 0); MAX_BURST], 0);
        for (i, &(head, slot)) in chains.iter().enumerate() {
            let word = slot.map_or(HELD_MAX + i, usize::from);
            held::note_out(&self.journal, word, head, self.next);
            self.next = self.next.wrapping_add(1);
            if slot.is_none()
                && let Some(place) = used.get_mut(count)
            {
                *place = (word, head);
                count += 1;
            }
        }
        self.give_back(used.get(..count).unwrap_or_default())
    }

    /// Gives chains back that were out: the word of the journal where that is written down, and the head of each. Gives how
    /// many there are.
    ///
    /// The store of the used index is the commit: before it they are out, after it they are back, whatever the journal still
    /// says of them.
    pub(super) fn give_back(&mut self, chains: &[(usize, u16)]) -> u16 {
        let mut places = 0;
        for &(word, head) in chains {
            held::note_coming_back(&self.journal, word);
            self.put_used(places, Chain { id: head, count: 1 }, 0);
            places += 1;
        }
        if places > 0 {
            let old = self.used_next;
            self.publish_used(places);
            for &(word, _) in chains {
                held::note_back(&self.journal, word);
            }
            self.journal.settle(self.used_next);
            if self.log.is_on() {
                self.mark_published(old, places);
            }
        }
        places
    }

    /// The store of the used index, announced in the journal.
    #[inline]
    fn publish_used(&mut self, places: u16) {
        let old = self.used_next;
        self.used_next = old.wrapping_add(places);
        self.journal.intend(old, self.used_next, 0);
        // SAFETY: the index is two bytes into the used ring, mapped by `memory`.
        unsafe { access::store_release(self.used.wrapping_add(2), self.used_next) };
    }

    /// Elements.
    pub(super) fn size(&self) -> u32 {
        u32::from(self.mask) + 1
    }

    /// The map its addresses come from.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        &self.memory
    }

    /// Reads the driver's index: available entries not yet taken. One acquire load.
    #[inline]
    fn look(&mut self) -> std::result::Result<u16, RingFault> {
        // SAFETY: the index is two bytes into the available ring, mapped by `memory`.
        let seen = unsafe { access::load_acquire(self.avail.wrapping_add(2)) };
        let ready = seen.wrapping_sub(self.next);
        // A ring of 32768 entries has mask 32767; more than that many new entries cannot fit. What was there cannot be
        // gone either, and an index that was refused is not one that was seen.
        if ready > self.mask.wrapping_add(1) || ready < self.known_ready() {
            return Err(RingFault::IndexJump);
        }
        self.seen = seen;
        Ok(ready)
    }

    /// Available entries not yet taken, as far as known without reading the driver's index again.
    #[inline]
    fn known_ready(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// Descriptor `index` of the ring's own table.
    #[inline]
    fn desc(&self, index: u16) -> std::result::Result<Desc, RingFault> {
        if index > self.mask {
            return Err(RingFault::IndexRange);
        }
        let at = self.desc.wrapping_add(usize::from(index) * DESC_SIZE as usize);
        // SAFETY: the first half of an entry inside the table, which `memory` keeps mapped.
        let addr = unsafe { access::load::<u64>(at) };
        // SAFETY: the second half of the same entry.
        let rest = unsafe { access::load::<u64>(at.wrapping_add(8)) };
        Ok(desc_of((addr, rest)))
    }

    fn walk_table(
        &self,
        table: Desc,
        direction: Direction,
        mut bytes: u32,
        scratch: &mut Scratch,
    ) -> std::result::Result<u32, RingFault> {
        let (entries, count) = Scratch::table(&self.memory, table, self.features & feature::INDIRECT_DESC != 0)?;
        let (mut index, mut steps) = (0_u16, 0_u32);
        loop {
            let desc = Self::in_table(entries, index).ok_or(RingFault::IndexRange)?;
            if desc.flags & INDIRECT != 0 {
                return Err(RingFault::BadIndirect);
            }
            bytes = scratch.append_buffer(&self.memory, desc, direction, bytes)?;
            if desc.flags & NEXT == 0 {
                return Ok(bytes);
            }
            steps += 1;
            if steps >= count {
                return Err(RingFault::ChainLoop);
            }
            index = desc.link;
        }
    }

    fn want_kicks(&mut self, wanted: bool) {
        let (from, wish) = if self.event_idx {
            let event = if wanted { self.next } else { self.next.wrapping_sub(1) };
            (4 + 8 * u64::from(self.size()), event)
        } else {
            (0, if wanted { 0 } else { USED_NO_NOTIFY })
        };
        #[allow(clippy::cast_possible_truncation, reason = "within the used ring")]
        let at = self.used.wrapping_add(from as usize);
        // SAFETY: the flags are the used ring's first two bytes; avail_event follows its entries and was translated with
        // them.
        if unsafe { access::load::<u16>(at) } == wish {
            // A page that does not change is not one to copy again.
            return;
        }
        // SAFETY: the same two bytes.
        unsafe { access::store::<u16>(at, wish) };
        if self.log.is_on() {
            self.log.mark_used([(from, 2)]);
        }
    }

    /// Marks the elements of `places` places from `old` on, and the index.
    #[cold]
    fn mark_published(&self, old: u16, places: u16) {
        let (size, first) = (u64::from(self.size()), u64::from(old & self.mask));
        let count = u64::from(places).min(size);
        let here = count.min(size - first);
        self.log.mark_used([(4 + 8 * first, 8 * here), (4, 8 * (count - here)), (2, 2)]);
    }
}

impl Layout for SplitRing {
    #[inline]
    fn memory(&self) -> &GuestMap {
        &self.memory
    }

    #[inline]
    fn features(&self) -> u64 {
        self.features
    }

    #[inline]
    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    fn doorbell_mut(&mut self) -> &mut Doorbell {
        &mut self.doorbell
    }

    #[inline]
    fn logging(&self) -> &Arc<Logging> {
        &self.log.logging
    }

    fn used_area(&self) -> *const u8 {
        self.used
    }

    fn desc_area(&self) -> *const u8 {
        self.desc
    }

    fn set_log(&mut self, log: RingLog) {
        self.log = log;
    }

    fn mark_own_areas(&self) {
        self.log.mark_used([(0, 6 + 8 * u64::from(self.size()))]);
    }

    #[inline]
    fn ready(&mut self, want: usize) -> std::result::Result<u16, RingFault> {
        let known = self.known_ready();
        if usize::from(known) >= want { Ok(known) } else { self.look() }
    }

    #[inline]
    fn head(&self, place: u16) -> std::result::Result<Option<(Chain, Desc)>, RingFault> {
        let id = self.offered(self.next, place);
        Ok(Some((Chain { id, count: 1 }, self.desc(id)?)))
    }

    #[inline]
    fn ask_for(&self, place: u16) {
        let id = self.offered(self.next, place) & self.mask;
        access::prefetch(self.desc.wrapping_add(usize::from(id) * DESC_SIZE as usize));
    }

    #[inline]
    fn ends_at(_first: Desc) -> bool {
        true
    }

    #[inline]
    fn second(&self, _place: u16, chain: Chain, first: Desc) -> Option<(Chain, Desc)> {
        let second = self.desc(first.link).ok()?;
        (second.flags == 0).then_some((chain, second))
    }

    #[inline]
    fn in_table(table: Span, index: u16) -> Option<Desc> {
        words_in_table(table, index).map(desc_of)
    }

    #[inline]
    fn is_pair(first: Desc, second: Desc) -> bool {
        first.flags == NEXT && first.link == 1 && second.flags == 0
    }

    fn walk(
        &self,
        _place: u16,
        chain: Chain,
        first: Desc,
        direction: Direction,
        scratch: &mut Scratch,
    ) -> std::result::Result<(Chain, u32), RingFault> {
        let (mut desc, mut steps, mut bytes) = (first, 0_u32, 0_u32);
        loop {
            if desc.flags & INDIRECT != 0 {
                return self.walk_table(desc, direction, bytes, scratch).map(|bytes| (chain, bytes));
            }
            bytes = scratch.append_buffer(&self.memory, desc, direction, bytes)?;
            if desc.flags & NEXT == 0 {
                return Ok((chain, bytes));
            }
            steps += 1;
            if steps >= self.size() {
                return Err(RingFault::ChainLoop);
            }
            desc = self.desc(desc.link)?;
        }
    }

    #[inline]
    fn places(_chain: Chain) -> u16 {
        1
    }

    #[inline]
    fn put_used(&mut self, place: u16, chain: Chain, written: u32) {
        let slot = usize::from(self.used_next.wrapping_add(place) & self.mask);
        // SAFETY: the slot is masked to the ring, which `memory` keeps mapped. A driver that keeps its ring nearly empty
        // reads the same lines; leaving equal ones untouched saves it the miss.
        unsafe {
            let element = u64::from(chain.id) | u64::from(written) << 32;
            access::store_if_changed(self.used.wrapping_add(4 + 8 * slot), element);
        }
    }

    #[inline]
    fn put_all_used(&mut self, chains: impl Iterator<Item = Chain>) -> u16 {
        let mut places = 0;
        for chain in chains {
            self.put_used(places, chain, 0);
            places += 1;
        }
        places
    }

    fn forget(&mut self, _place: u16) {
        // The next frame's elements are written over them.
    }

    #[inline]
    fn publish(&mut self, places: u16) {
        let old = self.used_next;
        self.next = self.next.wrapping_add(places);
        self.publish_used(places);
        self.journal.settle(self.used_next);
        if self.log.is_on() {
            self.mark_published(old, places);
        }
    }

    #[inline]
    fn notify(&mut self, places: u16) -> bool {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            // SAFETY: used_event follows the available ring's entries; its two bytes were translated with it.
            let event = unsafe { access::load::<u16>(self.avail.wrapping_add(4 + 2 * (usize::from(self.mask) + 1))) };
            notify::passes(event, self.used_next, self.used_next.wrapping_sub(places))
        } else {
            // SAFETY: the flags are the available ring's first two bytes.
            let flags = unsafe { access::load::<u16>(self.avail) };
            flags & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            self.doorbell.call();
        }
        wanted
    }

    fn enable_kicks(&mut self) -> bool {
        self.want_kicks(true);
        fence(Ordering::SeqCst);
        // A broken index counts as work, so that the queue is looked at and stopped.
        self.look() != Ok(0)
    }

    fn disable_kicks(&mut self) {
        self.want_kicks(false);
    }
}
