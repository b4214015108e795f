// SPDX-License-Identifier: Apache-2.0
//! Buffers in flight in the order they were made available, for `IN_ORDER` (virtio 1.2 §2.7.9, §2.8.15).
//!
//! A device that works in order may return many buffers with one used element, which names the last of them. The
//! driver has to know which came before it; they count as wholly used.
//!
//! Invariant: at most `size` buffers are in flight, each once, so that 16-bit counters never meet.

/// The order of the buffers in flight.
#[derive(Debug)]
pub(super) struct Order {
    /// Buffers by their turn, `size` rounded up to a power of two.
    buffers: Vec<u16>,
    mask: u16,
    /// The turn of each buffer; stale for one that is not in flight.
    turns: Vec<u16>,
    posted: u16,
    taken: u16,
    /// What is left of the batch being taken, and the bytes written into its last buffer.
    batch_left: u16,
    batch_len: u32,
}

impl Order {
    /// Nothing in flight, of at most `size` buffers with numbers below it.
    pub(super) fn new(size: u16) -> Self {
        let capacity = usize::from(size).next_power_of_two();
        // 32768 at most: a ring has no more.
        let mask = u16::try_from(capacity - 1).unwrap_or(0x7fff);
        Self {
            buffers: vec![0; capacity],
            mask,
            turns: vec![0; usize::from(size)],
            posted: 0,
            taken: 0,
            batch_left: 0,
            batch_len: 0,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.posted, self.taken, self.batch_left) = (0, 0, 0);
    }

    /// `buffer` was made available.
    #[inline]
    pub(super) fn post(&mut self, buffer: u16) {
        self.buffers[usize::from(self.posted & self.mask)] = buffer;
        self.turns[usize::from(buffer)] = self.posted;
        self.posted = self.posted.wrapping_add(1);
    }

    /// Buffers in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        self.posted.wrapping_sub(self.taken)
    }

    /// How many buffers in flight come before `buffer`; `None` when it is not in flight.
    #[inline]
    pub(super) fn before(&self, buffer: u32) -> Option<u16> {
        let buffer = u16::try_from(buffer).ok()?;
        let before = self.turns.get(usize::from(buffer))?.wrapping_sub(self.taken);
        (before < self.in_flight() && self.ahead(before) == buffer).then_some(before)
    }

    /// The buffer that comes `ahead` places after the next.
    #[inline]
    pub(super) fn ahead(&self, ahead: u16) -> u16 {
        self.buffers[usize::from(self.taken.wrapping_add(ahead) & self.mask)]
    }

    /// Whether buffers of a batch are left to be taken.
    #[inline]
    pub(super) fn is_in_batch(&self) -> bool {
        self.batch_left > 0
    }

    /// Begins a batch of `count` buffers, with `len` bytes written into the last.
    #[inline]
    pub(super) fn begin_batch(&mut self, count: u16, len: u32) {
        (self.batch_left, self.batch_len) = (count, len);
    }

    /// Takes the next buffer of the batch; with its bytes if it is the last, else it was used wholly.
    #[inline]
    pub(super) fn take(&mut self) -> (u16, Option<u32>) {
        let buffer = self.ahead(0);
        self.taken = self.taken.wrapping_add(1);
        self.batch_left -= 1;
        (buffer, (self.batch_left == 0).then_some(self.batch_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_every_buffer_before_the_one_it_names() {
        let mut order = Order::new(6);
        for turn in 0..30_000_u32 {
            let first = u16::try_from(turn % 6).unwrap();
            for buffer in [first, (first + 2) % 6, (first + 4) % 6] {
                order.post(buffer);
            }
            assert_eq!(order.before(u32::from((first + 4) % 6)), Some(2));
            assert_eq!(order.before(u32::from((first + 1) % 6)), None);
            order.begin_batch(3, 99);
            assert_eq!(order.take(), (first, None));
            assert_eq!(order.take(), ((first + 2) % 6, None));
            assert_eq!(order.take(), ((first + 4) % 6, Some(99)));
            assert_eq!((order.in_flight(), order.is_in_batch()), (0, false));
        }
    }

    #[test]
    fn a_buffer_that_no_ring_has_is_not_in_flight() {
        let mut order = Order::new(4);
        order.post(3);
        assert_eq!(order.before(4), None);
        assert_eq!(order.before(u32::MAX), None);
        assert_eq!(order.before(3), Some(0));
    }
}
