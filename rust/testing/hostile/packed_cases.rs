// SPDX-License-Identifier: Apache-2.0
//! Lies of a guest in its packed rings, after an honest start.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::{Attack, Case};
use crate::testing::driver::{
    DESC_AVAILABLE, DESC_INDIRECT, DESC_NEXT, DESC_USED, DESC_WRITE, PackedDescriptor, PackedDriver, RingFormat,
    Segment,
};
use crate::testing::memory::Gpa;
use crate::testing::wire::features::RING_PACKED;
use crate::testing::{Error, Result};

/// How long attacks that go on go on.
const GOING_ON: Duration = Duration::from_millis(500);
const OUTSIDE: u64 = 0x7000_0000_0000;

type Packed = PackedDescriptor;

macro_rules! cases {
    ($($name:literal, $what:literal, $attack:expr;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: $name, what: $what, needs: RING_PACKED, attack: Attack::Packed($attack) }),*];
    };
}

cases! {
    "packed-honest", "no lie at all: the control", |guest| {
        guest.receive_honestly()?;
        let frame = guest.honest_frame()?;
        guest.transmitq().add(&[frame])?;
        guest.transmitq().publish();
        guest.kick(1);
        Ok(())
    };
    "packed-flags-all", "a descriptor with every flag set", |guest| raw(guest, |_, one| Packed { flags: u16::MAX, ..one });
    "packed-flags-unknown", "a descriptor with flags that nobody knows",
        |guest| first(guest, |one| Packed { flags: 0x7f78, ..one });
    "packed-used-already", "a descriptor that says it was used already",
        |guest| raw(guest, |wrap, one| Packed { flags: if wrap { DESC_AVAILABLE | DESC_USED } else { 0 }, ..one });
    "packed-wrap-ahead", "a descriptor of the round after this one",
        |guest| raw(guest, |wrap, one| Packed { flags: if wrap { DESC_USED } else { DESC_AVAILABLE }, ..one });
    "packed-wrap-in-chain", "a chain whose second descriptor is of another round", |guest| {
        let one = honest(guest)?;
        let cursor = guest.transmitq().ring().next_available();
        let (now, other) = (cursor.available(), cursor.available() ^ (DESC_AVAILABLE | DESC_USED));
        guest.write(&[Packed { flags: now | DESC_NEXT, ..one }, Packed { flags: other, ..one }]);
        Ok(())
    };
    "packed-chain-cut", "a chain whose next descriptor is not available", |guest| {
        let one = honest(guest)?;
        let now = guest.transmitq().ring().next_available().available();
        guest.write(&[Packed { flags: now | DESC_NEXT, ..one }]);
        Ok(())
    };
    "packed-chain-endless", "a chain that goes round the whole ring", |guest| {
        let one = honest(guest)?;
        let size = guest.transmitq().ring().descriptors().size() / 16;
        let now = guest.transmitq().ring().next_available().available();
        // As if the round never changed, and as it should.
        guest.write(&vec![Packed { flags: now | DESC_NEXT, ..one }; size]);
        guest.push(&vec![Packed { flags: DESC_NEXT, len: 1, ..one }; size]);
        Ok(())
    };
    "packed-ring-whole", "every descriptor of the ring available for ever", |guest| {
        let one = to_itself(guest)?;
        let size = guest.transmitq().ring().descriptors().size() / 16;
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            for flags in [DESC_AVAILABLE, DESC_USED] {
                guest.write(&vec![Packed { flags, ..one }; size]);
            }
        }
        Ok(())
    };
    "packed-id-huge", "a buffer id that the ring does not have",
        |guest| first(guest, |one| Packed { id: u16::MAX, ..one });
    "packed-id-twice", "one id for all buffers", |guest| {
        let one = honest(guest)?;
        guest.push(&[Packed { id: 7, ..one }; 32]);
        Ok(())
    };
    "packed-length-zero", "a buffer of no bytes", |guest| first(guest, |one| Packed { len: 0, ..one });
    "packed-length-huge", "a buffer of 4 GiB", |guest| first(guest, |one| Packed { len: u32::MAX, ..one });
    "packed-lengths-overflow", "a chain whose lengths sum up to more than 32 bits", |guest| {
        let one = Packed { len: 0xf000_0000, flags: DESC_NEXT, ..honest(guest)? };
        let mut chain = vec![one; 31];
        chain.push(Packed { flags: 0, ..one });
        guest.push(&chain);
        Ok(())
    };
    "packed-header-short", "a chain shorter than the vnet header", |guest| first(guest, |one| Packed { len: 5, ..one });
    "packed-header-in-crumbs", "a vnet header byte by byte in a chain, and no frame", |guest| {
        let one = Packed { len: 1, flags: DESC_NEXT, ..honest(guest)? };
        let mut chain = vec![one; guest.header_size() - 1];
        chain.push(Packed { flags: 0, ..one });
        guest.push(&chain);
        Ok(())
    };
    "packed-address-outside", "a buffer outside all memory", |guest| first(guest, |one| Packed { address: OUTSIDE, ..one });
    "packed-address-outside-in-batch", "one buffer outside all memory in the middle of many that are not", |guest| {
        let one = honest(guest)?;
        let mut batch = vec![one; 32];
        if let Some(bad) = batch.get_mut(17) {
            bad.address = OUTSIDE;
        }
        guest.push(&batch);
        Ok(())
    };
    "packed-address-wraps", "a buffer whose address and length wrap", |guest| first(guest, |one| Packed { address: !15, ..one });
    "packed-writable", "a device-writable buffer in the transmitq",
        |guest| first(guest, |one| Packed { flags: DESC_WRITE, ..one });
    "packed-indirect-empty", "an indirect table of no bytes", |guest| table(guest, 1, 0, 0, |one| one);
    "packed-indirect-odd", "an indirect table of 17 bytes", |guest| table(guest, 1, 17, 0, |one| one);
    "packed-indirect-huge", "an indirect table of 4 GiB", |guest| table(guest, 1, 0xffff_fff0, 0, |one| one);
    "packed-indirect-long", "an indirect table of 4000 descriptors",
        |guest| table(guest, 4000, 64_000, 0, |one| Packed { len: 1, ..one });
    "packed-indirect-no-lengths", "an indirect table of 4000 descriptors of no bytes",
        |guest| table(guest, 4000, 64_000, 0, |one| Packed { len: 0, ..one });
    "packed-indirect-nested", "an indirect table in an indirect table",
        |guest| table(guest, 2, 32, 0, |one| Packed { flags: DESC_INDIRECT, len: 32, ..one });
    "packed-indirect-flags", "an indirect table whose entries have every flag",
        |guest| table(guest, 2, 32, 0, |one| Packed { flags: !DESC_INDIRECT, ..one });
    "packed-indirect-and-next", "an indirect descriptor with another one after it", |guest| {
        table(guest, 2, 32, DESC_NEXT, |one| one)
    };
    "packed-indirect-writable", "an indirect descriptor that the device is to write",
        |guest| table(guest, 2, 32, DESC_WRITE, |one| one);
    "packed-indirect-outside", "an indirect table outside all memory",
        |guest| first(guest, |one| Packed { address: OUTSIDE, len: 32, flags: DESC_INDIRECT, ..one });
    "packed-rx-readable", "receive buffers that the device must not write",
        |guest| receive(guest, |one| Packed { flags: 0, ..one });
    "packed-rx-outside", "receive buffers outside all memory", |guest| receive(guest, |one| Packed { address: OUTSIDE, ..one });
    "packed-rx-length-zero", "receive buffers of no bytes", |guest| receive(guest, |one| Packed { len: 0, ..one });
    "packed-rx-tiny", "receive buffers of one byte", |guest| receive(guest, |one| Packed { len: 1, ..one });
    "packed-rx-length-huge", "receive buffers of 4 GiB", |guest| receive(guest, |one| Packed { len: u32::MAX, ..one });
    "packed-rx-endless", "receive buffers whose chain does not end",
        |guest| receive(guest, |one| Packed { flags: DESC_WRITE | DESC_NEXT, ..one });
    "packed-rx-own-ring", "receive buffers that lie in the guest's own descriptor ring", |guest| {
        let ring = RingFormat::place(guest.receiveq().ring()).descriptors;
        let honest = Packed { address: ring.0, len: 2048, id: 0, flags: DESC_WRITE };
        guest.push_receive(&[honest]);
        Ok(())
    };
    "packed-events-noise", "event suppression structures that say everything at once", |guest| {
        guest.receive_honestly()?;
        let one = to_itself(guest)?;
        let end = Instant::now() + GOING_ON;
        let mut word = 0_u16;
        while Instant::now() < end {
            word = word.wrapping_mul(31_421).wrapping_add(6927);
            guest.receiveq().ring().driver_area().store_u16(0, word);
            guest.receiveq().ring().driver_area().store_u16(2, word >> 3);
            guest.transmitq().ring().driver_area().store_u16(0, !word);
            guest.transmitq().ring().driver_area().store_u16(2, word >> 7);
            keep_sending(guest, one);
        }
        Ok(())
    };
    "packed-device-area-noise", "the device's own event suppression structure is written over", |guest| {
        for word in 0..=u16::MAX {
            guest.transmitq().ring().device_area().store_u16(0, word);
            guest.transmitq().ring().device_area().store_u16(2, word);
        }
        guest.kick(1);
        Ok(())
    };
    "packed-descriptor-flips", "descriptors that change while the device reads them", |guest| {
        guest.receive_honestly()?;
        let good = to_itself(guest)?;
        let end = Instant::now() + GOING_ON;
        while Instant::now() < end {
            keep_sending(guest, good);
            let ring = guest.transmitq().ring();
            for index in 0..16 {
                ring.descriptors().store_u64(16 * index, OUTSIDE);
                ring.descriptors().store_u32(16 * index + 8, 0xffff);
                ring.descriptors().store_u64(16 * index, good.address);
                ring.descriptors().store_u32(16 * index + 8, good.len);
            }
        }
        Ok(())
    };
    "packed-truncate-rings", "the memory under the rings is cut off", |guest| {
        guest.go_blind();
        match guest.frontend().ram().regions().first() {
            Some(region) => region.file().set_len(0).map_err(Error::kernel("cannot cut the memory off"))?,
            None => return Err(Error::Config("there is no memory region".into())),
        }
        guest.kick(0);
        guest.kick(1);
        Ok(())
    };
}

