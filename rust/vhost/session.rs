//! One connection, from the first byte to the hang-up.
//!
//! The loop reads a message when the socket has one, lets the handler act, publishes what is now true, and answers. A
//! front-end may stay silent for ever between messages, but not inside one, and it has to read its answers: past
//! [`PATIENCE`] it is dropped and named.
//!
//! What is malformed ends the session. What is well formed and refused (memory that cannot be mapped, a feature never
//! offered) is answered where the front-end asked to be told, and kept as the port's error; the session goes on, so that
//! no loop of reconnects follows.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::Error as VhostError;
use vhost::vhost_user::message::{FrontendReq, VhostUserLog};

use super::Level;
use super::backend::{Answer, dispatch};
use super::endpoint::{Control, Port};
use super::features;
use super::handler::Handler;
use super::peer::Peer;
use super::wire::{self, HEADER_SIZE, Header, Request};
use crate::error::{Error, Result};
use crate::sys::socket;

/// How long a front-end may stop inside a message, or leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a new front-end may say nothing before that is worth a word.
const SILENCE: Duration = Duration::from_secs(1);

/// How often a front-end that gave a descriptor for it is told that there is something new in its dirty log.
const LOG_NEWS: Duration = Duration::from_millis(10);

/// Refusals of one session that the log gets; a front-end could go on for ever.
const REFUSALS_LOGGED: u32 = 32;

/// How long to leave a listener alone that could not accept.
const REST: Duration = Duration::from_millis(100);

/// How long a process that dies may keep its pid after its socket closed.
const LAST_BREATH: Duration = Duration::from_millis(100);

/// How often a post-copy migration is looked at, besides whenever pages came.
const ARRIVALS: Duration = Duration::from_millis(200);

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// We were told to stop.
    Stopped,
    /// The front-end went away between two messages.
    HungUp,
    /// The front-end broke the protocol, or its process lives on after it refused our offer; the text says how.
    Broken(String),
}

/// What one attempt to read gave.
enum Step {
    Message(Header, Vec<u8>, Vec<File>),
    /// Not whole yet.
    Wait,
    HungUp,
}

/// A message on its way in.
struct Reader {
    bytes: Vec<u8>,
    files: Vec<File>,
    since: Option<Instant>,
}

impl Reader {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(HEADER_SIZE + 256), files: Vec::new(), since: None }
    }

    /// Reads what is there, up to the end of one message.
    fn step(&mut self, stream: &UnixStream) -> std::result::Result<Step, String> {
        loop {
            let header = match self.bytes.first_chunk::<HEADER_SIZE>() {
                Some(bytes) => Some(wire::header(*bytes).map_err(|e| e.to_string())?),
                None => None,
            };
            let whole = HEADER_SIZE + header.map_or(0, |header| header.size);
            if let Some(header) = header
                && self.bytes.len() == whole
            {
                let body = self.bytes.split_off(HEADER_SIZE);
                self.bytes.clear();
                self.since = None;
                return Ok(Step::Message(header, body, std::mem::take(&mut self.files)));
            }
            let had = self.bytes.len();
            self.bytes.resize(whole, 0);
            let received = socket::receive(stream, &mut self.bytes[had..]);
            self.bytes.truncate(had + received.as_ref().map_or(0, |received| received.bytes));
            let received = match received {
                Ok(received) => received,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return self.hung_up(),
                Err(e) => return Err(format!("its socket cannot be read: {e}")),
            };
            self.since.get_or_insert_with(Instant::now);
            self.files.extend(received.files);
            if received.lost_files || self.files.len() > wire::FILES_MAX {
                return Err(format!(
                    "it sent more than {} file descriptors in one message, or this process has no room for more \
                     (ulimit -n)",
                    wire::FILES_MAX
                ));
            }
            if received.bytes == 0 {
                return self.hung_up();
            }
        }
    }

    fn hung_up(&self) -> std::result::Result<Step, String> {
        if self.bytes.is_empty() { Ok(Step::HungUp) } else { Err(format!("it hung up {}", self.place())) }
    }

    /// Where in a message the front-end is.
    fn place(&self) -> String {
        match self.bytes.first_chunk::<HEADER_SIZE>().map(|bytes| wire::header(*bytes)) {
            Some(Ok(header)) => {
                let got = self.bytes.len() - HEADER_SIZE;
                format!("in the middle of {} ({got} of {} bytes of payload)", wire::name(header.code), header.size)
            }
            _ => format!("in the middle of a message header ({} of {HEADER_SIZE} bytes)", self.bytes.len()),
        }
    }
}

