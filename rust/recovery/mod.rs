//! What survives the switch: where each vring stood, for the process that comes after a crash, and whose memory was on
//! its way.
//!
//! ```text
//!   session ── identity ──▶ Recovery ──▶ Seat: a journal, and whether what it says is true
//!                              │             │
//!                              │             └─▶ ring: goes on from there, writes on there (`ring::Journal`)
//!                              └─▶ store: one small file a vring, on tmpfs, mapped
//! ```
//!
//! A record is kept as long as its front-end does not know better: it is forgotten when the front-end asks where the ring
//! stands (`GET_VRING_BASE`) or resets the device, and dropped when other memory comes under its name. A hang-up, a port
//! deleted, an orderly end of the switch leave it: the guest may go on with the next session, and of a packed ring
//! nobody else knows the place.
//!
//! Invariants: what cannot be read is set aside and named, never guessed; a record says LIVE while a ring may write into
//! it; all here is control, the packet path sees the journal's words only.

mod arrivals;
mod hold;
mod record;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

pub use arrivals::Files;
pub use record::Identity;

use self::arrivals::Arrivals;
use self::hold::Hold;
use self::record::{CELL, KEPT, LIVE, NEW, SHADOW, STATE};
use self::store::{Contents, Store};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::memory::Words;
use crate::ring::{Journal, feature};

/// Records that nobody uses and that may still be wanted: a guest that died never says so. Past this the oldest go.
const KEPT_MAX: usize = 1024;

/// Whose a record is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    socket: PathBuf,
    vring: usize,
}

impl Key {
    fn new(socket: &Path, vring: usize) -> Self {
        Self { socket: socket.to_owned(), vring }
    }
}

impl Identity {
    fn key(&self) -> Key {
        Key::new(&self.socket, usize::from(self.vring))
    }

    /// What is different from `before`, in words; None if nothing is.
    fn difference(&self, before: &Self) -> Option<&'static str> {
        if self.areas != before.areas {
            Some("its ring lies elsewhere")
        } else if self.size != before.size {
            Some("its ring has another size")
        } else if self.features != before.features {
            Some("the guest accepted other features")
        } else {
            None
        }
    }

    /// Elements that one commit may have: of a packed ring, as many as there are descriptors.
    fn elements(&self) -> usize {
        if self.features & feature::RING_PACKED != 0 { self.size as usize } else { 0 }
    }
}

#[derive(Debug)]
struct Record {
    identity: Identity,
    words: Arc<Words>,
}

impl Record {
    fn state(&self) -> u64 {
        self.words.as_slice().get(STATE).map_or(NEW, |word| word.load(Ordering::Acquire))
    }

    fn set_state(&self, state: u64) {
        if let Some(word) = self.words.as_slice().get(STATE) {
            word.store(state, Ordering::Release);
        }
    }

    fn journal(&self) -> Result<Journal> {
        Journal::new(Arc::clone(&self.words), CELL, SHADOW)
            .ok_or_else(|| Error::Bug("a record has fewer words than any".into()))
    }
}

#[derive(Debug, Default)]
struct Records {
    all: BTreeMap<Key, Record>,
    /// Those that nobody uses, oldest first.
    kept: VecDeque<Key>,
}

/// A vring's place: what its ring writes into from now on.
#[derive(Debug)]
pub struct Seat {
    /// The journal.
    pub journal: Journal,
    /// It says where the ring stood; else it says nothing.
    pub is_known: bool,
    /// What was found and could not be used.
    pub note: Option<String>,
}

/// Every vring's record. Calls may come from any thread and touch files.
#[derive(Debug)]
pub struct Recovery {
    store: Option<Store>,
    records: Lock<Records>,
    notices: Vec<String>,
    hold: Hold,
    arrivals: Arrivals,
}

impl Recovery {
    /// Records that end with the process: sessions come and go, a crash loses them.
    pub fn in_process() -> Self {
        let hold = Hold::new(BTreeSet::new(), Duration::ZERO);
        let arrivals = Arrivals::default();
        Self { store: None, records: Lock::default(), notices: Vec::new(), hold, arrivals }
    }

    /// The records of the switch in `rundir`, which is there already. If the process before died with rings live,
    /// [`Self::hold_left`] is for those that receive to come back, `longest` at most.
    ///
    /// # Errors
    /// `Config`: the place is somebody else's, or in use. `Kernel`: it cannot be made or read.
    pub fn open(rundir: &Path, longest: Duration) -> Result<Self> {
        let store = Store::open(rundir)?;
        let Contents { records: found, arrivals, notices } = store.read()?;
        let (mut records, mut interrupted) = (Records::default(), BTreeSet::new());
        for (identity, words) in found {
            let (key, record) = (identity.key(), Record { identity, words: Arc::new(words) });
            match record.state() {
                LIVE => {
                    if key.vring.is_multiple_of(2) {
                        interrupted.insert(key.clone());
                    }
                    record.set_state(KEPT);
                }
                KEPT => {}
                // Whoever made it died before it meant anything.
                _ => {
                    store.remove(&key);
                    continue;
                }
            }
            records.kept.push_back(key.clone());
            records.all.insert(key, record);
        }
        let hold = Hold::new(interrupted, longest);
        let arrivals = Arrivals::new(arrivals);
        let recovery = Self { store: Some(store), records: Lock::new(records), notices, hold, arrivals };
        recovery.shed(&mut recovery.records());
        Ok(recovery)
    }