/// An honest frame as a descriptor.
fn honest(guest: &Guest<PackedDriver>) -> Result<Packed> {
    let segment = guest.honest_frame()?;
    Ok(Packed { address: segment.gpa.0, len: segment.len, id: 0, flags: 0 })
}

/// A frame that goes to nobody else as a descriptor: of those there may be any number.
fn to_itself(guest: &Guest<PackedDriver>) -> Result<Packed> {
    let segment = guest.frame_to_itself()?;
    Ok(Packed { address: segment.gpa.0, len: segment.len, id: 0, flags: 0 })
}

/// Makes an honest frame available whose only descriptor is bent.
fn first(guest: &mut Guest<PackedDriver>, bend: fn(Packed) -> Packed) -> Result<()> {
    let one = bend(honest(guest)?);
    guest.push(&[one]);
    Ok(())
}

/// Writes a descriptor with the very flags that come of the wrap counter.
fn raw(guest: &mut Guest<PackedDriver>, bend: fn(bool, Packed) -> Packed) -> Result<()> {
    let one = honest(guest)?;
    let wrap = guest.transmitq().ring().next_available().wrap;
    guest.write(&[bend(wrap, one)]);
    Ok(())
}

/// Offers an indirect table of `count` bent descriptors that claims `len` bytes.
fn table(
    guest: &mut Guest<PackedDriver>,
    count: usize,
    len: u32,
    flags: u16,
    bend: fn(Packed) -> Packed,
) -> Result<()> {
    let one = bend(honest(guest)?);
    guest.push_table(&vec![one; count], len, flags)
}

/// Offers bent receive buffers.
#[expect(clippy::unnecessary_wraps, reason = "a row of the table, whose rows can fail")]
fn receive(guest: &mut Guest<PackedDriver>, bend: fn(Packed) -> Packed) -> Result<()> {
    let honest = Packed { address: guest.cell(8).0, len: 2048, id: 0, flags: DESC_WRITE };
    guest.push_receive(&[bend(honest)]);
    Ok(())
}

/// Sends a frame again if the device keeps up.
fn keep_sending(guest: &mut Guest<PackedDriver>, one: Packed) {
    let driver = guest.transmitq();
    while driver.poll_used().is_some() {}
    if driver.free() > 8 && driver.add(&[Segment { gpa: Gpa(one.address), len: one.len, writable: false }]).is_ok() {
        driver.publish();
        guest.kick(1);
    }
}
