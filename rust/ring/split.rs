//! The split ring's three areas (virtio 1.2 §2.7).
//!
//! ```text
//!   descriptor table  16 × size        addr:8 len:4 flags:2 next:2
//!   available ring    6 + 2 × size     flags:2 idx:2 ring[size]:2 used_event:2     driver writes
//!   used ring         6 + 8 × size     flags:2 idx:2 ring[size]:(id:4 len:4) avail_event:2   we write
//! ```
#![allow(unsafe_code, reason = "rings are guest memory")]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::journal::{Intent, Journal, Past};
use super::notify;
use super::{RingConfig, RingFault, feature};
use crate::error::{Error, Result};
use crate::memory::{GuestMap, Span, Uva, access};
use crate::sys::eventfd::{self, Notifier};

/// The buffer goes on in the descriptor `next`.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

const DESC_SIZE: u32 = 16;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A descriptor, as read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "takes the fields apart")]
    fn from_words(addr: u64, rest: u64) -> Self {
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// Reads entry `index` of a table that starts at `table`.
    ///
    /// # Safety
    /// The table has more than `index` entries in a live mapping.
    #[inline]
    unsafe fn read(table: *const u8, index: u16) -> Self {
        let at = table.wrapping_add(usize::from(index) * 16);
        // SAFETY: the first half of an entry inside the table, by the caller.
        let addr = unsafe { access::load::<u64>(at) };
        // SAFETY: the second half of the same entry.
        let rest = unsafe { access::load::<u64>(at.wrapping_add(8)) };
        Self::from_words(addr, rest)
    }
}

impl Desc {
    /// Reads entry `index` of an indirect table; None past its end.
    #[inline]
    pub(super) fn in_table(table: Span, index: u16) -> Option<Self> {
        if u32::from(index) >= table.len / DESC_SIZE {
            return None;
        }
        // SAFETY: the index is inside the table, which the caller's map keeps mapped while it holds the span.
        Some(unsafe { Self::read(table.start, index) })
    }
}

/// A split ring that was checked and translated. Owned by one thread at a time.
#[derive(Debug)]
pub struct SplitRing {
    desc: *const u8,
    avail: *const u8,
    used: *mut u8,
    mask: u16,
    /// Both the next available entry to take and, between bursts, the used index.
    next: u16,
    /// The last available index read: re-read only when it is used up.
    seen: u16,
    event_idx: bool,
    pub(super) features: u64,
    journal: Journal,
    pub(super) memory: Arc<GuestMap>,
    kick: Option<File>,
    call: Option<Notifier>,
    /// The call descriptor's owner made a call hang.
    jammed: bool,
}

