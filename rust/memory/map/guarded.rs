//! Translation for a guest that has an IOMMU before its device: through the IOTLB's mappings to the regions.

use std::ops::Range;
use std::sync::Arc;

use super::{Entry, GuestMap, Hint, Span, Unreachable};
use crate::error::{Error, Result};
use crate::memory::iotlb::{Access, Iotlb, Mapping, Need, PAGE};
use crate::memory::tlb::Tlb;
use crate::memory::{Iova, Uva};

/// Most bytes of a buffer that are asked for ahead of need: few drivers post longer ones.
const ASKED_AHEAD: u32 = 16 << 10;

/// What is known of where something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// In one piece, at this address of the front-end's.
    At(Uva),
    /// Some of it has no mapping yet; that was asked for.
    Unmapped,
    /// Its pages are not one after another in the guest's memory.
    Scattered,
}

impl GuestMap {
    /// The same memory, guarded by an IOMMU whose mappings `iotlb` gets, or by none.
    #[must_use]
    pub fn guarded_by(&self, iotlb: Option<Iotlb>) -> Self {
        let map = Self { entries: self.entries.clone(), incoming: self.incoming.clone(), ..Self::default() };
        Self { iotlb: iotlb.map(Arc::new), ..map }
    }

    /// What guards it.
    pub fn iotlb(&self) -> Option<&Iotlb> {
        self.iotlb.as_deref()
    }

