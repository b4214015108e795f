// SPDX-License-Identifier: Apache-2.0
//! Two guests and one pair of queues between them; each step is checked against what the standard says of every byte.

use std::collections::VecDeque;
use std::ops::Range;

use ovsvhost::burst::Stop;
use ovsvhost::drops::DropReason;
use ovsvhost::ring::{Receiveq, Transmitq, feature};

use super::dice::Dice;
use super::driver::{Driver, Layout, Posted, Shape, WRITE, room_for};
use super::guest::{BUFFERS, Guest, Image};
use super::log::Log;

/// What a guest sends.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// The sender leaves the checksum to the device: where it starts, where it goes from there.
    pub partial: Option<(u16, u16)>,
    /// The sender leaves segmentation to the device.
    pub gso: Option<Gso>,
}

/// Segmentation as a sender asks for it, and what must come of it.
#[derive(Clone, Debug)]
pub struct Gso {
    /// Of the virtio header.
    pub kind: u8,
    pub size: u16,
    /// Bytes of all headers.
    pub header_len: u16,
    /// What a receiver must have negotiated to get the frame whole.
    pub needs: u64,
    /// What all others get.
    pub pieces: Vec<Vec<u8>>,
    /// Bytes of each piece that the device chooses.
    pub free: Vec<Range<usize>>,
    /// The pieces have checksums of their own, known to be good.
    pub checked: bool,
}

/// How the two ends are made.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub tx_layout: Layout,
    pub rx_layout: Layout,
    pub tx_size: u32,
    pub rx_size: u32,
    pub tx_base: u16,
    pub rx_base: u16,
    pub tx_features: u64,
    pub rx_features: u64,
    pub seed: u64,
}

/// A stretch of a guest's buffer memory that is given out piece by piece, with gaps nobody may write to.
struct Arena {
    next: u64,
}

impl Arena {
    const END: u64 = 2 * BUFFERS as u64;

    fn fresh(dice: &mut Dice) -> Self {
        Self { next: dice.pick(0..BUFFERS) as u64 }
    }

    fn take(&mut self, len: usize, dice: &mut Dice) -> Option<u64> {
        let at = self.next + dice.pick(0..40) as u64;
        let end = at + len as u64;
        (end < Self::END).then(|| {
            self.next = end;
            at
        })
    }

    /// The same within one region: an indirect table is not split.
    fn take_whole(&mut self, len: usize, dice: &mut Dice) -> Option<u64> {
        let border = BUFFERS as u64;
        if self.next < border && self.next + 40 + len as u64 > border {
            self.next = border;
        }
        self.take(len, dice)
    }
}

/// The pair of queues, both drivers, and what is under way.
pub struct Pipe {
    pub dice: Dice,
    pub a: Guest,
    pub a_driver: Driver,
    pub tx: Transmitq,
    pub a_log: Log,
    pub b: Guest,
    pub b_driver: Driver,
    pub rx: Receiveq,
    pub b_log: Log,
    ends: Ends,
    a_arena: Arena,
    b_arena: Arena,
    sent: VecDeque<Frame>,
    /// Frames that arrived whole, and those refused for their size.
    pub delivered: usize,
    pub refused: usize,
    /// Chains that were used for them.
    pub chains: usize,
}

pub fn header_size(features: u64) -> usize {
    if features & (feature::VERSION_1 | feature::MRG_RXBUF) == 0 { 10 } else { 12 }
}

impl Pipe {
    pub fn new(ends: Ends) -> Self {
        let mut dice = Dice(ends.seed);
        let (mut a, mut b) = (Guest::new(room_for(ends.tx_size)), Guest::new(room_for(ends.rx_size)));
        let (tx_base, rx_base) =
            (ends.tx_layout.base(ends.tx_size, ends.tx_base), ends.rx_layout.base(ends.rx_size, ends.rx_base));
        let mut a_driver = Driver::new(&mut a, ends.tx_layout, ends.tx_size, tx_base, &mut dice);
        let mut b_driver = Driver::new(&mut b, ends.rx_layout, ends.rx_size, rx_base, &mut dice);
        let mut ring = a_driver.activate(&a, ends.tx_features, None, None);
        let a_log = Log::of(&mut ring);
        let tx = Transmitq::new(ring);
        let mut ring = b_driver.activate(&b, ends.rx_features, None, None);
        let b_log = Log::of(&mut ring);
        let rx = Receiveq::new(ring);
        let (a_arena, b_arena) = (Arena::fresh(&mut dice), Arena::fresh(&mut dice));
        let sent = VecDeque::new();
        Self {
            dice,
            a,
            a_driver,
            tx,
            a_log,
            b,
            b_driver,
            rx,
            b_log,
            ends,
            a_arena,
            b_arena,
            sent,
            delivered: 0,
            refused: 0,
            chains: 0,
        }
    }

