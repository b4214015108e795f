// SPDX-License-Identifier: Apache-2.0
//! Lies of a guest in its rings, after an honest start.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::{Attack, Case};
use crate::testing::driver::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, Segment, SplitDriver};
use crate::testing::frames::announcement;
use crate::testing::{Error, Result};

/// How long attacks that go on go on.
const GOING_ON: Duration = Duration::from_millis(500);

macro_rules! cases {
    ($($name:literal, $what:literal, $attack:expr;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: $name, what: $what, needs: 0, attack: Attack::Ring($attack) }),*];
    };
}

cases! {
    "guest-honest", "no lie at all: the control", |guest| {
        guest.receive_honestly()?;
        let frame = guest.honest_frame()?;
        guest.transmitq().add(&[frame])?;
        guest.transmitq().publish();
        guest.kick(1);
        Ok(())
    };
    "avail-jump", "the available index jumps further than the ring is long",
        |guest| move_index(guest, 1000);
    "avail-back", "the available index goes back by one", |guest| move_index(guest, u16::MAX);
    "head-out-of-range", "a head past the descriptor table", |guest| {
        guest.offer(&[], 60_000);
        Ok(())
    };
    "next-out-of-range", "a chain that goes on past the descriptor table",
        |guest| first(guest, |one| Descriptor { flags: DESC_NEXT, next: 60_000, ..one });
    "chain-to-itself", "a descriptor that is followed by itself",
        |guest| first(guest, |one| Descriptor { flags: DESC_NEXT, next: 0, ..one });
    "chain-loop", "two descriptors that follow each other", |guest| {
        let one = describe(guest.honest_frame()?);
        let (there, back) = (Descriptor { flags: DESC_NEXT, next: 1, ..one }, Descriptor { flags: DESC_NEXT, ..one });
        guest.offer(&[(0, there), (1, back)], 0);
        Ok(())
    };
    "length-zero", "a chain of no bytes", |guest| first(guest, |one| Descriptor { len: 0, ..one });
    "length-zero-after-header", "a header and then no bytes", |guest| {
        let one = describe(guest.honest_frame()?);
        let header = u32::try_from(guest.header_size()).unwrap_or(12);
        let head = Descriptor { len: header, flags: DESC_NEXT, next: 1, ..one };
        guest.offer(&[(0, head), (1, Descriptor { len: 0, ..one })], 0);
        Ok(())
    };
    "header-short", "a chain shorter than the vnet header",
        |guest| first(guest, |one| Descriptor { len: 5, ..one });
    "header-in-crumbs", "a vnet header byte by byte in a chain, and no frame", |guest| crumbs(guest, 0);
    "frame-in-crumbs", "a vnet header and a frame byte by byte in a chain", |guest| crumbs(guest, 100);
    "header-only", "a vnet header and no frame", |guest| {
        let header = u32::try_from(guest.header_size()).unwrap_or(12);
        let one = Descriptor { len: header, ..describe(guest.honest_frame()?) };
        guest.offer(&[(0, one)], 0);
        Ok(())
    };
    "frame-runt", "a frame of 5 bytes", |guest| {
        let size = u32::try_from(guest.header_size() + 5).unwrap_or(17);
        let one = Descriptor { len: size, ..describe(guest.honest_frame()?) };
        guest.offer(&[(0, one)], 0);
        Ok(())
    };
    "frame-huge", "a frame of 800 KiB in 200 descriptors", |guest| {
        let whole: Vec<Segment> =
            (0..200).map(|index| Segment { gpa: guest.cell(index), len: 4096, writable: false }).collect();
        guest.transmitq().add(&whole)?;
        guest.transmitq().publish();
        guest.kick(1);
        Ok(())
    };
    "length-huge", "a descriptor of 4 GiB", |guest| first(guest, |one| Descriptor { len: u32::MAX, ..one });
    "length-past-region", "a descriptor that ends past its memory region",
        |guest| first(guest, |one| Descriptor { len: 64 << 20, ..one });
    "lengths-overflow", "a chain whose lengths sum up to more than 32 bits", |guest| {
        let one = Descriptor { len: 0xf000_0000, ..describe(guest.honest_frame()?) };
        let chain: Vec<(u16, Descriptor)> = (0..32)
            .map(|index| (index, Descriptor { flags: if index < 31 { DESC_NEXT } else { 0 }, next: index + 1, ..one }))
            .collect();
        guest.offer(&chain, 0);
        Ok(())
    };
    "address-outside", "a buffer outside all memory",
        |guest| first(guest, |one| Descriptor { address: 0x7000_0000_0000, ..one });
    "address-outside-in-batch", "one buffer outside all memory in the middle of many that are not", |guest| {
        let one = describe(guest.honest_frame()?);
        let bad = Descriptor { address: 0x7000_0000_0000, ..one };
        let ring = guest.transmitq().ring_mut();
        for index in 0..32 {
            ring.write_descriptor(index, if index == 17 { bad } else { one });
            ring.put_available(index);
        }
        ring.publish();
        guest.kick(1);
        Ok(())
    };
    "address-crosses-regions", "a buffer that begins in one memory region and ends where no other begins", |guest| {
        let end = guest.frontend().ram().regions().first().map_or(0, |region| region.gpa().0 + region.size() as u64);
        let one = Descriptor { address: end - 32, ..describe(guest.honest_frame()?) };
        guest.offer(&[(0, one)], 0);
        Ok(())
    };
    "supply-endless", "frames without end, as fast as they are taken", |guest| {
        let one = describe(guest.frame_to_itself()?);
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            guest.offer_again(one);
        }
        Ok(())
    };
    "address-wraps", "a buffer whose address and length wrap",
        |guest| first(guest, |one| Descriptor { address: !15, ..one });
    "writable-in-transmitq", "a device-writable buffer in the transmitq",
        |guest| first(guest, |one| Descriptor { flags: DESC_WRITE, ..one });
    "flags-unknown", "a descriptor with every flag set",
        |guest| first(guest, |one| Descriptor { flags: u16::MAX, ..one });
    "indirect-empty", "an indirect table of no bytes", |guest| table(guest, 1, 0, |_, one| one);
    "indirect-odd", "an indirect table of 17 bytes", |guest| table(guest, 1, 17, |_, one| one);
    "indirect-huge", "an indirect table of 4 GiB", |guest| table(guest, 1, 0xffff_fff0, |_, one| one);
    "indirect-long", "an indirect table of 4000 descriptors", |guest| {
        table(guest, 4000, 64_000, |index, one| {
            Descriptor { len: 1, flags: if index < 3999 { DESC_NEXT } else { 0 }, next: index + 1, ..one }
        })
    };
    "indirect-no-lengths", "an indirect table of 4000 descriptors of no bytes", |guest| {
        table(guest, 4000, 64_000, |index, one| {
            Descriptor { len: 0, flags: if index < 3999 { DESC_NEXT } else { 0 }, next: index + 1, ..one }
        })
    };
    "indirect-nested", "an indirect table in an indirect table", |guest| {
        table(guest, 2, 32, |_, one| Descriptor { flags: DESC_INDIRECT, len: 32, ..one })
    };
    "indirect-loop", "an indirect table that goes round", |guest| {
        table(guest, 2, 32, |index, one| Descriptor { flags: DESC_NEXT, next: 1 - index, ..one })
    };
    "indirect-next-out-of-range", "an indirect chain that goes on past its table",
        |guest| table(guest, 1, 16, |_, one| Descriptor { flags: DESC_NEXT, next: 500, ..one });
    "indirect-and-next", "an indirect descriptor with another one after it",
        |guest| first(guest, |one| Descriptor { flags: DESC_INDIRECT | DESC_NEXT, len: 16, next: 1, ..one });
    "indirect-outside", "an indirect table outside all memory", |guest| {
        first(guest, |one| Descriptor { address: 0x7000_0000_0000, len: 32, flags: DESC_INDIRECT, ..one })
    };
    "vnet-gso-size-0", "segmentation into segments of no bytes", |guest| vnet(guest, &[0, 1, 0, 0, 0, 0]);
    "vnet-gso-unknown", "a kind of segmentation that nobody knows",
        |guest| vnet(guest, &[0, 0x7f, 0, 0, 100, 0]);
    "vnet-checksum-outside", "a partial checksum past the frame's end",
        |guest| vnet(guest, &[1, 0, 0, 0, 0, 0, 0x60, 0xea, 0xff, 0xff]);
    "vnet-noise", "a vnet header of all ones", |guest| vnet(guest, &[0xff; 10]);
    "rx-readable", "receive buffers that the device must not write",
        |guest| receive(guest, |one| Descriptor { flags: 0, ..one });
    "rx-outside", "receive buffers outside all memory",
        |guest| receive(guest, |one| Descriptor { address: 0x7000_0000_0000, ..one });
    "rx-length-zero", "receive buffers of no bytes", |guest| receive(guest, |one| Descriptor { len: 0, ..one });
    "rx-tiny", "receive buffers of one byte", |guest| receive(guest, |one| Descriptor { len: 1, ..one });
    "rx-header-only", "receive buffers that hold a vnet header and nothing else",
        |guest| receive(guest, |one| Descriptor { len: 12, ..one });
    "rx-length-huge", "receive buffers of 4 GiB", |guest| receive(guest, |one| Descriptor { len: u32::MAX, ..one });
    "rx-to-itself", "receive buffers whose chain goes round",
        |guest| receive(guest, |one| Descriptor { flags: DESC_WRITE | DESC_NEXT, next: 0, ..one });
    "rx-head-out-of-range", "receive heads past the descriptor table", |guest| {
        guest.offer_receive(&[], 60_000);
        Ok(())
    };
    "rx-used-ring", "receive buffers that lie in the guest's own used ring", |guest| {
        let used = guest.receiveq().ring().place().used;
        receive(guest, |one| one)?;
        let one = Descriptor { address: used.0, len: 2048, flags: DESC_WRITE, next: 0 };
        guest.offer_receive(&[(1, one)], 1);
        Ok(())
    };
    "rx-never", "no receive buffers, ever", |_| Ok(());
    "kick-storm", "kicks without end and without reason", |guest| {
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            guest.kick(0);
            guest.kick(1);
        }
        Ok(())
    };
    "descriptor-flips", "descriptors that change while the device reads them", |guest| {
        guest.receive_honestly()?;
        let good = describe(guest.honest_frame()?);
        let bad = Descriptor { address: 0x7000_0000_0000, len: 0xffff, ..good };
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            guest.offer_again(good);
            for _ in 0..50 {
                let ring = guest.transmitq().ring();
                ring.write_descriptor(0, bad);
                ring.write_descriptor(0, good);
            }
        }
        Ok(())
    };
    "headers-flip", "frames whose addresses change while the device reads them", |guest| {
        let segment = guest.honest_frame()?;
        let window = guest.frontend().ram().window(segment.gpa, 64)?;
        let at = guest.header_size();
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            guest.offer_again(describe(segment));
            for byte in 0..=255 {
                window.write(at, &[byte; 12]);
            }
        }
        Ok(())
    };
    "truncate-data", "the memory under the frames is cut off", |guest| {
        let one = describe(guest.honest_frame()?);
        truncate(guest, 1)?;
        for _ in 0..64 {
            guest.offer(&[(0, one)], 0);
        }
        Ok(())
    };
    "truncate-receive", "the memory under the receive buffers is cut off", |guest| {
        guest.receive_honestly()?;
        truncate(guest, 1)
    };
    "truncate-rings", "the memory under the rings is cut off", |guest| {
        guest.go_blind();
        truncate(guest, 0)?;
        guest.kick(0);
        guest.kick(1);
        Ok(())
    };
}

