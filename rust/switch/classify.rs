//! Where a frame goes: learning, forwarding, flooding (IEEE 802.1D §7.7).

use super::PortId;
use super::fdb::{Fdb, Key};
use crate::burst::{HEAD_SIZE, Head, MAX_BURST};
use crate::drops::DropReason;
use crate::frame::ethernet::{self, Mac};

/// A verdict on one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// To one port.
    Port(PortId),
    /// To every other port of the bridge.
    Flood,
    /// To nobody.
    Drop(DropReason),
}

/// Twice a burst, so that the answers for one that goes to as many addresses as it has frames mostly find room.
const CACHE: usize = 2 * MAX_BURST;
/// Lookups that the table answered in one burst, from which on those of the next are asked for together.
const MANY_MISSES: u32 = 8;

/// The first 16 bytes of a frame that went to a port, and where it went: those that follow it mostly go there too.
#[derive(Debug, Clone, Copy)]
pub struct Last {
    head: u128,
    /// Which bits count: a tag belongs to the address, what follows any other type does not.
    mask: u128,
    /// Where it went.
    pub output: Output,
}

impl Last {
    /// True for a frame of all ones, whose source is none.
    const NONE: Self = Self { head: u128::MAX, mask: u128::MAX, output: Output::Drop(DropReason::BadSource) };
    /// The addresses and the type.
    const UNTAGGED: u128 = (1 << 112) - 1;

    #[inline]
    fn head(head: &[u8; HEAD_SIZE]) -> u128 {
        head.first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes))
    }

    /// True for a frame that goes the same way.
    #[inline]
    pub fn is_like(&self, head: &[u8; HEAD_SIZE]) -> bool {
        (Self::head(head) ^ self.head) & self.mask == 0
    }
}

/// What one transmitq saw last: spares the table most of its lookups. Valid for one generation of the FDB.
#[derive(Debug)]
pub struct Cache {
    last: Last,
    generation: u32,
    /// The last source, and the second in which it was learned.
    source: (Key, u32),
    /// Direct-mapped answers for destinations.
    destinations: [(Key, PortId); CACHE],
    /// Answers are kept for a second: then ageing gets its say.
    second: u32,
    /// Lookups of this burst that the table had to answer, be it ahead of its frames.
    misses: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            last: Last::NONE,
            generation: 0,
            source: (Key::NONE, 0),
            destinations: [(Key::NONE, 0); CACHE],
            second: u32::MAX,
            misses: 0,
        }
    }
}

impl Cache {
    /// Call once a burst: drops what may be stale.
    #[inline]
    pub fn refresh(&mut self, fdb: &Fdb, now_s: u32) {
        let generation = fdb.generation();
        if generation != self.generation || now_s != self.second {
            *self = Self { generation, second: now_s, misses: self.misses, ..Self::default() };
        }
    }

    /// Call once a burst, before its frames are classified: where the burst before went to many addresses, those of this one
    /// are looked up together, so that the frames do not wait for the table's memory one after the other.
    #[inline]
    pub fn look_ahead(&mut self, fdb: &Fdb, heads: &[Head], now_s: u32) {
        if std::mem::take(&mut self.misses) >= MANY_MISSES {
            self.look_up_all(fdb, heads, now_s);
        }
    }

    fn look_up_all(&mut self, fdb: &Fdb, heads: &[Head], now_s: u32) {
        let (mut keys, mut ports) = ([Key::NONE; MAX_BURST], [None; MAX_BURST]);
        for (key, head) in keys.iter_mut().zip(heads) {
            let header = ethernet::parse(&head.0);
            *key = Key::new(header.vlan, header.dst);
        }
        let keys = keys.get(..heads.len()).unwrap_or(&keys);
        fdb.lookup_all(keys, &mut ports, now_s);
        for (&key, port) in keys.iter().zip(ports) {
            if let (Some(to), Some(entry)) = (port, self.destinations.get_mut(key.low_bits() % CACHE))
                && entry.0 != key
            {
                *entry = (key, to);
                self.misses += 1;
            }
        }
    }

