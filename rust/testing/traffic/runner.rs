// SPDX-License-Identifier: Apache-2.0
//! A run from link to report, on one thread.
//!
//! ```text
//!  link ─▶ announce ─▶ warm-up ─▶ measure ─▶ drain ─▶ stop ─▶ report
//! ```

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::control::Command;
use super::end::End;
use super::governor::{Governor, Silence};
use super::latency;
use super::link::LinkState;
use super::receiver::Check;
use super::report::{self, Json};
use super::settings::{EndSettings, Mode, Role, RunSettings};
use super::throughput;
use crate::testing::{Error, Result, sys};

const ANNOUNCE_EVERY: Duration = Duration::from_millis(10);
const ANNOUNCE_FOR: Duration = Duration::from_secs(1);
/// Longer for each address of the end that has most.
const ANNOUNCE_EACH: Duration = Duration::from_micros(100);
const QUIET: Duration = Duration::from_millis(50);

/// Takes one or two ends through a run.
#[derive(Debug)]
pub struct Runner {
    settings: RunSettings,
    ends: Vec<End>,
    governors: Vec<Governor>,
    pub(super) silences: Vec<Silence>,
    commands: Option<mpsc::Receiver<Result<Command>>>,
    paused: bool,
    /// The last pass moved nothing.
    pub(super) idle: bool,
    stopping: bool,
    started: Instant,
}

impl Runner {
    /// Makes the ends; their sockets listen from here on.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Kernel` when memory or sockets cannot be had.
    pub fn new(settings: RunSettings, ends: Vec<EndSettings>) -> Result<Self> {
        if ends.is_empty() || ends.len() > 2 {
            return Err(Error::Config("a run has one end or two: give --end once or twice".into()));
        }
        let fallbacks = match settings.mode {
            Mode::Traffic | Mode::Transit => [Role::Send, Role::Receive],
            Mode::Latency => [Role::Receive, Role::Echo],
        };
        let mut made = Vec::new();
        for ((index, mut end), fallback) in (0..).zip(ends).zip(fallbacks) {
            end.role.get_or_insert(fallback);
            made.push(End::new(index, end)?);
        }
        if settings.mode == Mode::Transit && !(made.len() == 2 && made.iter().all(can_be_watched)) {
            let what = "two ends of one queue pair and one flow, and a check other than count";
            return Err(Error::Config(format!("frames on their way are watched between {what}")));
        }
        for index in 0..made.len() {
            let partner = made.len() - 1 - index;
            let to = made.get(partner).map(|other| (other.mac(), other.settings().addresses));
            if let Some(end) = made.get_mut(index).filter(|_| partner != index) {
                end.aim(to);
            }
        }
        let now = Instant::now();
        let governors = made.iter().map(|_| Governor::new(now)).collect();
        let silences = made.iter().map(|_| Silence::new(now)).collect();
        let commands = settings.control.then(Command::from_stdin);
        Ok(Self {
            settings,
            ends: made,
            governors,
            silences,
            commands,
            paused: false,
            idle: false,
            stopping: false,
            started: now,
        })
    }

    /// The ends.
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// The whole run; gives the report.
    ///
    /// # Errors
    /// `Peer` when a link does not come up in time; `Kernel` when the processor cannot be had.
    pub fn run(&mut self) -> Result<Json> {
        if let Some(cpu) = self.settings.cpu {
            sys::pin(cpu)?;
        }
        self.wait_for_links()?;
        self.event("ready", &[]);
        let announced = self.announce();
        let measured = match self.settings.mode {
            Mode::Traffic | Mode::Transit => throughput::measure(self),
            Mode::Latency => latency::measure(self),
        };
        self.drain();
        let ends = self.ends.iter().map(report::describe).collect();
        let exact = self.exactness();
        for end in &mut self.ends {
            end.stop();
        }
        let stopped = self
            .ends
            .iter()
            .map(|end| Json::List(end.stopped_at().iter().map(|&base| Json::Count(base.into())).collect()));
        Ok(Json::object([
            ("event", Json::text("result")),
            ("announced", Json::Bool(announced)),
            ("measured", measured),
            ("exact", exact),
            ("ends", Json::List(ends)),
            ("stopped_at", Json::List(stopped.collect())),
        ]))
    }

