//! A fixed workload for `benches/instructions`: so many frames of one size and layout, driver to driver, and nothing else.
//!
//! `workload LIST` prints the cases; `workload CASE FRAMES` walks them. Only `Way::walk` is to be counted.

mod guest;

use guest::way::Way;
use guest::{ALONE, GUARDED, LAYOUTS, MANY, MOVES, OTHERS};

const SIZES: [usize; 3] = [64, 1518, 9000];

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let wanted = words.next().unwrap_or_else(|| "LIST".into());
    let frames: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(100_000);
    let all = LAYOUTS.into_iter().flat_map(|kind| SIZES.map(|size| (kind, size)));
    // What the others cost beyond a frame's bytes shows at the smallest.
    let others = OTHERS.into_iter().chain([MANY, GUARDED]).chain(ALONE).chain(MOVES).map(|kind| (kind, SIZES[0]));
    for (kind, size) in all.chain(others) {
        let case = format!("{}, {size} B", kind.name);
        if wanted == "LIST" {
            println!("{case}");
        } else if wanted == case {
            let mut way = Way::new(kind, size);
            for _ in 0..frames.div_ceil(usize::from(kind.together)) {
                way.check();
            }
        }
    }
}
