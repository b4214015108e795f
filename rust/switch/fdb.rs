//! The forwarding database: which port a (VLAN, MAC) was last seen behind.
//!
//! ```text
//!   key ─hash─▶ bucket (one cache line)   ┌ key:8 value:8 │ key:8 value:8 │ key:8 value:8 │ key:8 value:8 ┐
//!           └─▶ second bucket             value = version:16 │ port:16 │ last seen:32 (s)
//! ```
//!
//! Readers take no lock: an entry's version is odd while it is written and differs after, so a torn read shows. Writers
//! (learning of what is new, ageing, flushing) hold one mutex; a poll thread only tries it and learns from the next
//! frame instead. Guests choose the keys, so the hash is keyed with a secret; a MAC flood costs its sender its own
//! entries first: when the table is full, the fullest port among those looked at gives one up.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PortId;
use crate::frame::ethernet::Mac;
use crate::memory::access;

const WAYS: usize = 4;
/// Buckets looked at for somebody to evict.
const SAMPLE: usize = 8;
/// Looks at an entry that is being written, before it counts as unknown: a writer is a handful of cycles from done, unless
/// it lost its core in between.
const PATIENCE: usize = 32;
/// Buckets looked through with the lock held at once, when all are: learning never stands still for longer.
const STRETCH: usize = 1024;

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

    /// Bits to choose a place in a small cache.
    #[inline]
    pub fn low_bits(self) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "any bits do")]
        let bits = (self.0 ^ self.0 >> 8 ^ self.0 >> 16) as usize;
        bits
    }
}

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

#[derive(Debug)]
struct Writer {
    /// Addresses behind each port there can be: learning allocates nothing. Pages of ports that never come stay unused.
    per_port: Vec<u32>,
    hand: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self { per_port: vec![0; usize::from(PortId::MAX) + 1], hand: 0 }
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    secret: u64,
    len: AtomicUsize,
    max: usize,
    aging_s: AtomicU32,
    generation: AtomicU32,
    writer: Mutex<Writer>,
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
            buckets: (0..count).map(|_| Bucket::default()).collect(),
            secret,
            len: AtomicUsize::new(0),
            max,
            aging_s: AtomicU32::new(aging_s),
            generation: AtomicU32::new(0),
            writer: Mutex::default(),
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

