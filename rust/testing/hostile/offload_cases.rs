// SPDX-License-Identifier: Apache-2.0
//! Lies about checksums and segmentation: in the vnet header, or in the headers of the frame it speaks of.
//!
//! The frames go to an address that nobody has, so that a switch floods them: whoever delivers them to receivers with and
//! without offloads has to do the work they ask for.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::{Attack, Case};
use crate::testing::Result;
use crate::testing::driver::{DESC_NEXT, Descriptor, SplitDriver};
use crate::testing::frames::{Checksum, FramePlan, Gso, GsoKind, Mac, Network, PlanConfig, Transport};
use crate::testing::wire::features;

/// How long attacks that go on go on.
const GOING_ON: Duration = Duration::from_millis(300);
/// From one frame to the next, and a frame of few pieces: more would fill the rings of those they are flooded to.
const PAUSE: Duration = Duration::from_millis(3);
const FEW_PIECES: usize = 4400;
const NOBODY: Mac = Mac([2, 0, 0, 0, 0x77, 0x77]);
const ETHERNET: usize = 14;
/// A UDP or TCP port of nobody.
const PORT: [u8; 2] = [0x27, 0x0f];

const CSUM: u64 = features::CSUM;
const TSO: u64 = CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_ECN;
const USO: u64 = CSUM | features::HOST_USO;
const UFO: u64 = CSUM | features::HOST_UFO;

macro_rules! cases {
    ($($name:literal, $what:literal, $needs:expr, $attack:expr;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: $name, what: $what, needs: $needs, attack: Attack::Ring($attack) }),*];
    };
}

