//! The packed ring's three areas (virtio 1.2 §2.8).
//!
//! ```text
//!   descriptor ring   16 × size   addr:8 len:4 id:2 flags:2     driver makes available, we make used, in place
//!   driver area       4           off_wrap:2 flags:2            driver writes: when it wants calls
//!   device area       4           off_wrap:2 flags:2            we write: when we want kicks
//! ```
//!
//! A descriptor is available when its AVAIL flag equals the cursor's wrap counter and its USED flag does not; it is used
//! when both equal it. The flags share an aligned word with length and id, so one acquire load reads all three whole,
//! and one store writes them whole.
//!
//! Used descriptors take the place of available ones, so none is written before a group is complete: they are noted in
//! the journal's shadow, and `publish` writes them all, the group's first one last. Until that store the driver sees
//! nothing of the group; with it, all of it. What was noted outlives the process, so a group that it died over is
//! finished by the next (`resume`). A size need not be a power of two.
#![allow(unsafe_code, reason = "rings are guest memory")]

mod lap;
mod resume;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, DESC_SIZE, Desc, Direction, INDIRECT, NEXT, Scratch, WRITE, words_in_table};
use super::doorbell::Doorbell;
use super::journal::{Element, Journal};
use super::layout::Layout;
use super::log::RingLog;
use super::{RingConfig, RingFault, area, feature};
use crate::error::{Error, Result};
use crate::memory::{GuestMap, Logging, Span, access};
use lap::{Cursor, Laps};

/// Made available in laps whose wrap counter is 1.
const AVAIL: u16 = 1 << 7;
/// Made used in laps whose wrap counter is 1.
const USED: u16 = 1 << 15;
/// The wrap counter beside an index, as in a base and in an event.
const WRAP: u16 = 1 << 15;

/// Event flags (virtio 1.2 §2.8.10): tell everything, nothing, or what passes `off_wrap`.
const EVENT_ENABLE: u32 = 0;
const EVENT_DISABLE: u32 = 1;
const EVENT_DESC: u32 = 2;

/// Bytes of the descriptor ring, the driver's and the device's event area.
pub(super) fn sizes(size: u32) -> [u32; 3] {
    [DESC_SIZE * size.min(32_768), 4, 4]
}

/// A descriptor of the ring or of an indirect table.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
fn desc_of((addr, rest): (u64, u64)) -> Desc {
    let flags = (rest >> 48) as u16 & (NEXT | WRITE | INDIRECT);
    Desc { addr, len: rest as u32, flags, link: (rest >> 32) as u16 }
}

/// A packed ring that was checked and translated. Owned by one thread at a time.
#[derive(Debug)]
pub(super) struct PackedRing {
    desc: *mut u8,
    driver: *const u8,
    device: *mut u8,
    size: u16,
    /// Both the next descriptor to take and, between bursts, the next to make used.
    next: Cursor,
    /// The group that is being made, in order, and where the ring stands; room for a whole ring.
    journal: Journal,
    /// Elements noted in it.
    noted: usize,
    event_idx: bool,
    features: u64,
    log: RingLog,
    memory: Arc<GuestMap>,
    doorbell: Doorbell,
}

