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

use crate::burst::Burst;
use crate::drops::DropReason;
use crate::switch::PortId;

/// What a port has to do with bonds.
#[derive(Debug, Clone, Default)]
pub enum Bonding {
    /// Nothing.
    #[default]
    None,
    /// It is a link of one.
    Member(Membership),
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
}

impl Membership {
    /// Marks those frames of a burst from this link that the bond does not take.
    pub(super) fn admit(&self, burst: &mut Burst) {
        match self.admission {
            Admission::All => {}
            Admission::Nothing => {
                for index in 0..burst.len() {
                    burst.refuse(index, DropReason::InactiveMember);
                }
            }
        }
    }
}
