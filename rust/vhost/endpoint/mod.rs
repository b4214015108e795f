//! A port's own thread, and what others may ask of it.
//!
//! ```text
//!   others ── EndpointHandle ──▶ Control ◀── the port's thread: Client or Server, one Session at a time
//!              status, error,     stop, faults ▶
//!              fail_vring, stop   ◀ snapshot
//! ```
//!
//! Nothing here waits for the thread except [`Endpoint::shutdown`], and that not for long.

mod client;
mod permission;
mod server;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{self, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::client::Client;
use self::server::Server;
use super::handler::Made;
use super::offer::Offer;
use super::session::{End, Session};
use super::status::{SessionState, Snapshot};
use super::{EndpointConfig, EndpointKind, Level, PortLink};
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::recovery::Recovery;
use crate::sys::socket;

/// How long a thread may take to end before it is left behind and named.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// What every part of an endpoint needs to know of its port.
pub(super) struct Port {
    pub(super) name: String,
    kind: EndpointKind,
    pub(super) socket: PathBuf,
    pub(super) allow_file_memory: bool,
    /// Post-copy migration is offered.
    pub(super) postcopy: bool,
    /// Guests with an IOMMU are served.
    pub(super) iommu: bool,
    /// What new front-ends are offered at most.
    pub(super) offer: Arc<Offer>,
    /// What the last one was offered.
    pub(super) made: Lock<Option<Made>>,
    pub(super) recovery: Arc<Recovery>,
    pub(super) link: Arc<dyn PortLink>,
    /// Vrings that a poll thread found broken, and why.
    faults: Lock<Vec<(usize, String)>>,
}

impl Port {
    pub(super) fn new(config: EndpointConfig, link: Arc<dyn PortLink>) -> Self {
        let EndpointConfig { name, kind, socket, allow_file_memory, postcopy, iommu, offer, recovery, .. } = config;
        let is_client = kind == EndpointKind::Client;
        let (postcopy, iommu) = (postcopy && is_client, iommu && is_client);
        let (made, faults) = (Lock::default(), Lock::default());
        Self { name, kind, socket, allow_file_memory, postcopy, iommu, offer, made, recovery, link, faults }
    }

    pub(super) fn note_fault(&self, vring: usize, reason: String) {
        self.faults.lock().push((vring, reason));
    }

    pub(super) fn take_faults(&self) -> Vec<(usize, String)> {
        std::mem::take(&mut *self.faults.lock())
    }

    /// A vring that stopped takes what was found with it: it is not what starts next.
    pub(super) fn forget_faults_of(&self, at: usize) {
        self.faults.lock().retain(|(vring, _)| *vring != at);
    }

    pub(super) fn path(&self) -> path::Display<'_> {
        self.socket.display()
    }

    fn event(&self, level: Level, kind: &'static str, text: String) {
        self.link.event(level, kind, text);
    }
}

/// Between the port's thread and everybody else.
pub(super) struct Control {
    wake: EventFd,
    stopping: AtomicBool,
    snapshot: ArcSwap<Snapshot>,
    /// What ended the last session or keeps one from starting; stays until a link is up.
    trouble: Lock<Option<String>>,
    link: Arc<dyn PortLink>,
}

