//! Bonds, as poll threads see them: several links that are one port of their bridge.
//!
//! ```text
//!   from link p0 ─┐ Membership::admit                              ┌─▶ p0
//!                 ├──────────────────▶ learned behind, and sent to │
//!   from link p1 ─┘ drops by name      the bond's own port id ─────┴─▶ p1
//! ```
//!
//! The table of addresses and the verdict on a frame know the bond's id only. What comes in over a link is admitted here,
//! once a burst, and is the bond's from then on; where it goes out is the bond's view in the topology: the queues of the
//! link that is active. Which one that is, control decides: a topology never changes, so a bond whose links change is
//! another topology.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Topology;
use crate::burst::{Burst, Head};
use crate::drops::DropReason;
use crate::frame::ethernet::{self, Mac};
use crate::frame::flow::FlowKey;
use crate::switch::PortId;
use crate::switch::fdb::{Fdb, Key};

/// Among so many shares the frames of a bond are divided.
pub const SHARES: usize = 256;
/// Most links of a bond that shares its frames out.
pub const LINKS_MAX: usize = 32;
/// Somebody who was silent for so long, seconds, may have moved: before, an announcement of his is our own come back.
const SILENCE_S: u32 = 5;

/// What a port has to do with bonds.
#[derive(Debug, Clone, Default)]
pub enum Bonding {
    /// Nothing.
    #[default]
    None,
    /// It is a link of one.
    Member(Membership),
    /// It is one that shares its frames out over its links.
    Shares(Arc<Shares>),
}

/// Who carries what.
#[derive(Debug)]
pub struct Shares {
    /// By bucket, a place in `links`.
    pub buckets: [u8; SHARES],
    /// Those that carry.
    pub links: Vec<PortId>,
    /// Bytes that each bucket carried, from the bond's first day on.
    pub loads: Arc<Loads>,
}

/// Bytes by bucket; any poll thread adds to them.
#[derive(Debug)]
pub struct Loads([AtomicU64; SHARES]);

impl Default for Loads {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SHARES])
    }
}

impl Loads {
    /// What each bucket carried until now.
    pub fn read(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|bytes| bytes.load(Ordering::Relaxed))
    }
}

impl Shares {
    /// The link that a frame of `len` bytes goes out on, as a place in `links`; counts it.
    #[inline]
    pub(super) fn take(&self, key: FlowKey, head: &Head, len: u32) -> usize {
        let bucket = (key.hash_source(&head.0) >> 24) as usize;
        if let Some(bytes) = self.loads.0.get(bucket) {
            bytes.fetch_add(u64::from(len), Ordering::Relaxed);
        }
        self.buckets.get(bucket).map_or(0, |link| usize::from(*link))
    }
}

/// A link of a bond.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The bond's port id.
    pub bond: PortId,
    /// What may come in over this link.
    pub admission: Admission,
}

/// What a bond takes from one of its links (Open vSwitch, "Bonding": bond packet input).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Everything.
    All,
    /// Nothing: of frames that the neighbour sends over all links, one copy is enough.
    Nothing,
    /// What is for one station, and over the active link what is for all; but nothing that the bond sent itself.
    Unreflected {
        /// It is the active one.
        takes_groups: bool,
    },
}

impl Membership {
    /// Marks those frames of a burst from this link that the bond does not take.
    pub(super) fn admit(&self, burst: &mut Burst, fdb: &Fdb, topology: &Topology, now_s: u32) {
        match self.admission {
            Admission::All => {}
            Admission::Nothing => {
                for index in 0..burst.len() {
                    burst.refuse(index, DropReason::InactiveMember);
                }
            }
            Admission::Unreflected { takes_groups } => {
                for index in 0..burst.len() {
                    let Some(head) = burst.heads().get(index) else { continue };
                    if !takes_groups && Mac::destination(&head.0).is_group() {
                        burst.refuse(index, DropReason::InactiveMember);
                    } else if self.is_reflected(head, fdb, topology, now_s) {
                        burst.refuse(index, DropReason::Reflected);
                    }
                }
            }
        }
    }

    /// True for a frame from somebody who is known behind another port of the bridge, unless there is nobody there any
    /// more, or he announces himself after a silence.
    fn is_reflected(&self, head: &Head, fdb: &Fdb, topology: &Topology, now_s: u32) -> bool {
        let header = ethernet::parse(&head.0);
        let Some((port, age_s)) = fdb.last_seen(Key::new(header.vlan, header.src), now_s) else { return false };
        if port == self.bond || topology.port(port).is_none_or(|view| view.receiveqs.is_empty()) {
            return false;
        }
        age_s < SILENCE_S || !is_announcement(head)
    }
}

/// Gratuitous ARP: to everybody, an answer, or a question about oneself (RFC 5227 §1.1).
fn is_announcement(head: &Head) -> bool {
    let header = ethernet::parse(&head.0);
    let at = if header.tagged { 16 } else { 12 };
    let Some(arp) = head.0.get(at..at + 30).filter(|_| header.dst == Mac::BROADCAST) else { return false };
    let operation = arp.get(8..10);
    arp.starts_with(&[0x08, 0x06])
        && (operation == Some(&[0, 2]) || (operation == Some(&[0, 1]) && arp.get(16..20) == arp.get(26..30)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVED: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn arp(operation: u8, sender: u8, target: u8, tag: &[u8]) -> Vec<u8> {
        let header = [&[0xff; 6][..], &MOVED, tag, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        [&header[..], &MOVED, &[10, 0, 0, sender], &[0; 6], &[10, 0, 0, target]].concat()
    }

    fn head(frame: &[u8]) -> Head {
        let mut head = Head([0; 64]);
        head.0[..frame.len()].copy_from_slice(frame);
        head
    }

    #[test]
    fn who_speaks_of_himself_to_everybody_announces_himself() {
        for tag in [&[][..], &[0x81, 0, 0, 5]] {
            assert!(is_announcement(&head(&arp(1, 7, 7, tag))), "a question about oneself");
            assert!(is_announcement(&head(&arp(2, 7, 1, tag))), "an answer to all");
            assert!(!is_announcement(&head(&arp(1, 7, 8, tag))), "a question about another");
            let mut to_one = arp(2, 7, 1, tag);
            to_one[0] = 2;
            assert!(!is_announcement(&head(&to_one)));
        }
    }
}