    /// Sender: posts a frame in buffers of any shape; false when there is no room for it.
    pub fn send(&mut self, frame: Frame) -> bool {
        let header = header_size(self.ends.tx_features);
        let (total, dice) = (header + frame.bytes.len(), &mut self.dice);
        let sizes = match dice.pick(0..4) {
            0 => vec![total],
            1 => vec![header, total - header],
            2 => {
                let pieces = dice.pick(1..9);
                dice.cut(total, pieces)
            }
            _ if dice.once_in(8) => {
                let pieces = dice.pick(9..1000);
                dice.cut(total, pieces)
            }
            _ => [vec![header], dice.cut(total - header, 3)].concat(),
        };
        self.send_in(frame, &sizes)
    }

    /// The same with buffers of these sizes.
    pub fn send_in(&mut self, frame: Frame, sizes: &[usize]) -> bool {
        let dice = &mut self.dice;
        let mut bytes = vnet_header(&frame, header_size(self.ends.tx_features), dice);
        bytes.extend(&frame.bytes);
        let indirect = self.ends.tx_features & feature::INDIRECT_DESC != 0;
        let Some((buffers, shape)) = arrange(&self.a_driver, &mut self.a_arena, sizes, indirect, dice) else {
            return false;
        };
        let mut from = 0;
        for &(gpa, len) in buffers.iter().filter(|(_, len)| *len > 0) {
            self.a.write(gpa, &bytes[from..from + len as usize]);
            from += len as usize;
        }
        self.a_driver.post(&self.a, &buffers, 0, shape);
        self.sent.push_back(frame);
        true
    }

    /// Receiver: posts a buffer of `room` bytes in any shape; false when there is no room for it.
    pub fn offer(&mut self, room: usize) -> bool {
        let dice = &mut self.dice;
        let sizes = match dice.pick(0..5) {
            0 => {
                let pieces = dice.pick(1..5);
                dice.cut(room, pieces)
            }
            1 => {
                let header = header_size(self.ends.rx_features).min(room);
                vec![header, room - header]
            }
            _ => vec![room],
        };
        let indirect = self.ends.rx_features & feature::INDIRECT_DESC != 0;
        let Some((buffers, shape)) = arrange(&self.b_driver, &mut self.b_arena, &sizes, indirect, dice) else {
            return false;
        };
        self.b_driver.post(&self.b, &buffers, WRITE, shape);
        true
    }

    /// Device: moves everything that was sent, each step checked. Gives the frames taken from the sender.
    pub fn carry(&mut self) -> usize {
        // Half of the time one of the guests, or both, are on their way to another host.
        let (a_moves, b_moves) = (self.dice.once_in(2), self.dice.once_in(2));
        self.a_log.turn(a_moves);
        self.b_log.turn(b_moves);
        self.a_driver.publish();
        self.b_driver.publish();
        let mut total = 0;
        loop {
            let a_before = self.a.image();
            let taken = self.tx.gather().unwrap();
            if taken == 0 {
                a_before.assert_is(&self.a.image(), "sender, nothing gathered");
                break;
            }
            total += taken;
            let frames: Vec<Frame> = self.sent.drain(..taken).collect();
            self.check_burst(&frames);
            let wanted = (0_u8..).zip(&frames).filter(|(_, f)| fate(&f.bytes).is_none());
            let list: Vec<u8> = wanted.map(|(i, _)| i).filter(|_| !self.dice.once_in(10)).collect();
            self.deliver(&frames, &list);
            a_before.assert_is(&self.a.image(), "sender, before its buffers are given back");
            self.commit(&a_before, taken);
        }
        self.take_back();
        total
    }

    fn check_burst(&self, frames: &[Frame]) {
        let burst = self.tx.burst();
        for ((packet, head), frame) in burst.packets().iter().zip(burst.heads()).zip(frames) {
            assert_eq!(packet.len as usize, frame.bytes.len());
            assert_eq!(packet.stop, fate(&frame.bytes).map(Stop::Drop));
            let known = frame.bytes.len().min(64);
            assert_eq!(head.0[..known], frame.bytes[..known]);
            assert!(head.0[known..].iter().all(|&b| b == 0), "past a frame's end its head is zero");
        }
    }

