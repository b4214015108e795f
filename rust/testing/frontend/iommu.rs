// SPDX-License-Identifier: Apache-2.0
//! A guest's IOMMU from the front-end's side: a thread that answers what the back-end asks through its own channel.
//!
//! ```text
//!   back-end ── IOTLB_MISS ──▶ the thread ── IOTLB_MSG, UPDATE ──▶ back-end       as it was told to: Answer
//!   the test ── invalidate() ── IOTLB_MSG, INVALIDATE ──▶ back-end ── done ──▶
//! ```
//! What drivers here take for guest-physical addresses are I/O virtual ones then: the memory is made known `offset` bytes
//! further up, so a back-end that mistakes one for the other finds nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Frontend, Session, no_session, start};
use crate::testing::memory::{Gpa, GuestRam};
use crate::testing::wire::{FLAG_NEED_REPLY, HEADER_SIZE, Message, RegionEntry, Request};
use crate::testing::{Error, Result};

/// Bytes of `struct vhost_iotlb_msg`.
const BODY: usize = 32;
/// Bytes of an IOMMU's smallest page.
pub const PAGE: u64 = 4096;
/// How soon the thread sees that it is to end.
const TICK: Duration = Duration::from_millis(5);

/// Both reading and writing, as `struct vhost_iotlb_msg` has it.
pub const READ_WRITE: u8 = 3;

/// The kinds of IOTLB messages.
pub mod iotlb {
    /// From the back-end: what is this address?
    pub const MISS: u8 = 1;
    /// To it: this memory.
    pub const UPDATE: u8 = 2;
    /// To it: nothing any more.
    pub const INVALIDATE: u8 = 3;
    /// From the back-end: that may not be done there.
    pub const ACCESS_FAIL: u8 = 4;
}

/// How questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With the page asked for.
    Page,
    /// Likewise, and of every other page no more is allowed than was asked for: no two neighbours are one mapping.
    Apart,
    /// With all of the region that it is in.
    Region,
    /// With a page that may not be touched.
    Refused,
    /// Not at all.
    Never,
}

/// That a front-end has an IOMMU.
#[derive(Clone, Copy, Debug)]
pub struct IommuConfig {
    /// How far above its I/O virtual addresses memory lies, guest-physically.
    pub offset: u64,
    /// Bytes of its pages, a power of two.
    pub page: u64,
    /// How questions are answered at first.
    pub answer: Answer,
}

#[derive(Debug)]
struct Orders {
    is_over: AtomicBool,
    answer: Mutex<Answer>,
    asked: AtomicU64,
    refusals: AtomicU64,
    /// Pages that were asked for, in order.
    pages: Mutex<Vec<u64>>,
}

/// The thread, for as long as the session.
#[derive(Debug)]
pub struct Iommu {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Iommu {
    /// Questions so far.
    pub fn asked(&self) -> u64 {
        self.orders.asked.load(Ordering::Acquire)
    }

    /// How often the back-end said that it may not do what its guest asks it to.
    pub fn refusals(&self) -> u64 {
        self.orders.refusals.load(Ordering::Acquire)
    }

    /// The pages that were asked for so far.
    pub fn pages(&self) -> Vec<u64> {
        self.orders.pages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: Answer) {
        *self.orders.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// Hands one end of a channel to the back-end and answers what comes through the other.
    pub(super) fn begin(config: IommuConfig, ram: &GuestRam, session: &Session) -> Result<Self> {
        let failed = || Error::kernel("cannot make a back-end channel");
        let (ours, theirs) = UnixStream::pair().map_err(failed())?;
        ours.set_read_timeout(Some(TICK)).map_err(failed())?;
        let answers = session.channel.stream().try_clone().map_err(failed())?;
        start::set(session, Message::new(Request::SET_BACKEND_REQ_FD), &[theirs.as_raw_fd()])?;
        let orders = Arc::new(Orders {
            is_over: AtomicBool::new(false),
            answer: Mutex::new(config.answer),
            asked: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            pages: Mutex::default(),
        });
        let mut mapped = Mapped { regions: super::region_entries(ram), page: config.page, allowed: BTreeMap::new() };
        let told = Arc::clone(&orders);
        let thread = std::thread::Builder::new()
            .name("iommu".into())
            .spawn(move || answer_all(&ours, &answers, &mut mapped, &told))
            .map_err(Error::kernel("cannot start a thread"))?;
        Ok(Self { orders, thread: Some(thread) })
    }
}

impl Drop for Iommu {
    fn drop(&mut self) {
        self.orders.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // One that panicked was reported where it did.
            let _ = thread.join();
        }
    }
}

fn answer_all(channel: &UnixStream, answers: &UnixStream, mapped: &mut Mapped, orders: &Orders) {
    let mut bytes = Vec::new();
    while !orders.is_over.load(Ordering::Acquire) {
        let mut chunk = [0; HEADER_SIZE + BODY];
        let mut reader = channel;
        match reader.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => bytes.extend(chunk.iter().take(count)),
            // The tick: look whether it is over.
            Err(_) => continue,
        }
        while bytes.len() >= HEADER_SIZE + BODY {
            let message: Vec<u8> = bytes.drain(..HEADER_SIZE + BODY).collect();
            let (body, last) = message.split_at(HEADER_SIZE).1.split_at(24);
            let word =
                |at: usize| body.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
            match last {
                [access, iotlb::MISS, ..] => {
                    orders.asked.fetch_add(1, Ordering::AcqRel);
                    orders.pages.lock().unwrap_or_else(PoisonError::into_inner).push(word(0));
                    // Held until it is said: who gives another order has seen the last answer to this one.
                    let answer = orders.answer.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(update) = mapped.answer(*answer, word(0), *access) {
                        // A back-end that is gone needs no answer.
                        let _ = answers.send_with_fds(&[update.encode().as_slice()], &[]);
                    }
                }
                [_, iotlb::ACCESS_FAIL, ..] => {
                    orders.refusals.fetch_add(1, Ordering::AcqRel);
                }
                _ => {}
            }
        }
    }
}

