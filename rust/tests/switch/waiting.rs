// SPDX-License-Identifier: Apache-2.0
//! Several poll threads and one receiveq: who finds it taken waits, loses nothing, and stops nobody else.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use ovsvhost::counters::QueueCounters;
use ovsvhost::drops::DropReason;
use ovsvhost::frame::flow::FlowKey;
use ovsvhost::pmd::{BridgeView, Message, OutletSlot, Pmd, PolledQueue, PortView, Topology};
use ovsvhost::ring::{Receiveq, Transmitq};
use ovsvhost::switch::fdb::Fdb;
use ovsvhost::sys::cpu;

use super::poll::Guest;
use super::rig::wait;

/// Ports 0, 1 … each with a receiveq, on one bridge; every frame is a broadcast.
struct Stage {
    slots: Vec<Arc<OutletSlot>>,
    receivers: Vec<Guest>,
    topology: Arc<Topology>,
    pmds: Vec<Pmd>,
}

impl Stage {
    /// `receivers` ports with a receiveq and as many poll threads as `threads`; senders are further ports.
    fn new(receivers: usize, senders: usize, threads: usize) -> Self {
        let (mut slots, mut guests) = (Vec::new(), Vec::new());
        for port in 0..receivers {
            let (guest, ring) = Guest::new();
            slots.push(Arc::new(OutletSlot::new(Receiveq::new(ring), port as u16, 0, Arc::default(), 0)));
            guests.push(guest);
        }
        let view = |port: usize| {
            let receiveqs: Vec<_> = slots.get(port).cloned().into_iter().collect();
            let counters = receiveqs.first().map_or_else(Arc::default, |slot| Arc::clone(&slot.counters));
            Some(PortView::new(0, counters, receiveqs))
        };
        let members = (0..(receivers + senders) as u16).collect();
        let topology = Arc::new(Topology {
            ports: (0..receivers + senders).map(view).collect(),
            bridges: vec![Some(BridgeView { fdb: Arc::new(Fdb::new(64, 300)), members, forward_bpdu: false })],
            flow_key: FlowKey::default(),
        });
        let cpus = cpu::allowed_cpus().unwrap();
        let pmds: Vec<Pmd> = (0..threads)
            .map(|n| Pmd::spawn(cpus[n % cpus.len()], n, Some(0), Instant::now(), channel().0).unwrap())
            .collect();
        let stage = Self { slots, receivers: guests, topology, pmds };
        stage.publish();
        // A thread answers before it makes its first calls; once it answers again they are made, and no ring is taken.
        stage.publish();
        stage
    }

    fn publish(&self) {
        for pmd in &self.pmds {
            let (done, passed) = channel();
            pmd.post(Message::Topology(Arc::clone(&self.topology), done));
            passed.recv().unwrap();
        }
    }

    /// A guest on port `port` whose transmitq thread `pmd` polls.
    fn sender(&self, port: usize, pmd: usize) -> (Guest, Arc<QueueCounters>) {
        let (guest, ring) = Guest::new();
        let counters = Arc::<QueueCounters>::default();
        let queue = PolledQueue::new(Transmitq::new(ring), port as u16, 1, Arc::clone(&counters), 0);
        self.pmds[pmd].post(Message::Assign(Box::new(queue)));
        (guest, counters)
    }

    fn lost(&self, port: usize, reason: DropReason) -> u64 {
        self.slots[port].counters.drops[reason as usize].read()
    }
}

