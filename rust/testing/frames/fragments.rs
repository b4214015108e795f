// SPDX-License-Identifier: Apache-2.0
//! Putting IP fragments together again (RFC 791 §3.2, RFC 8200 §4.5), for datagrams that a switch had to cut.
//!
//! Stricter than a host: fragments of a datagram must come in order and without others between them, as whoever cuts
//! them sends them.

use super::layers::{FRAGMENT, Layers, word};
use super::{Corruption, VNET_NEEDS_CSUM, checksum};

const MORE_V4: u16 = 0x2000;
const FRAGMENT_HEADER: usize = 8;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Not a fragment.
    Whole,
    /// A fragment, more are to come.
    Part,
    /// The last fragment: vnet header and frame of the datagram are in [`Reassembly::datagram`].
    Datagram,
    /// A fragment that is wrong in itself, or not the next one.
    Wrong(Corruption),
}

/// The datagram that is being put together.
#[derive(Debug, Default)]
pub struct Reassembly {
    bytes: Vec<u8>,
    key: Option<Key>,
    header_size: usize,
    transport_at: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Key {
    addresses: Vec<u8>,
    id: u32,
}

struct Fragment {
    id: u32,
    offset: usize,
    more: bool,
    protocol: u8,
    payload_at: usize,
}

impl Reassembly {
    /// vnet header and frame of the last datagram that became whole.
    pub fn datagram(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a datagram is begun and not whole.
    pub fn is_begun(&self) -> bool {
        self.key.is_some()
    }

    /// Takes vnet header and frame.
    pub fn take(&mut self, header_size: usize, bytes: &[u8]) -> Arrival {
        let Some((vnet, frame)) = bytes.split_at_checked(header_size) else { return Arrival::Whole };
        let Some(layers) = Layers::of(frame) else { return Arrival::Whole };
        let Some(fragment) = fragment_of(frame, &layers) else { return Arrival::Whole };
        match self.add(vnet, frame, &layers, &fragment) {
            Ok(false) => Arrival::Part,
            Ok(true) => Arrival::Datagram,
            Err(corruption) => {
                self.key = None;
                Arrival::Wrong(corruption)
            }
        }
    }

    fn add(&mut self, vnet: &[u8], frame: &[u8], layers: &Layers, fragment: &Fragment) -> Result<bool, Corruption> {
        // Its checksum is a part of the datagram's: nobody could finish it later.
        if vnet.get(..2).is_none_or(|offload| offload[0] & VNET_NEEDS_CSUM != 0 || offload[1] != 0) {
            return Err(Corruption::VnetHeader);
        }
        let ip = frame.get(layers.network_at..layers.network_at + 20).ok_or(Corruption::Length)?;
        if layers.is_v4 && checksum::sum(ip) != 0xffff {
            return Err(Corruption::IpChecksum);
        }
        let payload = frame.get(fragment.payload_at..layers.claimed).ok_or(Corruption::Length)?;
        if fragment.more && !payload.len().is_multiple_of(8) {
            return Err(Corruption::Length);
        }
        let addresses = frame.get(layers.addresses.clone()).ok_or(Corruption::Length)?.to_vec();
        let key = Key { addresses, id: fragment.id };
        if fragment.offset == 0 {
            if self.key.is_some() {
                return Err(Corruption::Piece);
            }
            self.begin(vnet, frame, layers, fragment);
            self.key = Some(key);
        } else if self.key.as_ref() != Some(&key)
            || fragment.offset != self.bytes.len() - self.header_size - self.transport_at
        {
            return Err(Corruption::Piece);
        }
        self.bytes.extend_from_slice(payload);
        if fragment.more {
            return Ok(false);
        }
        self.key = None;
        self.finish(layers.network_at, layers.is_v4).ok_or(Corruption::Length)?;
        Ok(true)
    }

    /// Takes over the headers of the first fragment as they were before it was one.
    fn begin(&mut self, vnet: &[u8], frame: &[u8], layers: &Layers, fragment: &Fragment) {
        self.bytes.clear();
        self.bytes.extend_from_slice(vnet);
        self.header_size = vnet.len();
        self.transport_at = if layers.is_v4 { layers.transport_at } else { layers.network_at + 40 };
        self.bytes.extend(frame.iter().take(self.transport_at));
        if !layers.is_v4
            && let Some(next) = self.bytes.get_mut(self.header_size + layers.network_at + 6)
        {
            *next = fragment.protocol;
        }
    }

    /// Writes the lengths and the header checksum of the whole datagram.
    fn finish(&mut self, network_at: usize, is_v4: bool) -> Option<()> {
        let frame = self.bytes.get_mut(self.header_size..)?;
        let counted_from = if is_v4 { network_at } else { self.transport_at };
        let len = u16::try_from(frame.len() - counted_from).ok()?.to_be_bytes();
        if !is_v4 {
            frame.get_mut(network_at + 4..network_at + 6)?.copy_from_slice(&len);
            return Some(());
        }
        frame.get_mut(network_at + 2..network_at + 4)?.copy_from_slice(&len);
        frame.get_mut(network_at + 6..network_at + 8)?.fill(0);
        frame.get_mut(network_at + 10..network_at + 12)?.fill(0);
        let sum = !checksum::sum(frame.get(network_at..network_at + 20)?);
        frame.get_mut(network_at + 10..network_at + 12)?.copy_from_slice(&sum.to_be_bytes());
        Some(())
    }
}

fn fragment_of(frame: &[u8], layers: &Layers) -> Option<Fragment> {
    if layers.is_v4 {
        let bits = word(frame, layers.network_at + 6)?;
        let fragment = Fragment {
            id: word(frame, layers.network_at + 4)?.into(),
            offset: usize::from(bits & 0x1fff) * 8,
            more: bits & MORE_V4 != 0,
            protocol: layers.protocol,
            payload_at: layers.transport_at,
        };
        return (fragment.more || fragment.offset != 0).then_some(fragment);
    }
    if layers.protocol != FRAGMENT {
        return None;
    }
    let at = layers.transport_at;
    let bits = word(frame, at + 2)?;
    let id = frame.get(at + 4..)?.first_chunk().map(|id| u32::from_be_bytes(*id))?;
    Some(Fragment {
        id,
        offset: usize::from(bits & !7),
        more: bits & 1 != 0,
        protocol: *frame.get(at)?,
        payload_at: at + FRAGMENT_HEADER,
    })
}
