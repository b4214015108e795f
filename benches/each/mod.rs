//! Times for one frame or one look-up, measured over many.

use std::time::Duration;

/// What `wanted` elements take, when each call of `batch` handles `count` of them and says how long that took.
#[allow(clippy::cast_precision_loss, reason = "a ratio near one")]
pub(crate) fn scaled(wanted: u64, count: u64, mut batch: impl FnMut() -> Duration) -> Duration {
    let calls = wanted.div_ceil(count);
    let spent: Duration = (0..calls).map(|_| batch()).sum();
    spent.mul_f64(wanted as f64 / (calls * count) as f64)
}
