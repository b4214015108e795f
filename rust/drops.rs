//! Every reason for which a frame is dropped: the one table.
//!
//! A reason is a statistic of the port where it happened: `rx_drop_*` on the sender's port, `tx_drop_*` on the
//! receiver's. A frame taken from a guest is counted in exactly one of its port's `rx_packets` and `rx_drop_*`; what
//! passed is counted, at every port it was meant for, in exactly one of `tx_packets` and `tx_drop_*`. Of a frame that is
//! segmented for its receiver every segment counts in `tx_packets`: that is what the guest gets, and what OVS counts. It is
//! delivered as a whole or not at all, so in `tx_drop_*` it counts once. So does one that a network device's ring takes in
//! parts only and that is given up half way: the segments sent before are in `tx_packets`.

/// Why a frame went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    Runt,
    /// Longer than any frame can be (65 550 bytes).
    Oversize,
    /// Asked for an offload that was not negotiated or lies outside the frame.
    BadOffload,
    /// From a group address, which nobody has.
    BadSource,
    /// To one of the sixteen link-local protocol addresses, without `forward-bpdu`.
    Reserved,
    /// It came over a link of a bond that takes nothing from that link now.
    InactiveMember,
    /// It came over a link of a bond from somebody who is elsewhere: what the bond sent over another link came back.
    Reflected,
    /// The destination is behind the port it came from.
    SamePort,
    /// Nobody else on the bridge could get it.
    NoReceiver,
    /// The port it came from is administratively down.
    AdminDown,
    /// The receiver's port is administratively down.
    ReceiverAdminDown,
    /// The receiver's guest is away, or enabled no receiveq.
    LinkDown,
    /// Longer than the receiver's MTU allows.
    MtuExceeded,
    /// The receiver posted too few buffers.
    NoBuffer,
    /// The receiver posted too few buffers for as long as `backpressure-us` allows.
    Backpressure,
    /// Another thread had the receiver's ring for too long.
    Contended,
    /// The receiver's buffers are too small for the frame, and it cannot merge them.
    BufferTooSmall,
    /// The receiver's ring is broken.
    RingBroken,
    /// A migration has not brought the receiver's buffers yet.
    PostcopyWait,
    /// The receiver's IOMMU has not told in time where its buffers are, or the sender's took the frame back while it waited.
    IotlbWait,
    /// The network device cannot send it: its ring has fewer places than the frame has fragments, or its kernel takes no
    /// such frame.
    DeviceRefused,
}

/// How many reasons there are.
pub const COUNT: usize = 21;

/// Name and side of each reason, in the order of [`DropReason`]; `true` = counted where the frame came in.
pub const TABLE: [(DropReason, &str, bool); COUNT] = [
    (DropReason::Runt, "runt", true),
    (DropReason::Oversize, "oversize", true),
    (DropReason::BadOffload, "bad_offload", true),
    (DropReason::BadSource, "bad_source", true),
    (DropReason::Reserved, "reserved", true),
    (DropReason::InactiveMember, "inactive_member", true),
    (DropReason::Reflected, "reflected", true),
    (DropReason::SamePort, "same_port", true),
    (DropReason::NoReceiver, "no_receiver", true),
    (DropReason::AdminDown, "admin_down", true),
    (DropReason::ReceiverAdminDown, "admin_down", false),
    (DropReason::LinkDown, "link_down", false),
    (DropReason::MtuExceeded, "mtu_exceeded", false),
    (DropReason::NoBuffer, "no_buffer", false),
    (DropReason::Backpressure, "backpressure", false),
    (DropReason::Contended, "contended", false),
    (DropReason::BufferTooSmall, "rx_buffer_too_small", false),
    (DropReason::RingBroken, "ring_broken", false),
    (DropReason::PostcopyWait, "postcopy_wait", false),
    (DropReason::IotlbWait, "iotlb_wait", false),
    (DropReason::DeviceRefused, "device_refused", false),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum() {
        for (i, (reason, name, _)) in TABLE.iter().enumerate() {
            assert_eq!(*reason as usize, i, "{name}");
        }
    }
}
