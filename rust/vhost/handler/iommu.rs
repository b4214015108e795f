//! A guest with an IOMMU before the device: what its addresses mean is asked of the front-end, and may be taken back.
//!
//! ```text
//!   queue, ring ── wanted ──▶ asked ── IOTLB_MISS through the back-end channel ──▶ front-end
//!                                                                                     │
//!   queue looks again ◀── mapping in the memory's Iotlb ◀── IOTLB_MSG, UPDATE ◀───────┘
//!
//!   IOTLB_MSG, INVALIDATE ─▶ out of the Iotlb ─▶ rings in it shut ─▶ every poll thread has passed ─▶ the answer
//! ```
//!
//! This thread never waits for an answer: a front-end that gives none leaves queues waiting, and every other message is
//! served. It asks again for what is still wanted, for a guest may map late, and nobody tells.
//!
//! A ring is used where its areas are when it starts. When their mapping is taken back the ring is shut: it stays with the
//! `PortLink`, which leaves it alone; a Linux guest with lazy invalidation takes back everything some hundred times a
//! second. When all of it is mapped again, to the same memory, it opens.
//!
//! Invariants: what was taken back is out of everybody's reach before that is acknowledged; what is kept of a front-end's
//! answers and questions is bounded, and so is how often it has poll threads pass (`pace`).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures;
use vmm_sys_util::eventfd::EventFd;

use super::Handler;
use super::pace::Pace;
use crate::error::{Error, Result};
use crate::memory::{Access, GuestMap, Iotlb, Iova, Located, Need, Uva};
use crate::ring::feature;
use crate::sys::socket;
use crate::vhost::Level;
use crate::vhost::features::IOMMU_PLATFORM;
use crate::vhost::vring::Vring;
use crate::vhost::wire;

/// How long a mapping may take before its absence is worth a word.
const OVERDUE: Duration = Duration::from_secs(1);
/// How long until what is still wanted is asked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long until a full channel is tried again.
const FULL: Duration = Duration::from_millis(5);
/// Most questions that are open at once.
const OPEN_MAX: usize = 1024;
/// Most that are, of pages that nobody needs yet: a front-end answers one after another, in tens of µs each, and what is
/// needed now comes after those.
const AHEAD_MAX: usize = 16;

/// What a session knows of its guest's IOMMU.
#[derive(Default)]
pub(super) struct Iommu {
    /// Wakes the session's thread when mappings are wanted.
    bell: Option<EventFd>,
    /// Where questions go.
    channel: Option<UnixStream>,
    /// The questions that have no answer yet.
    open: BTreeMap<(u64, Access), Question>,
    /// Pages that will be needed, which were not asked for yet.
    ahead: VecDeque<(u64, Access)>,
    /// Messages that the channel had no room for.
    unsent: VecDeque<wire::Iotlb>,
    /// The page that was named as overdue.
    named: Option<u64>,
    /// How often poll threads may be asked to pass.
    pace: Pace,
}

/// One that was asked.
struct Question {
    first: Instant,
    last: Instant,
    /// It was asked long ago, and nobody has said since that the answer is still wanted.
    is_stale: bool,
    /// The answer was no.
    is_refused: bool,
}

impl Iommu {
    fn ask(&mut self, page: u64, access: Access, now: Instant) {
        let count = self.open.len();
        match self.open.entry((page, access)) {
            Entry::Occupied(mut known) => {
                if !std::mem::take(&mut known.get_mut().is_stale) {
                    return;
                }
            }
            Entry::Vacant(free) if count < OPEN_MAX => {
                free.insert(Question { first: now, last: now, is_stale: false, is_refused: false });
            }
            // It is asked for with the next look.
            Entry::Vacant(_) => return,
        }
        self.say(page, access, wire::Iotlb::MISS);
    }

    /// Has a message sent as soon as the channel takes it. Without one nobody hears it, and what finds no room is not said:
    /// it is asked for again.
    fn say(&mut self, page: u64, access: Access, kind: u8) {
        if self.channel.is_some() && self.unsent.len() < OPEN_MAX {
            self.unsent.push_back(question_of(page, access, kind));
        }
    }

    /// Forgets what was asked and is to be.
    fn forget(&mut self) {
        self.open.clear();
        self.ahead.clear();
        self.unsent.clear();
    }
}

impl Handler {
    /// Wakes the session's thread when mappings are wanted.
    pub(in crate::vhost) fn set_bell(&mut self, bell: EventFd) {
        self.iommu.bell = Some(bell);
    }

