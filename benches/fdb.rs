//! The table of learned addresses: look-ups and refreshes, from one address to far more than the first-level cache holds.

mod each;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use ovsvhost::frame::ethernet::Mac;
use ovsvhost::switch::fdb::{Fdb, Key};

const BATCH: usize = 256;
const PORT: u16 = 1;

fn key(number: u64) -> Key {
    Key::new(0, Mac(0x0200_0000_0000 | number))
}

/// `BATCH` of `count` addresses in an order that no prefetcher guesses.
fn scattered(count: u64) -> Vec<Key> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        key(state % count)
    };
    std::iter::repeat_with(next).take(BATCH).collect()
}

fn timed(keys: &[Key], mut each: impl FnMut(Key)) -> Duration {
    let begin = Instant::now();
    for &key in keys {
        each(black_box(key));
    }
    begin.elapsed()
}

fn fdb(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fdb");
    group.throughput(Throughput::Elements(1));
    for count in [1, 8192, 100_000] {
        let fdb = Fdb::new(131_072, 300);
        for number in 0..count {
            fdb.learn(key(number), PORT, 0);
        }
        let keys = scattered(count);
        group.bench_function(BenchmarkId::new("look up", count), |bencher| {
            let look_up = |key| assert_eq!(fdb.lookup(key, 0), Some(PORT), "an address was forgotten");
            bencher.iter_custom(|times| each::scaled(times, BATCH as u64, || timed(&keys, look_up)));
        });
        group.bench_function(BenchmarkId::new("learn, seen this second", count), |bencher| {
            let learn = |key| {
                fdb.learn(key, PORT, 0);
            };
            bencher.iter_custom(|times| each::scaled(times, BATCH as u64, || timed(&keys, learn)));
        });
        let mut now_s = 0;
        group.bench_function(BenchmarkId::new("learn, a second later", count), |bencher| {
            bencher.iter_custom(|times| {
                each::scaled(times, BATCH as u64, || {
                    now_s += 1;
                    timed(&keys, |key| {
                        fdb.learn(key, PORT, now_s);
                    })
                })
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    fdb(&mut criterion);
    criterion.final_summary();
}
