//! The forwarding database: which port a (VLAN, MAC) was last seen behind.
//!
//! ```text
//!   key ─hash─▶ bucket (one cache line)   ┌ key:8 value:8 │ key:8 value:8 │ key:8 value:8 │ key:8 value:8 ┐
//!           └─▶ second bucket             value = version:16 │ port:16 │ last seen:32 (s)
//! ```
//!
//! An address is in its first bucket unless that one was full, so a lookup among very many costs one line of memory.
//!
//! Readers take no lock: an entry's version is odd while it is written and differs after, so a torn read shows. Writers
//! ([`writing`]) hold one mutex. Guests choose the keys, so the hash is keyed with a secret.

mod writing;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::PortId;
use crate::frame::ethernet::Mac;
use crate::lock::Lock;
use crate::memory::access;
use crate::sys::table::Table;
pub use writing::Learning;
use writing::Writer;

const WAYS: usize = 4;
/// Looks at an entry that is being written, before it counts as unknown: a writer is a handful of cycles from done, unless
/// it lost its core in between.
const PATIENCE: usize = 32;
/// Set in every key, so that not even VLAN 0 with an address of zeroes looks like an empty place.
const REAL: u64 = 1 << 63;

/// A (VLAN, MAC) pair; 0 is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key no frame has: marks empty cache places.
    pub const NONE: Self = Self(0);

    /// VLAN in bits 48..60, address below.
    #[inline]
    pub fn new(vlan: u16, mac: Mac) -> Self {
        Self(REAL | u64::from(vlan) << 48 | mac.0)
    }

    /// The address.
    pub fn mac(self) -> Mac {
        Mac(self.0 & 0xffff_ffff_ffff)
    }

    /// The VLAN id.
    pub fn vlan(self) -> u16 {
        u16::try_from(self.0 >> 48 & 0xfff).unwrap_or_default()
    }
}

/// Where an address is looked for first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place(u32);

#[derive(Debug, Default)]
struct Entry {
    key: AtomicU64,
    value: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

/// One learned address, as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Who.
    pub key: Key,
    /// Behind which port.
    pub port: PortId,
    /// Seconds since it was last seen.
    pub age_s: u32,
}

/// Counts for `fdb/stats-show`.
#[derive(Debug, Default)]
pub struct Stats {
    /// Addresses learned anew.
    pub learned: AtomicU64,
    /// Addresses that aged out.
    pub expired: AtomicU64,
    /// Addresses given up for others.
    pub evicted: AtomicU64,
    /// Addresses that changed ports.
    pub moved: AtomicU64,
}

/// The table of one bridge.
#[derive(Debug)]
pub struct Fdb {
    buckets: Table<Bucket>,
    secret: u64,
    len: AtomicUsize,
    max: usize,
    aging_s: AtomicU32,
    generation: AtomicU32,
    /// A panic while learning leaves entries whole; only counts may be off by one.
    writer: Lock<Writer>,
    /// Since the table was made.
    pub stats: Stats,
}

/// 2^64 over the golden ratio: any odd number with bits all over would do.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Both halves of a product, laid over each other.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[allow(clippy::cast_possible_truncation, reason = "folds both halves")]
    let folded = (product >> 64) as u64 ^ product as u64;
    folded
}

fn pack(version: u64, port: PortId, seen_s: u32) -> u64 {
    (version & 0xffff) << 48 | u64::from(port) << 32 | u64::from(seen_s)
}

#[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
fn unpack(value: u64) -> (PortId, u32) {
    ((value >> 32) as PortId, value as u32)
}

/// Seconds since an address was seen. Each thread has its own second: another's may be one ahead.
fn age(now_s: u32, seen_s: u32) -> u32 {
    now_s.saturating_sub(seen_s)
}

impl Fdb {
    /// An empty table for `max` addresses that age out after `aging_s` seconds.
    pub fn new(max: usize, aging_s: u32) -> Self {
        // Half full at most, with two places to go: an address is never refused for want of a place in practice.
        let count = (2 * max / WAYS).max(2).next_power_of_two();
        let secret = RandomState::new().hash_one(0_u8) | 1;
        Self {
            buckets: Table::new(count),
            secret,
            len: AtomicUsize::new(0),
            max,
            aging_s: AtomicU32::new(aging_s),
            generation: AtomicU32::new(0),
            writer: Lock::default(),
            stats: Stats::default(),
        }
    }

    /// Changes whenever an address moved or was flushed: caches of answers compare it once a burst. Not when one is
    /// learned or given up, or a flood of addresses would cost every neighbour its cache; nobody caches "unknown", and
    /// caches keep an answer for a second at most.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Addresses in the table.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Addresses it may hold.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Changes how long an address is believed.
    pub fn set_aging(&self, aging_s: u32) {
        self.aging_s.store(aging_s, Ordering::Relaxed);
    }

