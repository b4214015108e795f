// SPDX-License-Identifier: Apache-2.0
//! Named attacks on a back-end: what a broken or hostile front-end or guest can do to it.
//!
//! ```text
//!  wire cases     connect ─▶ bad bytes
//!  session cases  connect, negotiate ─▶ memory and rings with one lie in them
//!  ring cases     connect, negotiate, start honestly, announce ─▶ a lie in the ring, kick
//!  packed cases   the same on packed rings
//!  offload cases  the same, a lie in the headers of a frame that is to be cut or summed up
//! ```
//! A case only delivers its attack and tells what the back-end did; whether that is right is for
//! the test that runs it, which also watches that nobody else's traffic notices.

mod guest;
mod offload_cases;
mod packed_cases;
mod ring_cases;
mod session_cases;
mod tamper;
mod wire_cases;

use std::time::{Duration, Instant};

use super::driver::{ChainDriver, PackedDriver, SplitDriver};
use super::frontend::{Frontend, Session};
use super::memory::RegionSpec;
use super::traffic::{EndSettings, Json};
use super::wire::Channel;
use super::{Error, Result, sys};
use guest::Guest;
use tamper::Tamper;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RAM_SIZE: usize = 8 << 20;

/// What the back-end did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// It acknowledged with an error code.
    Refused(u64),
    /// It closed the socket.
    HungUp,
    /// It said nothing within the deadline.
    Silent,
    /// It is still connected, and answers where it was asked.
    Alive,
}

impl Reaction {
    /// Its name in reports.
    fn name(self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::HungUp => "hung_up",
            Self::Silent => "silent",
            Self::Alive => "alive",
        }
    }

    fn json(self) -> Json {
        let name = Json::text(self.name());
        match self {
            Self::Refused(code) => Json::object([("reaction", name), ("code", Json::Count(code))]),
            _ => Json::object([("reaction", name)]),
        }
    }
}

/// Where in a session an attack sits.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// On a fresh connection.
    Wire(fn(&Channel) -> Result<()>),
    /// In the messages that hand over memory and rings.
    Session(fn(&Frontend) -> Result<Tamper>),
    /// In the split rings of a running guest.
    Ring(fn(&mut Guest<SplitDriver>) -> Result<()>),
    /// In the packed rings of a running guest.
    Packed(fn(&mut Guest<PackedDriver>) -> Result<()>),
    /// The socket is closed instead of the message with this number.
    HangUpAt(u32),
}

/// One named attack.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    what: &'static str,
    /// Features without which there is nothing to attack.
    needs: u64,
    attack: Attack,
}

impl Case {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, in a line.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// All cases; besides them there is `hang-up-at:N` for every N.
    pub fn all() -> impl Iterator<Item = Self> {
        [wire_cases::CASES, session_cases::CASES, ring_cases::CASES, packed_cases::CASES, offload_cases::CASES]
            .into_iter()
            .flatten()
            .copied()
    }

    /// The case called `name`.
    ///
    /// # Errors
    /// `Config` when there is none.
    pub fn find(name: &str) -> Result<Self> {
        if let Some(number) = name.strip_prefix("hang-up-at:").and_then(|text| text.parse().ok()) {
            return Ok(Self {
                name: "hang-up-at",
                what: "closes the socket instead of sending message N",
                needs: 0,
                attack: Attack::HangUpAt(number),
            });
        }
        Self::all().find(|case| case.name == name).ok_or_else(|| {
            Error::Config(format!("there is no hostile case '{name}': see vhost-frontend hostile --list"))
        })
    }

    /// Connects, attacks, and watches for `hold` what the back-end does. A back-end that does not offer what the case
    /// needs is left alone: the reaction is then `not_offered`.
    ///
    /// # Errors
    /// `Config` or `Kernel` when the attack itself could not be made; what the back-end does is
    /// never an error.
    pub fn run(&self, settings: &EndSettings, hold: Duration) -> Result<Json> {
        let mut config = settings.frontend.clone();
        let size = settings.memory_size.unwrap_or(RAM_SIZE);
        config.regions = RegionSpec::spread(settings.regions.max(2), size, &settings.backing);
        if let Attack::HangUpAt(number) = self.attack {
            config.hang_up_at = Some(number);
        }
        config.features |= self.needs;
        let mut frontend = Frontend::new(config)?;
        let report = match self.attack {
            Attack::Wire(attack) => {
                let channel = wait_for(|| frontend.connect_raw())?;
                // A back-end that hangs up in the middle of it has answered already.
                let _ = attack(&channel);
                watch(&channel, hold).json()
            }
            Attack::Session(attack) => {
                if self.connect(&mut frontend)? {
                    attack(&frontend)?.start(&mut frontend, hold)?.json()
                } else {
                    not_offered()
                }
            }
            Attack::Ring(attack) => self.attack_rings(frontend, settings, hold, attack)?,
            Attack::Packed(attack) => self.attack_rings(frontend, settings, hold, attack)?,
            Attack::HangUpAt(number) => hang_up(&mut frontend, number),
        };
        Ok(Json::object([("case", Json::text(self.name)), ("outcome", report)]))
    }

    /// Negotiates; `false` when the back-end does not offer what the case needs.
    fn connect(&self, frontend: &mut Frontend) -> Result<bool> {
        wait_for(|| Ok(frontend.try_connect()?.then_some(())))?;
        let agreed = frontend.session().map_or(0, Session::features);
        Ok(agreed & self.needs == self.needs)
    }

    fn attack_rings<D: ChainDriver>(
        &self,
        mut frontend: Frontend,
        settings: &EndSettings,
        hold: Duration,
        attack: fn(&mut Guest<D>) -> Result<()>,
    ) -> Result<Json> {
        if !self.connect(&mut frontend)? {
            return Ok(not_offered());
        }
        let mut guest = Guest::start(frontend, settings.mac)?;
        attack(&mut guest)?;
        Ok(guest.watch(hold))
    }
}

fn not_offered() -> Json {
    Json::object([("reaction", Json::text("not_offered"))])
}

/// Walks an honest session until the socket is closed under it; says whether there was anything
/// left to cut.
fn hang_up(frontend: &mut Frontend, number: u32) -> Json {
    let connected = wait_for(|| Ok(frontend.try_connect()?.then_some(())));
    let finished = connected.is_ok()
        && tamper::ring_places(frontend).is_ok_and(|places| frontend.start(&places, &vec![0; places.len()], 1).is_ok());
    frontend.hang_up();
    Json::object([
        ("reaction", Json::text(if finished { "finished" } else { "cut" })),
        ("at", Json::Count(number.into())),
    ])
}

fn wait_for<T>(mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        if let Some(found) = attempt()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::Peer("nobody came to the socket".into()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the back-end hangs up within `hold`.
fn watch(channel: &Channel, hold: Duration) -> Reaction {
    use std::os::fd::AsRawFd;
    if sys::hangs_up_within(channel.as_raw_fd(), hold) { Reaction::HungUp } else { Reaction::Alive }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names: Vec<&str> = Case::all().map(|case| case.name()).collect();
        let unique: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), unique.len());
        for name in names {
            assert_eq!(Case::find(name).unwrap().name(), name);
        }
    }

    #[test]
    fn a_hang_up_is_found_for_every_number_only() {
        assert!(Case::find("hang-up-at:7").is_ok());
        assert!(Case::find("hang-up-at:").is_err());
        assert!(Case::find("nonsense").is_err());
    }
}