    fn deliver(&mut self, frames: &[Frame], list: &[u8]) {
        let before = self.b.image();
        let mut expected = before.clone();
        let listed: Vec<&Frame> = list.iter().map(|&i| &frames[usize::from(i)]).collect();
        let outcome = expect(&listed, &self.b_driver.posted, self.ends.rx_features, self.b_driver.size);
        let delivery = self.rx.deliver(self.tx.burst(), list);
        assert_eq!(delivery.fault, None);
        assert_eq!((delivery.settled, delivery.too_small), (outcome.settled, outcome.too_small));
        for (gpa, bytes) in &outcome.writes {
            expected.write(*gpa, bytes);
        }
        for (at, bytes) in self.b_driver.used_writes(&outcome.used, false) {
            expected.write(at, &bytes);
        }
        let actual = self.b.image();
        let lent =
            self.b_driver.posted.iter().flat_map(|chain| &chain.buffers).map(|&(at, len)| at..at + u64::from(len));
        self.b_log.assert_covers(&before, &actual, self.b_driver.device_writes().into_iter().chain(lent));
        // Byte by byte: a buffer may lie across regions.
        for at in outcome.free.iter().flat_map(|&(at, len)| at..at + len as u64) {
            expected.write(at, &actual.read(at, 1));
        }
        for (at, len) in self.b_driver.scribbles(outcome.used.len()) {
            expected.write(at, &actual.read(at, len));
        }
        expected.assert_is(&actual, "receiver");
        self.rx.flush();
        self.chains += outcome.used.len();
        for &used in &outcome.used {
            let (_, len) = self.b_driver.take_used().expect("what was published is there");
            assert_eq!(used, len);
        }
        self.delivered += outcome.settled - outcome.too_small.count_ones() as usize;
        self.refused += outcome.too_small.count_ones() as usize;
    }

    fn commit(&mut self, before: &Image, taken: usize) {
        let mut expected = before.clone();
        let as_batch = self.ends.tx_features & feature::IN_ORDER != 0;
        for (at, bytes) in self.a_driver.used_writes(&vec![0; taken], as_batch) {
            expected.write(at, &bytes);
        }
        self.tx.commit();
        let actual = self.a.image();
        expected.assert_is(&actual, "sender, after its buffers were given back");
        self.a_log.assert_covers(before, &actual, self.a_driver.device_writes());
        for _ in 0..taken {
            self.a_driver.take_used().expect("what was published is there");
        }
    }

    fn take_back(&mut self) {
        assert!(self.sent.is_empty() && self.a_driver.posted.is_empty(), "the sender has everything back");
        self.a_arena = Arena::fresh(&mut self.dice);
        if self.b_driver.posted.is_empty() {
            self.b_arena = Arena::fresh(&mut self.dice);
        }
    }
}

/// Why a frame of this length goes no further, if so.
fn fate(frame: &[u8]) -> Option<DropReason> {
    match frame.len() {
        0..14 => Some(DropReason::Runt),
        65_558.. => Some(DropReason::Oversize),
        _ => None,
    }
}

