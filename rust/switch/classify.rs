//! Where a frame goes: learning, forwarding, flooding (IEEE 802.1D §7.7).

use super::PortId;
use super::fdb::{Fdb, Key, Learning, Place};
use crate::burst::{HEAD_SIZE, Head, MAX_BURST};
use crate::drops::DropReason;
use crate::frame::ethernet;

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

/// Frames whose destinations are asked for together: as many misses as a core has under way at once, and some.
const AHEAD: usize = 32;

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
    /// The destination.
    const DESTINATION: u128 = (1 << 48) - 1;

    #[inline]
    fn head(head: &[u8; HEAD_SIZE]) -> u128 {
        head.first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes))
    }

    /// The bits that differ, of those that count.
    #[inline]
    fn differs(&self, head: u128) -> u128 {
        (head ^ self.head) & self.mask
    }

    /// True for a frame that goes the same way.
    #[inline]
    pub fn is_like(&self, head: &[u8; HEAD_SIZE]) -> bool {
        self.differs(Self::head(head)) == 0
    }
}

/// What one transmitq saw last: spares the table most of its lookups. Valid for one generation of the FDB, and for a second:
/// then ageing gets its say.
#[derive(Debug)]
pub struct Cache {
    last: Last,
    generation: u32,
    second: u32,
    /// The last source, and the second in which it was learned.
    source: (Key, u32),
    /// By frame of the burst, the port that its destination is known behind.
    ports: [Option<PortId>; MAX_BURST],
    /// Frames of the burst that this was looked up for.
    looked: usize,
    /// The burst taught the table something: what was looked up before may be no more.
    is_stale: bool,
    /// Of the frames being looked up, destinations and where they are in the table.
    asked: [(Key, Place); AHEAD],
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            last: Last::NONE,
            generation: 0,
            second: u32::MAX,
            source: (Key::NONE, 0),
            ports: [None; MAX_BURST],
            looked: 0,
            is_stale: false,
            asked: [(Key::NONE, Place::default()); AHEAD],
        }
    }
}

impl Cache {
    /// Call once a burst: forgets the one before, and drops what may be stale.
    #[inline]
    pub fn refresh(&mut self, fdb: &Fdb, now_s: u32) {
        (self.looked, self.is_stale) = (0, false);
        let generation = fdb.generation();
        if generation != self.generation || now_s != self.second {
            (self.generation, self.second) = (generation, now_s);
            (self.last, self.source) = (Last::NONE, (Key::NONE, 0));
        }
    }

    /// What [`Self::classify`] says of every frame like it, until [`Self::refresh`].
    #[inline]
    pub fn last(&self) -> Last {
        self.last
    }

    /// Learns the source of frame `index` of a burst that came in on `port` and says where the frame goes. A cache is of one
    /// port, and sees a burst's frames in order.
    #[inline]
    pub fn classify(
        &mut self,
        fdb: &Fdb,
        port: PortId,
        (heads, index): (&[Head], usize),
        forward_bpdu: bool,
        now_s: u32,
    ) -> Output {
        let Some(head) = heads.get(index) else { return Output::Drop(DropReason::BadSource) };
        if self.last.is_like(&head.0) {
            return self.last.output;
        }
        self.judge(fdb, port, (heads, index), forward_bpdu, now_s)
    }

    /// True if frame `index` of the burst, looked up already, is from where `last` is from and goes where it went.
    #[inline]
    pub fn goes_with(&self, last: &Last, head: &[u8; HEAD_SIZE], index: usize) -> bool {
        let is_from_there = last.differs(Last::head(head)) & !Last::DESTINATION == 0;
        // What is beyond was looked up for another burst.
        let port = if index < self.looked && !self.is_stale { self.ports.get(index).copied().flatten() } else { None };
        is_from_there && port.is_some_and(|port| last.output == Output::Port(port))
    }

    /// [`Self::classify`] of a frame of which nothing is known yet.
    fn judge(
        &mut self,
        fdb: &Fdb,
        port: PortId,
        (heads, index): (&[Head], usize),
        forward_bpdu: bool,
        now_s: u32,
    ) -> Output {
        let Some(Head(head)) = heads.get(index) else { return Output::Drop(DropReason::BadSource) };
        let header = ethernet::parse(head);
        let source = Key::new(header.vlan, header.src);
        if self.source != (source, now_s) {
            if header.src.is_group() || header.src.0 == 0 {
                return Output::Drop(DropReason::BadSource);
            }
            let learning = fdb.learn(source, port, now_s);
            if learning != Learning::Later {
                self.source = (source, now_s);
            }
            self.is_stale |= learning == Learning::News;
        }
        if header.dst.is_group() {
            let stays = header.dst.is_reserved() && !forward_bpdu;
            return if stays { Output::Drop(DropReason::Reserved) } else { Output::Flood };
        }
        let Some(to) = self.port_of(fdb, heads, index) else { return Output::Flood };
        if to == port {
            return Output::Drop(DropReason::SamePort);
        }
        // What the table may learn, or has to be taught, is asked for again.
        if self.source == (source, now_s) {
            let mask = if header.tagged { u128::MAX } else { Last::UNTAGGED };
            self.last = Last { head: Last::head(head), mask, output: Output::Port(to) };
        }
        Output::Port(to)
    }

