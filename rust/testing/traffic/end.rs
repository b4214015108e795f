// SPDX-License-Identifier: Apache-2.0
//! One guest: its session, its queues, its account of what arrived.
//!
//! Invariant: rings and buffers are made at the first session and kept for the life of the end; a
//! lost session changes nothing in guest memory.

use std::time::Instant;

use super::counters::Streams;
use super::link::{LinkClock, LinkState};
use super::queues::{self, QueueMaker};
use super::receiver::Receiver;
use super::sender::Sender;
use super::settings::{EndSettings, Role};
use crate::testing::Result;
use crate::testing::driver::{Layout, RingPlace, SlotRing};
use crate::testing::frames::{Checksum, Mac, announcement};
use crate::testing::frontend::{Frontend, Logging, Order, Session};
use crate::testing::memory::RegionSpec;
use crate::testing::wire::features::{self, protocol};

/// One end of the traffic.
#[derive(Debug)]
pub struct End {
    pub(super) name: &'static str,
    index: u8,
    pub(super) settings: EndSettings,
    pub(super) frontend: Frontend,
    pub(super) places: Vec<RingPlace>,
    pub(super) senders: Vec<Sender>,
    pub(super) receivers: Vec<Receiver>,
    streams: Streams,
    link: LinkState,
    clock: LinkClock,
    last_error: Option<String>,
    stopped_at: Vec<u32>,
    /// Where the back-end said the rings stopped, until they are started from there.
    pub(super) resume_at: Option<Vec<u32>>,
    /// Of its addresses, how many were announced.
    announced: u32,
}

impl End {
    /// Makes memory and socket; the queues come with the first session. `index` tells ends of one
    /// run apart.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Kernel` when memory or socket cannot be had.
    pub fn new(index: u8, mut settings: EndSettings) -> Result<Self> {
        if settings.frontend.pairs > 1 {
            settings.frontend.features |= features::MQ;
        }
        for layout in [settings.layout, settings.rx_layout] {
            if let Layout::Indirect(_) = layout {
                settings.frontend.required |= features::INDIRECT_DESC;
            }
        }
        if settings.gso.is_some() {
            settings.checksum.get_or_insert(Checksum::Partial);
        }
        if settings.checksum == Some(Checksum::Partial) {
            settings.frontend.required |= features::CSUM;
        }
        if settings.frontend.log != Logging::Never {
            settings.frontend.protocol |= protocol::LOG_SHMFD;
            settings.frontend.required |= features::LOG_ALL;
        }
        settings.frontend.required |= settings.gso_features();
        settings.frontend.features |= settings.frontend.required;
        let size = settings.memory_size.unwrap_or_else(|| queues::memory_need(&settings));
        settings.frontend.regions = RegionSpec::spread(settings.regions, size, &settings.backing);
        let frontend = Frontend::new(settings.frontend.clone())?;
        Ok(Self {
            name: if index == 0 { "a" } else { "b" },
            index,
            streams: Streams::new(settings.flows),
            settings,
            frontend,
            places: Vec::new(),
            senders: Vec::new(),
            receivers: Vec::new(),
            link: LinkState::Down,
            clock: LinkClock::new(),
            last_error: None,
            stopped_at: Vec::new(),
            resume_at: None,
            announced: 0,
        })
    }