cases! {
    "gso-honest", "frames to be cut that are no lie: the control", TSO | USO | UFO, |guest| {
        for kind in [GsoKind::Segments, GsoKind::Datagrams, GsoKind::Fragments] {
            for network in [Network::V4, Network::V6] {
                lie(guest, kind, network, FEW_PIECES, |_| ())?;
            }
        }
        Ok(())
    };
    "gso-without-checksum", "segmentation without a partial checksum", TSO, |guest| tso(guest, |bytes| bytes[0] = 0);
    "gso-unnegotiated", "segmentation that was not agreed on", 0, |guest| tso(guest, |_| ());
    "gso-pieces-of-one-byte", "segments of one byte of a frame of 64 KiB", TSO, |guest| {
        lie(guest, GsoKind::Segments, Network::V4, 65_000, |bytes| set(bytes, 4, 1))
    };
    "uso-pieces-of-one-byte", "datagrams of one byte of a frame of 64 KiB", USO, |guest| {
        lie(guest, GsoKind::Datagrams, Network::V6, 65_000, |bytes| set(bytes, 4, 1))
    };
    "gso-other-network", "segmentation for IPv6 of an IPv4 frame", TSO, |guest| tso(guest, |bytes| bytes[1] = 4);
    "gso-other-transport", "datagrams to be made of TCP", TSO | USO, |guest| tso(guest, |bytes| bytes[1] = 5);
    "gso-ecn-of-udp", "ECN for datagrams", USO, |guest| {
        lie(guest, GsoKind::Datagrams, Network::V4, 9000, |bytes| bytes[1] |= 0x80)
    };
    "gso-every-type", "every kind of segmentation there could be", TSO, |guest| {
        for kind in 0..=u8::MAX {
            let mut bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
            bytes[1] = kind;
            send(guest, &bytes)?;
        }
        Ok(())
    };
    "gso-header-length-huge", "headers of 64 KiB", TSO, |guest| tso(guest, |bytes| set(bytes, 2, 0xffff));
    "gso-header-length-zero", "headers of no bytes", TSO, |guest| tso(guest, |bytes| set(bytes, 2, 0));
    "gso-start-past-end", "a checksum that starts past the frame's end", TSO, |guest| tso(guest, |bytes| set(bytes, 6, 0xfff0));
    "gso-start-odd", "a checksum that starts inside the IP header", TSO, |guest| tso(guest, |bytes| set(bytes, 6, 21));
    "gso-offset-past-end", "a checksum that goes past the frame's end", TSO, |guest| tso(guest, |bytes| set(bytes, 8, 0xffff));
    "gso-offset-elsewhere", "a checksum that goes over the ports", TSO, |guest| tso(guest, |bytes| set(bytes, 8, 2));
    "gso-tcp-header-long", "a TCP header longer than the frame", TSO, |guest| {
        let mut bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
        let at = guest.header_size();
        bytes[at + 46] = 0xf0;
        bytes.truncate(at + 70);
        send(guest, &bytes)
    };
    "gso-tcp-header-short", "a TCP header of no bytes", TSO, |guest| frame(guest, |frame| frame[46] = 0);
    "gso-ip-header-long", "an IPv4 header of 60 bytes that are TCP's", TSO, |guest| frame(guest, |frame| frame[14] = 0x4f);
    "gso-ip-header-short", "an IPv4 header of no bytes", TSO, |guest| frame(guest, |frame| frame[14] = 0x40);
    "gso-ip-length-zero", "an IPv4 packet of no bytes", TSO, |guest| frame(guest, |frame| frame[16..18].fill(0));
    "gso-ip-length-huge", "an IPv4 packet longer than its frame", TSO, |guest| frame(guest, |frame| frame[16..18].fill(0xff));
    "gso-ip-fragment", "a fragment to be cut into segments", TSO, |guest| frame(guest, |frame| frame[20] = 0x20);
    "gso-udp-length-lies", "a datagram whose length is not its own", USO, |guest| {
        let mut bytes = build(guest, GsoKind::Datagrams, Network::V4, 9000)?;
        let at = guest.header_size() + 38;
        bytes[at..at + 2].copy_from_slice(&[0, 8]);
        send(guest, &bytes)
    };
    "gso-ipv6-headers-endless", "IPv6 extension headers to the frame's end", TSO, |guest| {
        let mut bytes = build(guest, GsoKind::Segments, Network::V6, 9000)?;
        let at = guest.header_size() + ETHERNET;
        bytes[at + 6] = 0;
        bytes[at + 40..].fill(0);
        send(guest, &bytes)
    };
    "gso-tags-endless", "802.1Q tags to the frame's end", TSO, |guest| {
        let mut bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
        let at = guest.header_size() + 12;
        for tag in bytes[at..].chunks_exact_mut(4) {
            tag.copy_from_slice(&[0x81, 0, 0, 1]);
        }
        send(guest, &bytes)
    };
    "gso-frame-short", "segmentation of a frame of 20 bytes", TSO, |guest| {
        let mut bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
        bytes.truncate(guest.header_size() + 20);
        send(guest, &bytes)
    };
    "gso-frame-past-64k", "segmentation of a frame of 200 KiB", TSO, |guest| {
        let mut bytes = build(guest, GsoKind::Segments, Network::V4, 65_000)?;
        bytes.resize(200 << 10, 0);
        send(guest, &bytes)
    };
    "gso-arp", "segmentation of what is no IP packet", TSO, |guest| frame(guest, |frame| frame[12..14].copy_from_slice(&[8, 6]));
    "ufo-size-7", "fragments shorter than 8 bytes", UFO, |guest| {
        lie(guest, GsoKind::Fragments, Network::V4, 9000, |bytes| set(bytes, 4, 7))
    };
    "ufo-size-8", "fragments of 8 bytes of a datagram of 64 KiB", UFO, |guest| {
        lie(guest, GsoKind::Fragments, Network::V6, 65_000, |bytes| set(bytes, 4, 8))
    };
    "gso-headers-in-crumbs", "headers in descriptors of one byte each", TSO, |guest| {
        let bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
        let segment = guest.frame(&bytes)?;
        let one = |index: u16| Descriptor { address: segment.gpa.0 + u64::from(index), len: 1, flags: DESC_NEXT, next: index + 1 };
        let mut chain: Vec<(u16, Descriptor)> = (0..100).map(|index| (index, one(index))).collect();
        let rest = Descriptor { address: segment.gpa.0 + 100, len: segment.len - 100, flags: 0, next: 0 };
        chain.push((100, rest));
        guest.offer(&chain, 0);
        Ok(())
    };
    "gso-headers-flip", "headers that change while the device cuts the frame", TSO, |guest| {
        let bytes = build(guest, GsoKind::Segments, Network::V4, FEW_PIECES)?;
        let segment = guest.frame(&bytes)?;
        let at = guest.header_size();
        let window = guest.frontend().ram().window(segment.gpa, bytes.len())?;
        let end = Instant::now() + GOING_ON;
        let mut noise = 1_u32;
        while Instant::now() < end {
            window.write(0, &bytes[..at + 66]);
            guest.offer_again(Descriptor { address: segment.gpa.0, len: segment.len, flags: 0, next: 0 });
            let next = Instant::now() + PAUSE;
            while Instant::now() < next {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Vnet header, lengths, header sizes, sequence number: whatever comes.
                window.write((noise >> 8) as usize % (at + 66), &noise.to_le_bytes()[..1]);
            }
        }
        Ok(())
    };
    "checksum-over-addresses", "a partial checksum over the Ethernet addresses", CSUM, |guest| {
        checksum(guest, |bytes| {
            set(bytes, 6, 0);
            set(bytes, 8, 0);
        })
    };
    "checksum-wraps", "a partial checksum whose start and offset wrap", CSUM, |guest| {
        checksum(guest, |bytes| {
            set(bytes, 6, 0xffff);
            set(bytes, 8, 0xffff);
        })
    };
    "checksum-last-byte", "a partial checksum half of which is past the end", CSUM, |guest| {
        checksum(guest, |bytes| {
            let size = u16::try_from(bytes.len() - 12).unwrap_or(u16::MAX);
            set(bytes, 6, 14);
            set(bytes, 8, size - 15);
        })
    };
}