// SAFETY: the pointers are into mappings that `memory` keeps, usable from any thread; the ring moves whole.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// `RingConfig::activate`, once the size is known to be good. Starts at the base: nothing in memory says where.
    pub(super) fn new(config: &RingConfig, memory: &Arc<GuestMap>, doorbell: Doorbell) -> Result<Self> {
        let size = config.size;
        let [desc, driver, device] = sizes(size);
        let desc = area(memory, "descriptor ring", config.desc_uva, desc, 16)?;
        let driver = area(memory, "driver event area", config.avail_uva, driver, 4)?;
        let device = area(memory, "device event area", config.used_uva, device, 4)?;
        let next = Cursor { index: config.base & !WRAP, wrap: config.base & WRAP != 0 };
        let size = u16::try_from(size).map_err(|_| Error::Bug(format!("ring size {size} passed the check")))?;
        if next.index >= size {
            return Err(Error::Peer(format!(
                "a base of {:#x} is descriptor {} of a packed ring of {size}",
                config.base, next.index
            )));
        }
        Ok(Self {
            desc: desc.start,
            driver: driver.start,
            device: device.start,
            size,
            next,
            journal: Journal::private(usize::from(size))?,
            noted: 0,
            event_idx: config.features & feature::EVENT_IDX != 0,
            features: config.features,
            log: RingLog::default(),
            memory: Arc::clone(memory),
            doorbell,
        })
    }

    /// Where to go on: index and wrap counter.
    pub(super) fn next_index(&self) -> u16 {
        self.next.word()
    }

    /// Descriptors.
    pub(super) fn size(&self) -> u32 {
        u32::from(self.size)
    }

    /// The map its addresses come from.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        &self.memory
    }

    /// The descriptor at `place`, less than a lap ahead, if it is available.
    #[inline]
    fn available(&self, place: u16) -> Option<Desc> {
        let Cursor { index, wrap } = self.next;
        // Both laps first: that is the same for every descriptor of a burst.
        let (here, [flags, next_flags]) = (self.at(index), if wrap { [AVAIL, USED] } else { [USED, AVAIL] });
        let next = here.wrapping_sub(usize::from(self.size) * DESC_SIZE as usize);
        let (start, is_available) = if place < self.size - index { (here, flags) } else { (next, next_flags) };
        let at = start.wrapping_add(usize::from(place) * DESC_SIZE as usize);
        // SAFETY: the second half of a descriptor of the ring, which is 16-aligned and which `memory` keeps mapped.
        let rest = unsafe { access::load_acquire_u64(at.wrapping_add(8)) };
        #[allow(clippy::cast_possible_truncation, reason = "takes the flags out")]
        if (rest >> 48) as u16 & (AVAIL | USED) != is_available {
            return None;
        }
        // SAFETY: the first half of the same, written before the flags that were acquired.
        let addr = unsafe { access::load::<u64>(at) };
        Some(desc_of((addr, rest)))
    }

    /// The descriptor at `place`, less than a lap ahead, whatever its state.
    #[inline]
    fn desc(&self, place: u16) -> Desc {
        let at = self.at(self.next.after(place, self.size).index);
        // SAFETY: the first half of a descriptor of the ring, which `memory` keeps mapped.
        let addr = unsafe { access::load::<u64>(at) };
        // SAFETY: the second half of the same.
        let rest = unsafe { access::load::<u64>(at.wrapping_add(8)) };
        desc_of((addr, rest))
    }

    /// The buffer id in a chain's last descriptor.
    #[inline]
    fn checked_id(&self, last: Desc) -> std::result::Result<u16, RingFault> {
        if last.link < self.size { Ok(last.link) } else { Err(RingFault::IndexRange) }
    }

    #[inline]
    fn at(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.size);
        self.desc.wrapping_add(usize::from(index) * DESC_SIZE as usize)
    }

    /// Writes the first `count` elements of the journal into the ring. Again is the same as once, while the driver has
    /// not seen the first.
    #[inline]
    fn write_used(&self, count: usize) {
        let mut elements = self.journal.elements(count);
        let Some(first) = elements.next() else { return };
        let laps = Laps::new(self, first.written > 0);
        for element in elements {
            // The journal may be another process's: whatever it says stays in the ring.
            if element.place >= self.size {
                break;
            }
            let (at, word) = laps.used(element);
            // SAFETY: the second half of a descriptor of the ring, which is 16-aligned and which `memory` keeps mapped.
            unsafe { access::store_u64(at, word) };
        }
        let (at, word) = laps.used(Element { place: 0, ..first });
        // SAFETY: as above; the ring is 16-aligned.
        unsafe { access::store_release_u64(at, word) };
    }

    fn walk_table(
        &self,
        table: Desc,
        direction: Direction,
        scratch: &mut Scratch,
    ) -> std::result::Result<u32, RingFault> {
        let (entries, count) = Scratch::table(&self.memory, table, self.features & feature::INDIRECT_DESC != 0)?;
        let mut bytes = 0;
        for index in 0..count {
            // Its length says how long the table is; of an entry's flags only the direction counts.
            let entry = u16::try_from(index).ok().and_then(|index| Self::in_table(entries, index));
            let entry = entry.ok_or(RingFault::IndexRange)?;
            bytes = scratch.append_buffer(&self.memory, entry, direction, bytes)?;
        }
        Ok(bytes)
    }

    fn write_device_area(&mut self, flags: u32) {
        let wish = u32::from(self.next.word()) | flags << 16;
        // SAFETY: the device area's four bytes were translated for this ring.
        if unsafe { access::load::<u32>(self.device) } == wish {
            // A page that does not change is not one to copy again.
            return;
        }
        // SAFETY: the same four bytes; one store keeps flags and place together.
        unsafe { access::store::<u32>(self.device, wish) };
        if self.log.is_on() {
            self.log.mark_used([(0, 4)]);
        }
    }

    /// Marks the descriptors of `places` places from `old` on.
    #[cold]
    fn mark_published(&self, old: Cursor, places: u16) {
        let (size, first, bytes) = (u64::from(self.size), u64::from(old.index), u64::from(DESC_SIZE));
        let count = u64::from(places).min(size);
        let here = count.min(size - first);
        self.log.mark_desc([(bytes * first, bytes * here), (0, bytes * (count - here))]);
    }

    /// True if the driver waits for a descriptor among the `places` before the cursor.
    fn passes(&self, event: u16, places: u16) -> bool {
        let size = i32::from(self.size);
        let new = i32::from(self.next.index);
        let lap = if (event & WRAP != 0) == self.next.wrap { 0 } else { size };
        let event = i32::from(event & !WRAP) - lap;
        (new - i32::from(places)..new).contains(&event)
    }
}

