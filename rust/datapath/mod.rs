//! The façade: bridges and ports, changed by one hand at a time.
//!
//! ```text
//!   py / tests ─▶ Datapath ─▶ State (one mutex) ─publish─▶ Topology ─▶ poll threads
//!                    ▲             ▲
//!                    └─ snapshots  └── Link: a session starts and stops its vrings
//! ```
//!
//! Nothing here is on the packet path. A change is complete when every poll thread uses it. The state's lock is never
//! held while a session ends, for ending sessions stop their vrings through it.

mod assignment;
mod bond;
mod bridges;
mod events;
mod housekeeping;
mod link;
mod nic;
mod pmds;
mod port;
mod state;
mod threads;
mod zero_copy;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

pub use assignment::{PmdView, RxqView, Sharing};
pub use bond::{BondConfig, BondLink, BondMode, BondState, LacpConfig, LacpLink, LacpPort, LacpStatus};
pub use bridges::FdbEntry;
pub use events::Event;
pub use nic::{NicConfig, NicDevice, NicQueue};
pub use port::{PortChange, PortConfig, PortState};
pub use threads::SleepMax;

pub use crate::frame::ethernet::Mac;
pub use crate::frame::lacp::{End as LacpEnd, state as lacp_state};

use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::pmd::{Message, Sleep};
use crate::recovery::Recovery;
use crate::vhost::offer::{Limit, Offer};
use crate::vhost::{self, Endpoint, Level, features};
use events::Events;
use link::Link;
use nic::Nic;
use port::{Options, PortRecord};
use state::State;
use threads::{Passage, Threads};
use zero_copy::Lanes;

/// What sessions and control share.
struct Shared {
    state: Lock<State>,
    lanes: Lanes,
    threads: Threads,
    events: Events,
    recovery: Arc<Recovery>,
    /// What front-ends are offered at most.
    offer: Arc<Offer>,
    started: Instant,
    runs: AtomicU64,
    options: Lock<Options>,
    /// Tells the thread that keeps bonds' time that they changed; there is none before the first bond.
    bonds: Lock<Option<Sender<()>>>,
}

impl Shared {
    /// A number for one start of one vring.
    fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Hands the state's topology to every poll thread. Wait for the passage without the state's lock.
    fn publish(&self, state: &mut State) -> Passage {
        for text in state.settle_bonds(Instant::now()) {
            self.events.push(Level::Info, "notice", None, text);
        }
        if let Some(bonds) = self.bonds.lock().as_ref() {
            // It leaves when this does.
            let _ = bonds.send(());
        }
        let topology = Arc::new(state.topology());
        Passage::begin(self.threads.all(), |done| Message::Topology(Arc::clone(&topology), done))
    }

