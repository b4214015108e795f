// SPDX-License-Identifier: Apache-2.0
//! A naive packet builder and segmenter: every packet is built anew from what it is to say. Shared by the tests of the
//! arithmetic and those of the rings; uses nothing of the crate.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub, reason = "a test's room")]

use proptest::arbitrary::any as arbitrary;
use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::sample::select;

/// The checksum of RFC 1071, word by word.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0_u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap()
}

pub fn sent(sum: u16) -> u16 {
    if sum == 0xffff { 0xffff } else { !sum }
}

/// What a packet is to be like.
#[derive(Debug, Clone)]
pub struct Packet {
    pub tags: Vec<u16>,
    pub v6: bool,
    /// IPv4 options, whole words.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number, and what follows Next Header and length.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub tcp: bool,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    pub id: u16,
    pub df: bool,
    pub sequence: u32,
    pub flags: u8,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Check {
    /// The pseudo-header's sum, for others to go on.
    Seed,
    Whole,
}

impl Packet {
    pub fn network_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub fn transport_at(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, body)| 2 + body.len()).sum();
        self.network_at() + if self.v6 { 40 + extensions } else { 20 + self.options.len() }
    }

    pub fn payload_at(&self) -> usize {
        self.transport_at() + if self.tcp { 20 + self.tcp_options.len() } else { 8 }
    }

    pub fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    /// Where the fragmentable part starts, and the byte that says what it starts with.
    pub fn fragmentable(&self) -> (usize, usize) {
        if !self.v6 {
            return (self.transport_at(), self.network_at() + 9);
        }
        let (mut at, mut pointer) = (self.network_at() + 40, self.network_at() + 6);
        let mut found = (at, pointer);
        for (number, body) in &self.extensions {
            pointer = at;
            at += 2 + body.len();
            if *number != 60 {
                found = (at, pointer);
            }
        }
        found
    }

    pub fn build(&self, check: Check) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tag in &self.tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0x20, 5]);
        }
        let segment = self.payload_at() - self.transport_at() + self.payload.len();
        let mut destination = vec![0xfd, 2];
        destination.extend(if self.v6 { vec![9; 14] } else { vec![10, 9] });
        let source: Vec<u8> = destination.iter().map(|byte| byte ^ 0x11).collect();
        let mut last_hop = destination.clone();
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x61, 0x23, 0x45, 0x67]);
            let length = self.transport_at() - self.network_at() - 40 + segment;
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            let numbers = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]);
            let numbers: Vec<u8> = numbers.collect();
            bytes.extend([numbers[0], 64]);
            bytes.extend(&source);
            bytes.extend(&destination);
            for ((number, body), next) in self.extensions.iter().zip(&numbers[1..]) {
                bytes.extend([*next, u8::try_from((2 + body.len()) / 8 - 1).unwrap()]);
                bytes.extend(body);
                if *number == 43 && body[1] > 0 {
                    last_hop = body[6..22].to_vec();
                }
            }
        } else {
            bytes.extend([0x08, 0x00, 0x45 + u8::try_from(self.options.len() / 4).unwrap(), 0x28]);
            let length = 20 + self.options.len() + segment;
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.df { 0x40 } else { 0 }, 0, 63, self.protocol(), 0, 0]);
            bytes.extend(&source);
            bytes.extend(&destination);
            bytes.extend(&self.options);
            seal_v4(&mut bytes, self.network_at());
        }
        bytes.extend([0x12, 0x34, 0x56, 0x78]);
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            let words = u8::try_from(5 + self.tcp_options.len() / 4).unwrap();
            bytes.extend([1, 2, 3, 4, words << 4, self.flags, 0xff, 0xfe, 0, 0, 0, 0]);
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend(u16::try_from(segment).unwrap().to_be_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(&self.payload);
        let pseudo = [source, last_hop, vec![0, self.protocol()], u16::try_from(segment).unwrap().to_be_bytes().into()];
        let pseudo = pseudo.concat();
        let at = self.transport_at() + if self.tcp { 16 } else { 6 };
        let value = match check {
            Check::Seed => sum(&pseudo),
            Check::Whole => sent(sum(&[&pseudo, &bytes[self.transport_at()..]].concat())),
        };
        bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    /// The segments a stack would have sent by itself.
    pub fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size).max(1);
        let segment = |n: usize| {
            let payload = self.payload.iter().skip(n * size).take(size).copied().collect();
            let mut flags = self.flags;
            if n + 1 < count {
                flags &= !0x09;
            }
            if n > 0 {
                flags &= !0x80;
            }
            let id = self.id.wrapping_add(u16::try_from(n).unwrap());
            let sequence = self.sequence.wrapping_add(u32::try_from(n * size).unwrap());
            Self { payload, id, sequence, flags, ..self.clone() }.build(Check::Whole)
        };
        (0..count).map(segment).collect()
    }

    /// The fragments a stack would have sent by itself.
    pub fn fragments(&self, size: usize, ident: u32) -> Vec<Vec<u8>> {
        let whole = self.build(Check::Whole);
        let (cut, pointer) = self.fragmentable();
        let body = &whole[cut..];
        let size = size / 8 * 8;
        if body.len() <= size {
            return vec![whole];
        }
        let at = self.network_at();
        let fragment = |(n, chunk): (usize, &[u8])| {
            let mut bytes = whole[..cut].to_vec();
            let more = (n + 1) * size < body.len();
            let offset = u16::try_from(n * size / 8).unwrap();
            if self.v6 {
                let length = u16::try_from(cut - at - 40 + 8 + chunk.len()).unwrap();
                bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
                let next = std::mem::replace(&mut bytes[pointer], 44);
                bytes.extend([next, 0]);
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend(ident.to_be_bytes());
            } else {
                let length = u16::try_from(cut - at + chunk.len()).unwrap();
                bytes[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
                if self.df {
                    bytes[at + 4..at + 6].copy_from_slice(&ident.to_be_bytes()[2..]);
                }
                let flags = offset | if more { 0x2000 } else { 0 };
                bytes[at + 6..at + 8].copy_from_slice(&flags.to_be_bytes());
                if n > 0 {
                    // The only option of these packets that is not copied.
                    let options = &mut bytes[at + 20..cut];
                    if options.first() == Some(&7) {
                        options[..7].fill(1);
                    }
                }
                seal_v4(&mut bytes, at);
            }
            bytes.extend(chunk);
            bytes
        };
        body.chunks(size).enumerate().map(fragment).collect()
    }
}

