//! Which of the virtio bits that are served a front-end is offered (`other_config:vhost-features`).
//!
//! A guest keeps the bits that its driver accepted when it moves, so it can only move to a host that offers all of them.
//! Who wants to move guests to other switches keeps the rest off the offer before the guests start:
//!
//! ```text
//!   offer = what is served ∩ (what the limit lets through ∪ what this front-end was offered before)
//! ```
//!
//! The second part is what keeps a guest that runs: QEMU keeps coming back for ever to a switch that offers less than
//! its guest accepted. So a limit is for front-ends that are new: another process, or a switch that does not know them.
//!
//! Bits 26 and 30 are between switch and VMM, no guest sees them, and no limit takes them away.

use super::features::{self, LOG_ALL, PROTOCOL_FEATURES};
use crate::lock::Lock;

/// What Open vSwitch 3.1 with DPDK 22.11 offers on a `dpdkvhostuserclient` port. A test asks a real one.
const OVS_3_1: u64 = 0xd_7c66_a7ca | IOMMU_PLATFORM;

/// The same with `userspace-tso-enable=true`: `CSUM`, `HOST_TSO4` and `HOST_TSO6` more, `HOST_ECN` less.
const OVS_3_1_TSO: u64 = 0xd_7c66_9fcb | IOMMU_PLATFORM;

/// Where it is served, an option lets it through at both ends (`vhost-iommu-support`).
const IOMMU_PLATFORM: u64 = 1 << 33;

/// Memory regions that such a port takes.
const OVS_REGIONS: usize = 8;

/// What front-ends are offered at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// All that is served.
    #[default]
    All,
    /// What Open vSwitch 3.1 offers.
    Ovs31 {
        /// Its `userspace-tso-enable`.
        tso: bool,
    },
    /// These virtio bits.
    Mask(u64),
}

impl Limit {
    /// The virtio bits that are let through.
    pub fn virtio(self) -> u64 {
        let bits = match self {
            Self::All => u64::MAX,
            Self::Ovs31 { tso: true } => OVS_3_1_TSO,
            Self::Ovs31 { tso: false } => OVS_3_1,
            Self::Mask(bits) => bits,
        };
        bits | LOG_ALL | PROTOCOL_FEATURES
    }

    /// True if a front-end may share more memory regions than the protocol's first form has. It cannot take back those
    /// past the eighth when it moves to a switch that knows that form alone.
    pub fn has_memory_slots(self) -> bool {
        !matches!(self, Self::Ovs31 { .. })
    }
}

/// The limit that sessions begin with, shared by all ports.
#[derive(Debug, Default)]
pub struct Offer(Lock<Limit>);

impl Offer {
    /// The one for a session that begins now.
    pub fn limit(&self) -> Limit {
        *self.0.lock()
    }

    /// Changes it for sessions that begin from now on. True if it is another.
    pub fn set(&self, limit: Limit) -> bool {
        std::mem::replace(&mut *self.0.lock(), limit) != limit
    }
}

/// What keeps a guest that accepted `features`, with memory in so many regions, from moving to Open vSwitch 3.1; None if
/// nothing keeps it from moving to one as it is by default.
pub(super) fn obstacles_to_ovs(features: u64, regions: usize) -> Option<String> {
    let virtio = features & features::VIRTIO;
    let [plain, tso] = [false, true].map(|tso| virtio & !Limit::Ovs31 { tso }.virtio());
    let mut obstacles = Vec::new();
    // One that starts with what Open vSwitch offers by default cannot move to one with the option: that is its own affair.
    let tso = if plain == 0 { 0 } else { tso };
    for (bits, when) in [
        (plain & tso, ""),
        (plain & !tso, " without userspace-tso-enable=true there"),
        (tso & !plain, " with userspace-tso-enable=true there"),
    ] {
        if bits != 0 {
            obstacles.push(format!("{}{when}", features::names(bits)));
        }
    }
    if regions > OVS_REGIONS {
        obstacles.push(format!("memory in {regions} regions ({OVS_REGIONS} at most)"));
    }
    (!obstacles.is_empty()).then(|| obstacles.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocols_own_bits_are_on_every_offer() {
        for limit in [Limit::All, Limit::Ovs31 { tso: false }, Limit::Mask(0)] {
            assert_eq!(limit.virtio() & (LOG_ALL | PROTOCOL_FEATURES), LOG_ALL | PROTOCOL_FEATURES);
        }
        assert_eq!(Limit::Mask(1 << 15).virtio() & !(LOG_ALL | PROTOCOL_FEATURES), 1 << 15);
        assert_eq!(Limit::All.virtio(), u64::MAX);
    }

    #[test]
    fn what_keeps_a_guest_from_moving_to_open_vswitch_is_named() {
        let everywhere = 1 << 15 | 1 << 32 | 1 << 34 | PROTOCOL_FEATURES;
        assert_eq!(obstacles_to_ovs(everywhere, 8), None);
        assert_eq!(obstacles_to_ovs(OVS_3_1, 8), None);
        let with_option = obstacles_to_ovs(OVS_3_1_TSO, 8).unwrap();
        assert_eq!(with_option, "CSUM, HOST_TSO4, HOST_TSO6 without userspace-tso-enable=true there");
        let text = obstacles_to_ovs(everywhere | 1 << 0 | 1 << 13 | 1 << 56, 9).unwrap();
        let want = "HOST_USO; CSUM without userspace-tso-enable=true there; HOST_ECN with userspace-tso-enable=true \
                    there; memory in 9 regions (8 at most)";
        assert_eq!(text, want);
    }

    #[test]
    fn all_that_open_vswitch_offers_is_served_but_what_no_back_end_is_asked_for() {
        let unserved = (OVS_3_1 | OVS_3_1_TSO) & !features::VIRTIO & !IOMMU_PLATFORM;
        assert_eq!(features::names(unserved), "CTRL_RX");
    }

    #[test]
    fn a_limit_is_set_once() {
        let offer = Offer::default();
        assert_eq!(offer.limit(), Limit::All);
        assert!(offer.set(Limit::Mask(1)) && !offer.set(Limit::Mask(1)));
        assert_eq!(offer.limit(), Limit::Mask(1));
    }
}