/// One session and all that belongs to it.
pub(super) struct Session<'a> {
    port: &'a Arc<Port>,
    control: &'a Control,
    stream: UnixStream,
    peer: Peer,
    handler: Handler,
    reader: Reader,
    began: Instant,
    /// The front-end said something.
    spoke: bool,
    /// The silence was already named.
    silent: bool,
    refusals: u32,
    /// The end of a hold wakes this thread.
    wakes_after_hold: bool,
}

impl<'a> Session<'a> {
    /// Takes a connected stream.
    pub(super) fn new(port: &'a Arc<Port>, control: &'a Control, stream: UnixStream) -> Result<Self> {
        let peer = Peer::of(&stream)?;
        let mut handler = Handler::new(Arc::clone(port), peer.clone());
        let waker = || {
            let waker = control.wake_fd().try_clone();
            waker.map_err(|e| Error::kernel("no descriptor to be had; raise RLIMIT_NOFILE", e))
        };
        if port.postcopy {
            handler.set_waker(waker()?);
        }
        if port.iommu {
            handler.set_bell(waker()?);
        }
        let began = Instant::now();
        let reader = Reader::new();
        Ok(Self {
            port,
            control,
            stream,
            peer,
            handler,
            reader,
            began,
            spoke: false,
            silent: false,
            refusals: 0,
            wakes_after_hold: false,
        })
    }

    /// Serves until the end. Front-ends that come to `listener` meanwhile are turned away.
    pub(super) fn run(mut self, listener: Option<&UnixListener>) -> Result<End> {
        let path = self.port.path();
        self.event(Level::Info, "connected", format!("{} is connected through '{path}'", self.peer));
        self.publish();
        let end = self.serve(listener);
        let judging = self.handler.is_judging_features();
        let last = self.handler.state();
        self.handler.end();
        let end = match end? {
            End::HungUp if judging && !self.peer.exits_within(LAST_BREATH) => End::Broken(format!(
                "{} hung up after it saw the features on offer and accepted none: it may need one that is not there, \
                 such as one that its guest negotiated with another switch; on offer are {}{}",
                self.peer,
                features::names(self.handler.offer()),
                self.handler.held_back().map_or_else(String::new, |held_back| format!("; {held_back}"))
            )),
            End::Broken(text) => End::Broken(format!("{} broke the vhost-user protocol: {text}", self.peer)),
            end => end,
        };
        if let (End::HungUp, false, Some(text)) = (&end, last.link_up, last.problem) {
            // A front-end that gives up does not take the reason with it.
            self.control.set_trouble(text);
        }
        match &end {
            // A front-end that comes back only to fail the same way is named once.
            End::Broken(text) if self.control.trouble().as_ref() == Some(text) => {}
            End::Broken(text) => self.event(Level::Error, "peer_error", format!("{}: {text}", self.port.name)),
            End::HungUp | End::Stopped => {
                self.event(Level::Info, "disconnected", format!("{} is disconnected from '{path}'", self.peer));
            }
        }
        Ok(end)
    }

    fn serve(&mut self, listener: Option<&UnixListener>) -> Result<End> {
        loop {
            let listening = listener.map(|listener| listener as &dyn AsRawFd);
            let fds: [Option<&dyn AsRawFd>; 3] = [Some(self.control.wake_fd()), Some(&self.stream), listening];
            let [control, stream, rival] = socket::wait_any(fds, libc::POLLIN, self.patience())
                .map_err(|e| Error::kernel("cannot wait for a vhost-user socket (poll)", e))?;
            if control {
                self.control.acknowledge();
            }
            if self.control.is_stopping() {
                return Ok(End::Stopped);
            }
            self.take_faults();
            if stream && let Some(end) = self.read_all() {
                return Ok(end);
            }
            if rival {
                // The one served may have left after poll looked at it: then this is no rival but who comes next.
                if let Some(end) = self.read_all() {
                    return Ok(end);
                }
                self.turn_away(listener);
            }
            if let Some(end) = self.look_at_the_clock() {
                return Ok(end);
            }
        }
    }