    /// True if the guest's IOMMU guards its memory.
    pub(super) fn is_guarded(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_guarded())
    }

    /// Puts an IOMMU before the memory, or takes it away, as the features say. No vring runs meanwhile.
    pub(super) fn guard_memory(&mut self) {
        let wanted = self.features.is_some_and(|features| features & IOMMU_PLATFORM != 0);
        let Some(memory) = self.memory.as_ref().filter(|memory| memory.is_guarded() != wanted) else { return };
        self.iommu.forget();
        let bell = self.iommu.bell.as_ref().filter(|_| wanted).map(EventFd::try_clone);
        match bell.transpose() {
            Ok(bell) => self.memory = Some(Arc::new(memory.guarded_by(bell.map(Iotlb::new)))),
            Err(e) => {
                let text =
                    format!("{}: no descriptor to be had for its IOMMU: {e}; raise RLIMIT_NOFILE", self.port.name);
                self.event(Level::Error, "kernel_error", text);
                // Without the guard the device would reach what the guest has not lent it.
                self.memory = None;
            }
        }
    }

    /// Forgets what addresses mean once the device is stopped: what is taken back from then on nobody tells (QEMU listens to
    /// the guest's IOMMU while the device runs), and the next driver's may mean other pages.
    pub(super) fn forget_mappings(&mut self) {
        if self.vrings.iter().any(|vring| vring.live) {
            return;
        }
        self.iommu.forget();
        if let Some(iotlb) = self.memory.as_ref().and_then(|memory| memory.iotlb()) {
            iotlb.forget();
        }
    }

    pub(super) fn take_channel(&mut self, file: File) -> Result<()> {
        if self.protocol & VhostUserProtocolFeatures::BACKEND_REQ.bits() == 0 {
            let text = "a back-end channel is not offered here; set other_config:vhost-iommu-support=true and restart the \
                        switch (dpdkvhostuser ports have none)";
            return Err(Error::Peer(text.into()));
        }
        let is_socket = file.metadata().is_ok_and(|meta| meta.file_type().is_socket());
        if !is_socket {
            return Err(Error::Peer("the back-end channel is not a socket; the front-end must send one".into()));
        }
        self.iommu.channel = Some(UnixStream::from(OwnedFd::from(file)));
        // What was asked through another one may never be answered.
        self.iommu.forget();
        self.look_for_mappings();
        Ok(())
    }

    pub(super) fn take_iotlb(&mut self, message: wire::Iotlb) -> Result<()> {
        let Some(memory) = self.memory.clone().filter(|memory| memory.is_guarded()) else {
            let text = "a mapping from an IOMMU that the guest has not: IOMMU_PLATFORM was not agreed on, or no memory was \
                        shared yet";
            return Err(Error::Peer(text.into()));
        };
        let (iova, size) = (Iova(message.iova), message.size);
        let taken_back = match (message.kind, message.access, Access::from_bits(message.access)) {
            (wire::Iotlb::UPDATE, _, Some(access)) => memory.map_iova(iova, size, Uva(message.uva), access)?,
            // Nothing may be done there: that is an answer too.
            (wire::Iotlb::UPDATE, 0, None) | (wire::Iotlb::INVALIDATE, ..) => memory.unmap_iova(iova, size)?,
            (wire::Iotlb::UPDATE, bits, None) => {
                return Err(Error::Peer(format!(
                    "a mapping with permissions {bits:#x}; there are read (1) and write (2)"
                )));
            }
            (kind, ..) => {
                return Err(Error::Peer(format!(
                    "an IOTLB message of type {kind}; there are update (2) and invalidate (3)"
                )));
            }
        };
        let is_less = taken_back.is_some();
        if let Some(gone) = taken_back {
            self.iommu.ahead.retain(|(page, _)| !gone.contains(page));
            self.shut_rings(&memory, &gone);
            if self.vrings.iter().any(|vring| vring.live) {
                std::thread::sleep(self.iommu.pace.take(Instant::now()));
                self.link().pass();
            }
        }
        if message.kind == wire::Iotlb::UPDATE {
            self.close_questions(message.iova, size, message.access);
        }
        if self.open_rings(&memory) || is_less {
            self.link().look_ahead();
        }
        Ok(())
    }

    /// Has the rings left alone that have areas among addresses that were taken back.
    fn shut_rings(&self, memory: &GuestMap, gone: &Range<u64>) {
        let Some(iotlb) = memory.iotlb() else { return };
        for (at, vring) in (0..).zip(&self.vrings).filter(|(_, vring)| vring.live) {
            let told = vring.told(self.features.unwrap_or(0)).unwrap_or_default();
            if told.iter().any(|&(start, len)| start < gone.end && gone.start < start.saturating_add(len.into())) {
                iotlb.shut(at, true);
            }
        }
    }

    /// Lets rings be used again whose areas are mapped as before; others start anew, or wait. True if one is used again.
    fn open_rings(&mut self, memory: &GuestMap) -> bool {
        let Some(iotlb) = memory.iotlb() else { return false };
        let (mut is_any_down, mut is_any_open) = (false, false);
        for at in 0..self.vrings.len() {
            let Some((vring, number)) = self.vrings.get(at).zip(u16::try_from(at).ok()) else { break };
            if !vring.live {
                is_any_down |= vring.missing().is_none();
            } else if iotlb.is_shut(number) {
                match self.locate(memory, vring) {
                    Ok(areas) if areas == vring.areas => {
                        iotlb.shut(number, false);
                        iotlb.look_again();
                        is_any_open = true;
                    }
                    Ok(None) => {}
                    Ok(_) | Err(_) => {
                        self.stop(at);
                        is_any_down = true;
                    }
                }
            }
        }
        if is_any_down {
            self.reconcile();
        }
        is_any_open
    }

    /// Finds out where vrings lie that could run. What keeps one from it is its fault.
    pub(super) fn place_rings(&mut self) {
        let Some((memory, features)) = self.memory.clone().zip(self.features) else { return };
        for at in 0..self.vrings.len() {
            let Some(vring) = self.vrings.get(at).filter(|vring| !vring.live) else { continue };
            let is_wanted = vring.missing().is_none() && vring.fault.is_none() && vring.is_enabled(features);
            let areas = if is_wanted || !memory.is_guarded() { self.locate(&memory, vring) } else { Ok(None) };
            if let (Some(iotlb), Ok(number)) = (memory.iotlb(), u16::try_from(at)) {
                iotlb.shut(number, false);
            }
            match areas {
                Ok(areas) => self.vring(at).areas = areas,
                Err(reason) => {
                    self.vring(at).areas = None;
                    self.record_fault(at, &reason);
                }
            }
        }
    }

    /// Where a vring's areas are; None while that is not known, and then it is asked for.
    fn locate(&self, memory: &GuestMap, vring: &Vring) -> std::result::Result<Option<[Uva; 3]>, String> {
        let features = self.features.unwrap_or(0);
        let Some(told) = vring.told(features) else { return Ok(None) };
        let desc = if features & feature::RING_PACKED == 0 { Access::READ } else { Access::BOTH };
        // Every area is asked for, not only the first that is missing.
        let found = [desc, Access::READ, Access::BOTH].into_iter().zip(told);
        let found: Vec<_> = found.map(|(access, (at, len))| memory.locate(Iova(at), len, access)).collect();
        match *found {
            [Located::At(desc), Located::At(avail), Located::At(used)] => Ok(Some([desc, avail, used])),
            _ if found.contains(&Located::Scattered) => Err(
                "the pages of its ring are not one after another in the guest's memory; give the device queues of 256 \
                 (rx_queue_size, tx_queue_size), or the guest's kernel iommu=pt"
                    .into(),
            ),
            _ => Ok(None),
        }
    }

    /// Who waits looks again, and says what is still wanted.
    fn look_for_mappings(&mut self) {
        let Some(memory) = self.memory.clone() else { return };
        if let Some(iotlb) = memory.iotlb() {
            iotlb.look_again();
            self.open_rings(&memory);
        }
    }

    /// Forgets the questions that a mapping answers. One that does not allow what is wanted is said to be a refusal, once.
    fn close_questions(&mut self, iova: u64, size: u64, allowed: u8) {
        let to = iova.saturating_add(size);
        let mut refused = Vec::new();
        self.iommu.open.retain(|&(page, access), question| {
            let is_answered = iova <= page && page < to;
            let is_granted = allowed & access.bits() == access.bits();
            if is_answered && !is_granted && !question.is_refused {
                question.is_refused = true;
                refused.push((page, access));
            }
            !(is_answered && is_granted)
        });
        for (page, access) in refused {
            self.iommu.say(page, access, wire::Iotlb::ACCESS_FAIL);
        }
    }

    /// How long until questions have to be looked at; None without any.
    pub(in crate::vhost) fn patience_for_mappings(&self) -> Option<Duration> {
        let full = (!self.iommu.unsent.is_empty()).then_some(FULL);
        full.into_iter().chain((!self.iommu.open.is_empty()).then_some(AGAIN / 2)).min()
    }

    /// Sends what is to be asked; true if what a snapshot shows may be different.
    pub(in crate::vhost) fn ask_for_mappings(&mut self) -> bool {
        let Some(memory) = self.memory.clone().filter(|memory| memory.is_guarded()) else { return false };
        let Some(iotlb) = memory.iotlb() else { return false };
        let now = Instant::now();
        let mut is_stale = false;
        self.iommu.open.retain(|_, question| {
            let is_due = now.duration_since(question.last) >= AGAIN;
            let is_dropped = is_due && question.is_stale;
            if is_due && !is_dropped {
                (question.is_stale, question.last, is_stale) = (true, now, true);
            }
            !is_dropped
        });
        if is_stale {
            self.look_for_mappings();
        }
        let iommu = &mut self.iommu;
        iotlb.take_wanted(|page, access, need| {
            if iotlb.maps(page, access) {
                // It came while this was on its way.
                return;
            }
            if need == Need::Now || iommu.open.contains_key(&(page, access)) {
                iommu.ask(page, access, now);
            } else if iommu.ahead.len() < OPEN_MAX {
                iommu.ahead.push_back((page, access));
            }
        });
        while iommu.open.len() < AHEAD_MAX
            && let Some((page, access)) = iommu.ahead.pop_front()
        {
            if !iotlb.maps(page, access) {
                iommu.ask(page, access, now);
            }
        }
        self.send_questions();
        self.name_overdue()
    }

    fn send_questions(&mut self) {
        let Some(channel) = &self.iommu.channel else { return };
        while let Some(&message) = self.iommu.unsent.front() {
            let bytes = wire::backend_iotlb(message);
            match socket::send_with(channel, &bytes, None) {
                Ok(sent) if sent == bytes.len() => drop(self.iommu.unsent.pop_front()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.iommu.channel = None;
                    self.iommu.unsent.clear();
                    let text = format!("{}: the back-end channel was closed by {}", self.port.name, self.peer);
                    return self.event(Level::Warning, "notice", text);
                }
            }
        }
    }

    /// Names a page that is waited for long, once; true if there is one, or was.
    fn name_overdue(&mut self) -> bool {
        let overdue = self.overdue();
        let before = std::mem::replace(&mut self.iommu.named, overdue.map(|(page, _)| page));
        if let Some((page, _)) = overdue
            && before != Some(page)
            && let Some(text) = self.overdue_mapping()
        {
            self.event(Level::Warning, "notice", format!("{}: {text}", self.port.name));
        }
        before != self.iommu.named
    }

    fn overdue(&self) -> Option<(u64, bool)> {
        let open = self.iommu.open.iter().find(|(_, question)| question.first.elapsed() >= OVERDUE);
        open.map(|(&(page, _), question)| (page, question.is_refused))
    }

    /// What to say of an address that was asked for long ago.
    pub(super) fn overdue_mapping(&self) -> Option<String> {
        let (page, is_refused) = self.overdue()?;
        Some(if self.iommu.channel.is_none() {
            format!(
                "the guest's IOMMU has to say what address {page:#x} means, but {} gave no back-end channel to ask through \
                 (SET_BACKEND_REQ_FD)",
                self.peer
            )
        } else if is_refused {
            format!("the guest's IOMMU does not let the device use address {page:#x}, which the guest's driver gave it")
        } else {
            format!("{} was asked what address {page:#x} of the guest's IOMMU means, and does not answer", self.peer)
        })
    }
}

