//! Writing to the table: learning, ageing, making room, flushing.
//!
//! Whoever writes holds one mutex; a poll thread only tries it and learns from the next frame instead. A MAC flood costs its
//! sender its own entries first: when the table is full, the fullest port among those looked at gives one up.

use std::sync::atomic::{Ordering, fence};

use super::{Bucket, Entry, Fdb, Key, PortId, age, pack, unpack};

/// Buckets looked at for somebody to evict.
const SAMPLE: usize = 8;
/// Buckets looked through with the lock held at once, when all are: learning never stands still for longer.
const STRETCH: usize = 1024;

/// What became of an address that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// It was there.
    Known,
    /// It was not, or behind another port: who asked before may have got another answer.
    News,
    /// Somebody else writes: the next frame will teach.
    Later,
}

/// What only the one who writes may change.
#[derive(Debug)]
pub(super) struct Writer {
    /// Addresses behind each port there can be: learning allocates nothing. Pages of ports that never come stay unused.
    pub(super) per_port: Vec<u32>,
    hand: usize,
    /// Addresses that made room for others.
    moves: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self { per_port: vec![0; usize::from(PortId::MAX) + 1], hand: 0, moves: 0 }
    }
}

impl Fdb {
    /// Notes that `key` was seen behind `port`. Never waits.
    pub fn learn(&self, key: Key, port: PortId, now_s: u32) -> Learning {
        if let Some((_, value)) = self.find(key) {
            let (known, seen) = unpack(value);
            // Not back in time, or two threads on both sides of a second's end would write it to and fro.
            if known == port && seen >= now_s {
                return Learning::Known;
            }
        }
        let Some(mut writer) = self.writer.try_lock() else { return Learning::Later };
        if let Some((entry, value)) = self.find(key) {
            let (old, _) = unpack(value);
            Self::write(entry, key.0, port, now_s);
            if old == port {
                return Learning::Known;
            }
            writer.count(old, false);
            writer.count(port, true);
            self.stats.moved.fetch_add(1, Ordering::Relaxed);
            self.changed();
            return Learning::News;
        }
        if self.len() >= self.max {
            self.evict(&mut writer, now_s);
        }
        let places = self.places(key);
        let free = self.free_entry(places, now_s, &mut writer).or_else(|| self.make_room(places, &mut writer));
        let entry = free.or_else(|| {
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
        Learning::News
    }

    fn free_entry(&self, places: [usize; 2], now_s: u32, writer: &mut Writer) -> Option<&Entry> {
        let aging = self.aging_s.load(Ordering::Relaxed);
        for place in places {
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

    /// Moves one of the addresses in two full buckets to the other bucket it may be in. A reader that looks for it meanwhile
    /// may miss it once, and its frame is flooded.
    fn make_room(&self, places: [usize; 2], writer: &mut Writer) -> Option<&Entry> {
        for place in places {
            for entry in &self.buckets.get(place)?.0 {
                let key = entry.key.load(Ordering::Relaxed);
                let [first, second] = self.places(Key(key));
                let other = self.buckets.get(if first == place { second } else { first })?;
                if let Some(free) = other.0.iter().find(|e| e.key.load(Ordering::Relaxed) == 0) {
                    let (port, seen) = unpack(entry.value.load(Ordering::Relaxed));
                    Self::write(free, key, port, seen);
                    writer.moves += 1;
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

    fn remove_where(&self, which: impl Fn(PortId, u32) -> bool) -> u64 {
        let mut removed = 0;
        let moves = self.writer.lock().moves;
        for stretch in self.buckets.chunks(STRETCH) {
            removed += self.remove_in(stretch, &which, &mut self.writer.lock());
        }
        let mut writer = self.writer.lock();
        if writer.moves != moves {
            // One that moved may have got from ahead of us to behind us: once more, and nobody moves meanwhile.
            removed += self.remove_in(&self.buckets, &which, &mut writer);
        }
        removed
    }

    fn remove_in(&self, buckets: &[Bucket], which: impl Fn(PortId, u32) -> bool, writer: &mut Writer) -> u64 {
        let mut removed = 0;
        for entry in buckets.iter().flat_map(|b| &b.0).filter(|e| e.key.load(Ordering::Relaxed) != 0) {
            let (port, seen) = unpack(entry.value.load(Ordering::Relaxed));
            if which(port, seen) {
                self.remove(entry, writer);
                removed += 1;
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
}

impl Writer {
    fn count(&mut self, port: PortId, up: bool) {
        if let Some(count) = self.per_port.get_mut(usize::from(port)) {
            *count = if up { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }
}