    /// `a` or `b`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &EndSettings {
        &self.settings
    }

    /// The session side.
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The session side, to break things.
    pub fn frontend_mut(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Its transmitqs; empty before the first session.
    pub fn senders(&self) -> &[Sender] {
        &self.senders
    }

    /// Its receiveqs; empty before the first session.
    pub fn receivers(&self) -> &[Receiver] {
        &self.receivers
    }

    /// The account of what arrived.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// How it stands with the back-end.
    pub fn link(&self) -> LinkState {
        self.link
    }

    /// Why the last attempt failed.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Where the back-end stopped each vring, after [`stop`](Self::stop).
    pub fn stopped_at(&self) -> &[u32] {
        &self.stopped_at
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.settings.role.unwrap_or(Role::Send)
    }

    /// Its address.
    pub fn mac(&self) -> Mac {
        queues::own_address(self.index, &self.settings)
    }

    /// Frames of all numbered streams sent so far.
    pub fn sent(&self) -> u64 {
        self.senders.iter().map(Sender::next).sum()
    }

    /// Numbers that arrived so far, be they right or not; what is not of a run is left out.
    #[inline]
    pub fn numbered(&self) -> u64 {
        self.receivers.iter().map(Receiver::numbered).sum()
    }

    /// Sends to `to` and as many addresses after it as are meant, unless the settings named another address.
    pub(super) fn aim(&mut self, to: Option<(Mac, u32)>) {
        if let (None, Some((to, count))) = (self.settings.to, to) {
            (self.settings.to, self.settings.destinations) = (Some(to), count);
        }
    }

    /// Frames received so far, of any kind.
    pub fn received(&self) -> u64 {
        self.receivers.iter().map(|receiver| receiver.counters().frames).sum()
    }

    /// Looks after the session when it is time: notices a loss, connects again. Gives the new state
    /// when it changed. Connecting blocks for the length of the negotiation.
    pub fn look_after(&mut self, now: Instant) -> Option<LinkState> {
        if !self.clock.is_due(now, self.link) {
            return None;
        }
        let state = match self.link {
            LinkState::Up if self.frontend.lost() => LinkState::Down,
            LinkState::Up => return None,
            LinkState::Down => match self.connect() {
                Ok(true) => LinkState::Up,
                Ok(false) => return None,
                Err(error) => {
                    self.frontend.hang_up();
                    self.last_error = Some(error.to_string());
                    self.clock.refused(now);
                    return None;
                }
            },
        };
        self.link = state;
        Some(state)
    }

    /// Negotiates with a back-end that is there, and starts nothing, as a virtual machine does that another will move
    /// to; `false` when nobody is there yet.
    ///
    /// # Errors
    /// `Peer` when the back-end refuses, hangs up or offers too little.
    pub fn meet(&mut self) -> Result<bool> {
        if !self.frontend.try_connect()? {
            return Ok(false);
        }
        if self.senders.is_empty() {
            self.fit_out()?;
        }
        Ok(true)
    }

    fn connect(&mut self) -> Result<bool> {
        if !self.meet()? {
            return Ok(false);
        }
        let config = self.frontend.config();
        if config.order == Order::VirtioUser && self.frontend.sessions() > 0 && self.resume_at.is_none() {
            self.restart_packed();
        }
        self.start_rings()?;
        Ok(true)
    }

    fn fit_out(&mut self) -> Result<()> {
        let agreed = self.frontend.session().map_or(0, Session::features);
        let maker = QueueMaker { index: self.index, settings: &self.settings, agreed };
        let queues = maker.make(self.frontend.ram_mut())?;
        (self.places, self.senders, self.receivers) = (queues.places, queues.senders, queues.receivers);
        Ok(())
    }

    /// Receiveq and transmitq of each pair in turn: the order of vrings.
    pub(super) fn rings(&self) -> impl Iterator<Item = &SlotRing> {
        self.receivers.iter().zip(&self.senders).flat_map(|(receiver, sender)| [receiver.queue(), sender.queue()])
    }

    /// Sends up to `most` numbered frames in all, `burst` per transmitq at most and not past number `limit`; gives how
    /// many were sent.
    #[inline]
    pub fn send(&mut self, burst: usize, most: u64, limit: u64) -> usize {
        self.send_on(self.senders.len(), burst, most, limit)
    }

    /// The same, on the first `pairs` transmitqs.
    #[inline]
    pub fn send_on(&mut self, pairs: usize, burst: usize, most: u64, limit: u64) -> usize {
        let mut total = 0;
        for (pair, sender) in self.senders.iter_mut().take(pairs).enumerate() {
            let allowed = (most - total as u64).min(limit.saturating_sub(sender.next()));
            let count = burst.min(usize::try_from(allowed).unwrap_or(usize::MAX));
            if count == 0 {
                sender.take_back();
                continue;
            }
            let (sent, kick) = sender.pass(count);
            total += sent;
            if kick {
                sender.note_kick();
                ring_bell(&self.frontend, 2 * pair + 1);
            }
        }
        total
    }

    /// Whether every transmitq is full.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.senders.iter().all(Sender::is_full)
    }

    /// Receives what is there, `burst` per receiveq; gives how many frames.
    #[inline]
    pub fn receive(&mut self, burst: usize) -> usize {
        if self.settings.role == Some(Role::Echo) {
            return self.echo(burst);
        }
        let mut total = 0;
        for (pair, receiver) in self.receivers.iter_mut().enumerate() {
            self.streams.arriving_on(pair);
            let (count, kick) = receiver.pass(burst, &mut self.streams);
            total += count;
            if kick {
                receiver.note_kick();
                ring_bell(&self.frontend, 2 * pair);
            }
        }
        total
    }

    fn echo(&mut self, burst: usize) -> usize {
        let mut total = 0;
        let own = self.mac();
        let pairs = self.receivers.iter_mut().zip(&mut self.senders).enumerate();
        for (pair, (receiver, sender)) in pairs {
            let header = sender.queue().shape().header_size;
            self.streams.arriving_on(pair);
            for _ in 0..burst {
                let mut back = None;
                let (took, kick) = receiver.take_frame(&mut self.streams, |frame| {
                    back = turned_round(frame, header, own);
                });
                if !took {
                    break;
                }
                total += 1;
                if kick {
                    receiver.note_kick();
                    ring_bell(&self.frontend, 2 * pair);
                }
                if back.is_some_and(|frame| sender.send_raw(&frame) == Some(true)) {
                    sender.note_kick();
                    ring_bell(&self.frontend, 2 * pair + 1);
                }
            }
        }
        total
    }

    /// Sends the announcement of its address on every transmitq, and of further addresses as many as find room.
    pub fn announce(&mut self) {
        self.announce_one(self.mac());
        self.announced = self.announced.max(1);
        while self.announced < self.settings.addresses && self.announce_one(self.mac().plus(self.announced)) {
            self.announced += 1;
        }
    }

    /// Whether each of its addresses was announced at least once.
    pub fn is_announced(&self) -> bool {
        self.announced >= self.settings.addresses
    }

    /// True if there was room on every transmitq.
    fn announce_one(&mut self, mac: Mac) -> bool {
        let mut sent = true;
        for (pair, sender) in self.senders.iter_mut().enumerate() {
            let frame = announcement(mac, sender.queue().shape().header_size);
            let kick = sender.send_raw(&frame);
            sent &= kick.is_some();
            if kick == Some(true) {
                sender.note_kick();
                ring_bell(&self.frontend, 2 * pair + 1);
            }
        }
        sent
    }

    /// Takes back what the device is done with on all transmitqs; gives the frames it still has.
    pub fn settle(&mut self) -> usize {
        self.senders
            .iter_mut()
            .map(|sender| {
                sender.take_back();
                sender.queue().posted()
            })
            .sum()
    }

    /// Hangs up without a word; the session comes back by itself.
    pub fn hang_up(&mut self) {
        self.frontend.hang_up();
        self.link = LinkState::Down;
    }

    /// Stops the rings and hangs up for good; what the back-end answered is kept.
    pub fn stop(&mut self) {
        match self.frontend.stop() {
            Ok(bases) => self.stopped_at = bases,
            Err(error) => self.last_error = Some(error.to_string()),
        }
        self.link = LinkState::Down;
    }
}

fn ring_bell(frontend: &Frontend, vring: usize) {
    if let Some(kick) = frontend.kick(vring) {
        // Only a counter at its limit refuses, and then the device is awake already.
        let _ = kick.write(1);
    }
}

/// The frame with its addresses exchanged; `None` for one that is not for `own` alone.
fn turned_round(frame: &[u8], header: usize, own: Mac) -> Option<Vec<u8>> {
    let mut back = frame.to_vec();
    if header == 12 {
        // num_buffers is the device's field.
        back.get_mut(10..12)?.fill(0);
    }
    let addresses: &mut [u8; 12] = back.get_mut(header..)?.first_chunk_mut()?;
    if addresses[..6] != own.0 {
        return None;
    }
    addresses.rotate_left(6);
    Some(back)
}