// SAFETY: the pointers are into mappings that `memory` keeps, usable from any thread; the ring moves whole.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// `RingConfig::activate`, once the size is known to be good.
    pub(super) fn new(
        config: &RingConfig,
        memory: &Arc<GuestMap>,
        kick: Option<File>,
        call: Option<File>,
    ) -> Result<Self> {
        let size = config.size;
        if memory.is_private_at(Uva(config.desc_uva)) {
            return Err(Error::Peer(
                "guest memory is private to the VMM: what the guest writes never reaches this process; add share=on to \
                 its memory backend (libvirt: memAccess='shared')"
                    .into(),
            ));
        }
        let area = |name: &str, uva: u64, bytes: u32, align: u64| {
            if !uva.is_multiple_of(align) {
                return Err(Error::Peer(format!("{name} at {uva:#x} is not aligned to {align} bytes")));
            }
            let span = memory.translate_uva(Uva(uva), bytes);
            let span = span.ok_or_else(|| {
                Error::Peer(format!("{name} at {uva:#x} ({bytes} bytes) is outside the memory table"))
            })?;
            // A region may be mapped at an odd place, by its address or its offset: indices are atomics here.
            if !(span.start.addr() as u64).is_multiple_of(align) {
                return Err(Error::Peer(format!("{name} at {uva:#x} lies in a region that is not page-aligned")));
            }
            Ok(span)
        };
        let desc = area("descriptor table", config.desc_uva, DESC_SIZE * size, 16)?;
        let avail = area("available ring", config.avail_uva, 6 + 2 * size, 2)?;
        let used = area("used ring", config.used_uva, 6 + 8 * size, 4)?;
        // SAFETY: the index is two bytes into the used ring translated above.
        let used_idx = unsafe { access::load_acquire(used.start.wrapping_add(2)) };
        let mask = u16::try_from(size - 1).map_err(|_| Error::Bug(format!("ring size {size} passed the check")))?;
        Ok(Self {
            desc: desc.start,
            avail: avail.start,
            used: used.start,
            mask,
            next: used_idx,
            seen: used_idx,
            event_idx: config.features & feature::EVENT_IDX != 0,
            features: config.features,
            journal: Journal::private(0)?,
            memory: Arc::clone(memory),
            kick: kick.map(eventfd::checked).transpose()?,
            call: call.map(Notifier::new).transpose()?,
            jammed: false,
        })
    }

    /// The index to answer when the ring stops (`vhost-user: GET_VRING_BASE`): available = used.
    pub fn next_index(&self) -> u16 {
        self.next
    }

    /// Writes down from now on, in another's memory, where the ring stands, and says what that held against it. The used
    /// index is the guest's memory's own word for where it stood, and the commit itself: the journal only confirms it.
    pub(super) fn take_up(&mut self, past: Past) -> Option<String> {
        let Intent { old, new, .. } = past.journal.intent();
        let at = self.next;
        let is_new = past.is_known && at != old && at != new;
        past.journal.settle(at);
        self.journal = past.journal;
        is_new.then(|| format!("its used index is {at}, not {new} as written down: the guest set it up anew"))
    }

    /// Elements.
    pub fn size(&self) -> u32 {
        u32::from(self.mask) + 1
    }

    /// The eventfd that the driver's kicks arrive on; awaited edge-triggered and never read. None: poll by timer.
    pub fn kick(&self) -> Option<&File> {
        self.kick.as_ref()
    }

    /// Replaces the call descriptor (`vhost-user: SET_VRING_CALL`) and calls once: a call to the old one may be lost.
    pub fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        self.greet();
    }

    /// The first call, which needs no reason: one before may be lost. A descriptor that would make it hang is spared.
    pub fn greet(&mut self) {
        if self.call.as_ref().is_some_and(Notifier::is_ready) {
            self.call();
        }
    }

    /// What makes every further use of this ring pointless, if anything.
    #[inline]
    pub(super) fn check(&self) -> std::result::Result<(), RingFault> {
        if self.jammed {
            return Err(RingFault::CallJammed);
        }
        if self.memory.is_broken() { Err(RingFault::MemoryLost) } else { Ok(()) }
    }

    /// What lies behind a fault: memory that was taken away reads as zeroes, and those as nonsense.
    #[cold]
    pub(super) fn cause_of(&self, fault: RingFault) -> RingFault {
        self.check().err().unwrap_or(fault)
    }

    /// Available entries not yet taken. One acquire load.
    #[inline]
    pub(super) fn ready(&mut self) -> std::result::Result<u16, RingFault> {
        // SAFETY: the index is two bytes into the available ring, mapped by `memory`.
        let seen = unsafe { access::load_acquire(self.avail.wrapping_add(2)) };
        let ready = seen.wrapping_sub(self.next);
        // A ring of 32768 entries has mask 32767; more than that many new entries cannot fit. What was there cannot be
        // gone either, and an index that was refused is not one that was seen.
        if ready > self.mask.wrapping_add(1) || ready < self.known_ready() {
            return Err(RingFault::IndexJump);
        }
        self.seen = seen;
        Ok(ready)
    }

    /// Available entries not yet taken, as far as known without reading the driver's index again.
    #[inline]
    pub(super) fn known_ready(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// Head of the `ahead`-th entry not yet taken.
    #[inline]
    pub(super) fn head(&self, ahead: u16) -> std::result::Result<u16, RingFault> {
        let slot = usize::from(self.next.wrapping_add(ahead) & self.mask);
        // SAFETY: the slot is masked to the ring, which `memory` keeps mapped.
        let head = unsafe { access::load::<u16>(self.avail.wrapping_add(4 + 2 * slot)) };
        if head > self.mask { Err(RingFault::IndexRange) } else { Ok(head) }
    }

    /// Descriptor `index` of the ring's own table.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> std::result::Result<Desc, RingFault> {
        if index > self.mask {
            return Err(RingFault::IndexRange);
        }
        // SAFETY: the index is inside the table, which `memory` keeps mapped.
        Ok(unsafe { Desc::read(self.desc, index) })
    }

    /// Writes the used element for the `ahead`-th entry not yet taken. Visible to the driver after [`Self::publish`].
    #[inline]
    pub(super) fn put_used(&self, ahead: u16, id: u16, written: u32) {
        let slot = usize::from(self.next.wrapping_add(ahead) & self.mask);
        // SAFETY: the slot is masked to the ring, which `memory` keeps mapped. A driver that keeps its ring nearly empty
        // reads the same lines; leaving equal ones untouched saves it the miss.
        unsafe {
            access::store_if_changed(self.used.wrapping_add(4 + 8 * slot), u64::from(id) | u64::from(written) << 32);
        }
    }

    /// Gives `count` entries back: everything written before is visible once the driver sees the new index.
    #[inline]
    pub(super) fn publish(&mut self, count: u16) {
        let old = self.next;
        self.next = old.wrapping_add(count);
        self.journal.intend(old, self.next, 0);
        // SAFETY: the index is two bytes into the used ring, mapped by `memory`.
        unsafe { access::store_release(self.used.wrapping_add(2), self.next) };
        self.journal.settle(self.next);
    }

    /// Tells the driver that `count` entries were published, if it wants to know; true if it did. The one full fence of a commit is
    /// here: it orders our index before our reading of the driver's wish.
    #[inline]
    pub(super) fn notify(&mut self, count: u16) -> bool {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            // SAFETY: used_event follows the available ring's entries; its two bytes were translated with it.
            let event = unsafe { access::load::<u16>(self.avail.wrapping_add(4 + 2 * (usize::from(self.mask) + 1))) };
            notify::passes(event, self.next, self.next.wrapping_sub(count))
        } else {
            // SAFETY: the flags are the available ring's first two bytes.
            let flags = unsafe { access::load::<u16>(self.avail) };
            flags & AVAIL_NO_INTERRUPT == 0
        };
        if wanted {
            self.call();
        }
        wanted
    }

    /// Calls the driver unconditionally; a spurious call is allowed and cures a lost one after a restart.
    pub(super) fn call(&mut self) {
        if let Some(call) = &self.call
            && !self.jammed
            && !call.notify()
        {
            (self.call, self.jammed) = (None, true);
        }
    }

    /// Asks the driver for kicks from the next entry on. True if one came in meanwhile: then do not sleep.
    pub(super) fn enable_kicks(&mut self) -> bool {
        self.want_kicks(true);
        fence(Ordering::SeqCst);
        // A broken index counts as work, so that the queue is looked at and stopped.
        self.ready() != Ok(0)
    }

    /// Tells the driver that we look by ourselves.
    pub(super) fn disable_kicks(&mut self) {
        self.want_kicks(false);
    }

    fn want_kicks(&mut self, wanted: bool) {
        if self.event_idx {
            let event = if wanted { self.next } else { self.next.wrapping_sub(1) };
            let at = self.used.wrapping_add(4 + 8 * (usize::from(self.mask) + 1));
            // SAFETY: avail_event follows the used ring's entries; its two bytes were translated with it.
            unsafe { access::store::<u16>(at, event) };
        } else {
            // SAFETY: the flags are the used ring's first two bytes.
            unsafe { access::store::<u16>(self.used, if wanted { 0 } else { USED_NO_NOTIFY }) };
        }
    }
}
