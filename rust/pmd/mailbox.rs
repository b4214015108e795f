//! How control speaks to a poll thread: rarely, in order, and without ever making it wait.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use vmm_sys_util::eventfd::EventFd;

use super::doze::Doze;
use super::zero_copy::Lane;
use super::{OutletSlot, PolledQueue, Sleep, Topology};
use crate::burst::HEAD_SIZE;
use crate::frame::ethernet::Mac;
use crate::lock::Lock;
use crate::memory::GuestMap;
use crate::switch::PortId;
use crate::switch::fdb::Key;
use crate::sys::eventfd::Notifier;

/// What a poll thread can be told.
#[derive(Debug)]
pub enum Message {
    /// Use this from now on; answer when the one before is no longer used.
    Topology(Arc<Topology>, Sender<()>),
    /// Answer: no burst that was begun before this is still under way.
    Pass(Sender<()>),
    /// Poll this queue.
    Assign(Box<PolledQueue>),
    /// Stop polling a queue and give it back; None if it is not here.
    Release {
        /// Whose.
        port: PortId,
        /// Vring index.
        vring: u16,
        /// True if it goes to another thread: then a burst that waits for its receivers goes with it. Else it is settled:
        /// delivered or dropped by name.
        to_move: bool,
        /// Where to.
        reply: Sender<Option<Box<PolledQueue>>>,
    },
    /// Replace a transmitq's call descriptor; nothing happens if it is not here.
    SetCall {
        /// Whose.
        port: PortId,
        /// Vring index.
        vring: u16,
        /// The new one.
        call: Option<Notifier>,
    },
    /// Send a queue's frames to a device by this lane from now on; it comes back if the queue is not here, or is another by
    /// now.
    AddLane {
        /// Whose.
        port: PortId,
        /// Vring index.
        vring: u16,
        /// The lane, boxed: messages are small.
        lane: Box<Lane>,
        /// The memory that it was shown.
        memory: Arc<GuestMap>,
        /// Where to.
        reply: Sender<Option<Box<Lane>>>,
    },
    /// Use a queue's lane no more and give it back; None if it is not here.
    RemoveLane {
        /// Whose.
        port: PortId,
        /// Vring index.
        vring: u16,
        /// Which.
        keeper: u16,
        /// Where to.
        reply: Sender<Option<Box<Lane>>>,
    },
    /// A lane that was taken out is closed: its guest gets back what was on it.
    LaneClosed {
        /// Whose.
        port: PortId,
        /// Vring index.
        vring: u16,
        /// Which.
        keeper: u16,
    },
    /// Make the first call of a receiveq, with its new call descriptor if it has one: such calls may hang, so they are
    /// made where somebody watches.
    Greet(Arc<OutletSlot>),
    /// Ask for the mappings that the next buffers of these receiveqs lack: the guest's IOMMU has taken some back.
    LookAhead(Vec<Arc<OutletSlot>>),
    /// `pmd-sleep-max` changed.
    Sleep(Sleep),
    /// Announce `mac` into the bridge as if it came in on `port`.
    Announce {
        /// The port the address is behind now.
        port: PortId,
        /// The address.
        mac: Mac,
    },
    /// Tell whoever is behind `port` that these are to be found here, with a RARP each: they were learned elsewhere. At
    /// most [`super::LESSON_LEN`].
    Teach {
        /// A bond whose links changed.
        port: PortId,
        /// Who.
        addresses: Vec<Key>,
    },
    /// Send this frame out on `port`.
    Emit {
        /// A link of a bond.
        port: PortId,
        /// The frame's first bytes; those that follow are zero.
        head: Box<[u8; HEAD_SIZE]>,
        /// Its bytes, at most 128.
        len: u32,
    },
    /// Poll nothing from now on; the queues stay here, settled, until they are released. Answer when that is so.
    Rest(Sender<()>),
    /// Leave; queues still here are dropped.
    Stop,
}

/// One thread's inbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    doze: Doze,
    /// None once the thread is gone: what is sent to it then is dropped, and who waits for an answer knows.
    messages: Lock<Option<Vec<Message>>>,
    pub(super) wake: EventFd,
}

impl Mailbox {
    pub(super) fn new(wake: EventFd) -> Self {
        Self { doze: Doze::default(), messages: Lock::new(Some(Vec::new())), wake }
    }

    /// Leaves a message and wakes the thread if it sleeps.
    pub(super) fn post(&self, message: Message) {
        if let Some(messages) = self.messages.lock().as_mut() {
            messages.push(message);
        }
        if self.doze.post() {
            // A full counter wakes as well.
            let _ = self.wake.write(1);
        }
    }

    /// True if there may be mail. One relaxed load.
    #[inline]
    pub(super) fn has_mail(&self) -> bool {
        self.doze.is_pending()
    }

    /// The thread's own: look into the mailbox again, there is something left to do.
    pub(super) fn remind(&self) {
        // Whoever calls this is awake.
        let _ = self.doze.post();
    }

    /// Takes what is there.
    pub(super) fn take(&self) -> Vec<Message> {
        self.doze.take();
        self.messages.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The thread's own: it leaves.
    pub(super) fn close(&self) {
        drop(self.messages.lock().take());
    }

    /// Says that the thread is about to sleep; false if mail came in: then do not.
    pub(super) fn about_to_sleep(&self) -> bool {
        self.doze.about_to_sleep()
    }

    /// Says that the thread is up.
    pub(super) fn awake(&self) {
        self.doze.awake();
    }
}