/// A frame of `size` bytes from the guest to nobody, which asks to be cut into pieces of 1448 bytes.
fn build(guest: &Guest<SplitDriver>, kind: GsoKind, network: Network, size: usize) -> Result<Vec<u8>> {
    let plan = FramePlan::new(PlanConfig {
        source: guest.mac(),
        destination: NOBODY,
        destinations: 1,
        network,
        transport: if kind == GsoKind::Segments { Transport::Tcp } else { Transport::Udp },
        checksum: Checksum::Partial,
        flows: 1,
        sizes: vec![size],
        stream: 0,
        header_size: guest.header_size(),
        vlan: None,
        gso: Some(Gso { kind, size: 1448, ecn: false }),
    })?;
    let mut bytes = Vec::new();
    if plan.is_numbered_by_piece() {
        plan.build_cut(0, 0, &mut bytes);
    } else {
        plan.build(0, &mut bytes);
    }
    // Not one of a run's: whoever gets it is not to count it.
    let port = guest.header_size() + ETHERNET + if network == Network::V4 { 22 } else { 42 };
    bytes[port..port + 2].copy_from_slice(&PORT);
    Ok(bytes)
}

fn send(guest: &mut Guest<SplitDriver>, bytes: &[u8]) -> Result<()> {
    let segment = guest.frame(bytes)?;
    guest.transmitq().add(&[segment])?;
    guest.transmitq().publish();
    guest.kick(1);
    // The next frame is written over this one.
    guest.wait_for_used();
    Ok(())
}

fn lie(
    guest: &mut Guest<SplitDriver>,
    kind: GsoKind,
    network: Network,
    size: usize,
    bend: fn(&mut [u8]),
) -> Result<()> {
    let mut bytes = build(guest, kind, network, size)?;
    bend(&mut bytes);
    send(guest, &bytes)
}

/// A TSO frame over IPv4 whose vnet header is bent.
fn tso(guest: &mut Guest<SplitDriver>, bend: fn(&mut [u8])) -> Result<()> {
    lie(guest, GsoKind::Segments, Network::V4, FEW_PIECES, bend)
}

/// A TSO frame over IPv4 that is bent itself.
fn frame(guest: &mut Guest<SplitDriver>, bend: fn(&mut [u8])) -> Result<()> {
    let mut bytes = build(guest, GsoKind::Segments, Network::V4, 9000)?;
    bend(&mut bytes[guest.header_size()..]);
    send(guest, &bytes)
}

/// A short frame with a partial checksum.
fn checksum(guest: &mut Guest<SplitDriver>, bend: fn(&mut [u8])) -> Result<()> {
    lie(guest, GsoKind::Datagrams, Network::V4, 200, bend)
}

/// Writes a little-endian word of the vnet header.
fn set(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
