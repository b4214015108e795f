//! What a device received, a burst in a call.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::{GAP, PLACE, Shared};
use crate::burst::{Burst, MAX_BURST, MAX_FRAME};
use crate::drops::DropReason;
use crate::frame::ethernet;
use crate::frame::vnet_hdr::{self, Offload, OffloadSet};
use crate::memory::{Span, access, copy};
use crate::ring::RingFault;
use crate::sys::packet::{Arrival, Inbox};

/// Of an Ethernet header, what stands in front of a tag.
const ADDRESSES_SIZE: usize = 12;

/// The rx side. Belongs to one thread.
#[derive(Debug)]
pub struct RxQueue {
    inbox: Inbox,
    /// Where the inbox puts frame i.
    frames: Vec<*mut u8>,
    burst: Burst,
    shared: Arc<Shared>,
}

// SAFETY: the addresses lead into an area that `shared` keeps and that any thread may use.
unsafe impl Send for RxQueue {}

impl RxQueue {
    pub(super) fn new(shared: Arc<Shared>, inbox: Inbox, frames: Vec<*mut u8>) -> Self {
        Self { inbox, frames, burst: Burst::of_area(Arc::clone(&shared.area)), shared }
    }

    /// Readable while there are frames.
    pub fn descriptor(&self) -> &dyn AsRawFd {
        &self.shared.socket
    }

    /// The burst gathered last.
    #[inline]
    pub fn burst(&self) -> &Burst {
        &self.burst
    }

    /// The same, to refuse frames of it.
    #[inline]
    pub fn burst_mut(&mut self) -> &mut Burst {
        &mut self.burst
    }

    /// Fills the burst with up to 64 frames; their places are the kernel's again after [`Self::commit`].
    ///
    /// # Errors
    /// None: the kernel's words are lengths within what it was given.
    pub fn gather(&mut self) -> Result<usize, RingFault> {
        // An error is the device's: whoever watches it knows more.
        let count = self.shared.socket.receive(&mut self.inbox).unwrap_or(0).min(MAX_BURST);
        self.burst.clear();
        for index in 0..count {
            let Some((arrival, &frame)) = self.inbox.arrival(index).zip(self.frames.get(index)) else { break };
            self.take(arrival, frame);
        }
        Ok(self.burst.len())
    }

    fn take(&mut self, arrival: Arrival, frame: *mut u8) {
        let Arrival { mut header, len, is_cut, tag } = arrival;
        #[allow(clippy::cast_possible_truncation, reason = "a place's size")]
        let len = len.min((PLACE - GAP) as u32);
        let mut span = Span { start: frame, len };
        if let Some((protocol, tci)) = tag.filter(|_| len >= ethernet::HEADER_SIZE) {
            span = put_tag(span, protocol, tci);
            shift_checksum(&mut header);
        }
        let (drop, offload) = judge(&header, span.len, is_cut);
        if drop.is_none() && offload == Offload::NONE {
            self.burst.push_plain(std::iter::once(Some(span)));
        } else {
            self.burst.push(span, drop, offload);
        }
    }

    /// The burst's places may be used again.
    pub fn commit(&mut self) -> bool {
        self.burst.clear();
        false
    }

    /// True if a frame waits: the thread is about to sleep.
    pub fn has_arrivals(&self) -> bool {
        self.shared.socket.is_readable()
    }
}

/// Puts a tag back behind the addresses, which move into the gap for it.
#[cold]
fn put_tag(frame: Span, protocol: u16, tci: u16) -> Span {
    let start = frame.start.wrapping_sub(GAP);
    let mut addresses = [0; ADDRESSES_SIZE];
    // SAFETY: the frame has a whole Ethernet header, in a place of an area that the queue keeps.
    unsafe { copy::copy(addresses.as_mut_ptr(), frame.start, ADDRESSES_SIZE) };
    // SAFETY: the gap and what follows it are of the same place.
    unsafe { copy::copy(start, addresses.as_ptr(), ADDRESSES_SIZE) };
    let at = start.wrapping_add(ADDRESSES_SIZE);
    // SAFETY: the four bytes behind the addresses' new place: where their end was.
    unsafe { access::store::<[[u8; 2]; 2]>(at, [protocol.to_be_bytes(), tci.to_be_bytes()]) };
    #[allow(clippy::cast_possible_truncation, reason = "four")]
    let len = frame.len + GAP as u32;
    Span { start, len }
}

/// The headers lie four bytes further on.
fn shift_checksum(header: &mut [u8]) {
    if let [_, _, _, _, _, _, low, high, ..] = header {
        #[allow(clippy::cast_possible_truncation, reason = "four")]
        let start = u16::from_le_bytes([*low, *high]).saturating_add(GAP as u16);
        [*low, *high] = start.to_le_bytes();
    }
}

/// What is wrong with a frame, and what is left to be done to it.
fn judge(header: &[u8], len: u32, is_cut: bool) -> (Option<DropReason>, Offload) {
    if len < ethernet::HEADER_SIZE {
        return (Some(DropReason::Runt), Offload::NONE);
    }
    if is_cut || len > MAX_FRAME {
        return (Some(DropReason::Oversize), Offload::NONE);
    }
    let mut raw = [0; 16];
    for (to, from) in raw.iter_mut().zip(header) {
        *to = *from;
    }
    match vnet_hdr::judge(u128::from_le_bytes(raw), len, OffloadSet::ALL) {
        Ok(offload) => (None, offload),
        Err(reason) => (Some(reason), Offload::NONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_moves_the_checksum_with_the_headers() {
        let mut header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
        shift_checksum(&mut header);
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 38, 0, 16, 0]);
    }

    #[test]
    fn what_is_no_frame_is_dropped_by_name() {
        let nothing = [0; 10];
        assert_eq!(judge(&nothing, 13, false), (Some(DropReason::Runt), Offload::NONE));
        assert_eq!(judge(&nothing, 14, false), (None, Offload::NONE));
        assert_eq!(judge(&nothing, 60_000, true), (Some(DropReason::Oversize), Offload::NONE));
        let past_its_end = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
        assert_eq!(judge(&past_its_end, 40, false), (Some(DropReason::BadOffload), Offload::NONE));
    }
}