    /// Stops what a poll thread found broken. Done before each message, so that none is judged by what was before.
    fn take_faults(&mut self) {
        for (vring, reason) in self.port.take_faults() {
            self.handler.fail_vring(vring, &reason);
            self.publish();
        }
    }

    /// How long until the clock has to be looked at.
    fn patience(&self) -> Option<Duration> {
        let deadline = match self.reader.since {
            Some(since) => Some(since + PATIENCE),
            None if !self.spoke && !self.silent => Some(self.began + SILENCE),
            None => None,
        };
        let ours = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let hold = self.handler.is_held().then(|| self.port.recovery.hold_left().unwrap_or_default());
        let log = self.handler.has_log_fd().then_some(LOG_NEWS);
        let arrivals = self.handler.is_migrating_in().then_some(ARRIVALS);
        let mappings = self.handler.patience_for_mappings();
        ours.into_iter().chain(hold).chain(arrivals).chain(log).chain(mappings).min()
    }

    /// Lets go what waited for other ports, when they are there or their time is over.
    fn look_at_the_hold(&mut self) {
        if !self.handler.is_held() {
            return;
        }
        let recovery = &self.port.recovery;
        if !self.wakes_after_hold {
            match self.control.wake_fd().try_clone() {
                Ok(waker) => recovery.wake_at_end_of_hold(waker),
                // The end of its time comes all the same.
                Err(e) => {
                    self.event(Level::Warning, "notice", format!("{}: no descriptor to be had: {e}", self.port.name));
                }
            }
            self.wakes_after_hold = true;
        }
        if recovery.hold_left().is_some() {
            return;
        }
        if let Some(away) = recovery.stayed_away() {
            let away: Vec<_> = away.iter().map(|socket| format!("'{}'", socket.display())).collect();
            let text = format!(
                "{}: frames go on without the ports that were up before the switch died and are not back: {}",
                self.port.name,
                away.join(", ")
            );
            self.event(Level::Warning, "notice", text);
        }
        self.handler.look_again();
        self.publish();
    }

    fn look_at_the_clock(&mut self) -> Option<End> {
        self.look_at_the_hold();
        self.handler.tell_log_news();
        if self.handler.ask_for_mappings() {
            self.publish();
        }
        if self.handler.is_migrating_in() {
            self.handler.look_at_arrivals();
            self.publish();
        }
        if self.reader.since.is_some_and(|since| since.elapsed() >= PATIENCE) {
            let place = self.reader.place();
            return Some(End::Broken(format!("it stopped {place} and said no more for {} s", PATIENCE.as_secs())));
        }
        if !self.spoke && !self.silent && self.began.elapsed() >= SILENCE {
            self.silent = true;
            self.publish();
        }
        None
    }

    /// Handles every message that is there; Some at the end of the session.
    fn read_all(&mut self) -> Option<End> {
        loop {
            match self.reader.step(&self.stream) {
                Ok(Step::Message(header, body, files)) => {
                    self.spoke = true;
                    self.take_faults();
                    if let Err(text) = self.handle(header, &body, files) {
                        return Some(End::Broken(text));
                    }
                    // A front-end that never stops talking does not keep us from being stopped.
                    if self.control.is_stopping() {
                        return Some(End::Stopped);
                    }
                }
                Ok(Step::Wait) => return None,
                Ok(Step::HungUp) => return Some(End::HungUp),
                Err(text) => return Some(End::Broken(text)),
            }
        }
    }

