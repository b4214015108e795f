//! Guest-physical addresses to spans: in one region after another's, with the region of the last answer as a hint.

mod each;
mod guest;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use ovsvhost::memory::{Access, Hint, Iova, Tlb};

const REGION_SIZE: usize = 1 << 21;
const ADDRESSES: usize = 256;
const LEN: u32 = 64;

fn translate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(1));
    for count in [1, 4, 8] {
        let (ram, map) = guest::regions(count, REGION_SIZE);
        let address = |region: usize, step: usize| {
            let base = ram.regions().get(region).map_or(0, |region| region.gpa().0);
            Iova(base + (step * 4096 % (REGION_SIZE - 4096)) as u64)
        };
        let orders = [
            // As buffers lie that were allocated together.
            ("runs of 64", (0..ADDRESSES).map(|step| address(step / 64 % count, step)).collect::<Vec<_>>()),
            // The worst that a guest can do.
            ("another region each time", (0..ADDRESSES).map(|step| address(step % count, step)).collect()),
        ];
        for (name, addresses) in orders {
            group.bench_function(BenchmarkId::new(name, format!("{count} regions")), |bencher| {
                let (mut hint, mut tlb) = (Hint::NONE, Tlb::new(&map, Access::READ));
                bencher.iter_custom(|translations| {
                    each::scaled(translations, ADDRESSES as u64, || {
                        let begin = Instant::now();
                        for &address in &addresses {
                            black_box(map.translate(black_box(address), LEN, &mut hint, &mut tlb));
                        }
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
    translate(&mut criterion);
    criterion.final_summary();
}
