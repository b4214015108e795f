// SPDX-License-Identifier: Apache-2.0
//! Ends that send numbered frames through the switch; every frame is counted and every byte of it judged.

use std::path::Path;
use std::time::{Duration, Instant};

use ovsvhost::testing::frames::Account;
use ovsvhost::testing::traffic::{End, EndSettings, LinkState, Sender};
use ovsvhost::vhost::EndpointKind;

use super::rig::{DEADLINE, Switch};

/// An end on a port of this kind, with settings as the command line takes them. Its stream numbers begin at
/// `index << 8`, its address ends in `index + 1`.
pub fn end(index: u8, socket: &Path, kind: EndpointKind, settings: &[(&str, &str)]) -> End {
    let mut all = EndSettings::default();
    let side = if kind == EndpointKind::Client { "listen" } else { "connect" };
    for (name, value) in [("socket", socket.to_str().unwrap()), ("side", side)].iter().chain(settings) {
        all.set(name, value).unwrap();
    }
    End::new(index, all).unwrap()
}

/// All that stand around one switch, looked after by one thread.
pub struct Crew {
    pub ends: Vec<End>,
}

impl Crew {
    /// Waits until every end's link is up and the switch knows where it is.
    pub fn assemble(ends: Vec<End>, switch: &Switch) -> Self {
        let mut crew = Self { ends };
        crew.until("every link", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Up));
        crew.introduce(switch);
        let sum = |key: &str| -> u64 { switch.datapath().ports().iter().filter_map(|p| p.statistics.get(key)).sum() };
        let others = crew.ends.len() as u64 - 1;
        crew.until("every announcement to be counted", |crew| {
            let held: usize = crew.ends.iter_mut().map(End::settle).sum();
            held == 0 && sum("rx_packets") * others <= sum("tx_packets") + sum("tx_dropped") + sum("rx_dropped")
        });
        crew
    }

    /// Two ends that send to each other, on ports `a` and `b` of the switch.
    pub fn pair(switch: &mut Switch, kind: EndpointKind, settings: &[(&str, &str)]) -> Self {
        let sockets = ["a", "b"].map(|name| switch.add(name, kind));
        let ends = (0..).zip(&sockets).map(|(index, socket)| end(index, socket, kind, settings));
        Self::assemble(ends.collect(), switch)
    }

    /// Says who is where, until the switch knows.
    pub fn introduce(&mut self, switch: &Switch) {
        let mut again = Instant::now();
        self.until("every address to be learned", |crew| {
            if Instant::now() >= again {
                crew.ends.iter_mut().for_each(End::announce);
                again += Duration::from_millis(100);
            }
            crew.ends.iter().all(|end| switch.behind(end.mac().0).is_some())
        });
    }

    /// Looks after everybody once.
    pub fn step(&mut self) {
        let now = Instant::now();
        for end in &mut self.ends {
            end.look_after(now);
            end.receive(64);
            end.settle();
        }
    }

    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.step();
            if done(self) {
                return;
            }
            if Instant::now() > deadline {
                let errors: Vec<_> = self.ends.iter().map(|end| (end.name(), end.link(), end.last_error())).collect();
                panic!("waited in vain for {what}: {errors:?}");
            }
        }
    }

    /// Sends `frames` frames more on every transmitq of end `from`, and waits until the switch has them all and `to` has
    /// as many as arrive. Never more are on the way than `to` has buffers for, so nothing may be dropped.
    #[track_caller]
    pub fn send(&mut self, from: usize, to: usize, frames: u64) {
        let pairs = self.ends[from].senders().len();
        self.send_on(from, to, pairs, frames);
    }

    /// The same, on the first `pairs` transmitqs, where the others have nothing left to send.
    #[track_caller]
    pub fn send_on(&mut self, from: usize, to: usize, pairs: usize, frames: u64) {
        let limit = self.ends[from].senders().iter().map(Sender::next).max().unwrap_or(0) + frames;
        let (sent, arrived) = (self.ends[from].sent(), self.ends[to].numbered());
        let goal: u64 = self.ends[from].senders().iter().take(pairs).map(|sender| limit - sender.next()).sum();
        // A frame takes ten buffers at most.
        let window = (self.ends[to].receivers()[0].queue().slots() as u64 / 10).clamp(1, 24);
        self.until("the frames to arrive", |crew| {
            let got = crew.ends[to].numbered() - arrived;
            let now = crew.ends[from].sent() - sent;
            let on_the_way = now.saturating_sub(got);
            crew.ends[from].send_on(pairs, 16, window.saturating_sub(on_the_way), limit);
            now == goal && got == goal
        });
    }

    /// End `to` got exactly what end `from` sent: every number once, in order, every byte right.
    #[track_caller]
    pub fn assert_exact(&self, from: usize, to: usize) {
        let (sent, account) = (self.ends[from].sent(), self.account(from, to));
        let want = Account { received: sent, next: sent, ..Account::default() };
        assert_eq!(account, want, "{} to {}", self.ends[from].name(), self.ends[to].name());
        self.assert_clean(to);
    }

    /// Nothing that end `of` got was wrong in itself, and the switch broke no rule of its rings.
    #[track_caller]
    pub fn assert_clean(&self, of: usize) {
        for receiver in self.ends[of].receivers() {
            assert_eq!(receiver.counters().corrupt_total(), 0, "corrupt: {:?}", receiver.counters().corrupt);
            assert_eq!(receiver.violations().total(), 0, "{:?}", receiver.violations());
        }
        for sender in self.ends[of].senders() {
            assert_eq!(sender.violations().total(), 0, "{:?}", sender.violations());
        }
    }

    /// The account of end `from`'s streams at end `to`.
    pub fn account(&self, from: usize, to: usize) -> Account {
        let mut total = Account::default();
        let accounts = self.ends[to].streams().accounts();
        for (_, account) in accounts.filter(|(stream, _)| usize::from(stream >> 8) == from) {
            total.received += account.received;
            total.lost += account.lost;
            total.duplicated += account.duplicated;
            total.reordered += account.reordered;
            total.next += account.next;
        }
        total
    }
}