    fn wait_for_links(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.settings.link_timeout;
        while self.ends.iter().any(|end| end.link() == LinkState::Down) {
            self.house_keeping(Instant::now());
            if self.stopping || Instant::now() > deadline {
                let end = self.ends.iter().find(|end| end.link() == LinkState::Down);
                let text = end.map_or_else(String::new, |end| {
                    let why = end.last_error().unwrap_or("nobody came to the socket");
                    format!("end {}: {}: {why}", end.name(), end.frontend().config().socket.display())
                });
                return Err(Error::Peer(text));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// Announces every address, and until every end heard of the other; `false` when that did not come about.
    fn announce(&mut self) -> bool {
        let most = self.ends.iter().map(|end| end.settings().addresses).max().unwrap_or(1);
        let deadline = Instant::now() + ANNOUNCE_FOR + ANNOUNCE_EACH * most;
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            let is_done = self.ends.iter().all(End::is_announced);
            if now >= next || !is_done {
                self.ends.iter_mut().for_each(End::announce);
                next = now + ANNOUNCE_EVERY;
            }
            for end in &mut self.ends {
                end.receive(self.settings.burst);
            }
            if is_done && (self.ends.len() < 2 || self.ends.iter().all(|end| end.received() > 0)) {
                return self.ends.len() == 2;
            }
            self.house_keeping(now);
            if now > deadline || self.stopping {
                return false;
            }
        }
    }

    pub(super) fn frames_done(&self) -> bool {
        let Some(frames) = self.settings.frames else { return false };
        self.ends
            .iter()
            .filter(|end| end.role() == Role::Send)
            .all(|end| end.senders().iter().all(|sender| sender.next() >= frames))
    }

    /// One pass over all ends; gives the time at its beginning.
    #[inline]
    pub(super) fn step(&mut self, sending: bool) -> Instant {
        let now = Instant::now();
        let mut moved = 0;
        if sending && !self.paused {
            for index in 0..self.ends.len() {
                moved += self.send(index, now);
            }
        }
        for (end, silence) in self.ends.iter_mut().zip(&mut self.silences) {
            let count = end.receive(self.settings.burst);
            silence.note(now, count > 0);
            moved += count;
        }
        self.idle = moved == 0;
        self.house_keeping(now);
        now
    }

    #[inline]
    fn send(&mut self, index: usize, now: Instant) -> usize {
        let allowed = self.allowance(index, now);
        let settings = &self.settings;
        let limit = settings.frames.unwrap_or(u64::MAX);
        let (Some(end), Some(governor)) = (self.ends.get_mut(index), self.governors.get_mut(index)) else {
            return 0;
        };
        if end.role() != Role::Send || governor.is_resting(now) {
            return 0;
        }
        let sent = end.send(settings.burst, allowed, limit);
        if !settings.backoff.is_zero() && end.is_full() {
            governor.rest_until(now + settings.backoff);
        }
        sent
    }

    /// Frames end `index` may send now, by rate and by frames on the way.
    #[inline]
    fn allowance(&mut self, index: usize, now: Instant) -> u64 {
        if self.settings.rate.is_none() && self.settings.in_flight.is_none() {
            return u64::MAX;
        }
        let partner = self.ends.len() - 1 - index;
        let arrived = self.ends.get(partner).map_or(0, End::numbered);
        let sent = self.ends.get(index).map_or(0, End::sent);
        let governor = self.governors.get_mut(index);
        governor.map_or(0, |governor| governor.allowance(&self.settings, sent, arrived, now))
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + self.settings.drain;
        let mut quiet_since = Instant::now();
        let mut last = 0;
        while Instant::now() < deadline {
            let now = self.step(false);
            let held: usize = self.ends.iter_mut().map(End::settle).sum();
            let received: u64 = self.ends.iter().map(End::received).sum();
            if held != 0 || received != last {
                (quiet_since, last) = (now, received);
            }
            if now.duration_since(quiet_since) > QUIET {
                return;
            }
        }
    }

    /// Sockets and commands; cheap when there is nothing.
    pub(super) fn house_keeping(&mut self, now: Instant) {
        for index in 0..self.ends.len() {
            let Some(end) = self.ends.get_mut(index) else { continue };
            if let Some(state) = end.look_after(now) {
                let name = Json::text(end.name());
                self.event("link", &[("end", name), ("state", Json::text(state.name()))]);
            }
        }
        let command = self.commands.as_ref().and_then(|commands| commands.try_recv().ok());
        if let Some(command) = command
            && let Err(error) = command.and_then(|command| self.obey(command))
        {
            print(&Json::object([("event", Json::text("error")), ("text", Json::text(error.to_string()))]));
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        let no_end = || Error::Config("there is no such end".into());
        match command {
            Command::Stats => {
                let ends = self.ends.iter().map(report::describe).collect();
                let exact = self.exactness();
                print(&Json::object([("event", Json::text("stats")), ("exact", exact), ("ends", Json::List(ends))]));
            }
            Command::Stop => self.stopping = true,
            Command::Pause => self.paused = true,
            Command::Resume => self.paused = false,
            Command::Announce => self.ends.iter_mut().for_each(End::announce),
            Command::EnableQueue(end, pair) => {
                self.ends.get_mut(end).ok_or_else(no_end)?.enable_pair(pair, true)?;
            }
            Command::DisableQueue(end, pair) => {
                self.ends.get_mut(end).ok_or_else(no_end)?.enable_pair(pair, false)?;
            }
            Command::StopRings(end) => self.ends.get_mut(end).ok_or_else(no_end)?.stop_rings()?,
            Command::StartRings(end) => self.ends.get_mut(end).ok_or_else(no_end)?.start_rings()?,
            Command::ResetQueue(end, pair) => self.ends.get_mut(end).ok_or_else(no_end)?.reset_pair(pair)?,
            Command::HangUp(end) => self.ends.get_mut(end).ok_or_else(no_end)?.hang_up(),
        }
        Ok(())
    }

    /// The account of each sending end's frames at the other end, or at itself when it is alone.
    fn exactness(&self) -> Json {
        let accounts = self.ends.iter().enumerate().filter_map(|(index, end)| {
            let receiver = self.ends.get(self.ends.len() - 1 - index)?;
            let account = report::account_of(receiver, u16::try_from(index).ok()?);
            let in_ring: usize = end.senders().iter().map(|sender| sender.queue().posted()).sum();
            let sent = end.sent();
            // Frames that were only counted have no numbers; nothing can be said of their order.
            let counted = receiver.settings().check == Check::Count;
            let received = if counted { receiver.numbered() } else { account.received };
            let lost = sent.saturating_sub(received + in_ring as u64);
            (end.role() == Role::Send).then(|| {
                Json::object([
                    ("from", Json::text(end.name())),
                    ("sent", Json::Count(sent)),
                    ("received", Json::Count(received)),
                    ("in_ring", Json::Count(in_ring as u64)),
                    ("lost", Json::Count(lost)),
                    ("duplicated", Json::Count(account.duplicated)),
                    ("reordered", Json::Count(account.reordered)),
                ])
            })
        });
        Json::List(accounts.collect())
    }

    pub(super) fn event(&self, name: &str, entries: &[(&str, Json)]) {
        if !self.settings.events {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let mut object = vec![("event".to_owned(), Json::text(name)), ("at".to_owned(), Json::Number(seconds))];
        object.extend(entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        print(&Json::Object(object));
    }

    pub(super) fn settings(&self) -> &RunSettings {
        &self.settings
    }

    pub(super) fn ends_mut(&mut self) -> &mut [End] {
        &mut self.ends
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }
}

/// Whether the numbers of arriving frames say which one it was.
fn can_be_watched(end: &End) -> bool {
    let settings = end.settings();
    settings.frontend.pairs == 1 && settings.flows == 1 && settings.check != Check::Count
}

/// One JSON object on a line of its own; a reader that went away is not our concern.
fn print(value: &Json) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