/// What the guest mapped: all its memory, in pages of one size.
struct Mapped {
    regions: Vec<RegionEntry>,
    /// Bytes of a page.
    page: u64,
    /// What was allowed so far, by page, where that is not everything.
    allowed: BTreeMap<u64, u8>,
}

impl Mapped {
    fn answer(&mut self, answer: Answer, iova: u64, access: u8) -> Option<Message> {
        // As QEMU, which says nothing of addresses that mean nothing.
        let region = self.regions.iter().find(|region| iova.wrapping_sub(region.gpa.0) < region.size)?;
        let into = (iova - region.gpa.0) & !(self.page - 1);
        let page = region.gpa.plus(into).0;
        let update = |access| {
            let size = self.page.min(region.size - into);
            message(iotlb::UPDATE, page, size, region.user_address + into, access)
        };
        match answer {
            Answer::Page => Some(update(READ_WRITE)),
            Answer::Apart if into & self.page == 0 => Some(update(READ_WRITE)),
            Answer::Apart => {
                let allowed = self.allowed.entry(page).or_default();
                *allowed |= access;
                Some(update(*allowed))
            }
            Answer::Region => Some(message(iotlb::UPDATE, region.gpa.0, region.size, region.user_address, READ_WRITE)),
            Answer::Refused => Some(update(0)),
            Answer::Never => None,
        }
    }
}

/// An `IOTLB_MSG`, which need not make sense.
pub fn message(kind: u8, iova: u64, size: u64, uva: u64, access: u8) -> Message {
    let last = u64::from(access) | u64::from(kind) << 8;
    Message::new(Request::IOTLB_MSG).words(&[iova, size, uva, last])
}

impl Frontend {
    /// The thread that answers for the guest's IOMMU, while there is a session that has one.
    pub fn iommu(&self) -> Option<&Iommu> {
        self.session.as_ref()?.iommu.as_ref()
    }

    /// Sends an IOTLB message and waits for what the back-end has to say: 0 when it is done.
    ///
    /// # Errors
    /// `Peer` when it says nothing.
    pub fn tell_iotlb(&self, mut message: Message) -> Result<u64> {
        let session = self.session.as_ref().ok_or_else(no_session)?;
        message.flags |= FLAG_NEED_REPLY;
        session.channel.ask(&message)?.number()
    }

    /// Takes a mapping back; when this returns, the back-end does not touch what was there.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses.
    pub fn invalidate(&self, iova: Gpa, size: u64) -> Result<()> {
        match self.tell_iotlb(message(iotlb::INVALIDATE, iova.0, size, 0, 0))? {
            0 => Ok(()),
            code => Err(Error::Peer(format!("the back-end refused an invalidation ({code})"))),
        }
    }

    /// Maps memory before somebody asks for it: what the back-end says.
    ///
    /// # Errors
    /// `Peer` when it says nothing, `Config` for memory that is not there.
    pub fn map(&self, iova: Gpa, size: u64, access: u8) -> Result<u64> {
        self.tell_iotlb(message(iotlb::UPDATE, iova.0, size, self.ram.user_address(iova)?, access))
    }
}
