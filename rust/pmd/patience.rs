//! How long frames wait for a receiver that has no room for them, and what they are dropped for when it is over.

use super::PortView;
use crate::drops::DropReason;
use crate::ring::RingFault;

/// How long frames wait for buffers that a migration has not brought yet, µs: once, until the guest takes frames again.
const HOLD_US: u32 = 5000;
/// How long for buffers that the guest's IOMMU has not translated yet, µs: an emulated one on a busy machine takes its time.
/// How long for all frames together, its [`Credit`](super::Credit) says.
const TRANSLATION_US: u32 = 100_000;
/// How long the rest of a frame waits for a device to send any of what it has, µs.
const REST_US: u32 = 5000;

/// Why a frame is lost that waited in vain for what a ring [lacks](RingFault::is_wait).
pub(super) fn reason_of(fault: RingFault) -> DropReason {
    if fault == RingFault::Absent { DropReason::PostcopyWait } else { DropReason::IotlbWait }
}

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

    /// With a guest whose buffers are not at hand: a migration has not brought them yet, or its IOMMU has not told where they
    /// are.
    pub(super) fn until_there(reason: DropReason) -> Self {
        let us = if reason == DropReason::IotlbWait { TRANSLATION_US } else { HOLD_US };
        Self { us, at_once: reason, in_the_end: reason }
    }

    /// With a device that has a part of the first frame.
    pub(super) fn for_the_rest() -> Self {
        Self { us: REST_US, at_once: DropReason::NoBuffer, in_the_end: DropReason::NoBuffer }
    }
}
