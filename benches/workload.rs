//! A fixed workload for `benches/instructions`: so many frames of one size and layout, driver to driver, and nothing else.
//!
//! `workload LIST` prints the cases; `workload CASE FRAMES` walks them. Only `Way::walk` is to be counted.

mod guest;

use guest::way::Way;
use guest::{FRAMES, LAYOUTS, OTHERS, ReceivingGuest, SendingGuest};

const SIZES: [usize; 3] = [64, 1518, 9000];

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let wanted = words.next().unwrap_or_else(|| "LIST".into());
    let frames: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(100_000);
    let all = LAYOUTS.into_iter().flat_map(|kind| SIZES.map(|size| (kind, size)));
    // What the others cost beyond a frame's bytes shows at the smallest.
    let others = OTHERS.map(|kind| (kind, SIZES[0]));
    let plain = all.chain(others).map(|(kind, size)| (kind, size, false));
    let moves = [LAYOUTS[0], OTHERS[0]].map(|kind| (kind, SIZES[0], true));
    for (kind, size, moves) in plain.chain(moves) {
        let case = format!("{}, {size} B{}", kind.name, if moves { ", logged" } else { "" });
        if wanted == "LIST" {
            println!("{case}");
        } else if wanted == case {
            let receiver = if moves { ReceivingGuest::that_moves(kind) } else { ReceivingGuest::new(kind) };
            let mut way = Way::new(SendingGuest::new(kind, size), receiver);
            for _ in 0..frames.div_ceil(usize::from(FRAMES)) {
                way.check();
            }
        }
    }
}