    /// True if the device reaches only what the guest's IOMMU maps.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.iotlb.is_some()
    }

    /// How often something was taken back that the device could reach.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.iotlb.as_ref().map_or(0, |iotlb| iotlb.generation())
    }

    /// From now on `size` bytes at `iova` are the memory at the front-end's address `uva`, for this access (`vhost-user:
    /// VHOST_IOTLB_UPDATE`). Gives the addresses among which that takes something back, if it does: it is gone once every
    /// poll thread has passed.
    ///
    /// # Errors
    /// `Peer`: no bytes, no whole pages, addresses that wrap, memory outside the table, more mappings than there may be.
    pub fn map_iova(&self, iova: Iova, size: u64, uva: Uva, access: Access) -> Result<Option<Range<u64>>> {
        let iotlb = self.guard()?;
        let Some(end) = iova.0.checked_add(size).filter(|_| size > 0 && uva.0.checked_add(size).is_some()) else {
            return Err(Error::Peer(format!(
                "a mapping of {size:#x} bytes from {:#x} to {:#x}: of no bytes, or one that wraps around",
                iova.0, uva.0
            )));
        };
        // What a translation costs grows with the mappings that a buffer lies in.
        let fields = [("iova", iova.0), ("size", size), ("uaddr", uva.0)];
        if let Some((field, value)) = fields.into_iter().find(|(_, value)| !value.is_multiple_of(PAGE)) {
            return Err(Error::Peer(format!(
                "a mapping whose {field} is {value:#x}: no multiple of {PAGE}, the smallest page that an IOMMU has; the \
                 front-end must map whole pages"
            )));
        }
        let (mut mappings, mut done) = (Vec::new(), 0);
        while done < size {
            let at = uva.0 + done;
            let found = self.entries.iter().enumerate().find(|(_, e)| at >= e.uva && at - e.uva < e.size);
            let Some((region, e)) = found else {
                return Err(Error::Peer(format!(
                    "a mapping of {:#x} to {at:#x}, which is outside the memory table",
                    iova.0 + done
                )));
            };
            let into = at - e.uva;
            let len = (e.size - into).min(size - done);
            mappings.push(Mapping { iova: iova.0 + done, size: len, region, into, access });
            done += len;
        }
        iotlb.replace(iova.0, end, &mappings)
    }

    /// From now on `size` bytes at `iova` are nothing (`vhost-user: VHOST_IOTLB_INVALIDATE`), nor is the rest of the pages
    /// that they are in. Gives what [`Self::map_iova`] gives. They may go past the last address: QEMU says so when it means
    /// all that there is.
    ///
    /// # Errors
    /// `Peer`: no bytes.
    pub fn unmap_iova(&self, iova: Iova, size: u64) -> Result<Option<Range<u64>>> {
        if size == 0 {
            return Err(Error::Peer(format!("an invalidation of no bytes at {:#x}", iova.0)));
        }
        let end = iova.0.checked_add(size).and_then(|end| end.checked_next_multiple_of(PAGE));
        self.guard()?.replace(iova.0 & !(PAGE - 1), end.unwrap_or(u64::MAX), &[])
    }

    fn guard(&self) -> Result<&Iotlb> {
        self.iotlb().ok_or_else(|| Error::Bug("a map without an IOMMU was given a mapping".into()))
    }

    /// Where `len` bytes at `iova` are in the front-end's memory, for this access: for rings, which have to lie in one
    /// piece. The session's.
    pub fn locate(&self, iova: Iova, len: u32, access: Access) -> Located {
        let Some(iotlb) = &self.iotlb else { return Located::At(Uva(iova.0)) };
        if iova.0.checked_add(u64::from(len)).is_none() {
            return Located::Scattered;
        }
        if !iotlb.has_all(iova.0, len, access, Need::Now) {
            return Located::Unmapped;
        }
        let (mut place, mut done) = (None, 0);
        while done < u64::from(len) {
            let at = iova.0 + done;
            let Some(mapping) = iotlb.find(at, access) else { return Located::Unmapped };
            let Some(e) = self.entries.get(mapping.region) else { return Located::Unmapped };
            let uva = e.uva + mapping.into + (at - mapping.iova);
            if uva != *place.get_or_insert(uva) + done {
                return Located::Scattered;
            }
            done += mapping.size - (at - mapping.iova);
        }
        place.map_or(Located::Unmapped, |uva| Located::At(Uva(uva)))
    }

    /// What the queue's own cache has, or the table; nothing is asked for.
    pub(super) fn look_up_guarded(&self, iotlb: &Iotlb, at: Iova, len: u32, tlb: &mut Tlb) -> Option<(Span, Hint)> {
        let access = tlb.access;
        let line = tlb.line(at.0)?;
        if let Some(span) = line.span(at.0, len) {
            return Some((span, *line));
        }
        let mapping = iotlb.find(at.0, access)?;
        let e = self.entries.get(mapping.region)?;
        let hint = e.hint_of(&mapping)?;
        let span = hint.span(at.0, len)?;
        if !e.is_here(span) {
            return None;
        }
        // Of memory that is still on its way every translation is looked at.
        let kept = Hint { size: if e.reach == e.size { hint.size } else { 0 }, ..hint };
        *line = kept;
        Some((span, kept))
    }

    pub(super) fn guarded_prefix(
        &self,
        iotlb: &Iotlb,
        at: Iova,
        len: u32,
        access: Access,
    ) -> std::result::Result<Span, Unreachable> {
        let Some(mapping) = iotlb.find(at.0, access) else {
            // The pages after it are most likely not there either.
            iotlb.has_all(at.0, len, access, Need::Now);
            return Err(Unreachable::Unmapped);
        };
        let e = self.entries.get(mapping.region).ok_or(Unreachable::Outside)?;
        let hint = e.hint_of(&mapping).ok_or(Unreachable::Outside)?;
        let left = mapping.size - (at.0 - mapping.iova);
        let len = u32::try_from(left).map_or(len, |left| left.min(len));
        let span = hint.span(at.0, len).ok_or(Unreachable::Outside)?;
        if e.is_here(span) { Ok(span) } else { Err(Unreachable::Absent) }
    }

    /// All of it: `Unmapped` while any of it is, `Outside` if its pieces do not lie one after another.
    pub(super) fn guarded_whole(
        &self,
        iotlb: &Iotlb,
        at: Iova,
        len: u32,
        access: Access,
    ) -> std::result::Result<Span, Unreachable> {
        let mut whole = self.guarded_prefix(iotlb, at, len, access)?;
        // All that is missing is asked for at once; and once, not for each piece.
        if whole.len < len && !iotlb.has_all(at.0, len, access, Need::Now) {
            return Err(Unreachable::Unmapped);
        }
        while whole.len < len {
            let next = at.0.checked_add(u64::from(whole.len)).map(Iova).ok_or(Unreachable::Outside)?;
            let piece = self.guarded_prefix(iotlb, next, len - whole.len, access)?;
            if piece.start != whole.start.wrapping_add(whole.len as usize) {
                return Err(Unreachable::Outside);
            }
            whole.len += piece.len;
        }
        Ok(whole)
    }

    /// Asks for what is not at hand of a buffer at an address that the device was given, before it is needed: its mappings,
    /// or its first page. What is at hand is kept in the queue's own cache.
    pub fn ask_for(&self, at: Iova, len: u32, access: Access, hint: Hint, tlb: &mut Tlb) {
        if tlb.access == access && (hint.span(at.0, len).is_some() || self.look_up(at, len, tlb).is_some()) {
            return;
        }
        if self.iotlb.as_ref().is_none_or(|iotlb| iotlb.has_all(at.0, len.min(ASKED_AHEAD), access, Need::Ahead)) {
            // What it is does not matter yet.
            let _ = self.translate_prefix(at, len, access);
        }
    }

    /// Calls `f` with every stretch of addresses that was taken back after `generation`, from where and how many; false if
    /// nobody can tell any more.
    pub(in crate::memory) fn each_iova_gone_since(&self, generation: u64, mut f: impl FnMut(u64, u64)) -> bool {
        let Some(iotlb) = &self.iotlb else { return true };
        iotlb.each_gone_since(generation, |mapping| f(mapping.iova, mapping.size))
    }

    /// True if any of these bytes was taken back after `generation`, or nobody can tell any more.
    pub fn is_gone_since(&self, generation: u64, span: Span) -> bool {
        let Some(iotlb) = &self.iotlb else { return false };
        let mut is_gone = false;
        let is_known = iotlb.each_gone_since(generation, |mapping| {
            let hint = self.entries.get(mapping.region).and_then(|e| e.hint_of(mapping));
            is_gone |= hint.is_some_and(|hint| {
                let by_host = Hint { from: hint.host.addr() as u64, ..hint };
                by_host.overlaps(span.start.addr() as u64, u64::from(span.len))
            });
        });
        is_gone || !is_known
    }
}

impl Entry {
    /// The bytes behind a mapping, all of which this region has; None otherwise.
    fn hint_of(&self, mapping: &Mapping) -> Option<Hint> {
        let is_inside = mapping.into <= self.size && mapping.size <= self.size - mapping.into;
        #[allow(clippy::cast_possible_truncation, reason = "x86-64: usize holds every u64")]
        let host = self.host.wrapping_add(mapping.into as usize);
        is_inside.then_some(Hint { from: mapping.iova, size: mapping.size, host })
    }
}
