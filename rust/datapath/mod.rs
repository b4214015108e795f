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

mod events;
mod link;
mod port;
mod state;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use events::Event;
pub use port::{PortChange, PortConfig, PortState};

use crate::error::{Error, Result};
use crate::pmd::{Fault, FaultCause, Pmd, PmdStats, Sleep};
use crate::recovery::Recovery;
use crate::switch::fdb::Learned;
use crate::sys::cpu;
use crate::vhost::{Endpoint, Level};
use events::Events;
use link::Link;
use state::State;

/// How often housekeeping looks around while all poll threads sleep.
const QUIET_ROUND: Duration = Duration::from_millis(500);
/// How often while one moves frames: a guest that makes it hang is found out in one to two rounds.
const BUSY_ROUND: Duration = Duration::from_millis(40);

/// What sessions and control share.
struct Shared {
    state: Mutex<State>,
    pmds: Vec<Pmd>,
    events: Events,
    recovery: Arc<Recovery>,
    started: Instant,
    runs: AtomicU64,
}

impl Shared {
    /// A number for one start of one vring.
    fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in between leaves the state whole: it is changed by single assignments and then published.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the state's topology to every poll thread and waits until all use it.
    fn publish(&self, state: &State) {
        let topology = Arc::new(state.topology());
        for pmd in &self.pmds {
            let (done, passed) = channel();
            pmd.post(crate::pmd::Message::Topology(Arc::clone(&topology), done));
            pmd.wait(&passed, |late| self.events.push(Level::Warning, "notice", None, late.to_owned()));
        }
    }

    fn now_s(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// One learned address, with the port's number on its bridge.
#[derive(Debug, Clone, Copy)]
pub struct FdbEntry {
    /// `OpenFlow` port number.
    pub ofport: u16,
    /// What was learned.
    pub learned: Learned,
}

/// A poll thread, as seen from outside.
#[derive(Debug, Clone)]
pub struct PmdView {
    /// The core it is pinned to.
    pub cpu: usize,
    /// Its counters, live.
    pub stats: Arc<PmdStats>,
    /// `(port, queue)` of every transmitq it polls.
    pub rxqs: Vec<(String, u16)>,
}

/// The switch itself.
pub struct Datapath {
    shared: Arc<Shared>,
    /// The process that made it: the threads are there, not in a child forked from it.
    owner: u32,
}

impl Datapath {
    /// Starts the poll thread on the first of `cpus`, or on the first core this process may use.
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
        let cpu = match cpus {
            [] => *cpu::allowed_cpus()
                .map_err(|e| Error::kernel("cannot read the allowed cores", e))?
                .first()
                .ok_or_else(|| Error::Bug("this process may use no core at all".into()))?,
            [one] => *one,
            [first, ..] => {
                let text = format!("pmd-cpu-mask names {} cores; only core {first} is used so far", cpus.len());
                events.push(Level::Warning, "notice", None, text);
                *first
            }
        };
        let (faults, broken) = channel();
        let pmds = vec![Pmd::spawn(cpu, sleep, started, faults)?];
        let recovery = Arc::new(recovery);
        let runs = AtomicU64::new(0);
        let shared = Arc::new(Shared { state: Mutex::default(), pmds, events, recovery, started, runs });
        // It holds no claim on the datapath, and ends when the poll threads that report to it are gone.
        let keeper = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("housekeeping".into())
            .spawn(move || keep_house(&keeper, &broken))
            .map_err(|e| Error::kernel("no housekeeping thread", e))?;
        Ok(Self { shared, owner: std::process::id() })
    }

    /// Readable while [`Self::events`] has something or a port's state changed.
    pub fn event_fd(&self) -> std::os::fd::RawFd {
        self.shared.events.fd()
    }

    /// What happened since the last call, oldest first; at most 4096 are kept.
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.take()
    }

