//! Counters of one queue: plain numbers with one writer, read by anyone, never reset by a reconnect.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::drops::{self, DropReason};

/// A number that one thread at a time adds to and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: there is one writer.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds beside other writers, who all do it this way.
    #[inline]
    pub fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Classes of frame sizes: borders of OVS's names and of DPDK's, which differ above 1518.
pub const SIZE_CLASSES: usize = 9;

/// OVS's names of sizes, and the classes each takes in (`ovs-vswitchd.conf.db(5)`, Interface statistics).
pub const PORT_SIZES: [(&str, std::ops::Range<usize>); 7] = [
    ("1_to_64", 0..2),
    ("65_to_127", 2..3),
    ("128_to_255", 3..4),
    ("256_to_511", 4..5),
    ("512_to_1023", 5..6),
    ("1024_to_1522", 6..8),
    ("1523_to_max", 8..9),
];

/// DPDK's names of sizes, as its vhost library counts per queue.
pub const QUEUE_SIZES: [(&str, std::ops::Range<usize>); 8] = [
    ("undersize", 0..1),
    ("size_64", 1..2),
    ("size_65_127", 2..3),
    ("size_128_255", 3..4),
    ("size_256_511", 4..5),
    ("size_512_1023", 5..6),
    ("size_1024_1518", 6..7),
    ("size_1519_max", 7..9),
];

/// Which class a frame of `len` bytes counts in.
#[inline]
pub fn size_class(len: u32) -> usize {
    match len {
        65..=1023 => len.ilog2() as usize - 4,
        0..=63 => 0,
        64 => 1,
        1024..=1518 => 6,
        1519..=1522 => 7,
        1523.. => 8,
    }
}

/// What one queue moved and dropped. Its own cache lines: queues of one port may belong to different threads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Frames that passed.
    pub packets: Counter,
    /// Their bytes, Ethernet header to payload end.
    pub bytes: Counter,
    /// Frames to group addresses other than broadcast.
    pub multicast: Counter,
    /// Frames to ff:ff:ff:ff:ff:ff.
    pub broadcast: Counter,
    /// Frames per size class.
    pub sizes: [Counter; SIZE_CLASSES],
    /// Frames dropped, per reason.
    pub drops: [Counter; drops::COUNT],
    /// Further attempts to deliver to a guest that was short of buffers.
    pub retries: Counter,
    /// Calls made to the guest.
    pub notifications: Counter,
    /// TSC cycles that the poll threads spent on its bursts; of transmitqs only.
    pub cycles: Counter,
    /// Calls that the guest had said it can do without.
    pub suppressed: Counter,
    /// Groups that had to wait, since the guest was short of buffers (`backpressure-us`).
    pub waits: Counter,
    /// Groups that had to wait, since another thread had the ring.
    pub contentions: Counter,
    /// Frames whose buffers the guest's IOMMU had translated before they were needed.
    pub iotlb_hits: Counter,
    /// Times that a frame had to wait for a translation.
    pub iotlb_misses: Counter,
}

/// What up to 64 frames to single addresses count for: little enough to lie beside each list of a burst.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    bytes: u32,
    sizes: [u8; SIZE_CLASSES],
}

impl Share {
    /// No frame.
    pub const NONE: Self = Self { bytes: 0, sizes: [0; SIZE_CLASSES] };

    /// Counts one frame.
    #[inline]
    pub fn count(&mut self, len: u32) {
        self.bytes += len;
        if let Some(class) = self.sizes.get_mut(size_class(len)) {
            *class += 1;
        }
    }

    /// Each class that has frames, and how many. The frames of a group are of one size mostly: what there is none of is
    /// not looked at one by one.
    #[inline]
    fn classes(&self) -> impl Iterator<Item = (usize, u64)> {
        let (mut left, longest) = match self.sizes.split_first_chunk() {
            Some((rest, longest)) => (u64::from_le_bytes(*rest), longest.first().copied().unwrap_or(0)),
            None => (0, 0),
        };
        let mut longest = (longest > 0).then_some((SIZE_CLASSES - 1, u64::from(longest)));
        std::iter::from_fn(move || {
            if left == 0 {
                return longest.take();
            }
            let bits = left.trailing_zeros() & !7;
            let count = left >> bits & 0xff;
            left ^= count << bits;
            Some((bits as usize / 8, count))
        })
    }
}

/// One burst's worth of counts, kept in registers and cache before it is added.
#[derive(Debug, Default)]
pub struct Tally {
    packets: u64,
    bytes: u64,
    multicast: u64,
    broadcast: u64,
    sizes: [u64; SIZE_CLASSES],
}