    /// The port that the destination of a frame is known behind: never one of a group address.
    #[inline]
    fn port_of(&mut self, fdb: &Fdb, heads: &[Head], index: usize) -> Option<PortId> {
        if self.is_stale {
            return fdb.lookup(destination(heads.get(index)?), self.second);
        }
        if index >= self.looked {
            self.look_ahead(fdb, heads, index);
        }
        self.ports.get(index).copied().flatten()
    }

    /// Looks up the destinations of a frame and of those after it. All are asked for first, so that their misses overlap.
    fn look_ahead(&mut self, fdb: &Fdb, heads: &[Head], from: usize) {
        let ahead = heads.get(from..).unwrap_or_default();
        for (asked, head) in self.asked.iter_mut().zip(ahead) {
            let key = destination(head);
            *asked = (key, fdb.ask_for(key));
        }
        let ports = self.ports.get_mut(from..heads.len()).unwrap_or_default();
        for (port, (key, place)) in ports.iter_mut().zip(&self.asked) {
            *port = fdb.lookup_at(*place, *key, self.second);
        }
        self.looked = from + AHEAD;
    }
}

/// Whom a frame is for.
#[inline]
fn destination(Head(head): &Head) -> Key {
    let header = ethernet::parse(head);
    Key::new(header.vlan, header.dst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ethernet::Mac;

    fn head(dst: u64, src: u64) -> [u8; HEAD_SIZE] {
        let mut head = [0; HEAD_SIZE];
        head[..6].copy_from_slice(&dst.to_be_bytes()[2..]);
        head[6..12].copy_from_slice(&src.to_be_bytes()[2..]);
        head
    }

    fn ask(cache: &mut Cache, fdb: &Fdb, port: PortId, dst: u64, src: u64) -> Output {
        cache.refresh(fdb, 1);
        classify(cache, fdb, port, head(dst, src))
    }

    fn classify(cache: &mut Cache, fdb: &Fdb, port: PortId, head: [u8; HEAD_SIZE]) -> Output {
        cache.refresh(fdb, 1);
        cache.classify(fdb, port, (&[Head(head)], 0), false, 1)
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
            classify(&mut cache, &fdb, 1, *first);
            cache.refresh(&fdb, 1);
            let alone = classify(&mut Cache::default(), &fdb, 1, *second);
            let last = cache.last();
            assert!(!last.is_like(second) || last.output == alone, "{:x?} after {:x?}", &second[..16], &first[..16]);
            assert_eq!(classify(&mut cache, &fdb, 1, *second), alone, "{:x?} after {:x?}", &second[..16], &first[..16]);
        }
    }

    #[test]
    fn a_burst_gets_the_answers_its_frames_would_have_got_alone() {
        let fdb = Fdb::new(1024, 300);
        for n in 0..32 {
            fdb.learn(Key::new(0, Mac(0x0002_0000 + n)), if n % 8 == 0 { 3 } else { 2 }, 1);
        }
        let mut cache = Cache::default();
        let mut followers = 0;
        // Runs of one, of several and of all; known addresses and unknown ones; the burst before had others in their places.
        for (stride, sources) in [(1, 1), (3, 1), (7, 1), (64, 1), (1, 5), (3, 64)] {
            let head = |n: u64| head(0x0002_0000 + n / stride * 5 % 64, 0x0201 + n % sources);
            let heads: Vec<Head> = (0..64).map(|n| Head(head(n))).collect();
            cache.refresh(&fdb, 1);
            for (n, frame) in heads.iter().enumerate() {
                let alone = classify(&mut Cache::default(), &fdb, 1, frame.0);
                let last = cache.last();
                if cache.goes_with(&last, &frame.0, n) {
                    assert_eq!(last.output, alone, "{n} of runs of {stride} from {sources}");
                    followers += 1;
                }
                assert_eq!(
                    cache.classify(&fdb, 1, (&heads, n), false, 1),
                    alone,
                    "{n} of runs of {stride} from {sources}"
                );
            }
        }
        assert!(followers > 64);
    }

    #[test]
    fn a_source_that_a_burst_brings_is_known_to_the_frames_after_it() {
        let (fdb, mut cache) = (Fdb::new(64, 300), Cache::default());
        let heads = [Head(head(0x0202, 0x0201)), Head(head(0x0201, 0x0203))];
        cache.refresh(&fdb, 1);
        assert_eq!(cache.classify(&fdb, 1, (&heads, 0), false, 1), Output::Flood);
        assert_eq!(cache.classify(&fdb, 1, (&heads, 1), false, 1), Output::Drop(DropReason::SamePort));
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
        a.refresh(&fdb, 1);
        let heads = [Head(head(0x0180_c200_0000, 0x0201))];
        assert_eq!(a.classify(&fdb, 1, (&heads, 0), true, 1), Output::Flood);
    }
}
