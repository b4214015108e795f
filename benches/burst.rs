//! Driver to driver in one process: gather, classify, deliver, commit. What a poll thread spends on a frame, but for what
//! another core's caches cost.

mod each;
mod guest;

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use guest::way::Way;
use guest::{FRAMES, LAYOUTS};

fn burst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("driver to driver");
    group.throughput(Throughput::Elements(1));
    for kind in LAYOUTS {
        for size in [64, 512, 1518, 9000] {
            let mut way = Way::new(kind, size);
            way.check();
            group.bench_function(BenchmarkId::new(kind.name, format!("{size} B")), |bencher| {
                bencher.iter_custom(|frames| {
                    each::scaled(frames, FRAMES.into(), || {
                        way.prepare();
                        let begin = Instant::now();
                        way.walk();
                        begin.elapsed()
                    })
                });
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    burst(&mut criterion);
    criterion.final_summary();
}