impl Layout for PackedRing {
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
        self.device
    }

    fn desc_area(&self) -> *const u8 {
        self.desc
    }

    fn set_log(&mut self, log: RingLog) {
        self.log = log;
    }

    fn mark_own_areas(&self) {
        self.log.mark_used([(0, 4)]);
        self.log.mark_desc([(0, u64::from(DESC_SIZE) * u64::from(self.size))]);
    }

    /// Nobody says how many there are: as many as the ring has, until one turns out not to be available.
    #[inline]
    fn ready(&mut self, _want: usize) -> std::result::Result<u16, RingFault> {
        Ok(if self.available(0).is_some() { self.size } else { 0 })
    }

    #[inline]
    fn head(&self, place: u16) -> std::result::Result<Option<(Chain, Desc)>, RingFault> {
        if place >= self.size {
            return Ok(None);
        }
        let Some(desc) = self.available(place) else { return Ok(None) };
        if desc.flags & NEXT != 0 {
            return Ok(Some((Chain::UNKNOWN, desc)));
        }
        Ok(Some((Chain { id: self.checked_id(desc)?, count: 1 }, desc)))
    }

    #[inline]
    fn ask_for(&self, place: u16) {
        access::prefetch(self.at(self.next.after(place, self.size).index));
    }

    #[inline]
    fn ends_at(first: Desc) -> bool {
        first.flags & NEXT == 0
    }

    #[inline]
    fn second(&self, place: u16, _chain: Chain, _first: Desc) -> Option<(Chain, Desc)> {
        if place + 1 >= self.size {
            return None;
        }
        let second = self.desc(place + 1);
        let is_last = second.flags == 0 && second.link < self.size;
        is_last.then_some((Chain { id: second.link, count: 2 }, second))
    }

    #[inline]
    fn in_table(table: Span, index: u16) -> Option<Desc> {
        words_in_table(table, index).map(desc_of)
    }

    #[inline]
    fn is_pair(first: Desc, second: Desc) -> bool {
        (first.flags | second.flags) & WRITE == 0
    }

    fn walk(
        &self,
        place: u16,
        _chain: Chain,
        first: Desc,
        direction: Direction,
        scratch: &mut Scratch,
    ) -> std::result::Result<(Chain, u32), RingFault> {
        let (mut desc, mut count, mut bytes) = (first, 1_u16, 0_u32);
        loop {
            if desc.flags & INDIRECT == 0 {
                bytes = scratch.append_buffer(&self.memory, desc, direction, bytes)?;
            } else if count == 1 {
                bytes = self.walk_table(desc, direction, scratch)?;
            } else {
                return Err(RingFault::BadIndirect);
            }
            if desc.flags & NEXT == 0 {
                let id = self.checked_id(desc)?;
                return Ok((Chain { id, count }, bytes));
            }
            // Those before `place` belong to other chains.
            if place + count >= self.size {
                return Err(RingFault::ChainLoop);
            }
            desc = self.desc(place + count);
            count += 1;
        }
    }

    #[inline]
    fn places(chain: Chain) -> u16 {
        chain.count
    }

    #[inline]
    fn put_used(&mut self, place: u16, chain: Chain, written: u32) {
        // There is room for as many as the ring has places.
        if self.journal.put(self.noted, Element { written, id: chain.id, place }) {
            self.noted += 1;
        }
    }

    #[inline]
    fn put_all_used(&mut self, chains: impl Iterator<Item = Chain>) -> u16 {
        let mut place = 0;
        self.noted = self.journal.put_all(chains.map(|chain| {
            let element = Element { written: 0, id: chain.id, place };
            place += chain.count;
            element
        }));
        place
    }

    fn forget(&mut self, place: u16) {
        while self.noted > 0 && self.journal.element(self.noted - 1).is_some_and(|last| last.place >= place) {
            self.noted -= 1;
        }
    }

    #[inline]
    fn publish(&mut self, places: u16) {
        // Those of a frame that ended the round.
        self.forget(places);
        let count = std::mem::take(&mut self.noted);
        if count == 0 {
            return;
        }
        let new = self.next.after(places, self.size);
        #[allow(clippy::cast_possible_truncation, reason = "at most the ring size")]
        self.journal.intend(self.next.word(), new.word(), count as u16);
        self.write_used(count);
        let old = std::mem::replace(&mut self.next, new);
        self.journal.settle(new.word());
        if self.log.is_on() {
            self.mark_published(old, places);
        }
    }

    #[inline]
    fn notify(&mut self, places: u16) -> bool {
        fence(Ordering::SeqCst);
        // SAFETY: the driver area's four bytes were translated for this ring; one load keeps flags and place together.
        let wish = unsafe { access::load::<u32>(self.driver) };
        #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
        let wanted = match wish >> 16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => self.passes(wish as u16, places),
            _ => true,
        };
        if wanted {
            self.doorbell.call();
        }
        wanted
    }

    fn enable_kicks(&mut self) -> bool {
        self.write_device_area(if self.event_idx { EVENT_DESC } else { EVENT_ENABLE });
        fence(Ordering::SeqCst);
        self.available(0).is_some()
    }

    fn disable_kicks(&mut self) {
        self.write_device_area(EVENT_DISABLE);
    }
}