impl Control {
    fn new(link: Arc<dyn PortLink>) -> Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)
            .map_err(|e| Error::kernel("cannot make an eventfd for a port; raise RLIMIT_NOFILE (ulimit -n)", e))?;
        Ok(Self {
            wake,
            stopping: AtomicBool::new(false),
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            trouble: Lock::new(None),
            link,
        })
    }

    fn wake(&self) {
        // A counter that is full wakes just as well.
        let _ = self.wake.write(1);
    }

    /// Readable when there is something to look at.
    pub(super) fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    pub(super) fn acknowledge(&self) {
        let _ = self.wake.read();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Makes a session's state the one that others see.
    pub(super) fn publish_session(&self, state: SessionState) {
        let error = {
            let mut trouble = self.trouble.lock();
            if state.link_up {
                *trouble = None;
            }
            state.problem.clone().or_else(|| trouble.clone())
        };
        self.publish(Snapshot { session: Some(state), waiting_for: None, error });
    }

    /// Without a session: what is waited for, and what is in the way.
    fn publish_waiting(&self, waiting_for: Option<String>, obstacle: Option<String>) {
        let error = obstacle.or_else(|| self.trouble());
        self.publish(Snapshot { session: None, waiting_for, error });
    }

    fn publish(&self, snapshot: Snapshot) {
        let before = self.snapshot.load();
        if **before == snapshot {
            return;
        }
        let is_news = snapshot.is_news_after(&before);
        self.snapshot.store(Arc::new(snapshot));
        if is_news {
            self.link.state_changed();
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    pub(super) fn set_trouble(&self, text: String) {
        *self.trouble.lock() = Some(text);
    }

    /// Waits for `other`, a stop, or the end of `wait`. True if `other` is ready.
    fn wait_with(&self, other: Option<&dyn AsRawFd>, wait: Option<Duration>) -> Result<bool> {
        let [ours, other] = socket::wait_any([Some(&self.wake), other], libc::POLLIN, wait)
            .map_err(|e| Error::kernel("cannot wait for a vhost-user socket (poll)", e))?;
        if ours {
            self.acknowledge();
        }
        Ok(other)
    }
}

/// What others may ask of a port's endpoint, from any thread; nothing here blocks.
#[derive(Clone)]
pub struct EndpointHandle {
    port: Arc<Port>,
    control: Arc<Control>,
}

impl EndpointHandle {
    /// The Interface's `status`: Open vSwitch's keys, and `waiting-for`, `peer-pid`, `peer-uid`, `peer-program`,
    /// `mtu-mismatch`.
    pub fn status(&self) -> BTreeMap<String, String> {
        let mode = match self.port.kind {
            EndpointKind::Client => "client",
            EndpointKind::Server => "server",
        };
        self.control.snapshot.load().to_map(mode, &self.port.path().to_string(), self.port.link.mtu())
    }

    /// Why the link is down or degraded, with the cure; None if nothing is wrong.
    pub fn error(&self) -> Option<String> {
        self.control.snapshot.load().error.clone()
    }

    /// A session is established, memory is mapped, receiveq 0 and transmitq 0 are started and enabled.
    pub fn link_up(&self) -> bool {
        self.control.snapshot.load().is_link_up()
    }

    /// Stops a vring that a poll thread found broken: the front-end is told through its error descriptor, the port shows
    /// `reason` as its error, session and other vrings go on.
    pub fn fail_vring(&self, vring: usize, reason: String) {
        self.port.note_fault(vring, reason);
        self.control.wake();
    }
}

/// A port's endpoint. Dropping it is [`Endpoint::shutdown`].
pub struct Endpoint {
    handle: EndpointHandle,
    /// Its sender lives as long as the thread.
    ended: Receiver<()>,
}

impl Endpoint {
    /// Starts the port's thread. A server's socket exists when this returns; a client connects by itself.
    ///
    /// # Errors
    /// `Config`: a path or name that no socket can have, a path where a server cannot make one. `Kernel`: the socket or
    /// the thread could not be made.
    pub fn spawn(config: EndpointConfig, link: Arc<dyn PortLink>) -> Result<Self> {
        check(&config)?;
        let server = match config.kind {
            EndpointKind::Client => None,
            EndpointKind::Server => Some(Server::bind(&config, &*link)?),
        };
        let control = Arc::new(Control::new(Arc::clone(&link))?);
        let port = Arc::new(Port::new(config, link));
        let handle = EndpointHandle { port: Arc::clone(&port), control: Arc::clone(&control) };
        let (alive, ended) = channel::<()>();
        let run = move || {
            let _alive = alive;
            let end = match server {
                Some(server) => server.run(&port, &control),
                None => Client::new(&port, &control).run(),
            };
            if let Err(e) = end {
                port.event(
                    Level::Error,
                    "kernel_error",
                    format!("{}: {e}; the port is dead until it is added again", port.name),
                );
                control.publish_waiting(None, Some(e.to_string()));
            }
        };
        thread::Builder::new()
            .name(thread_name(&handle.port.name))
            .spawn(run)
            .map_err(|e| Error::kernel(format!("cannot start a thread for port '{}'", handle.port.name), e))?;
        Ok(Self { handle, ended })
    }

    /// What others may hold on to.
    pub fn handle(&self) -> EndpointHandle {
        self.handle.clone()
    }

    /// As [`EndpointHandle::status`].
    pub fn status(&self) -> BTreeMap<String, String> {
        self.handle.status()
    }

    /// As [`EndpointHandle::error`].
    pub fn error(&self) -> Option<String> {
        self.handle.error()
    }

    /// As [`EndpointHandle::link_up`].
    pub fn link_up(&self) -> bool {
        self.handle.link_up()
    }

    /// As [`EndpointHandle::fail_vring`].
    pub fn fail_vring(&self, vring: usize, reason: String) {
        self.handle.fail_vring(vring, reason);
    }

    /// Takes every vring back, closes the session, removes a socket that is still ours. Waits at most 2 s.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let EndpointHandle { port, control } = &self.handle;
        control.stopping.store(true, Ordering::Release);
        control.wake();
        // The thread never sends: the channel closes when it ends.
        if self.ended.recv_timeout(SHUTDOWN) == Err(RecvTimeoutError::Timeout) {
            let text =
                format!("{}: its thread did not end within {} s and is left behind", port.name, SHUTDOWN.as_secs());
            port.event(Level::Error, "kernel_error", text);
        }
    }
}

/// Runs one session and keeps what it left behind. False when the endpoint is to stop.
fn serve(port: &Arc<Port>, control: &Control, stream: std::os::unix::net::UnixStream, server: Option<&Server>) -> bool {
    // Faults of the session before are nothing to this one.
    drop(port.take_faults());
    let end = Session::new(port, control, stream).and_then(|session| session.run(server.map(Server::listener)));
    match end {
        Ok(End::Stopped) => return false,
        Ok(End::HungUp) => {}
        Ok(End::Broken(text)) => control.set_trouble(text),
        Err(e) => {
            port.event(Level::Error, "kernel_error", format!("{}: {e}", port.name));
            control.set_trouble(e.to_string());
        }
    }
    !control.is_stopping()
}

/// What holds for the path and name of either kind.
fn check(config: &EndpointConfig) -> Result<()> {
    let EndpointConfig { name, socket, .. } = config;
    let shown = socket.display();
    let bytes = socket.as_os_str().as_bytes();
    let wrong = if bytes.contains(&0) {
        Some("it contains NUL; no file name does".to_owned())
    } else if !socket.is_absolute() {
        Some("it is not absolute; write it from the root".to_owned())
    } else if socket.file_name().is_none() || bytes.ends_with(b"/") {
        Some("it names a directory; add the socket's name".to_owned())
    } else if bytes.len() > socket::PATH_MAX {
        Some(format!(
            "it has {} bytes and a socket's path at most {}; choose a shorter one",
            bytes.len(),
            socket::PATH_MAX
        ))
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(Error::Config(format!("{name}: socket path '{shown}' cannot be used: {wrong}")));
    }
    if config.kind == EndpointKind::Server && name.contains(['/', '\\']) {
        return Err(Error::Config(format!(
            "{name}: the name of a dpdkvhostuser port is its socket's name and may not contain '/' or '\\'"
        )));
    }
    Ok(())
}

/// `vhost-<port>`, cut to the 15 bytes that the kernel keeps.
fn thread_name(port: &str) -> String {
    let mut name = format!("vhost-{}", port.replace('\0', "?"));
    while name.len() > 15 {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_named_after_its_port_within_fifteen_bytes() {
        assert_eq!(thread_name("v0"), "vhost-v0");
        assert_eq!(thread_name("dpdkvhostclient0"), "vhost-dpdkvhost");
        assert_eq!(thread_name("ärgerlich-lang"), "vhost-ärgerlic");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_with_the_cure() {
        let config = |socket: &str| EndpointConfig {
            name: "v0".into(),
            kind: EndpointKind::Client,
            socket: socket.into(),
            socket_mode: 0o600,
            socket_owner: None,
            socket_group: None,
            allow_file_memory: false,
            postcopy: false,
            iommu: false,
            offer: Arc::default(),
            recovery: Arc::new(Recovery::in_process()),
        };
        let long = format!("/{}", "x".repeat(107));
        for (path, cure) in
            [("relative", "from the root"), ("/", "add the socket's name"), ("/a/", "add the socket's name")]
                .into_iter()
                .chain([(long.as_str(), "choose a shorter one"), ("/a\0b", "no file name does"), ("", "from the root")])
        {
            let refused = check(&config(path)).unwrap_err();
            assert!(matches!(refused, Error::Config(_)));
            assert!(refused.to_string().contains(cure), "{refused}");
        }
        assert!(check(&config("/tmp/v0")).is_ok());
    }
}