    /// Changes the state, and waits until every poll thread works on what came of it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let result = change(&mut state)?;
        let passage = self.publish(&mut state);
        drop(state);
        passage.wait(&self.events);
        Ok(result)
    }

    /// A line of a port for the log, unless that port says more than the log can bear.
    fn note(&self, record: &PortRecord, level: Level, kind: &'static str, text: String) {
        let Some(left_out) = record.allowance.take(Instant::now()) else { return };
        let name = &record.name;
        if left_out > 0 {
            let text = format!("{name}: {left_out} lines are left out: more happens to it than the log can bear");
            self.events.push(Level::Warning, "notice", Some(name), text);
        }
        self.events.push(level, kind, Some(name), text);
    }

    fn now_s(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// The switch itself.
pub struct Datapath {
    shared: Arc<Shared>,
    /// The process that made it: the threads are there, not in a child forked from it.
    owner: u32,
}

impl Datapath {
    /// Starts a poll thread on each of `cpus`, or on the first core this process may use.
    ///
    /// # Errors
    /// `Config` for a core out of reach, `Kernel` without threads or descriptors.
    pub fn new(cpus: &[usize], sleep: Sleep) -> Result<Self> {
        Self::with_recovery(cpus, sleep, Recovery::in_process())
    }

    /// As [`Self::new`]; each vring's place is kept in `recovery`, and those in it are gone on from.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_recovery(cpus: &[usize], sleep: Sleep, recovery: Recovery) -> Result<Self> {
        let started = Instant::now();
        let events = Events::new()?;
        for notice in recovery.notices() {
            events.push(Level::Warning, "notice", None, notice.clone());
        }
        let (faults, broken) = channel();
        let threads = Threads::new(started, faults);
        let recovery = Arc::new(recovery);
        let runs = AtomicU64::new(0);
        let offer = Arc::default();
        let state = Lock::default();
        let (lanes, options, bonds) = (Lanes::default(), Lock::default(), Lock::default());
        let shared = Shared { state, lanes, threads, events, recovery, offer, started, runs, options, bonds };
        let shared = Arc::new(shared);
        shared.state().places.sleep = SleepMax { default: sleep, ..SleepMax::default() };
        // It holds no claim on the datapath, and ends when the poll threads that report to it are gone.
        let keeper = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("housekeeping".into())
            .spawn(move || housekeeping::keep_house(&keeper, &broken))
            .map_err(|e| Error::kernel("no housekeeping thread", e))?;
        let datapath = Self { shared, owner: std::process::id() };
        datapath.set_pmds(cpus)?;
        Ok(datapath)
    }

    /// Client ports added from now on offer post-copy migration (`other_config:vhost-postcopy-support`).
    ///
    /// # Errors
    /// `Config` if this process's memory is locked; `Kernel` if it may not use userfaultfd: the text says what to set.
    /// Nothing is offered then.
    pub fn offer_postcopy(&self) -> Result<()> {
        vhost::check_postcopy()?;
        self.shared.options.lock().postcopy = true;
        Ok(())
    }

    /// Client ports added from now on serve guests that have an IOMMU before the device
    /// (`other_config:vhost-iommu-support`).
    pub fn offer_iommu(&self) {
        self.shared.options.lock().iommu = true;
    }

    /// Changes what front-ends are offered at most (`other_config:vhost-features`), live: for those that come from now on.
    /// Guests that are connected keep what they accepted, also when they reconnect.
    pub fn limit_features(&self, limit: Limit) {
        if !self.shared.offer.set(limit) {
            return;
        }
        let held_back = features::VIRTIO & !limit.virtio();
        let text = if held_back == 0 {
            "guests that start from now on are offered every feature".to_owned()
        } else {
            let names = features::names(held_back);
            format!("guests that start from now on are not offered {names} (other_config:vhost-features)")
        };
        self.shared.events.push(Level::Info, "notice", None, text);
    }

    /// Readable while [`Self::events`] has something or a port's state changed.
    pub fn event_fd(&self) -> std::os::fd::RawFd {
        self.shared.events.fd()
    }

    /// What happened since the last call, oldest first; at most 4096 are kept.
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.take()
    }

    /// Adds a port; its session comes up by itself.
    ///
    /// # Errors
    /// `Config` for a value out of range or in use; `Kernel` if a server's socket cannot be made.
    pub fn add_port(&self, bridge: &str, config: PortConfig) -> Result<()> {
        config.check()?;
        let endpoint_config = config.endpoint(&self.shared.recovery, &self.shared.offer, *self.shared.options.lock());
        let name = config.name.clone();
        let record = self.shared.change(|state| state.add_port(bridge, config))?;
        let link = Arc::new(Link::new(Arc::clone(&self.shared), Arc::clone(&record)));
        match Endpoint::spawn(endpoint_config, link) {
            Ok(endpoint) => {
                let late = self.shared.state().set_endpoint(&name, record.id, endpoint);
                drop(late);
                Ok(())
            }
            Err(error) => {
                self.shared.change(|state| Ok(state.remove_port(&name)))?;
                Err(error)
            }
        }
    }

    /// Adds a port that is a network device of the host. That need not be there, or be free: the port's own thread takes
    /// it over when it can, and [`PortState::error`] says what is in the way.
    ///
    /// # Errors
    /// `Config` for a value out of range or in use; `Kernel` without a thread or a socket.
    pub fn add_nic(&self, bridge: &str, config: NicConfig) -> Result<()> {
        config.check()?;
        let name = config.name.clone();
        let record = self.shared.change(|state| state.add_nic(bridge, &config))?;
        self.shared.recovery.expect_device(&name);
        match Nic::spawn(config, &self.shared, &record) {
            Ok(nic) => {
                let late = self.shared.state().set_nic_thread(&name, record.id, nic);
                drop(late);
                Ok(())
            }
            Err(error) => {
                self.shared.recovery.device_settled(&name);
                self.shared.change(|state| Ok(state.remove_port(&name)))?;
                Err(error)
            }
        }
    }

    /// Changes what a NIC port takes of which device, and how; it is taken over anew where that is another. Counters go on.
    ///
    /// # Errors
    /// `Config` for an unknown port, one that is a guest's, or a value out of range; nothing changed then.
    pub fn set_nic(&self, name: &str, change: impl FnOnce(&mut NicDevice)) -> Result<()> {
        self.shared.state().set_nic(name, change)
    }

    /// Says that a NIC port's device may have changed: come, gone, up, down, another of its name. Its thread looks. Returns
    /// at once, and may be called as often as one likes.
    ///
    /// # Errors
    /// `Config` for an unknown port or one that is a guest's.
    pub fn refresh_nic(&self, name: &str) -> Result<()> {
        let state = self.shared.state();
        if let (_, Some(nic)) = state.nic(name)? {
            nic.refresh();
        }
        Ok(())
    }

    /// The queues of a NIC port: where descriptors are, and how long the device took with them.
    ///
    /// # Errors
    /// `Config` for an unknown port or one that is a guest's.
    pub fn nic_queues(&self, name: &str) -> Result<Vec<NicQueue>> {
        let state = self.shared.state();
        Ok(state.nic(name)?.1.map(Nic::queues).unwrap_or_default())
    }

    /// Changes a port live.
    ///
    /// # Errors
    /// `Config` for an unknown port or a value out of range; nothing changed then.
    pub fn set_port(&self, name: &str, change: &PortChange) -> Result<()> {
        self.shared.change(|state| state.set_port(name, change))?;
        let port = self.shared.state().id_of(name);
        if let (Some(port), Some(_)) = (port, change.zero_copy) {
            self.shared.ask_for_lanes(port);
        }
        self.shared.events.poke();
        Ok(())
    }

    /// Ends a port's session, gives every buffer back to the guest, forgets what was learned behind it.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn del_port(&self, name: &str) -> Result<()> {
        // Out of the state first, so that nobody else finds it; its vrings stop through the state, so not under its lock.
        let removed = self.shared.state().remove_port(name);
        let Some((record, backing)) = removed else {
            return Err(Error::Config(format!("no port named {name}")));
        };
        backing.shut_down();
        let left = self.shared.change(|state| {
            state.forget(record.id);
            Ok(state.take_vrings(record.id))
        })?;
        for seat in left {
            if let Some(mut queue) = seat.take(&self.shared.events) {
                self.shared.settle_lanes(&seat, &mut queue);
            }
        }
        Ok(())
    }

    /// One port, now.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn port(&self, name: &str) -> Result<PortState> {
        self.shared
            .state()
            .port_state(name, &self.shared.lanes)
            .ok_or_else(|| Error::Config(format!("no port named {name}")))
    }

    /// Every port, now.
    pub fn ports(&self) -> Vec<PortState> {
        self.shared.state().port_states(&self.shared.lanes)
    }
}

/// Ends every session first: those hold the rest. Nobody is polled from the start of it, so no frame is taken from a
/// guest whose receiver left a moment before. In a forked child there is nobody to end or to wait for.
impl Drop for Datapath {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            std::mem::forget(Arc::clone(&self.shared));
            return;
        }
        Passage::begin(self.shared.threads.all(), Message::Rest).wait(&self.shared.events);
        let names = self.shared.state().port_names();
        for name in names {
            // Nobody else can delete it: we are the last owner.
            let _ = self.del_port(&name);
        }
    }
}
