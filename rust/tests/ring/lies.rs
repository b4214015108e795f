// SPDX-License-Identifier: Apache-2.0
//! The lies a driver can tell, each with the name it must be called by.

use ovsvhost::ring::RingFault;

use super::driver::packed::{self, PackedSide};
use super::driver::split::Desc;
use super::driver::{Driver, INDIRECT, Layout, NEXT, Piece, WRITE};
use super::guest::{BUFFERS, Guest, RINGS};

/// Entries of the rings that lie.
pub const SIZE: u32 = 64;
/// Past the buffers: nothing is mapped from here to the rings.
const NOWHERE: u64 = 2 * BUFFERS as u64;
/// Where hostile indirect tables are.
pub const TABLE: u64 = 0x8000;

/// One lie: how the ring is set up, and what it must be called.
pub struct Lie {
    pub name: &'static str,
    pub fault: RingFault,
    /// The last argument is the direction flag of an honest buffer.
    pub tell: fn(&mut Driver, &Guest, u16),
}

/// Every lie that this layout allows.
pub fn of(layout: Layout) -> impl Iterator<Item = &'static Lie> {
    let own = if layout == Layout::Split { SPLIT } else { PACKED };
    own.iter().chain(SHARED)
}

/// One chain of these, made available.
fn chain(driver: &mut Driver, pieces: &[(u64, u32, u16)]) {
    let pieces: Vec<_> = pieces.iter().map(|&(addr, len, flags)| Piece { addr, len, flags }).collect();
    driver.put(&pieces);
    driver.publish();
}

/// An indirect table of these, made available.
fn table(driver: &mut Driver, guest: &Guest, pieces: &[(u64, u32, u16)]) {
    let entries: Vec<_> = pieces.iter().map(|&(addr, len, flags)| Piece { addr, len, flags }).collect();
    driver.write_table(guest, TABLE, &entries);
    chain(driver, &[(TABLE, 16 * pieces.len() as u32, INDIRECT)]);
}

/// A split ring's descriptor at index 0, made available.
fn one(driver: &mut Driver, desc: Desc) {
    driver.split().write_desc(0, desc);
    driver.split().put_head(0);
    driver.publish();
}

/// A packed ring's chain with any id.
fn with_id(driver: &mut Driver, pieces: &[(u64, u32, u16)], id: u16) {
    let pieces: Vec<_> = pieces.iter().map(|&(addr, len, flags)| Piece { addr, len, flags }).collect();
    driver.packed().put_as(&pieces, id);
    driver.publish();
}

const SPLIT: &[Lie] = &[
    Lie {
        name: "index one past the ring",
        fault: RingFault::IndexJump,
        tell: |driver, _, _| {
            let index = driver.split().next_avail().wrapping_add(SIZE as u16 + 1);
            driver.split().publish_index(index);
        },
    },
    Lie {
        name: "index gone back by one",
        fault: RingFault::IndexJump,
        tell: |driver, _, _| {
            let index = driver.split().next_avail().wrapping_sub(1);
            driver.split().publish_index(index);
        },
    },
    Lie {
        name: "head past the table",
        fault: RingFault::IndexRange,
        tell: |driver, _, _| {
            driver.split().put_head(SIZE as u16);
            driver.publish();
        },
    },
    Lie {
        name: "largest head",
        fault: RingFault::IndexRange,
        tell: |driver, _, _| {
            driver.split().put_head(u16::MAX);
            driver.publish();
        },
    },
    Lie {
        name: "next past the table",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 1, flags: flags | NEXT, next: SIZE as u16 }),
    },
    Lie {
        name: "next past the table after a header",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 65_535 }),
    },
    Lie {
        name: "chain that is its own tail",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| one(driver, Desc { addr: 0, len: 12, flags: flags | NEXT, next: 0 }),
    },
    Lie {
        name: "loop of every descriptor",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| {
            for index in 0..SIZE as u16 {
                let next = (index + 1) % SIZE as u16;
                driver.split().write_desc(index, Desc { addr: 0, len: 1, flags: flags | NEXT, next });
            }
            driver.split().put_head(0);
            driver.publish();
        },
    },
    Lie {
        name: "loop of empty buffers",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| one(driver, Desc { addr: u64::MAX, len: 0, flags: flags | NEXT, next: 0 }),
    },
    Lie {
        name: "loop in an indirect table",
        fault: RingFault::ChainLoop,
        tell: |driver, guest, flags| {
            guest.write(TABLE, &Desc { addr: 0, len: 12, flags: flags | NEXT, next: 1 }.bytes());
            guest.write(TABLE + 16, &Desc { addr: 0, len: 1, flags: flags | NEXT, next: 0 }.bytes());
            chain(driver, &[(TABLE, 32, INDIRECT)]);
        },
    },
    Lie {
        name: "next past an indirect table",
        fault: RingFault::IndexRange,
        tell: |driver, guest, flags| {
            guest.write(TABLE, &Desc { addr: 0, len: 12, flags: flags | NEXT, next: 2 }.bytes());
            chain(driver, &[(TABLE, 32, INDIRECT)]);
        },
    },
    Lie {
        name: "indirect table in an indirect table",
        fault: RingFault::BadIndirect,
        tell: |driver, guest, _| {
            guest.write(TABLE, &Desc { addr: TABLE, len: 32, flags: INDIRECT, next: 0 }.bytes());
            chain(driver, &[(TABLE, 32, INDIRECT)]);
        },
    },
];

