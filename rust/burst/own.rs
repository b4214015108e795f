//! Frames of our own making: short, their bytes ours, and nobody's to give back.

use super::{Burst, HEAD_SIZE, Packet};
use crate::frame::ethernet::Mac;
use crate::frame::vnet_hdr::Offload;

/// What frames of our own making are beyond their heads.
static ZEROES: [u8; 128] = [0; 128];

impl Burst {
    /// Adds a frame of our own making, at most 64 bytes.
    pub fn push_own(&mut self, frame: &[u8]) {
        self.push_padded(frame, frame.len());
    }

    /// Adds a frame of our own making: these bytes, at most 64, and zeroes up to `len`, at most 128.
    pub fn push_padded(&mut self, frame: &[u8], len: usize) {
        let Some((head, packet)) = self.heads.get_mut(self.len).zip(self.packets.get_mut(self.len)) else { return };
        head.0 = [0; HEAD_SIZE];
        for (to, from) in head.0.iter_mut().zip(frame) {
            *to = *from;
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most 128")]
        let len = len.clamp(frame.len().min(HEAD_SIZE), ZEROES.len()) as u32;
        // Nobody writes through it: frames are read.
        *packet = Packet { data: ZEROES.as_ptr().cast_mut(), len, ..Packet::EMPTY };
        self.count(len, Offload::NONE);
    }

    /// Adds a RARP request for this address, in a VLAN unless that is 0.
    pub fn push_rarp(&mut self, mac: Mac, vlan: u16) {
        let (frame, tag) = (rarp(mac), [0x8100_u16.to_be_bytes(), vlan.to_be_bytes()].concat());
        let (addresses, rest) = frame.split_at(12);
        let tag = if vlan == 0 { &[] } else { tag.as_slice() };
        self.push_own(&[addresses, tag, rest].concat());
    }
}

/// A RARP request that says "`mac` is here now" (RFC 903), as switches expect it after a migration.
fn rarp(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    let [_, _, address @ ..] = mac.0.to_be_bytes();
    let fields: [(usize, &[u8]); 5] = [
        (0, &[0xff; 6]),
        (6, &address),
        (12, &[0x80, 0x35, 0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x03]),
        (22, &address),
        (32, &address),
    ];
    for (at, bytes) in fields {
        for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rarp_names_the_mac_as_source_sender_and_target() {
        let frame = rarp(Mac(0x0a0b_0c0d_0e0f));
        for at in [6, 22, 32] {
            assert_eq!(frame[at..at + 6], [10, 11, 12, 13, 14, 15], "at {at}");
        }
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    }
}
