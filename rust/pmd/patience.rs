//! How long frames wait for a receiver that has no room for them, and what they are dropped for when it is over.

use super::PortView;
use crate::drops::DropReason;

/// How long frames wait for buffers that a migration has not brought yet, µs: once, until the guest takes frames again.
const HOLD_US: u32 = 5000;
/// How long the rest of a frame waits for a device to send any of what it has, µs.
const REST_US: u32 = 5000;

/// How long frames wait, and what becomes of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// 0 = not at all.
    pub us: u32,
    pub at_once: DropReason,
    pub in_the_end: DropReason,
}

impl Patience {
    /// With a guest that posted too few buffers (`backpressure-us`).
    pub(super) fn for_buffers(port: &PortView) -> Self {
        Self { us: port.backpressure_us, at_once: DropReason::NoBuffer, in_the_end: DropReason::Backpressure }
    }

    /// With a guest whose buffers a migration has not brought yet.
    pub(super) fn for_pages() -> Self {
        Self { us: HOLD_US, at_once: DropReason::PostcopyWait, in_the_end: DropReason::PostcopyWait }
    }

    /// With a device that has a part of the first frame.
    pub(super) fn for_the_rest() -> Self {
        Self { us: REST_US, at_once: DropReason::NoBuffer, in_the_end: DropReason::NoBuffer }
    }
}
