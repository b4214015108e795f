// SPDX-License-Identifier: Apache-2.0
//! Choices within one case, from the case's seed: the same seed gives the same bytes, buffers and cuts.

use std::ops::Range;

/// A small generator (splitmix64): speed and repeatability are all that is asked of it.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of the range, which is not empty.
    pub fn pick(&mut self, range: Range<usize>) -> usize {
        range.start + (self.next() % (range.end - range.start) as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.pick(0..n) == 0
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    /// `total` cut into `pieces` pieces of any size, none included.
    pub fn cut(&mut self, total: usize, pieces: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (1..pieces).map(|_| self.pick(0..total + 1)).collect();
        cuts.sort_unstable();
        cuts.push(total);
        let mut from = 0;
        cuts.into_iter().map(|to| to - std::mem::replace(&mut from, to)).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.pick(0..i + 1));
        }
    }
}