    /// Adds a bridge without ports.
    ///
    /// # Errors
    /// `Config` if the name is taken.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        let mut state = self.shared.state();
        state.add_bridge(name)?;
        self.shared.publish(&state);
        Ok(())
    }

    /// Changes a bridge live.
    ///
    /// # Errors
    /// `Config` for an unknown bridge or a value out of range; nothing changed then.
    pub fn set_bridge(&self, name: &str, aging_s: u32, table_size: usize, forward_bpdu: bool) -> Result<()> {
        let mut state = self.shared.state();
        state.set_bridge(name, aging_s, table_size, forward_bpdu, self.shared.now_s())?;
        self.shared.publish(&state);
        Ok(())
    }

    /// Deletes a bridge and its ports.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn del_bridge(&self, name: &str) -> Result<()> {
        let ports = self.shared.state().ports_of(name)?;
        for port in ports {
            // Somebody else may have deleted it meanwhile: then it is gone, which is what was asked for.
            let _ = self.del_port(&port);
        }
        let mut state = self.shared.state();
        state.del_bridge(name)?;
        self.shared.publish(&state);
        Ok(())
    }

    /// Adds a port; its session comes up by itself.
    ///
    /// # Errors
    /// `Config` for a value out of range or in use; `Kernel` if a server's socket cannot be made.
    pub fn add_port(&self, bridge: &str, config: PortConfig) -> Result<()> {
        config.check()?;
        let endpoint_config = config.endpoint(&self.shared.recovery);
        let name = config.name.clone();
        let record = {
            let mut state = self.shared.state();
            let record = state.add_port(bridge, config)?;
            self.shared.publish(&state);
            record
        };
        let link = Arc::new(Link::new(Arc::clone(&self.shared), Arc::clone(&record)));
        match Endpoint::spawn(endpoint_config, link) {
            Ok(endpoint) => {
                let late = self.shared.state().set_endpoint(&name, record.id, endpoint);
                drop(late);
                Ok(())
            }
            Err(error) => {
                let mut state = self.shared.state();
                state.remove_port(&name);
                self.shared.publish(&state);
                Err(error)
            }
        }
    }

    /// Changes a port live.
    ///
    /// # Errors
    /// `Config` for an unknown port or a value out of range; nothing changed then.
    pub fn set_port(&self, name: &str, change: &PortChange) -> Result<()> {
        let mut state = self.shared.state();
        state.set_port(name, change)?;
        self.shared.publish(&state);
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
        let Some((record, endpoint)) = removed else {
            return Err(Error::Config(format!("no port named {name}")));
        };
        if let Some(endpoint) = endpoint {
            endpoint.shutdown();
        }
        let mut state = self.shared.state();
        let left = state.take_vrings(record.id);
        state.forget(record.id);
        self.shared.publish(&state);
        drop(state);
        for (pmd, vring) in self.shared.pmds.iter().flat_map(|pmd| left.iter().map(move |vring| (pmd, *vring))) {
            drop(pmd.release(record.id, vring, |_| {}));
        }
        Ok(())
    }

    /// One port, now.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn port(&self, name: &str) -> Result<PortState> {
        self.shared.state().port_state(name).ok_or_else(|| Error::Config(format!("no port named {name}")))
    }

    /// Every port, now.
    pub fn ports(&self) -> Vec<PortState> {
        self.shared.state().port_states()
    }

    /// What a bridge has learned.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn fdb(&self, bridge: &str) -> Result<Vec<FdbEntry>> {
        self.shared.state().fdb(bridge, self.shared.now_s())
    }

    /// What became of the addresses a bridge has met, by name: learned, expired, evicted, moved.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn fdb_stats(&self, bridge: &str) -> Result<[(&'static str, u64); 4]> {
        self.shared.state().fdb_stats(bridge)
    }

    /// Forgets what a bridge has learned.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn flush_fdb(&self, bridge: &str) -> Result<()> {
        self.shared.state().flush_fdb(bridge)
    }

    /// Each poll thread.
    pub fn pmds(&self) -> Vec<PmdView> {
        let rxqs = self.shared.state().polled();
        let view = |pmd: &Pmd| PmdView { cpu: pmd.cpu, stats: Arc::clone(&pmd.stats), rxqs: rxqs.clone() };
        self.shared.pmds.iter().map(view).collect()
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
        for pmd in &self.shared.pmds {
            let (done, rests) = channel();
            pmd.post(crate::pmd::Message::Rest(done));
            pmd.wait(&rests, |_| {});
        }
        let names = self.shared.state().port_names();
        for name in names {
            // Nobody else can delete it: we are the last owner.
            let _ = self.del_port(&name);
        }
    }
}

/// Ageing, a watch over poll threads that hang in a call, and reports of broken queues as they come.
///
/// Never waits for the state: whoever holds it may be waiting for the very thread that hangs.
fn keep_house(shared: &Weak<Shared>, faults: &Receiver<Fault>) {
    let (mut next_look, mut next_sweep) = (Instant::now(), Instant::now());
    let (mut seen, mut moved, mut reports) = (Vec::new(), 0, Vec::new());
    loop {
        let fault = faults.recv_timeout(next_look.saturating_duration_since(Instant::now()));
        let Some(shared) = shared.upgrade() else { return };
        match fault {
            Ok(fault) => reports.push(fault),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                seen.resize(shared.pmds.len(), None);
                for (pmd, last) in shared.pmds.iter().zip(&mut seen) {
                    pmd.desk.watch(last);
                }
                let packets = shared.pmds.iter().map(|pmd| pmd.stats.packets.read()).sum::<u64>();
                let is_busy = std::mem::replace(&mut moved, packets) != packets || seen.iter().any(Option::is_some);
                // From now, not from the last look: after a long stop, looks in a row would see one call twice.
                next_look = Instant::now() + if is_busy { BUSY_ROUND } else { QUIET_ROUND };
            }
        }
        if let Ok(state) = shared.state.try_lock() {
            for fault in reports.drain(..) {
                state.fail_vring(fault.port, fault.vring, fault.run, &describe(&fault.cause));
                shared.events.poke();
            }
            if Instant::now() >= next_sweep {
                state.sweep(shared.now_s());
                next_sweep = Instant::now() + Duration::from_secs(1);
            }
        }
    }
}

fn describe(cause: &FaultCause) -> String {
    match cause {
        FaultCause::Ring(ring) => {
            format!("{ring}; the queue is stopped until the guest's driver or VMM sets it up anew")
        }
        FaultCause::Panic(text) => format!("a bug in ovsvhost stopped it ({text}); please report it"),
    }
}

/// A path a socket can be bound to or reached at.
///
/// # Errors
/// `Config` naming the rule it breaks.
fn check_socket_path(path: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::Config(format!("socket path '{shown}' is not absolute; write it from / on")));
    }
    if bytes.contains(&0) {
        return Err(Error::Config(format!("socket path '{}' contains a NUL byte", shown.to_string().escape_debug())));
    }
    if bytes.len() > 107 {
        return Err(Error::Config(format!(
            "socket path '{shown}' has {} bytes; the kernel takes at most 107: choose a shorter one",
            bytes.len()
        )));
    }
    Ok(())
}
