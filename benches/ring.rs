//! The two halves of a copy: frames out of a transmitq and their buffers back, frames into a receiveq.

mod each;
mod guest;

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use guest::{FRAMES, LAYOUTS, OTHERS, PLAIN, ReceivingGuest, SendingGuest};
use ovsvhost::burst::MAX_BURST;

fn gather_and_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transmitq: gather and commit");
    group.throughput(Throughput::Elements(1));
    for kind in LAYOUTS.into_iter().chain(OTHERS) {
        let (mut guest, mut queue) = SendingGuest::new(kind, 64);
        group.bench_function(kind.name, |bencher| {
            bencher.iter_custom(|frames| {
                each::scaled(frames, FRAMES.into(), || {
                    guest.fill(FRAMES);
                    let begin = Instant::now();
                    while let Ok(1..) = queue.gather() {
                        queue.commit();
                    }
                    begin.elapsed()
                })
            });
        });
    }
    group.finish();
}

fn deliver(criterion: &mut Criterion) {
    let list: Vec<u8> = (0_u8..).take(MAX_BURST).collect();
    let mut group = criterion.benchmark_group("receiveq: deliver");
    group.throughput(Throughput::Elements(1));
    for size in [64, 512, 1518, 9000] {
        let (mut from, mut sends) = SendingGuest::new(PLAIN, size);
        let (mut to, mut receives) = ReceivingGuest::new(PLAIN);
        from.fill(FRAMES);
        assert!(matches!(sends.gather(), Ok(MAX_BURST)), "the transmitq gave less than a burst");
        group.bench_function(BenchmarkId::from_parameter(format!("{size} B")), |bencher| {
            bencher.iter_custom(|frames| {
                each::scaled(frames, MAX_BURST as u64, || {
                    to.empty();
                    let begin = Instant::now();
                    let delivery = receives.deliver(sends.burst(), &list);
                    receives.flush();
                    let spent = begin.elapsed();
                    assert_eq!(delivery.settled, MAX_BURST, "the receiveq had no room");
                    spent
                })
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    gather_and_commit(&mut criterion);
    deliver(&mut criterion);
    criterion.final_summary();
}
