//! What a port offers a front-end, and the names of bits for people.
//!
//! Only what is served is offered. An offer never shrinks while the process lives, so a front-end that reconnects
//! finds at least what it had.

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

/// Queue pairs a port can have (`vhost-user: GET_QUEUE_NUM` means pairs for a network device).
pub const QUEUE_PAIRS: u64 = 128;

/// Vrings a port can have: the index of a kick, call or error message has eight bits.
pub const VRINGS: usize = 256;

/// Memory regions a front-end may share (`vhost-user: GET_MAX_MEM_SLOTS`; what the kernel's vhost and QEMU use).
pub const MEM_SLOTS: u64 = 509;

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// `VHOST_F_LOG_ALL`.
pub const LOG_ALL: u64 = 1 << 26;

/// `VIRTIO_F_ACCESS_PLATFORM`, called `IOMMU_PLATFORM` before virtio 1.2.
pub const IOMMU_PLATFORM: u64 = 1 << 33;

/// Virtio bits of a network device, by number (virtio 1.2 §5.1.3, §6; vhost-user for 26 and 30).
const NAMES: [(u32, &str); 39] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (6, "GSO"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (24, "NOTIFY_ON_EMPTY"),
    (26, "LOG_ALL"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (32, "VERSION_1"),
    (33, "IOMMU_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
];

/// The virtio bits on offer. `CTRL_GUEST_OFFLOADS` is not: the front-end answers that command by itself and the protocol
/// has no message for it, so a guest would go on getting what it had just refused. Without it a driver's own offloads
/// stand from start to reset, and those it sends with may come and go.
pub const VIRTIO: u64 = 1 << 0   // CSUM
    | 1 << 1                     // GUEST_CSUM
    | 1 << 3                     // MTU
    | 1 << 6                     // GSO
    | 1 << 7                     // GUEST_TSO4
    | 1 << 8                     // GUEST_TSO6
    | 1 << 9                     // GUEST_ECN
    | 1 << 10                    // GUEST_UFO
    | 1 << 11                    // HOST_TSO4
    | 1 << 12                    // HOST_TSO6
    | 1 << 13                    // HOST_ECN
    | 1 << 14                    // HOST_UFO
    | 1 << 15                    // MRG_RXBUF
    | 1 << 17                    // CTRL_VQ
    | 1 << 21                    // GUEST_ANNOUNCE
    | 1 << 22                    // MQ
    | LOG_ALL
    | 1 << 27                    // ANY_LAYOUT
    | 1 << 28                    // INDIRECT_DESC
    | 1 << 29                    // EVENT_IDX
    | PROTOCOL_FEATURES
    | 1 << 32                    // VERSION_1
    | 1 << 34                    // RING_PACKED
    | 1 << 35                    // IN_ORDER
    | 1 << 54                    // GUEST_USO4
    | 1 << 55                    // GUEST_USO6
    | 1 << 56; // HOST_USO

/// The protocol bits on every port's offer.
pub const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::RARP)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::MTU)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::STATUS);

/// The virtio bits on offer: with [`IOMMU_PLATFORM`] where guests with an IOMMU are served.
pub fn virtio(iommu: bool) -> u64 {
    if iommu { VIRTIO | IOMMU_PLATFORM } else { VIRTIO }
}

/// The protocol bits on offer: with [`Protocol::PAGEFAULT`] where post-copy migration is served, with
/// [`Protocol::BACKEND_REQ`], without which QEMU refuses [`IOMMU_PLATFORM`], where that is.
pub fn protocol(postcopy: bool, iommu: bool) -> Protocol {
    let mut protocol = PROTOCOL;
    protocol.set(Protocol::PAGEFAULT, postcopy);
    protocol.set(Protocol::BACKEND_REQ, iommu);
    protocol
}

/// Names the virtio bits in `bits`, lowest first: `MRG_RXBUF, EVENT_IDX`; a bit without a name by its number.
pub fn names(bits: u64) -> String {
    let name = |bit: u32| match NAMES.iter().find(|(number, _)| *number == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    let set = (0..u64::BITS).filter(|bit| bits & (1 << bit) != 0);
    set.map(name).collect::<Vec<_>>().join(", ")
}

/// Names the protocol bits in `bits`.
pub fn protocol_names(bits: u64) -> String {
    let known = Protocol::from_bits_truncate(bits);
    let mut names: Vec<String> = known.iter_names().map(|(name, _)| name.to_owned()).collect();
    let unknown = bits & !known.bits();
    names.extend((0..u64::BITS).filter(|bit| unknown & (1 << bit) != 0).map(|bit| format!("bit {bit}")));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_bit_has_a_name() {
        assert!(!names(VIRTIO).contains("bit "));
        assert_eq!(names(1 << 15 | 1 << 29), "MRG_RXBUF, EVENT_IDX");
        assert_eq!(names(1 << 63), "bit 63");
        assert_eq!(names(0), "");
    }

    #[test]
    fn protocol_bits_are_named() {
        assert_eq!(
            protocol_names(PROTOCOL.bits()),
            "MQ, LOG_SHMFD, RARP, REPLY_ACK, MTU, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS"
        );
        assert_eq!(protocol_names(1 << 40), "bit 40");
    }

    #[test]
    fn what_is_not_served_yet_is_not_offered() {
        let unserved = ["RING_RESET", "CTRL_GUEST_OFFLOADS", "IOMMU_PLATFORM"];
        let offered = names(VIRTIO);
        assert!(unserved.iter().all(|name| !offered.split(", ").any(|offer| offer == *name)));
    }
}