    /// What [`Self::classify`] says of every frame like it, until [`Self::refresh`].
    #[inline]
    pub fn last(&self) -> Last {
        self.last
    }

    /// Learns the source of a frame that came in on `port` and says where the frame goes. A cache is of one port.
    #[inline]
    pub fn classify(
        &mut self,
        fdb: &Fdb,
        port: PortId,
        head: &[u8; HEAD_SIZE],
        forward_bpdu: bool,
        now_s: u32,
    ) -> Output {
        if self.last.is_like(head) {
            return self.last.output;
        }
        let header = ethernet::parse(head);
        let source = Key::new(header.vlan, header.src);
        if self.source != (source, now_s) {
            if header.src.is_group() || header.src.0 == 0 {
                return Output::Drop(DropReason::BadSource);
            }
            if fdb.learn(source, port, now_s) {
                self.source = (source, now_s);
            }
        }
        let output = self.destination(fdb, port, header.vlan, header.dst, forward_bpdu, now_s);
        // What the table may learn, or has to be taught, is asked for again.
        if matches!(output, Output::Port(_)) && self.source == (source, now_s) {
            let mask = if header.tagged { u128::MAX } else { Last::UNTAGGED };
            self.last = Last { head: Last::head(head), mask, output };
        }
        output
    }