fn describe(segment: Segment) -> Descriptor {
    Descriptor { address: segment.gpa.0, len: segment.len, flags: 0, next: 0 }
}

/// Offers an honest frame whose only descriptor is bent.
fn first(guest: &mut Guest<SplitDriver>, bend: fn(Descriptor) -> Descriptor) -> Result<()> {
    let one = bend(describe(guest.honest_frame()?));
    guest.offer(&[(0, one)], 0);
    Ok(())
}

/// Offers a chain of one-byte descriptors: the vnet header, and `frame` bytes after it.
fn crumbs(guest: &mut Guest<SplitDriver>, frame: u16) -> Result<()> {
    let one = describe(guest.honest_frame()?);
    let count = u16::try_from(guest.header_size()).unwrap_or(12) + frame;
    let crumb = |index: u16| {
        let flags = if index + 1 < count { DESC_NEXT } else { 0 };
        Descriptor { address: one.address + u64::from(index % 64), len: 1, flags, next: index + 1 }
    };
    let chain: Vec<(u16, Descriptor)> = (0..count).map(|index| (index, crumb(index))).collect();
    guest.offer(&chain, 0);
    Ok(())
}

/// Offers an indirect table of `count` bent descriptors that claims `len` bytes.
fn table(guest: &mut Guest<SplitDriver>, count: u16, len: u32, bend: fn(u16, Descriptor) -> Descriptor) -> Result<()> {
    let one = describe(guest.honest_frame()?);
    let entries: Vec<Descriptor> = (0..count).map(|index| bend(index, one)).collect();
    guest.offer_table(&entries, len)
}