const PACKED: &[Lie] = &[
    Lie {
        name: "id past the ring",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| with_id(driver, &[(0, 100, flags)], SIZE as u16),
    },
    Lie {
        name: "largest id",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| with_id(driver, &[(0, 100, flags)], u16::MAX),
    },
    Lie {
        name: "id past the ring at the end of header and data",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| with_id(driver, &[(0, 12, flags), (4096, 1500, flags)], SIZE as u16),
    },
    Lie {
        name: "id past the ring at the end of a chain",
        fault: RingFault::IndexRange,
        tell: |driver, _, flags| with_id(driver, &[(0, 5, flags), (64, 7, flags), (4096, 1500, flags)], SIZE as u16),
    },
    Lie {
        name: "id past the ring of an indirect table",
        fault: RingFault::IndexRange,
        tell: |driver, guest, flags| {
            let entries = [(0, 12), (4096, 1500)].map(|(addr, len)| Piece { addr, len, flags });
            driver.write_table(guest, TABLE, &entries);
            with_id(driver, &[(TABLE, 32, INDIRECT)], SIZE as u16);
        },
    },
    Lie {
        name: "chain that goes round the ring",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| endless(driver, 1, flags),
    },
    Lie {
        name: "chain of empty buffers that goes round the ring",
        fault: RingFault::ChainLoop,
        tell: |driver, _, flags| endless(driver, 0, flags),
    },
    Lie {
        name: "indirect table at the end of a chain",
        fault: RingFault::BadIndirect,
        tell: |driver, guest, flags| {
            driver.write_table(guest, TABLE, &[Piece { addr: 4096, len: 1500, flags }]);
            chain(driver, &[(0, 12, flags), (TABLE, 16, INDIRECT)]);
        },
    },
];

/// Every descriptor of a packed ring available, and each goes on in the next one.
fn endless(driver: &mut Driver, len: u32, flags: u16) {
    let start = driver.packed().next_avail;
    for index in 0..SIZE as usize {
        let wrap = start.wrap == (index >= start.index);
        let flags = flags | NEXT | PackedSide::available(wrap);
        driver.packed().write_desc(index, packed::Desc { addr: 0, len, id: 0, flags });
    }
}

