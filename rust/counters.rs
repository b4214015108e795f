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

    /// The value now.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper names of the size classes, in the order of [`size_class`] (`ovs-vswitchd.conf.db(5)`, Interface statistics).
pub const SIZE_CLASSES: [&str; 7] =
    ["1_to_64", "65_to_127", "128_to_255", "256_to_511", "512_to_1023", "1024_to_1522", "1523_to_max"];

/// Which class a frame of `len` bytes counts in.
#[inline]
pub fn size_class(len: u32) -> usize {
    match len {
        0..=64 => 0,
        1523.. => 6,
        1024.. => 5,
        _ => (len.ilog2() - 5) as usize,
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
    pub sizes: [Counter; 7],
    /// Frames dropped, per reason.
    pub drops: [Counter; drops::COUNT],
    /// Further attempts to deliver to a guest that was short of buffers.
    pub retries: Counter,
    /// Calls made to the guest.
    pub notifications: Counter,
    /// TSC cycles that the poll threads spent on its bursts; of transmitqs only.
    pub cycles: Counter,
}

/// One burst's worth of counts, kept in registers and cache before it is added.
#[derive(Debug, Default)]
pub struct Tally {
    packets: u64,
    bytes: u64,
    multicast: u64,
    broadcast: u64,
    sizes: [u64; 7],
}

impl Tally {
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

    /// Counts `n` frames dropped for one reason.
    #[inline]
    pub fn dropped(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_end_where_their_names_say() {
        for (len, class) in [
            (60, 0),
            (64, 0),
            (65, 1),
            (127, 1),
            (128, 2),
            (511, 3),
            (512, 4),
            (1023, 4),
            (1024, 5),
            (1522, 5),
            (1523, 6),
            (65_550, 6),
        ] {
            assert_eq!(size_class(len), class, "{len}");
        }
    }
}