/// Sends a frame with this beginning of a vnet header.
fn vnet(guest: &mut Guest<SplitDriver>, header: &[u8]) -> Result<()> {
    let mut bytes = announcement(guest.mac(), guest.header_size());
    for (place, byte) in bytes.iter_mut().zip(header) {
        *place = *byte;
    }
    let segment = guest.frame(&bytes)?;
    guest.offer(&[(0, describe(segment))], 0);
    Ok(())
}

/// Offers bent receive buffers.
#[expect(clippy::unnecessary_wraps, reason = "a row of the table, whose rows can fail")]
fn receive(guest: &mut Guest<SplitDriver>, bend: fn(Descriptor) -> Descriptor) -> Result<()> {
    let honest = Descriptor { address: guest.cell(8).0, len: 2048, flags: DESC_WRITE, next: 0 };
    guest.offer_receive(&[(0, bend(honest))], 0);
    Ok(())
}

/// Moves the transmitq's available index without a reason.
#[expect(clippy::unnecessary_wraps, reason = "a row of the table, whose rows can fail")]
fn move_index(guest: &mut Guest<SplitDriver>, by: u16) -> Result<()> {
    let ring = guest.transmitq().ring();
    let index = ring.available().load_u16(2).wrapping_add(by);
    ring.available().store_u16_release(2, index);
    guest.kick(1);
    Ok(())
}

fn truncate(guest: &Guest<SplitDriver>, region: usize) -> Result<()> {
    match guest.frontend().ram().regions().get(region) {
        Some(region) => region.file().set_len(0).map_err(Error::kernel("cannot cut the memory off")),
        None => Err(Error::Config(format!("there is no memory region {region}"))),
    }
}