    /// As [`Self::open`]; if that fails, [`Self::in_process`] with the reason as a notice.
    pub fn open_or_without(rundir: &Path, longest: Duration) -> Self {
        Self::open(rundir, longest).unwrap_or_else(|e| {
            let text =
                format!("{e}; until then a guest with packed rings does not survive an unclean end of the switch");
            Self { notices: vec![text], ..Self::in_process() }
        })
    }

    /// What the log should say about the start, a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// How long transmitqs may have to wait yet for those who would receive their frames; None if they need not.
    pub fn hold_left(&self) -> Option<Duration> {
        self.hold.left()
    }

    /// `waker` is written to when the hold ends before its time.
    pub fn wake_at_end_of_hold(&self, waker: EventFd) {
        self.hold.wake_at_end(waker);
    }

    /// The sockets that did not come back in time, said once, when the hold's time is over.
    pub fn stayed_away(&self) -> Option<Vec<PathBuf>> {
        self.hold.expire()
    }

    /// Finds or makes the record of a vring that is about to start. It means nothing to others before
    /// [`Self::started`].
    ///
    /// # Errors
    /// `Kernel`: no memory, or the file system is full.
    pub fn seat(&self, identity: &Identity) -> Result<Seat> {
        let key = identity.key();
        let mut records = self.records();
        let mut note = None;
        if let Some(record) = records.all.get(&key) {
            match identity.difference(&record.identity) {
                None => {
                    let is_known = record.state() != NEW;
                    return Ok(Seat { journal: record.journal()?, is_known, note });
                }
                Some(difference) => note = Some(format!("where it stood before is nothing to it: {difference}")),
            }
        }
        self.drop_record(&mut records, &key);
        let words = match &self.store {
            Some(store) => store.create(identity, identity.elements())?,
            None => Words::anonymous(record::file_size(identity.elements()))?,
        };
        let record = Record { identity: identity.clone(), words: Arc::new(words) };
        let journal = record.journal()?;
        records.all.insert(key, record);
        Ok(Seat { journal, is_known: false, note })
    }

    /// The features that the guest on `socket` accepted, if any of its vrings may go on where it stood.
    pub fn features_of(&self, socket: &Path) -> Option<u64> {
        let records = self.records();
        let of_socket = records.all.iter().filter(|(key, record)| key.socket == socket && record.state() != NEW);
        of_socket.map(|(_, record)| record.identity.features).reduce(|all, features| all | features)
    }

    /// The vring runs, and its journal says where it began.
    pub fn started(&self, socket: &Path, vring: usize) {
        let key = Key::new(socket, vring);
        let mut records = self.records();
        records.kept.retain(|kept| *kept != key);
        if let Some(record) = records.all.get(&key) {
            record.set_state(LIVE);
        }
    }

    /// The vring is where poll threads see it: nobody needs to wait for it any more.
    pub fn returned(&self, socket: &Path, vring: usize) {
        self.hold.returned(&Key::new(socket, vring));
    }

    /// The device of this port is about to be taken over: what guests send it waits, as for those that receive.
    pub fn expect_device(&self, port: &str) {
        self.hold.expect_device(port);
    }

    /// It carries, or will not soon.
    pub fn device_settled(&self, port: &str) {
        self.hold.device_settled(port);
    }

    /// The vring stopped; its front-end was not told where.
    pub fn stopped(&self, socket: &Path, vring: usize) {
        let key = Key::new(socket, vring);
        let mut records = self.records();
        match records.all.get(&key).filter(|record| record.state() == LIVE) {
            Some(record) => record.set_state(KEPT),
            None => return,
        }
        records.kept.push_back(key);
        self.shed(&mut records);
    }

    /// The front-end knows better from now on, or starts from nothing.
    pub fn forget(&self, socket: &Path, vring: usize) {
        self.drop_record(&mut self.records(), &Key::new(socket, vring));
    }

    /// The memory of the guest on `socket` is on its way here, page by page.
    ///
    /// # Errors
    /// `Kernel`: it cannot be written down.
    pub fn memory_arrives(&self, socket: &Path, files: Files) -> Result<()> {
        self.arrivals.begin(self.store.as_ref(), socket, files)
    }

    /// It is here, or the guest has other memory now.
    pub fn memory_arrived(&self, socket: &Path) {
        self.arrivals.end(self.store.as_ref(), socket);
    }

    /// True if memory in one of these files was on its way when the session before ended, this process's or not.
    pub fn is_memory_arriving(&self, socket: &Path, files: &Files) -> bool {
        self.arrivals.has(socket, files)
    }

    fn shed(&self, records: &mut Records) {
        while records.kept.len() > KEPT_MAX {
            if let Some(oldest) = records.kept.front().cloned() {
                self.drop_record(records, &oldest);
            }
        }
    }

    fn drop_record(&self, records: &mut Records, key: &Key) {
        if records.all.remove(key).is_some() {
            records.kept.retain(|kept| kept != key);
            if let Some(store) = &self.store {
                store.remove(key);
            }
        }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // A panic in between leaves a record too many or too few in the list of those kept, no more.
        self.records.lock()
    }
}