/// Rows: C8.
#[test]
fn a_burst_waits_for_a_ring_that_another_thread_has_and_is_delivered_when_it_comes_free() {
    let mut stage = Stage::new(2, 2, 1);
    let (mut first, _) = stage.sender(2, 0);
    let (mut second, _) = stage.sender(3, 0);
    let slot = Arc::clone(&stage.slots[0]);
    let held = slot.queue.lock();
    for receiver in &mut stage.receivers {
        (0..4).for_each(|_| receiver.post(true));
    }
    first.post(false);
    wait("the thread to find the ring taken", || slot.counters.contentions.read() > 0);
    // The other receiver of the same frame has it already; the sender does not have its buffer back.
    stage.receivers[1].wait_used();
    assert!(first.driver.poll_used().is_none());
    // Another sender on the same thread is served as far as it goes.
    second.post(false);
    stage.receivers[1].wait_used();
    assert!(stage.receivers[0].driver.poll_used().is_none());
    drop(held);
    for _ in 0..2 {
        stage.receivers[0].wait_used();
    }
    first.wait_used();
    second.wait_used();
    assert_eq!(stage.slots[0].counters.packets.read(), 2);
    assert_eq!(stage.lost(0, DropReason::Contended), 0);
}

/// Rows: L6, C8.
#[test]
fn a_queue_that_is_taken_back_while_its_burst_waits_is_settled_and_the_loss_is_counted() {
    let mut stage = Stage::new(1, 1, 1);
    let (mut sender, counters) = stage.sender(1, 0);
    let slot = Arc::clone(&stage.slots[0]);
    let held = slot.queue.lock();
    stage.receivers[0].post(true);
    sender.post(false);
    wait("the thread to find the ring taken", || slot.counters.contentions.read() > 0);
    let queue = stage.pmds[0].release(1, 1, false, |late| panic!("{late}")).expect("it has the queue");
    assert_eq!(queue.queue.into_ring().unwrap().next_index(), 1, "what was taken is settled");
    sender.wait_used();
    drop(held);
    assert!(stage.receivers[0].driver.poll_used().is_none());
    assert_eq!((stage.lost(0, DropReason::Contended), counters.packets.read()), (1, 1));
}

/// Rows: L6.
#[test]
fn a_burst_that_waits_for_a_port_that_goes_is_counted_and_given_back() {
    let mut stage = Stage::new(1, 1, 1);
    let (mut sender, _) = stage.sender(1, 0);
    let slot = Arc::clone(&stage.slots[0]);
    let held = slot.queue.lock();
    sender.post(false);
    wait("the thread to find the ring taken", || slot.counters.contentions.read() > 0);
    let mut ports = stage.topology.ports.clone();
    ports[0] = None;
    let bridges = stage.topology.bridges.clone();
    stage.topology = Arc::new(Topology { ports, bridges, flow_key: FlowKey::default() });
    stage.publish();
    sender.wait_used();
    drop(held);
    assert_eq!(stage.lost(0, DropReason::LinkDown), 1);
}

/// Rows: C8.
#[test]
fn two_threads_that_deliver_to_one_guest_lose_nothing() {
    if cpu::allowed_cpus().unwrap().len() < 2 {
        eprintln!("skipped: two threads need two cores to meet");
        return;
    }
    let mut stage = Stage::new(1, 2, 2);
    let senders = [stage.sender(1, 0).0, stage.sender(2, 1).0];
    let mut senders = senders.map(|guest| (guest, 0_u64));
    let counters = Arc::clone(&stage.slots[0].counters);
    let [receiver] = &mut stage.receivers[..] else { unreachable!() };
    (0..16).for_each(|_| receiver.post(true));
    let (mut sent, mut got) = (0, 0);
    wait("the threads to meet, and every frame to arrive", || {
        let is_enough = sent >= 2_000 && counters.contentions.read() > 0;
        for (sender, on_the_way) in &mut senders {
            // Never more than the receiver has buffers for, so nothing may be dropped.
            while *on_the_way < 8 && !is_enough {
                sender.post(false);
                (sent, *on_the_way) = (sent + 1, *on_the_way + 1);
            }
            while sender.driver.poll_used().is_some() {
                *on_the_way -= 1;
            }
        }
        while receiver.driver.poll_used().is_some() {
            receiver.post(true);
            got += 1;
        }
        is_enough && got == sent
    });
    wait("the counts", || counters.packets.read() == sent);
    assert!(counters.drops.iter().all(|drops| drops.read() == 0));
}
