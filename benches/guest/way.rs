//! The way of a burst from driver to driver, as a poll thread walks it: all it does for a frame but look at other queues.

use std::sync::Arc;
use std::sync::mpsc::channel;

use ovsvhost::counters::QueueCounters;
use ovsvhost::frame::ethernet::Mac;
use ovsvhost::frame::flow::FlowKey;
use ovsvhost::pmd::{BridgeView, Forwarder, OutletSlot, PolledQueue, PortView, Topology};
use ovsvhost::switch::fdb::{Fdb, Key};

use super::{Kind, RECEIVER, ReceivingGuest, SENDER, SendingGuest};

const FROM: u16 = 0;
const TO: u16 = 1;
/// The thread's clock stands still.
const NOW_S: u32 = 0;

/// Two guests on a bridge that knows both.
pub(crate) struct Way {
    from: SendingGuest,
    to: ReceivingGuest,
    queue: PolledQueue,
    forwarder: Forwarder,
    delivered: Arc<QueueCounters>,
    /// Frames that the sender makes available at once.
    together: u16,
    expected: u64,
}

impl Way {
    /// Between two guests whose rings `kind` describes, with frames of `size` bytes.
    pub(crate) fn new(kind: Kind, size: usize) -> Self {
        let ((from, sends), (to, receives)) = (SendingGuest::new(kind, size), ReceivingGuest::new(kind));
        // As a bridge has by default, unless it needs more.
        let fdb = Fdb::new(8192.max(kind.destinations as usize + 1), 300);
        fdb.learn(Key::new(0, Mac::from_bytes(SENDER)), FROM, NOW_S);
        let first = Mac::from_bytes(RECEIVER);
        for number in 0..u64::from(kind.destinations) {
            fdb.learn(Key::new(0, Mac(first.0 + number)), TO, NOW_S);
        }
        let delivered = Arc::<QueueCounters>::default();
        let slot = Arc::new(OutletSlot::new(receives, TO, 0, Arc::clone(&delivered), 0));
        let port = |receiveqs| PortView { mtu: 9_000, ..PortView::new(0, Arc::default(), receiveqs) };
        let mut forwarder = Forwarder::new(0, channel().0, Arc::default());
        forwarder.adopt(Arc::new(Topology {
            ports: vec![Some(port(Vec::new())), Some(port(vec![slot]))],
            bridges: vec![Some(BridgeView { fdb: Arc::new(fdb), members: vec![FROM, TO], forward_bpdu: false })],
            flow_key: FlowKey::default(),
        }));
        let queue = PolledQueue::new(sends, FROM, 1, Arc::default(), 0);
        Self { from, to, queue, forwarder, delivered, together: kind.together, expected: 0 }
    }

    /// Moves what the sender made available; gives the number of frames taken from it.
    #[inline(never)]
    pub(crate) fn walk(&mut self) -> usize {
        let mut moved = 0;
        while let Ok(count @ 1..) = self.forwarder.poll(&mut self.queue) {
            moved += count;
        }
        moved
    }

    /// Prepares a walk and checks what the one before did.
    pub(crate) fn prepare(&mut self) {
        assert_eq!(self.delivered.packets.read(), self.expected, "frames were lost on the way");
        self.to.empty();
        self.from.fill(self.together);
        self.expected += u64::from(self.together);
    }

    /// Walks once, and makes sure that every frame was taken.
    pub(crate) fn check(&mut self) {
        self.prepare();
        assert_eq!(self.walk(), usize::from(self.together), "the switch left frames");
    }
}