    fn handle(&mut self, header: Header, body: &[u8], files: Vec<File>) -> std::result::Result<(), String> {
        let request = wire::request(header, body, files).map_err(|e| e.to_string())?;
        let unserved = matches!(request, Request::Unserved(_));
        let code = header.code;
        let answered = dispatch(&mut self.handler, header, request).map_err(refusal);
        if !unserved {
            self.handler.remember(code, answered.as_ref().err());
        }
        // Before the answer: what the front-end knows is true, everybody can see.
        self.publish();
        let is_postcopy = [FrontendReq::POSTCOPY_LISTEN as u32, FrontendReq::POSTCOPY_END as u32].contains(&code);
        // QEMU waits for an answer to those two whatever was negotiated.
        let wants_answer = header.need_reply && (self.handler.acknowledges() || is_postcopy);
        match answered {
            Ok(Answer::Bytes(bytes)) => self.answer(&bytes),
            Ok(Answer::File(file)) => self.answer_with(&wire::reply(code, &[]), Some(&file)),
            Ok(Answer::Number(value)) => self.answer(&wire::reply_number(code, value)),
            Ok(Answer::Vring(state)) => self.answer(&wire::reply_vring(code, state)),
            Ok(Answer::Done) if wants_answer => self.answer(&wire::reply_number(code, 0)),
            Ok(Answer::Done | Answer::Silence) => Ok(()),
            Err(text) => {
                if unserved && !wants_answer {
                    // It may wait for an answer of a shape we do not know.
                    return Err(text);
                }
                self.log_refusal(&wire::name(code), &text);
                if code == FrontendReq::SET_LOG_BASE as u32 {
                    // Front-ends wait for a log in answer, whether they asked for one or not, and for no less. One of nothing
                    // is an error to `vhost`'s; QEMU looks at none.
                    return self.answer(&wire::reply_log(code, VhostUserLog::default()));
                }
                if code == FrontendReq::POSTCOPY_ADVISE as u32 {
                    // It waits for a descriptor: one that is not there is the only way to say no.
                    return self.answer(&wire::reply(code, &[]));
                }
                if wants_answer { self.answer(&wire::reply_number(code, 1)) } else { Ok(()) }
            }
        }
    }

    fn log_refusal(&mut self, request: &str, text: &str) {
        if self.control.trouble().as_deref() == Some(text) {
            // The session before ended over the same.
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals > REFUSALS_LOGGED {
            return;
        }
        let more =
            if self.refusals == REFUSALS_LOGGED { "; further refusals in this session are not logged" } else { "" };
        self.event(Level::Error, "peer_error", format!("{}: {request} is refused: {text}{more}", self.port.name));
    }

    fn answer(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        self.answer_with(bytes, None)
    }

    fn answer_with(&self, bytes: &[u8], mut file: Option<&File>) -> std::result::Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = bytes;
        while !rest.is_empty() {
            match socket::send_with(&self.stream, rest, file) {
                // It went with the first byte.
                Ok(sent) => (rest, file) = (rest.get(sent..).unwrap_or_default(), None),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // In slices, so that a stop is not kept waiting by a front-end that does not read.
                    let slice = left.min(Duration::from_millis(100));
                    let _ = socket::wait_for(&self.stream, libc::POLLOUT, slice);
                    if left.is_zero() || self.control.is_stopping() {
                        return Err(format!("it did not read an answer within {} s", PATIENCE.as_secs()));
                    }
                }
                Err(e) => return Err(format!("it hung up before it read an answer ({e})")),
            }
        }
        Ok(())
    }

    fn turn_away(&self, listener: Option<&UnixListener>) {
        let rival = match listener.map(UnixListener::accept) {
            Some(Ok((rival, _))) => rival,
            Some(Err(e)) if e.kind() != std::io::ErrorKind::WouldBlock => {
                // Out of descriptors, most likely: the listener stays readable, and this must not become a loop.
                std::thread::sleep(REST);
                return;
            }
            _ => return,
        };
        let who = Peer::of(&rival).map_or_else(|_| "another process".into(), |peer| peer.to_string());
        let text = format!(
            "{}: {who} is turned away from '{}', which serves {}; a socket serves one front-end at a time",
            self.port.name,
            self.port.path(),
            self.peer
        );
        self.event(Level::Warning, "notice", text);
    }

    fn publish(&self) {
        let mut state = self.handler.state();
        if self.silent && !self.spoke {
            state.problem = Some(format!(
                "{} accepted the connection through '{}' but has said nothing; it may serve another back-end on this \
                 socket, or hang",
                self.peer,
                self.port.path()
            ));
        }
        self.control.publish_session(state);
    }

    fn event(&self, level: Level, kind: &'static str, text: String) {
        self.port.link.event(level, kind, text);
    }
}

/// What a refusal says, taken out of the error of the `vhost` crate that carried it.
fn refusal(error: VhostError) -> String {
    match error {
        VhostError::ReqHandlerError(inner) => inner.to_string(),
        other => other.to_string(),
    }
}
