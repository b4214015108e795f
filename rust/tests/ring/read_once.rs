// SPDX-License-Identifier: Apache-2.0
//! A sender that changes its frames while they are being moved: what was judged is what is delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ovsvhost::frame::vnet_hdr;
use ovsvhost::ring::{Receiveq, RingFault, Transmitq, feature};

use super::dice::Dice;
use super::driver::{Driver, LAYOUTS, Layout, Shape, WRITE, room_for};
use super::guest::Guest;

const FRAMES: u64 = 64;
const STRIDE: u64 = 512;
const FEATURES: u64 = feature::VERSION_1 | feature::CSUM | feature::GUEST_CSUM;

struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Scribbler {
    /// Runs `scribble` again and again on a thread of its own, with the number of the round.
    fn start(mut scribble: impl FnMut(u64) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    scribble(round);
                    round += 1;
                }
                round
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Rounds made.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Rows: C13.
#[test]
fn the_head_that_was_judged_is_the_head_that_is_delivered() {
    let cuts = [vec![12 + 300], vec![12, 300], vec![5, 7 + 20, 30, 250]];
    for (layout, cut) in LAYOUTS.into_iter().flat_map(|layout| cuts.clone().map(|cut| (layout, cut))) {
        let (mut a, mut b) = (Guest::new(room_for(256)), Guest::new(room_for(256)));
        let mut dice = Dice(5);
        let (mut sender, mut receiver) =
            (Driver::new(&mut a, layout, 256, 0, &mut dice), Driver::new(&mut b, layout, 256, 0, &mut dice));
        let mut tx = Transmitq::new(sender.activate(&a, FEATURES, None, None));
        let mut rx = Receiveq::new(receiver.activate(&b, FEATURES, None, None));
        let frames = a.ram.window(ovsvhost::testing::memory::Gpa(0), (FRAMES * STRIDE) as usize).unwrap();
        let scribbler = Scribbler::start(move |round| {
            // Two headers, one asks for a checksum, the other for nothing; and two frames to match.
            let asks = round.is_multiple_of(2);
            let mut bytes = [if asks { 0x11 } else { 0xee }; 100];
            bytes[..12].fill(0);
            if asks {
                bytes[0] = 1;
                bytes[6] = 34;
                bytes[8] = 16;
            }
            for slot in 0..FRAMES {
                frames.write((slot * STRIDE) as usize, &bytes);
            }
        });
        for _ in 0..150 {
            for slot in 0..FRAMES {
                let mut at = slot * STRIDE;
                let pieces = cut.iter().map(|&len| {
                    at += len;
                    (at - len, len as u32)
                });
                sender.post(&a, &pieces.collect::<Vec<_>>(), 0, Shape::Chain);
                receiver.post(&b, &[(slot * STRIDE, STRIDE as u32)], WRITE, Shape::Chain);
                if sender.free() < cut.len() {
                    break;
                }
            }
            sender.publish();
            receiver.publish();
            while tx.gather().unwrap() > 0 {
                let list: Vec<u8> = (0..tx.burst().len() as u8).collect();
                assert_eq!(rx.deliver(tx.burst(), &list).settled, list.len());
                for index in list {
                    let (packet, head) = tx.burst().frame(index).unwrap();
                    let (posted, len) = receiver.take_used().unwrap();
                    assert_eq!(len, 12 + packet.len);
                    let got = b.read(posted.buffers[0].0, 12 + 64);
                    assert_eq!(got[12..], head.0, "the first 64 bytes are those that were judged");
                    let header = vnet_hdr::encode(tx.burst().offload(index.into())).to_le_bytes();
                    assert_eq!(got[..12], header[..12], "the header is the one that was judged");
                }
                tx.commit();
            }
            while sender.take_used().is_some() {}
            while receiver.take_used().is_some() {}
        }
        assert!(scribbler.end() > 10, "somebody scribbled meanwhile");
    }
}

#[test]
fn descriptors_that_change_after_the_check_reach_no_memory_outside() {
    let mut dice = Dice(9);
    for (layout, indirect) in LAYOUTS.into_iter().flat_map(|layout| [false, true].map(|indirect| (layout, indirect))) {
        let features = FEATURES | feature::INDIRECT_DESC;
        let mut a = Guest::new(room_for(64));
        let mut sender = Driver::new(&mut a, layout, 64, 0, &mut dice);
        let table = 0x1_0000;
        for slot in 0..60 {
            let shape = if indirect { Shape::Table(0, table + 64 * slot) } else { Shape::Chain };
            sender.post(&a, &[(4096, 12)], 0, shape);
        }
        sender.publish();
        // Address, length and links of every descriptor change all the time, between good ones and every kind of lie.
        let target = if indirect { table } else { sender.desc() };
        let tables = a.ram.window(ovsvhost::testing::memory::Gpa(target), 64 * 16).unwrap();
        let mut wild = Dice(17);
        let scribbler = Scribbler::start(move |_| {
            let at = 16 * wild.pick(0..64);
            tables.write(at, &[4096_u64, 1 << 20, u64::MAX - 8, (1 << 20) - 40][wild.pick(0..4)].to_le_bytes());
            tables.write(at + 8, &[12_u32, 72, 0, u32::MAX][wild.pick(0..4)].to_le_bytes());
            // Where the one layout has its flags the other has its link. Those of a packed ring stay available.
            let (flags, link, lap) = if layout == Layout::Split { (12, 14, 0) } else { (14, 12, 1 << 15) };
            tables.write(at + flags, &([0_u16, 1, 2, 4][wild.pick(0..4)] | lap).to_le_bytes());
            tables.write(at + link, &[0_u16, 1, 63, 64][wild.pick(0..4)].to_le_bytes());
        });
        let mut outcomes = [0; 2];
        for _ in 0..4_000 {
            // A fresh device each time: a fault stops a queue for good.
            let mut tx = Transmitq::new(sender.activate(&a, features, None, None));
            match tx.gather() {
                Ok(count) => outcomes[0] += count,
                Err(RingFault::MemoryLost) => panic!("nothing was taken away"),
                Err(_) => outcomes[1] += 1,
            }
        }
        assert!(scribbler.end() > 10, "somebody scribbled meanwhile");
        assert!(outcomes.iter().sum::<usize>() > 0, "something came of it: {outcomes:?}");
    }
}
