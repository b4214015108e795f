//! What a device is to send: a group of frames copied into places of ours, and handed to the kernel in one call.

use std::io;
use std::sync::Arc;

use super::{PLACE, Shared};
use crate::burst::{Burst, MAX_BURST};
use crate::frame::vnet_hdr;
use crate::memory::Span;
use crate::ring::Delivery;
use crate::sys::packet::{HEADER_SIZE, Outbox};

/// The tx side. Belongs to one thread at a time.
#[derive(Debug)]
pub struct TxQueue {
    outbox: Outbox,
    /// Where the outbox takes frame i from.
    places: Vec<*mut u8>,
    shared: Arc<Shared>,
}

// SAFETY: the addresses lead into an area that `shared` keeps and that any thread may use.
unsafe impl Send for TxQueue {}

impl TxQueue {
    pub(super) fn new(shared: Arc<Shared>, outbox: Outbox, places: Vec<*mut u8>) -> Self {
        Self { outbox, places, shared }
    }

    /// Sends the packets `list` of `burst`, in order. Stops at the first that finds no room. `list` has at most 64 indices.
    pub fn deliver(&mut self, burst: &Burst, list: &[u8]) -> Delivery {
        let count = list.len().min(MAX_BURST);
        for (slot, (&index, &place)) in list.iter().zip(&self.places).enumerate() {
            let Some((packet, _)) = burst.frame(index) else { break };
            let index = usize::from(index);
            debug_assert!(packet.len as usize <= PLACE, "a burst has no longer ones");
            let to = Span { start: place, len: packet.len };
            // SAFETY: a place holds the longest frame of a burst, in an area that `self` keeps.
            unsafe { burst.copy_out(index, 0, to) };
            let [header @ .., _, _, _, _, _, _] = vnet_hdr::encode(burst.offload(index)).to_le_bytes();
            let header: [u8; HEADER_SIZE] = header;
            self.outbox.put(slot, packet.len, header);
        }
        self.send(count)
    }

    fn send(&mut self, count: usize) -> Delivery {
        let mut delivery = Delivery::default();
        while delivery.settled < count {
            match self.shared.socket.send(&mut self.outbox, delivery.settled, count) {
                Ok(0) => break,
                Ok(taken) => {
                    self.shared.sent.add(taken as u64);
                    delivery.settled += taken;
                }
                Err(e) if is_passing(&e) => break,
                // Longer than the device's MTU, or of a kind that this kernel cannot cut.
                Err(_) => {
                    delivery.too_small |= 1 << delivery.settled;
                    delivery.settled += 1;
                }
            }
        }
        delivery
    }
}

/// No room now, or no device: another time it may be.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EAGAIN, libc::ENOBUFS, libc::EINTR, libc::ENETDOWN, libc::ENXIO, libc::ENODEV];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}