impl Tally {
    /// True if nothing was counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Counts one frame.
    #[inline]
    pub fn count(&mut self, len: u32, group: bool, broadcast: bool) {
        self.packets += 1;
        self.bytes += u64::from(len);
        self.broadcast += u64::from(broadcast);
        self.multicast += u64::from(group && !broadcast);
        if let Some(class) = self.sizes.get_mut(size_class(len)) {
            *class += 1;
        }
    }

    /// Counts `n` frames of the same length to one address.
    pub fn count_many(&mut self, n: u64, len: u32, group: bool, broadcast: bool) {
        let mut one = Self::default();
        one.count(len, group, broadcast);
        self.packets += n;
        self.bytes += n * one.bytes;
        self.broadcast += n * one.broadcast;
        self.multicast += n * one.multicast;
        self.sizes.iter_mut().zip(one.sizes).for_each(|(size, one)| *size += n * one);
    }
}

impl QueueCounters {
    /// Adds a burst's counts.
    pub fn add(&self, tally: &Tally) {
        self.packets.add(tally.packets);
        self.bytes.add(tally.bytes);
        if tally.multicast + tally.broadcast > 0 {
            self.multicast.add(tally.multicast);
            self.broadcast.add(tally.broadcast);
        }
        for (to, &n) in self.sizes.iter().zip(&tally.sizes) {
            if n > 0 {
                to.add(n);
            }
        }
    }

    /// Adds what a group counts for.
    #[inline]
    pub fn add_share(&self, share: &Share) {
        let mut packets = 0;
        for (class, n) in share.classes() {
            packets += n;
            if let Some(size) = self.sizes.get(class) {
                size.add(n);
            }
        }
        self.packets.add(packets);
        self.bytes.add(share.bytes.into());
    }

    /// Counts `n` frames dropped where they came in: the thread that has the transmitq is the one writer.
    #[inline]
    pub fn dropped(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(n);
        }
    }

    /// Counts `n` frames dropped before a receiver: any thread may, with or without the ring's lock.
    #[cold]
    pub fn lost(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add_shared(n);
        }
    }

    /// Counts what became of the call that ends a burst or a group.
    #[inline]
    pub fn called(&self, made: bool) {
        if made { self.notifications.add(1) } else { self.suppressed.add(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_end_where_their_names_say() {
        let named = |sizes: &[(&'static str, std::ops::Range<usize>)], len| -> Vec<&'static str> {
            sizes.iter().filter(|(_, range)| range.contains(&size_class(len))).map(|(name, _)| *name).collect()
        };
        for (len, port, queue) in [
            (60, "1_to_64", "undersize"),
            (63, "1_to_64", "undersize"),
            (64, "1_to_64", "size_64"),
            (65, "65_to_127", "size_65_127"),
            (127, "65_to_127", "size_65_127"),
            (128, "128_to_255", "size_128_255"),
            (511, "256_to_511", "size_256_511"),
            (512, "512_to_1023", "size_512_1023"),
            (1023, "512_to_1023", "size_512_1023"),
            (1024, "1024_to_1522", "size_1024_1518"),
            (1518, "1024_to_1522", "size_1024_1518"),
            (1519, "1024_to_1522", "size_1519_max"),
            (1522, "1024_to_1522", "size_1519_max"),
            (1523, "1523_to_max", "size_1519_max"),
            (65_550, "1523_to_max", "size_1519_max"),
        ] {
            assert_eq!(named(&PORT_SIZES, len), [port], "{len}");
            assert_eq!(named(&QUEUE_SIZES, len), [queue], "{len}");
        }
    }

    #[test]
    fn many_frames_count_as_each_of_them_does() {
        for (len, group, broadcast) in [(60, false, false), (1518, true, false), (9000, true, true)] {
            let (mut many, mut each) = (Tally::default(), Tally::default());
            many.count_many(5, len, group, broadcast);
            (0..5).for_each(|_| each.count(len, group, broadcast));
            assert_eq!(format!("{many:?}"), format!("{each:?}"));
        }
    }

    #[test]
    fn a_share_counts_as_its_frames_do() {
        for lens in [vec![60], vec![1600], vec![64; 64], vec![60, 64, 64, 100, 200, 300, 600, 1200, 1520, 1600, 65_550]]
        {
            let (shared, tallied) = (QueueCounters::default(), QueueCounters::default());
            let (mut share, mut tally) = (Share::NONE, Tally::default());
            for len in lens {
                share.count(len);
                tally.count(len, false, false);
            }
            shared.add_share(&share);
            tallied.add(&tally);
            assert_eq!(format!("{shared:?}"), format!("{tallied:?}"));
        }
    }

    #[test]
    fn drops_counted_by_several_threads_are_all_counted() {
        let counters = QueueCounters::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| counters.lost(DropReason::NoBuffer, 1)));
            }
        });
        assert_eq!(counters.drops[DropReason::NoBuffer as usize].read(), 40_000);
    }
}