    /// Asks for both lines in which `key` may be, ahead of its lookup.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        for bucket in self.places(key).into_iter().filter_map(|place| self.buckets.get(place)) {
            access::prefetch(std::ptr::from_ref(bucket).cast());
        }
    }

    fn find(&self, key: Key) -> Option<(&Entry, u64)> {
        for place in self.places(key) {
            for entry in &self.buckets.get(place)?.0 {
                if entry.key.load(Ordering::Acquire) != key.0 {
                    continue;
                }
                // Another thread may be writing it, three stores long: look again, but never wait for one that stands still.
                for _ in 0..PATIENCE {
                    let value = entry.value.load(Ordering::Acquire);
                    let here = entry.key.load(Ordering::Acquire) == key.0;
                    fence(Ordering::Acquire);
                    if value >> 48 & 1 == 0 && entry.value.load(Ordering::Relaxed) == value {
                        if here {
                            return Some((entry, value));
                        }
                        break;
                    }
                    std::hint::spin_loop();
                }
            }
        }
        None
    }

    /// The port behind which `key` was last seen, if that is not too long ago.
    #[inline]
    pub fn lookup(&self, key: Key, now_s: u32) -> Option<PortId> {
        let (port, seen) = unpack(self.find(key)?.1);
        (age(now_s, seen) <= self.aging_s.load(Ordering::Relaxed)).then_some(port)
    }

    /// Notes that `key` was seen behind `port`. Never waits: false if somebody else writes, then the next frame will
    /// teach.
    pub fn learn(&self, key: Key, port: PortId, now_s: u32) -> bool {
        if let Some((_, value)) = self.find(key) {
            let (known, seen) = unpack(value);
            // Not back in time, or two threads on both sides of a second's end would write it to and fro.
            if known == port && seen >= now_s {
                return true;
            }
        }
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        if let Some((entry, value)) = self.find(key) {
            let (old, _) = unpack(value);
            Self::write(entry, key.0, port, now_s);
            if old != port {
                writer.count(old, false);
                writer.count(port, true);
                self.stats.moved.fetch_add(1, Ordering::Relaxed);
                self.changed();
            }
            return true;
        }
        if self.len() >= self.max {
            self.evict(&mut writer, now_s);
        }
        let places = self.places(key);
        let entry = self.free_entry(places, now_s, &mut writer).or_else(|| {
            // Both buckets full of live addresses: the fullest port's oldest goes.
            let entries = places.iter().filter_map(|&p| self.buckets.get(p)).flat_map(|b| &b.0);
            let victim = entries.max_by_key(|e| {
                let (port, seen) = unpack(e.value.load(Ordering::Relaxed));
                (writer.per_port.get(usize::from(port)).copied(), age(now_s, seen))
            })?;
            self.remove(victim, &mut writer);
            self.stats.evicted.fetch_add(1, Ordering::Relaxed);
            Some(victim)
        });
        if let Some(entry) = entry {
            Self::write(entry, key.0, port, now_s);
            writer.count(port, true);
            self.len.fetch_add(1, Ordering::Relaxed);
            self.stats.learned.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn free_entry(&self, places: [usize; 2], now_s: u32, writer: &mut Writer) -> Option<&Entry> {
        let aging = self.aging_s.load(Ordering::Relaxed);
        let used = |p: usize| {
            self.buckets.get(p).map_or(WAYS, |b| b.0.iter().filter(|e| e.key.load(Ordering::Relaxed) != 0).count())
        };
        let [a, b] = places;
        // The emptier of the two: that keeps both from filling up.
        let order = if used(b) < used(a) { [b, a] } else { [a, b] };
        for place in order {
            for entry in &self.buckets.get(place)?.0 {
                if entry.key.load(Ordering::Relaxed) == 0 {
                    return Some(entry);
                }
                let (_, seen) = unpack(entry.value.load(Ordering::Relaxed));
                if age(now_s, seen) > aging {
                    self.remove(entry, writer);
                    self.stats.expired.fetch_add(1, Ordering::Relaxed);
                    return Some(entry);
                }
            }
        }
        None
    }

    /// Gives one address up: of those sampled, the oldest behind the fullest port.
    fn evict(&self, writer: &mut Writer, now_s: u32) {
        let mut victim: Option<(&Entry, (u32, u32))> = None;
        for _ in 0..self.buckets.len() {
            writer.hand = (writer.hand + 1) & (self.buckets.len() - 1);
            let Some(bucket) = self.buckets.get(writer.hand) else { return };
            for entry in bucket.0.iter().filter(|e| e.key.load(Ordering::Relaxed) != 0) {
                let (port, seen) = unpack(entry.value.load(Ordering::Relaxed));
                let crowd = writer.per_port.get(usize::from(port)).copied().unwrap_or(0);
                let rank = (crowd, age(now_s, seen));
                if victim.is_none_or(|(_, best)| rank > best) {
                    victim = Some((entry, rank));
                }
            }
            if writer.hand.is_multiple_of(SAMPLE) && victim.is_some() {
                break;
            }
        }
        if let Some((entry, _)) = victim {
            self.remove(entry, writer);
            self.stats.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(entry: &Entry, key: u64, port: PortId, now_s: u32) {
        let version = entry.value.load(Ordering::Relaxed) >> 48;
        entry.value.store(pack(version | 1, port, now_s), Ordering::Relaxed);
        fence(Ordering::Release);
        entry.key.store(key, Ordering::Release);
        entry.value.store(pack((version | 1).wrapping_add(1), port, now_s), Ordering::Release);
    }

    fn remove(&self, entry: &Entry, writer: &mut Writer) {
        let (port, _) = unpack(entry.value.load(Ordering::Relaxed));
        Self::write(entry, 0, 0, 0);
        writer.count(port, false);
        self.len.fetch_sub(1, Ordering::Relaxed);
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A panic while learning leaves entries whole; only counts may be off by one.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_where(&self, which: impl Fn(PortId, u32) -> bool) -> u64 {
        let mut removed = 0;
        for stretch in self.buckets.chunks(STRETCH) {
            let mut writer = self.lock();
            for entry in stretch.iter().flat_map(|b| &b.0).filter(|e| e.key.load(Ordering::Relaxed) != 0) {
                let (port, seen) = unpack(entry.value.load(Ordering::Relaxed));
                if which(port, seen) {
                    self.remove(entry, &mut writer);
                    removed += 1;
                }
            }
        }
        removed
    }

    /// Forgets addresses that are too old. Called once a second by housekeeping, never by a poll thread.
    pub fn sweep(&self, now_s: u32) {
        if !self.is_empty() {
            let aging = self.aging_s.load(Ordering::Relaxed);
            let expired = self.remove_where(|_, seen| age(now_s, seen) > aging);
            self.stats.expired.fetch_add(expired, Ordering::Relaxed);
        }
    }

    /// Forgets everything.
    pub fn flush(&self) {
        self.remove_where(|_, _| true);
        self.changed();
    }

    /// Forgets what is behind one port.
    pub fn flush_port(&self, gone: PortId) {
        self.remove_where(|port, _| port == gone);
        self.changed();
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

    /// Every address that is still believed. Takes no lock: whoever looks keeps nobody from learning.
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

impl Writer {
    fn count(&mut self, port: PortId, up: bool) {
        if let Some(count) = self.per_port.get_mut(usize::from(port)) {
            *count = if up { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(n: u64) -> Key {
        Key::new(0, Mac(0x0200_0000_0000 | n))
    }

    #[test]
    fn lesson_missed_while_control_writes_is_learned_from_the_next_frame() {
        let (fdb, mut cache) = (Fdb::new(16, 300), crate::switch::classify::Cache::default());
        let mut head = [0; 64];
        head[11] = 7;
        let mut pass = || {
            cache.refresh(&fdb, 0);
            cache.classify(&fdb, 3, &head, false, 0);
            fdb.lookup(Key::new(0, Mac(7)), 0)
        };
        let control = fdb.lock();
        assert_eq!(pass(), None);
        drop(control);
        assert_eq!(pass(), Some(3));
    }

    #[test]
    fn looking_at_the_table_keeps_nobody_from_learning() {
        let fdb = Fdb::new(16, 300);
        fdb.learn(key(1), 3, 0);
        let _control = fdb.lock();
        assert_eq!(fdb.list(5), [Learned { key: key(1), port: 3, age_s: 5 }]);
    }

    #[test]
    fn thread_whose_second_is_not_over_believes_what_another_learned_in_the_next() {
        let fdb = Fdb::new(16, 15);
        fdb.learn(key(1), 3, 8);
        assert_eq!(fdb.lookup(key(1), 7), Some(3));
        assert!(fdb.learn(key(1), 3, 7), "known already");
        assert_eq!(fdb.list(8), [Learned { key: key(1), port: 3, age_s: 0 }], "and no older for it");
        fdb.sweep(7);
        assert_eq!(fdb.len(), 1);
    }

    #[test]
    fn threads_that_learn_at_once_leave_a_table_that_is_whole() {
        const THREADS: u64 = 4;
        let fdb = Fdb::new(512, 300);
        let known = key(9_999);
        fdb.learn(known, 7, 0);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let fdb = &fdb;
                scope.spawn(move || {
                    let own_port = PortId::try_from(thread).unwrap();
                    for round in 0..20_000_u32 {
                        // Addresses of one's own, some that all fight for, more than fit, and one that is refreshed.
                        let n = u64::from(round) * 7 % 200;
                        fdb.learn(key(1 + thread * 200 + n), own_port, round / 1000);
                        fdb.learn(key(5_000 + n % 10), own_port, round / 1000);
                        fdb.learn(known, 7, round / 1000);
                        let found = fdb.lookup(key(1 + thread * 200 + n), round / 1000);
                        assert!(found.is_none_or(|port| port == own_port), "nobody else has that address");
                        let shared = fdb.lookup(key(5_000 + n % 10), round / 1000);
                        assert!(shared.is_none_or(|port| u64::from(port) < THREADS));
                        if round % 4_000 == 0 {
                            fdb.flush_port(own_port);
                        }
                    }
                });
            }
        });
        let listed = fdb.list(20);
        assert_eq!(listed.len(), fdb.len());
        assert!(fdb.len() <= 512);
        let mut keys: Vec<u64> = listed.iter().map(|learned| learned.key.0).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), listed.len(), "no address twice");
        let writer = fdb.lock();
        for port in 0..8_u16 {
            let behind = listed.iter().filter(|learned| learned.port == port).count();
            assert_eq!(writer.per_port[usize::from(port)] as usize, behind, "port {port}");
        }
    }

    #[test]
    fn last_port_seen_wins() {
        let fdb = Fdb::new(16, 300);
        fdb.learn(key(1), 3, 0);
        let before = fdb.generation();
        fdb.learn(key(1), 4, 1);
        assert_eq!(fdb.lookup(key(1), 1), Some(4));
        assert_ne!(fdb.generation(), before, "caches must notice a move");
        assert_eq!(fdb.len(), 1);
    }

    #[test]
    fn same_mac_in_two_vlans_is_two_addresses() {
        let fdb = Fdb::new(16, 300);
        fdb.learn(Key::new(1, Mac(7)), 1, 0);
        fdb.learn(Key::new(2, Mac(7)), 2, 0);
        assert_eq!(fdb.lookup(Key::new(1, Mac(7)), 0), Some(1));
        assert_eq!(fdb.lookup(Key::new(2, Mac(7)), 0), Some(2));
    }

    #[test]
    fn addresses_age_out() {
        let fdb = Fdb::new(16, 15);
        fdb.learn(key(1), 3, 100);
        assert_eq!(fdb.lookup(key(1), 115), Some(3));
        assert_eq!(fdb.lookup(key(1), 116), None);
        fdb.sweep(116);
        assert_eq!(fdb.len(), 0);
    }

    #[test]
    fn table_holds_as_many_as_it_promises() {
        let fdb = Fdb::new(8192, 300);
        for n in 0..8192 {
            fdb.learn(key(n * 7919), 1, 0);
        }
        // Two full buckets at once cost an address now and then.
        assert!(fdb.len() >= 8170, "{}", fdb.len());
        let hits = (0..8192).filter(|n| fdb.lookup(key(n * 7919), 0) == Some(1)).count();
        assert_eq!(hits, fdb.len());
    }

    #[test]
    fn flood_from_one_port_leaves_the_others_their_addresses() {
        let fdb = Fdb::new(1000, 300);
        for n in 0..100 {
            fdb.learn(key(n), 1, 0);
        }
        for n in 1000..50_000 {
            fdb.learn(key(n), 2, 1);
        }
        let kept = (0..100).filter(|&n| fdb.lookup(key(n), 1) == Some(1)).count();
        assert!(kept >= 95, "only {kept} of 100 quiet addresses survived");
        assert!(fdb.len() <= 1000);
    }

    #[test]
    fn flush_of_a_port_forgets_only_its_own() {
        let fdb = Fdb::new(64, 300);
        fdb.learn(key(1), 1, 0);
        fdb.learn(key(2), 2, 0);
        fdb.flush_port(1);
        assert_eq!((fdb.lookup(key(1), 0), fdb.lookup(key(2), 0)), (None, Some(2)));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_map(ops in proptest::collection::vec((0u64..200, 0u16..8), 0..500)) {
            let fdb = Fdb::new(256, 300);
            let mut naive = HashMap::new();
            for (n, port) in ops {
                fdb.learn(key(n + 1), port, 5);
                naive.insert(n + 1, port);
            }
            // Two full buckets at once are rare, and then somebody is given up: counted, never wrong.
            let mut missing = 0;
            for (n, port) in &naive {
                match fdb.lookup(key(*n), 5) {
                    Some(found) => prop_assert_eq!(found, *port),
                    None => missing += 1,
                }
            }
            prop_assert!(missing <= 2 && missing <= fdb.stats.evicted.load(Ordering::Relaxed), "{} missing", missing);
            let naive_len = naive.len() - usize::try_from(missing).unwrap();
            prop_assert_eq!(fdb.len(), naive_len);
            prop_assert_eq!(fdb.list(5).len(), naive_len);
        }
    }
}
