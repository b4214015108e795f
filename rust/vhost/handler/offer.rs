//! What this session's front-end is offered: as much as the limit lets through, and no less than the same process was
//! offered before. A port whose buffers may stay with a device for long does not promise new guests an order.

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::Handler;
use crate::ring::feature::IN_ORDER;
use crate::vhost::endpoint::Port;
use crate::vhost::features;
use crate::vhost::offer;
use crate::vhost::peer::Peer;

/// An offer that was made to a process.
#[derive(Debug, Clone, Copy)]
pub(in crate::vhost) struct Made {
    pid: i32,
    virtio: u64,
    has_memory_slots: bool,
}

/// The bits of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    virtio: u64,
    has_memory_slots: bool,
}

impl Bits {
    /// What `peer` is offered on this port, written down for when it comes back.
    pub(super) fn for_session(port: &Port, peer: &Peer) -> Self {
        let (limit, order) = (port.offer.limit(), if port.link.wants_any_order() { IN_ORDER } else { 0 });
        let mut made = port.made.lock();
        let (kept, kept_slots) = match *made {
            Some(before) if before.pid == peer.pid => (before.virtio, before.has_memory_slots),
            Some(_) => (0, false),
            // It may be a guest of the process before this one.
            None => port.recovery.features_of(&port.socket).map_or((0, false), |features| (features, true)),
        };
        let bits = Self {
            virtio: features::virtio(port.iommu) & (limit.virtio() & !order | kept),
            has_memory_slots: limit.has_memory_slots() || kept_slots,
        };
        *made = Some(Made { pid: peer.pid, virtio: bits.virtio, has_memory_slots: bits.has_memory_slots });
        bits
    }
}

impl Handler {
    /// The virtio bits on offer.
    pub(in crate::vhost) fn offer(&self) -> u64 {
        self.bits.virtio
    }

    /// The protocol bits on offer.
    pub(super) fn protocol_offer(&self) -> VhostUserProtocolFeatures {
        let mut bits = features::protocol(self.port.postcopy, self.port.iommu);
        bits.set(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS, self.bits.has_memory_slots);
        bits
    }

    /// Which bits that are served are held back from this front-end, and how to let them through; None if none is.
    pub(in crate::vhost) fn held_back(&self) -> Option<String> {
        let held_back = features::virtio(self.port.iommu) & !self.offer();
        let by_limit = held_back & !self.port.offer.limit().virtio();
        let mut reasons = Vec::new();
        if by_limit != 0 {
            let names = features::names(by_limit);
            reasons.push(format!("other_config:vhost-features holds back {names}; =all lets all through"));
        }
        if held_back & !by_limit & IN_ORDER != 0 {
            reasons.push("options:dq-zero-copy holds back IN_ORDER; =false lets it through".to_owned());
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// What would stop a move to Open vSwitch.
    pub(super) fn obstacles_to_ovs(&self) -> Option<String> {
        let regions = self.memory.as_ref().map_or(0, |memory| memory.len());
        self.features.and_then(|features| offer::obstacles_to_ovs(features, regions))
    }
}