    /// Two candidate buckets. Multiplies folded with a secret: guests choose the keys, and this costs few cycles. Two of
    /// them, for addresses that count up leave a pattern after one.
    #[inline]
    fn places(&self, key: Key) -> [usize; 2] {
        let hash = fold(fold(key.0 ^ self.secret, self.secret.rotate_left(32) | 1), GOLDEN);
        let mask = self.buckets.len() - 1;
        #[allow(clippy::cast_possible_truncation, reason = "masked to the table")]
        [hash as usize & mask, (hash >> 32) as usize & mask]
    }

    /// Asks for the line of memory that `key` is in, for [`Self::lookup_at`] a little later: the misses of several overlap.
    #[inline]
    pub fn ask_for(&self, key: Key) -> Place {
        let place = self.place(key);
        if let Some(bucket) = self.buckets.get(place.0 as usize) {
            access::prefetch(std::ptr::from_ref(bucket).cast());
        }
        place
    }

    #[inline]
    fn place(&self, key: Key) -> Place {
        #[allow(clippy::cast_possible_truncation, reason = "a table has a million addresses at most")]
        Place(self.places(key)[0] as u32)
    }

    /// The entry that seems to hold `key`. All places of a bucket are looked at, whichever it is in: that cannot be guessed,
    /// and a wrong guess of the processor costs more than the other places do. That it is in the first bucket can.
    #[inline]
    fn locate(&self, Place(first): Place, key: Key) -> Option<&Entry> {
        self.locate_in(first as usize, key).or_else(|| self.locate_in(self.places(key)[1], key))
    }

    #[inline]
    fn locate_in(&self, place: usize, key: Key) -> Option<&Entry> {
        let bucket = self.buckets.get(place)?;
        let mut found = WAYS;
        for (at, entry) in bucket.0.iter().enumerate() {
            found = if entry.key.load(Ordering::Relaxed) == key.0 { at } else { found };
        }
        bucket.0.get(found)
    }

    #[inline]
    fn find(&self, key: Key) -> Option<(&Entry, u64)> {
        self.find_at(self.place(key), key)
    }

    #[inline]
    fn find_at(&self, place: Place, key: Key) -> Option<(&Entry, u64)> {
        let entry = self.locate(place, key)?;
        // Another thread may be writing it, three stores long: look again, but never wait for one that stands still.
        for _ in 0..PATIENCE {
            let value = entry.value.load(Ordering::Acquire);
            let here = entry.key.load(Ordering::Acquire) == key.0;
            fence(Ordering::Acquire);
            if value >> 48 & 1 == 0 && entry.value.load(Ordering::Relaxed) == value {
                return here.then_some((entry, value));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The port behind which `key` was last seen, if that is not too long ago.
    #[inline]
    pub fn lookup(&self, key: Key, now_s: u32) -> Option<PortId> {
        self.lookup_at(self.place(key), key, now_s)
    }

    /// The same for a key whose place is known already, of this table.
    #[inline]
    pub fn lookup_at(&self, place: Place, key: Key, now_s: u32) -> Option<PortId> {
        let (port, seen) = unpack(self.find_at(place, key)?.1);
        (age(now_s, seen) <= self.aging_s.load(Ordering::Relaxed)).then_some(port)
    }

    /// The port behind which `key` was last seen, and how many seconds ago.
    pub fn last_seen(&self, key: Key, now_s: u32) -> Option<(PortId, u32)> {
        let (port, seen) = unpack(self.find(key)?.1);
        Some((port, age(now_s, seen))).filter(|(_, age_s)| *age_s <= self.aging_s.load(Ordering::Relaxed))
    }

    /// One entry whole, however often it is written meanwhile.
    fn read(entry: &Entry) -> (Key, u64) {
        loop {
            let value = entry.value.load(Ordering::Acquire);
            let key = Key(entry.key.load(Ordering::Acquire));
            fence(Ordering::Acquire);
            if value >> 48 & 1 == 0 && entry.value.load(Ordering::Relaxed) == value {
                return (key, value);
            }
            std::hint::spin_loop();
        }
    }

    /// Every address that is still believed. Takes no lock: whoever looks keeps nobody from learning. One that makes room
    /// for another meanwhile may be there twice, or not at all.
    pub fn list(&self, now_s: u32) -> Vec<Learned> {
        let aging = self.aging_s.load(Ordering::Relaxed);
        let entries = self.buckets.iter().flat_map(|b| &b.0);
        entries
            .filter_map(|entry| {
                let (key, value) = Self::read(entry);
                let (port, seen) = unpack(value);
                let age_s = age(now_s, seen);
                (key != Key::NONE && age_s <= aging).then_some(Learned { key, port, age_s })
            })
            .collect()
    }

    /// A table of another size with the same addresses, youngest kept where they do not all fit.
    #[must_use]
    pub fn resized(&self, max: usize, now_s: u32) -> Self {
        let next = Self::new(max, self.aging_s.load(Ordering::Relaxed));
        let mut learned = self.list(now_s);
        learned.sort_by_key(|l| l.age_s);
        for Learned { key, port, age_s } in learned.into_iter().take(max) {
            next.learn(key, port, now_s.wrapping_sub(age_s));
        }
        next
    }
}

#[cfg(test)]
mod tests;