    #[inline]
    fn destination(&mut self, fdb: &Fdb, port: PortId, vlan: u16, dst: Mac, forward_bpdu: bool, now_s: u32) -> Output {
        if dst.is_group() {
            return if dst.is_reserved() && !forward_bpdu { Output::Drop(DropReason::Reserved) } else { Output::Flood };
        }
        let key = Key::new(vlan, dst);
        let place = key.low_bits() % CACHE;
        let found = match self.destinations.get(place) {
            Some(&(cached, to)) if cached == key => Some(to),
            _ => {
                self.misses += 1;
                let found = fdb.lookup(key, now_s);
                if let (Some(to), Some(entry)) = (found, self.destinations.get_mut(place)) {
                    *entry = (key, to);
                }
                found
            }
        };
        match found {
            Some(to) if to == port => Output::Drop(DropReason::SamePort),
            Some(to) => Output::Port(to),
            None => Output::Flood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(dst: u64, src: u64) -> [u8; HEAD_SIZE] {
        let mut head = [0; HEAD_SIZE];
        head[..6].copy_from_slice(&dst.to_be_bytes()[2..]);
        head[6..12].copy_from_slice(&src.to_be_bytes()[2..]);
        head
    }

    fn ask(cache: &mut Cache, fdb: &Fdb, port: PortId, dst: u64, src: u64) -> Output {
        cache.refresh(fdb, 1);
        cache.classify(fdb, port, &head(dst, src), false, 1)
    }

    #[test]
    fn unknown_floods_and_known_goes_straight() {
        let (fdb, mut a, mut b) = (Fdb::new(64, 300), Cache::default(), Cache::default());
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0201), Output::Flood);
        assert_eq!(ask(&mut b, &fdb, 2, 0x0201, 0x0202), Output::Port(1));
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0201), Output::Port(2));
    }

    #[test]
    fn address_of_zeroes_is_unknown_like_any_other() {
        let (fdb, mut a) = (Fdb::new(64, 300), Cache::default());
        assert_eq!(ask(&mut a, &fdb, 1, 0, 0x0201), Output::Flood);
        assert_eq!(ask(&mut a, &fdb, 1, 0x0201, 0), Output::Drop(DropReason::BadSource));
    }

    #[test]
    fn cached_answer_follows_a_move() {
        let (fdb, mut a, mut c) = (Fdb::new(64, 300), Cache::default(), Cache::default());
        fdb.learn(Key::new(0, Mac(0x0202)), 2, 1);
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0201), Output::Port(2));
        ask(&mut c, &fdb, 3, 0x0201, 0x0202);
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0201), Output::Port(3));
    }

    #[test]
    fn a_frame_like_the_last_gets_the_answer_it_would_have_got_alone() {
        let (fdb, mut cache) = (Fdb::new(1024, 300), Cache::default());
        for (vlan, mac, port) in [(0, 0x0202, 2), (5, 0x0202, 3), (5, 0x0302, 1)] {
            fdb.learn(Key::new(vlan, Mac(mac)), port, 1);
        }
        // Priority bits, a tag's presence, the type and each half of an address.
        let tails: [&[u8]; 6] = [
            &[0x08, 0x00, 0x45, 0x00],
            &[0x08, 0x06, 0x00, 0x01],
            &[0x81, 0x00, 0x00, 0x05],
            &[0x81, 0x00, 0xe0, 0x05],
            &[0x81, 0x00, 0x00, 0x06],
            &[0xff, 0xff, 0xff, 0xff],
        ];
        let addresses = [0x0202, 0x0302, 0x0001_0000_0202, 0x0100_0000_0202, 0xffff_ffff_ffff, 0];
        let mut heads = Vec::new();
        for (&dst, &src) in addresses.iter().flat_map(|dst| addresses.iter().map(move |src| (dst, src))) {
            for tail in tails {
                let mut head = head(dst, src);
                head[12..16].copy_from_slice(tail);
                heads.push(head);
            }
        }
        cache.refresh(&fdb, 1);
        for (first, second) in heads.iter().flat_map(|first| heads.iter().map(move |second| (first, second))) {
            cache.classify(&fdb, 1, first, false, 1);
            cache.refresh(&fdb, 1);
            let alone = Cache::default().classify(&fdb, 1, second, false, 1);
            let last = cache.last();
            assert!(!last.is_like(second) || last.output == alone, "{:x?} after {:x?}", &second[..16], &first[..16]);
            assert_eq!(
                cache.classify(&fdb, 1, second, false, 1),
                alone,
                "{:x?} after {:x?}",
                &second[..16],
                &first[..16]
            );
        }
    }

    #[test]
    fn lookups_asked_for_together_give_what_they_gave_one_by_one() {
        let (fdb, mut a) = (Fdb::new(1024, 300), Cache::default());
        let heads: Vec<Head> = (0..64).map(|n| Head(head(0x0002_0000 + n, 0x0201))).collect();
        for n in 0..32 {
            fdb.learn(Key::new(0, Mac(0x0002_0000 + n)), 2, 1);
        }
        for round in 0..3 {
            a.refresh(&fdb, 1);
            // As if frames to others came in between.
            a.destinations = [(Key::NONE, 0); CACHE];
            a.look_ahead(&fdb, &heads, 1);
            assert_eq!(a.misses, if round == 0 { 0 } else { 32 }, "the known ones, from the second burst on");
            for (n, head) in heads.iter().enumerate() {
                let expected = if n < 32 { Output::Port(2) } else { Output::Flood };
                assert_eq!(a.classify(&fdb, 1, &head.0, false, 1), expected, "{n}, round {round}");
            }
            assert!(a.misses >= MANY_MISSES, "the next burst is asked for together");
        }
    }

    #[test]
    fn neighbour_behind_the_same_port_is_not_sent_back() {
        let (fdb, mut a) = (Fdb::new(64, 300), Cache::default());
        fdb.learn(Key::new(0, Mac(0x0202)), 1, 1);
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0201), Output::Drop(DropReason::SamePort));
    }

    #[test]
    fn bpdus_stay_here_and_group_sources_are_refused() {
        let (fdb, mut a) = (Fdb::new(64, 300), Cache::default());
        assert_eq!(ask(&mut a, &fdb, 1, 0x0180_c200_0000, 0x0201), Output::Drop(DropReason::Reserved));
        assert_eq!(ask(&mut a, &fdb, 1, 0x0202, 0x0100_0000_0201), Output::Drop(DropReason::BadSource));
        assert_eq!(a.classify(&fdb, 1, &head(0x0180_c200_0000, 0x0201), true, 1), Output::Flood);
    }
}
