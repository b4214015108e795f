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
//! link that is active, or of all links that carry. Which those are, control decides: a topology never changes, so a bond
//! whose links change is another topology. What links say of themselves (slow protocols) is for control and goes no further.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Topology;
use super::letterbox::Letterbox;
use crate::burst::{Burst, Head, Stop};
use crate::drops::DropReason;
use crate::frame::ethernet::{self, Mac};
use crate::frame::flow::FlowKey;
use crate::frame::lacp::{Pdu, is_slow_protocol};
use crate::switch::PortId;
use crate::switch::fdb::{Fdb, Key};

/// Among so many shares the frames of a bond are divided.
pub const SHARES: usize = 256;
/// Most links of a bond that shares its frames out.
pub const LINKS_MAX: usize = 32;
/// Somebody who was silent for so long, seconds, may have moved: before, an announcement of his is our own come back.
const SILENCE_S: u32 = 5;
/// What becomes of a frame that its bond takes from another link only.
const INACTIVE: Stop = Stop::Drop(DropReason::InactiveMember);

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

/// What frames have in common that have the same link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Who sends them, in which VLAN.
    Station,
    /// Their flow: both directions, all fragments.
    Flow,
}

/// Who carries what.
#[derive(Debug)]
pub struct Shares {
    /// How a frame's bucket is found.
    pub basis: Basis,
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
        let hash = match self.basis {
            Basis::Station => key.hash_source(&head.0),
            Basis::Flow => key.hash(&head.0),
        };
        let bucket = (hash >> 24) as usize;
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
    /// Where LACP frames go, if the bond speaks that.
    pub letterbox: Option<Arc<Letterbox>>,
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
    /// Stops those frames of a burst from this link that the bond does not take, and those that are for the switch itself.
    pub(super) fn admit(&self, burst: &mut Burst, fdb: &Fdb, topology: &Topology, now_s: u32) {
        for index in 0..burst.len() {
            if burst.heads().get(index).is_some_and(|head| is_slow_protocol(&head.0)) {
                self.hear(burst, index);
            }
        }
        match self.admission {
            Admission::All => {}
            Admission::Nothing => {
                for index in 0..burst.len() {
                    burst.stop(index, INACTIVE);
                }
            }
            Admission::Unreflected { takes_groups } => {
                for index in 0..burst.len() {
                    let Some(head) = burst.heads().get(index) else { continue };
                    if !takes_groups && Mac::destination(&head.0).is_group() {
                        burst.stop(index, INACTIVE);
                    } else if self.is_reflected(head, fdb, topology, now_s) {
                        burst.stop(index, Stop::Drop(DropReason::Reflected));
                    }
                }
            }
        }
    }

    /// Takes a slow protocol's frame out: whatever is to become of it, it is between the two ends of this link.
    #[cold]
    fn hear(&self, burst: &mut Burst, index: usize) {
        let frame = burst.heads().get(index).zip(burst.packets().get(index));
        let pdu = frame.and_then(|(head, packet)| Pdu::parse(&head.0, packet.len));
        match self.letterbox.as_deref().zip(pdu) {
            Some((letterbox, pdu)) => {
                letterbox.put(pdu);
                burst.stop(index, Stop::Read);
            }
            None => burst.stop(index, Stop::Drop(DropReason::Reserved)),
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
    use crate::frame::lacp::End;

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

    fn member(letterbox: Option<&Arc<Letterbox>>, admission: Admission) -> Membership {
        Membership { bond: 9, admission, letterbox: letterbox.cloned() }
    }

    /// What became of the frames of a burst from a link: by frame why it goes no further.
    fn admitted(membership: &Membership, burst: &mut Burst) -> Vec<Option<Stop>> {
        membership.admit(burst, &Fdb::new(10, 300), &Topology::default(), 0);
        burst.packets().iter().map(|packet| packet.stop).collect()
    }

    /// An LACP frame, one of its markers, one cut short, and one that is for somebody.
    fn frames() -> Burst {
        let us = End { system: Mac(0x0200_0000_0001), port: 3, ..End::UNKNOWN };
        let said = Pdu { actor: us, partner: End::UNKNOWN }.head(Mac(5));
        let mut marker = said;
        marker[14] = 2;
        let mut burst = Burst::new(Arc::default());
        burst.push_padded(&said, 124);
        burst.push_padded(&marker, 124);
        burst.push_padded(&said, 123);
        burst.push_own(&arp(1, 1, 2, &[]));
        burst
    }

    #[test]
    fn slow_protocols_end_at_a_link_whatever_it_admits_and_lacp_is_heard_where_it_is_spoken() {
        const RESERVED: Option<Stop> = Some(Stop::Drop(DropReason::Reserved));
        let (silent, letterbox) = (member(None, Admission::All), Arc::default());
        assert_eq!(admitted(&silent, &mut frames()), [RESERVED, RESERVED, RESERVED, None]);
        for (admission, other) in [
            (Admission::All, None),
            (Admission::Nothing, Some(INACTIVE)),
            (Admission::Unreflected { takes_groups: false }, Some(INACTIVE)),
        ] {
            let speaking = member(Some(&letterbox), admission);
            assert_eq!(admitted(&speaking, &mut frames()), [Some(Stop::Read), RESERVED, RESERVED, other]);
            assert_eq!(letterbox.take().map(|pdu| pdu.actor.port), Some(3));
        }
    }

    #[test]
    fn both_directions_of_a_flow_have_a_link_and_stations_have_theirs() {
        let shares = |basis| Shares {
            basis,
            buckets: std::array::from_fn(|at| u8::try_from(at % 2).unwrap()),
            links: vec![1, 2],
            loads: Arc::default(),
        };
        let frame = |from: u8, to: u8, port: u8| {
            let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            frame.extend([10, 0, 0, from, 10, 0, 0, to]);
            frame.extend(if from < to { [4, port, 0, 80] } else { [0, 80, 4, port] });
            head(&frame)
        };
        let key = FlowKey::new(7);
        let (by_flow, by_station) = (shares(Basis::Flow), shares(Basis::Station));
        let flows: Vec<usize> = (0..100).map(|port| by_flow.take(key, &frame(1, 2, port), 60)).collect();
        let back: Vec<usize> = (0..100).map(|port| by_flow.take(key, &frame(2, 1, port), 60)).collect();
        assert_eq!(flows, back);
        let on_first = flows.iter().filter(|link| **link == 0).count();
        assert!((20..=80).contains(&on_first), "{on_first} of 100 flows of two stations over one of two links");
        let stations: Vec<usize> = (0..100).map(|port| by_station.take(key, &frame(1, 2, port), 60)).collect();
        assert!(stations.windows(2).all(|two| two[0] == two[1]));
        assert_eq!(by_flow.loads.read().sum::<u64>(), 200 * 60);
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