/// Lies that both layouts allow.
const SHARED: &[Lie] = &[
    Lie {
        name: "indirect table of no entries",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| chain(driver, &[(TABLE, 0, INDIRECT)]),
    },
    Lie {
        name: "indirect table of half an entry",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| chain(driver, &[(TABLE, 8, INDIRECT)]),
    },
    Lie {
        name: "indirect table of one entry and a half",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| chain(driver, &[(TABLE, 24, INDIRECT)]),
    },
    Lie {
        name: "indirect table of more than 32768 entries",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| chain(driver, &[(0, 16 * 32_769, INDIRECT)]),
    },
    Lie {
        name: "largest indirect table",
        fault: RingFault::BadIndirect,
        tell: |driver, _, _| chain(driver, &[(0, 0xffff_fff0, INDIRECT)]),
    },
    Lie {
        name: "indirect with next",
        fault: RingFault::BadIndirect,
        tell: |driver, guest, flags| {
            let entries = [(0, 12), (4096, 100)].map(|(addr, len)| Piece { addr, len, flags });
            driver.write_table(guest, TABLE, &entries);
            chain(driver, &[(TABLE, 32, INDIRECT), (4096, 100, flags)]);
        },
    },
    Lie {
        name: "indirect table outside memory",
        fault: RingFault::Address,
        tell: |driver, _, _| chain(driver, &[(NOWHERE, 32, INDIRECT)]),
    },
    Lie {
        name: "indirect table across the end of memory",
        fault: RingFault::Address,
        tell: |driver, _, _| chain(driver, &[(NOWHERE - 16, 32, INDIRECT)]),
    },
    Lie {
        name: "indirect table that wraps around",
        fault: RingFault::Address,
        tell: |driver, _, _| chain(driver, &[(u64::MAX - 15, 32, INDIRECT)]),
    },
    Lie {
        name: "buffer outside memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(NOWHERE, 100, flags)]),
    },
    Lie {
        name: "buffer across the end of memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(NOWHERE - 99, 100, flags)]),
    },
    Lie {
        name: "buffer that wraps around",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(u64::MAX - 50, 100, flags)]),
    },
    Lie {
        name: "buffer of every byte there is",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(0, u32::MAX, flags)]),
    },
    Lie {
        name: "buffer past the rings",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(RINGS + (1 << 20), 100, flags)]),
    },
    Lie {
        name: "second buffer outside memory",
        fault: RingFault::Address,
        tell: |driver, _, flags| chain(driver, &[(0, 12, flags), (NOWHERE, 1500, flags)]),
    },
    Lie {
        name: "wrong direction",
        fault: RingFault::WrongDirection,
        tell: |driver, _, flags| chain(driver, &[(0, 100, flags ^ WRITE)]),
    },
    Lie {
        name: "wrong direction further on",
        fault: RingFault::WrongDirection,
        tell: |driver, _, flags| chain(driver, &[(0, 12, flags), (4096, 1500, flags ^ WRITE)]),
    },
    Lie {
        name: "wrong direction in an indirect table",
        fault: RingFault::WrongDirection,
        tell: |driver, guest, flags| table(driver, guest, &[(0, 12, flags ^ WRITE), (4096, 1500, flags ^ WRITE)]),
    },
    Lie {
        name: "wrong direction at the end of an indirect table",
        fault: RingFault::WrongDirection,
        tell: |driver, guest, flags| table(driver, guest, &[(0, 12, flags), (4096, 1500, flags ^ WRITE)]),
    },
    Lie {
        name: "buffer of no bytes",
        fault: RingFault::ShortChain,
        tell: |driver, _, flags| chain(driver, &[(0, 0, flags)]),
    },
    Lie {
        name: "buffer one byte short of a header",
        fault: RingFault::ShortChain,
        tell: |driver, _, flags| chain(driver, &[(0, 11, flags)]),
    },
    Lie {
        name: "chain one byte short of a header",
        fault: RingFault::ShortChain,
        tell: |driver, guest, flags| table(driver, guest, &[(0, 5, flags), (NOWHERE, 0, flags), (4096, 6, flags)]),
    },
    Lie {
        name: "chain of more bytes than a length can say",
        fault: RingFault::LongChain,
        tell: |driver, guest, flags| table(driver, guest, &[(0, 100, flags), (NOWHERE, u32::MAX, flags)]),
    },
    Lie {
        name: "chain of more pieces than any frame",
        fault: RingFault::LongChain,
        tell: |driver, guest, flags| table(driver, guest, &[(0, 1, flags); 3_000]),
    },
];
