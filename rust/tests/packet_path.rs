// SPDX-License-Identifier: Apache-2.0
//! The packet path allocates nothing: this binary's allocator counts what poll threads ask for while frames flow.
#![allow(unreachable_pub, dead_code, reason = "rooms shared with the switch's tests, of which this one uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation, reason = "a test")]

#[path = "switch/rig.rs"]
mod rig;
#[path = "switch/traffic.rs"]
mod traffic;

use ovsvhost::testing::allocations::CountingAllocator;
use ovsvhost::vhost::EndpointKind;
use rig::Switch;
use traffic::Crew;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn allocations_while_frames_flow(settings: &[(&str, &str)]) -> u64 {
    let mut switch = Switch::new();
    let mut crew = Crew::pair(&mut switch, EndpointKind::Client, settings);
    crew.send(0, 1, 50);
    crew.send(1, 0, 50);
    let before = CountingAllocator::calls_of_poll_threads();
    assert!(before > 0, "the counter sees poll threads: they allocate when a queue is given to them");
    crew.send(0, 1, 500);
    crew.send(1, 0, 500);
    let spent = CountingAllocator::calls_of_poll_threads() - before;
    crew.assert_exact(0, 1);
    crew.assert_exact(1, 0);
    spent
}

#[test]
fn poll_threads_allocate_nothing_for_frames_of_any_shape() {
    let shapes: [&[(&str, &str)]; 4] = [
        &[("layout", "one"), ("sizes", "mix")],
        &[("layout", "indirect:2"), ("sizes", "mix"), ("checksum", "partial")],
        &[("layout", "chain:5"), ("sizes", "mix")],
        &[("pairs", "2"), ("without", "MRG_RXBUF")],
    ];
    for settings in shapes {
        assert_eq!(allocations_while_frames_flow(settings), 0, "{settings:?}");
    }
}