/// Writes an IPv4 header's checksum.
pub fn seal_v4(bytes: &mut [u8], at: usize) {
    let end = at + usize::from(bytes[at] & 15) * 4;
    bytes[at + 10..at + 12].fill(0);
    let value = !sum(&bytes[at..end]);
    bytes[at + 10..at + 12].copy_from_slice(&value.to_be_bytes());
}

/// IPv6 extension headers that may be before a transport header.
fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let padding = |words: usize| vec![0; 6 + 8 * words];
    let hop_by_hop = proptest::option::of((0..3_usize).prop_map(move |words| (0, padding(words))));
    let routing = proptest::option::of(
        (0..3_u8, vec(arbitrary::<u8>(), 32)).prop_map(|(left, list)| (43, [vec![4, left, 1, 0, 0, 0], list].concat())),
    );
    let options = vec((0..3_usize).prop_map(move |words| (60, padding(words))), 0..3);
    (hop_by_hop, routing, options).prop_map(|(a, b, c)| a.into_iter().chain(b).chain(c).collect())
}

/// Packets of every kind, with payloads of these lengths.
pub fn any(lens: impl Strategy<Value = u32>) -> impl Strategy<Value = Packet> {
    let payload = (lens, arbitrary::<u32>()).prop_map(|(len, seed)| {
        (0..len).map(|at| (at.wrapping_add(seed).wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
    });
    (
        select(vec![vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x9100, 0x8100]]),
        arbitrary::<(bool, bool, bool, u16, u32, u8)>(),
        select(vec![vec![], vec![1, 1, 1, 0], vec![7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0]]),
        extensions(),
        (0..=10_usize).prop_flat_map(|words| vec(arbitrary::<u8>(), 4 * words)),
        payload,
    )
        .prop_map(|(tags, (v6, tcp, df, id, sequence, flags), options, extensions, tcp_options, payload)| {
            let (options, extensions) = if v6 { (vec![], extensions) } else { (options, vec![]) };
            Packet { tags, v6, options, extensions, tcp, tcp_options, payload, id, df, sequence, flags }
        })
}