fn question_of(page: u64, access: Access, kind: u8) -> wire::Iotlb {
    wire::Iotlb { iova: page, size: 0, uva: 0, access: access.bits(), kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_page_and_what_is_to_be_done_there() {
        let bytes = wire::backend_iotlb(question_of(0x7000, Access::WRITE, wire::Iotlb::MISS));
        assert_eq!(bytes.len(), wire::HEADER_SIZE + 32);
        assert_eq!(bytes[..12], [1, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(bytes[12..20], 0x7000_u64.to_le_bytes());
        assert_eq!(bytes[36..], [2, 1, 0, 0, 0, 0, 0, 0]);
    }

    /// Rows: C13.
    #[test]
    fn what_a_front_end_does_not_read_is_kept_up_to_a_limit_and_nothing_without_a_channel() {
        let mut iommu = Iommu::default();
        iommu.say(0x1000, Access::READ, wire::Iotlb::ACCESS_FAIL);
        assert_eq!(iommu.unsent.len(), 0);
        iommu.channel = Some(UnixStream::pair().unwrap().0);
        for page in 0..2 * OPEN_MAX as u64 {
            iommu.say(page << 12, Access::READ, wire::Iotlb::ACCESS_FAIL);
        }
        assert_eq!(iommu.unsent.len(), OPEN_MAX);
    }
}