/// The sender's header: what is not asked for is full of garbage, as stacks leave it.
fn vnet_header(frame: &Frame, size: usize, dice: &mut Dice) -> Vec<u8> {
    let mut header = dice.bytes(12);
    header[0] &= !1;
    header[1] = 0;
    if let Some((start, offset)) = frame.partial {
        header[0] |= 1;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    if let Some(gso) = &frame.gso {
        // The header length stays garbage: a device does not rely on it.
        header[1] = gso.kind;
        header[4..6].copy_from_slice(&gso.size.to_le_bytes());
    }
    header.truncate(size);
    header
}

/// Buffers of these sizes, and how they are linked.
fn arrange(
    driver: &Driver,
    arena: &mut Arena,
    sizes: &[usize],
    indirect: bool,
    dice: &mut Dice,
) -> Option<(Vec<(u64, u32)>, Shape)> {
    let mut buffers = Vec::new();
    for &size in sizes {
        // A buffer of no bytes may point anywhere.
        let gpa = if size == 0 { dice.next() } else { arena.take(size, dice)? };
        buffers.push((gpa, size as u32));
    }
    let shape = if indirect && dice.once_in(2) {
        // A packed ring's table comes alone.
        let mixed = driver.layout == Layout::Split && dice.once_in(2);
        let before = if mixed { dice.pick(0..sizes.len().min(20)) } else { 0 };
        Shape::Table(before, arena.take_whole(16 * (sizes.len() - before), dice)?)
    } else {
        Shape::Chain
    };
    let own = if let Shape::Table(before, _) = shape { before + 1 } else { sizes.len() };
    (own <= driver.free()).then_some((buffers, shape))
}

/// What must come of a delivery.
#[derive(Debug, Default)]
struct Outcome {
    settled: usize,
    too_small: u64,
    writes: Vec<(u64, Vec<u8>)>,
    /// Bytes written that nobody but the device knows.
    free: Vec<(u64, usize)>,
    /// Bytes written to each chain that is used.
    used: Vec<u32>,
}

/// The standard read plainly: one frame after the other, each into the oldest buffers; what is segmented in pieces,
/// all or none.
fn expect(frames: &[&Frame], posted: &VecDeque<Posted>, features: u64, ring_size: u32) -> Outcome {
    let (mut outcome, mut next) = (Outcome::default(), 0);
    for (position, frame) in frames.iter().enumerate() {
        let pieces = received(frame, features);
        let mut fits = pieces.len() <= ring_size as usize;
        let mut chains = Vec::new();
        for (bytes, _) in &pieces {
            if !fits {
                break;
            }
            let (mut room, first) = (0, next + chains.iter().sum::<usize>());
            let mut count = 0;
            while room < bytes.len() {
                let Some(chain) = posted.get(first + count) else {
                    // Buffers that were not given back may hold the beginning.
                    if pieces.len() > 1 {
                        let rest = posted.range(next..).flat_map(|chain| &chain.buffers);
                        outcome.free.extend(rest.map(|&(gpa, len)| (gpa, len as usize)).filter(|(_, len)| *len > 0));
                    }
                    return outcome;
                };
                room += chain.room();
                count += 1;
                if features & feature::MRG_RXBUF == 0 {
                    break;
                }
            }
            fits = room >= bytes.len();
            chains.push(count);
        }
        outcome.settled = position + 1;
        if !fits {
            outcome.too_small |= 1 << position;
            continue;
        }
        for ((mut bytes, free), count) in pieces.into_iter().zip(chains) {
            if header_size(features) == 12 {
                bytes[10..12].copy_from_slice(&(count as u16).to_le_bytes());
            }
            outcome.fill(&bytes, &free, posted.range(next..next + count));
            next += count;
        }
    }
    outcome
}

impl Outcome {
    /// One frame into its buffers.
    fn fill<'p>(&mut self, bytes: &[u8], free: &[Range<usize>], chains: impl Iterator<Item = &'p Posted>) {
        let mut from = 0;
        for chain in chains {
            let before = from;
            for &(gpa, len) in &chain.buffers {
                let n = (len as usize).min(bytes.len() - from);
                if n > 0 {
                    self.writes.push((gpa, bytes[from..from + n].to_vec()));
                    for free in free {
                        let (a, b) = (free.start.max(from), free.end.min(from + n));
                        if a < b {
                            self.free.push((gpa + (a - from) as u64, b - a));
                        }
                    }
                    from += n;
                }
            }
            self.used.push((from - before) as u32);
        }
    }
}

/// What a receiver with these features gets: header and frame, or several; and which bytes of each may be anything.
fn received(frame: &Frame, features: u64) -> Vec<(Vec<u8>, Vec<Range<usize>>)> {
    let size = header_size(features);
    let mut header = vec![0; size];
    if let Some(gso) = frame.gso.as_ref().filter(|gso| features & gso.needs != gso.needs) {
        if gso.checked && features & feature::GUEST_CSUM != 0 {
            header[0] = 2;
        }
        let free: Vec<_> = gso.free.iter().map(|free| free.start + size..free.end + size).collect();
        return gso.pieces.iter().map(|piece| ([&header[..], piece].concat(), free.clone())).collect();
    }
    let mut body = frame.bytes.clone();
    if let Some((start, offset)) = frame.partial {
        if features & feature::GUEST_CSUM == 0 {
            complete(&mut body, usize::from(start), usize::from(offset));
        } else {
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        }
    }
    if let Some(gso) = &frame.gso {
        header[1] = gso.kind;
        header[2..4].copy_from_slice(&gso.header_len.to_le_bytes());
        header[4..6].copy_from_slice(&gso.size.to_le_bytes());
    }
    vec![([header, body].concat(), Vec::new())]
}

/// The checksum of RFC 1071, word by word, stored where the sender asked for it.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let mut sum = 0_u32;
    for pair in frame[start..].chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        other => other,
    };
    frame[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
}
