// SPDX-License-Identifier: Apache-2.0
//! A guest that moves from one port to another while somebody sends to it, and what its switch adds to its downtime.
//!
//! ```text
//!   stop   GET_VRING_BASE of each ring here ─▶ answers
//!   start  memory, rings, enable there ─▶ acknowledged, SEND_RARP
//!   first  ─▶ the first frame there
//! ```
//! What a virtual machine monitor does between stop and start, copy what is left of the guest, is left out: one follows
//! the other at once. So the numbers that arrived on neither side are the switch's part of a move's downtime. The other
//! side was connected and had agreed on features before, as a monitor's that waits for the guest; its memory is its own,
//! for what lies in it makes no difference to how long a start takes. The sender sleeps between frames, so that a core
//! is left for whoever has to answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::end::End;
use super::link::LinkState;
use super::report::{Json, ratio};
use super::settings::{EndSettings, Role};
use crate::testing::frames::Account;
use crate::testing::{Error, Result};

const LOOK_EVERY: Duration = Duration::from_millis(1);
const LOOK_CLOSELY: Duration = Duration::from_micros(20);
/// How long frames flow before the move, and after it.
const AROUND: Duration = Duration::from_millis(200);
const PACE: Duration = Duration::from_micros(100);
/// A guest that gets nothing for so long after its move was forgotten.
const FORGOTTEN: Duration = Duration::from_secs(10);
const BURST: usize = 64;

/// Three ends, all connected: who sends, where the guest is, and where it goes; nothing runs there yet.
#[derive(Debug)]
pub struct Moving {
    sender: End,
    here: End,
    there: End,
}

/// When each step of a move was over.
struct Steps {
    began: Instant,
    stopped: Instant,
    started: Instant,
    received: Instant,
    /// Numbers that were missing before it began: the first, sent before the switch had set everything up.
    missing: u64,
}

impl Moving {
    /// Makes the ends and waits for a switch at most `timeout`. The guest has the address of the second end.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Kernel` when memory or sockets cannot be had, `Peer` when nobody comes.
    pub fn join(ends: [EndSettings; 3], timeout: Duration) -> Result<Self> {
        let [mut sender, mut here, mut there] = ends;
        sender.role = Some(Role::Send);
        (here.role, there.role) = (Some(Role::Receive), Some(Role::Receive));
        let mut here = End::new(1, here)?;
        there.mac = Some(here.mac());
        let mut there = End::new(1, there)?;
        sender.to = Some(here.mac());
        let mut sender = End::new(0, sender)?;
        let deadline = Instant::now() + timeout;
        let mut is_met = false;
        while !is_met || [&sender, &here].iter().any(|end| end.link() == LinkState::Down) {
            let now = Instant::now();
            for end in [&mut sender, &mut here] {
                end.look_after(now);
            }
            is_met = is_met || there.meet()?;
            if now > deadline {
                return Err(Error::Peer("not every socket of the move was taken".into()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(Self { sender, here, there })
    }

    /// Sends `rate` frames a second to the guest, moves it, and gives the report.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses or hangs up, or no frame arrives before the move or after it.
    pub fn go(self, rate: u64) -> Result<Json> {
        let Self { mut sender, mut here, mut there } = self;
        let is_over = AtomicBool::new(false);
        let steps = std::thread::scope(|scope| {
            scope.spawn(|| send_evenly(&mut sender, rate, &is_over));
            let steps = change_port(&mut here, &mut there);
            is_over.store(true, Ordering::Release);
            steps
        })?;
        let (before, after) = (account(&here), account(&there));
        let missing = after.next.saturating_sub(before.received + after.received + steps.missing);
        let millis = |from: Instant, to: Instant| Json::Number((to - from).as_secs_f64() * 1000.0);
        Ok(Json::object([
            ("stop_ms", millis(steps.began, steps.stopped)),
            ("start_ms", millis(steps.stopped, steps.started)),
            ("first_ms", millis(steps.started, steps.received)),
            ("missing", Json::Count(missing)),
            ("outage_ms", Json::Number(1000.0 * ratio(missing, rate))),
        ]))
    }
}

/// The guest's side of a move.
fn change_port(here: &mut End, there: &mut End) -> Result<Steps> {
    here.announce();
    wait_for_frames(here, "before the move")?;
    flow(here, AROUND);
    let missing = account(here).lost;
    let began = Instant::now();
    here.stop_rings()?;
    let stopped = Instant::now();
    there.start_rings()?;
    there.frontend().send_rarp(there.mac().0)?;
    let started = Instant::now();
    wait_for_frames(there, "after the move")?;
    let received = Instant::now();
    // What it had received here when its rings were stopped, it takes along.
    take(here);
    flow(there, AROUND);
    Ok(Steps { began, stopped, started, received, missing })
}

fn wait_for_frames(end: &mut End, when: &str) -> Result<()> {
    let began = Instant::now();
    while account(end).received == 0 {
        if began.elapsed() > FORGOTTEN {
            return Err(Error::Peer(format!("no frame arrived {when}")));
        }
        std::thread::sleep(LOOK_CLOSELY);
        take(end);
    }
    Ok(())
}

/// Takes what comes, for so long.
fn flow(end: &mut End, time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        take(end);
        std::thread::sleep(PACE);
    }
}

fn take(end: &mut End) {
    while end.receive(BURST) != 0 {}
}

/// The account of the sender's stream at an end.
fn account(end: &End) -> Account {
    end.streams().accounts().next().map(|(_, account)| account).unwrap_or_default()
}

fn send_evenly(end: &mut End, rate: u64, is_over: &AtomicBool) {
    let began = Instant::now();
    while !is_over.load(Ordering::Acquire) {
        let due = u128::from(rate) * began.elapsed().as_nanos() / 1_000_000_000;
        let behind = u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(end.sent());
        end.send(BURST, behind, u64::MAX);
        end.receive(BURST);
        std::thread::sleep(PACE);
    }
}
