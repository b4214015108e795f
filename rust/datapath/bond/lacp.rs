//! The link aggregation control protocol (IEEE 802.1AX §6.4) on the links of one bond: pure, on a clock that the caller reads.
//!
//! ```text
//!   a link's PDU ─▶ receive ─▶ current ── nothing for 3 periods ──▶ expired ── 3 s ─▶ defaulted
//!                                 ▲       or the carrier changes   │ (speaks each second)
//!                                 └──────────── a PDU ─────────────┴───────────────────┘
//!   run ─▶ PDUs: what a partner does not know of us yet, and one each period of his choice
//!          attached: links to the partner, and with the key, of the link that leads
//!          may carry: attached, and the partner is in step with what we are
//! ```
//!
//! Both halves of a link are used together (coupled control, §6.4.15). As in Open vSwitch links are attached as soon as
//! partner and key are known: nobody waits for further links (no `WAITING`), and there is no churn detection. Nothing that
//! was received is believed but for what is compared here, and whatever comes, a link speaks three times a second at most.

use std::time::{Duration, Instant};

use crate::frame::ethernet::Mac;
use crate::frame::lacp::{End, Pdu, state};
use crate::switch::PortId;

/// Periods (§6.4.4).
const FAST: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(30);
/// Periods without a word until a partner counts as gone.
const PATIENCE: u32 = 3;
/// Most PDUs of a link in a fast period (§6.4.16).
const BURST: usize = 3;
/// What a partner must know of us.
const ECHOED: u8 = state::ACTIVITY | state::TIMEOUT | state::SYNCHRONIZED | state::AGGREGATION;
/// What he is told at once when it changes.
const USE: u8 = state::COLLECTING | state::DISTRIBUTING;

/// What we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LacpConfig {
    /// Speaks first (`lacp=active`); else it only answers.
    pub is_active: bool,
    /// Wants to hear every second (`other_config:lacp-time=fast`), else every thirty.
    pub is_fast: bool,
    /// Our address (`other_config:lacp-system-id`).
    pub system: Mac,
    /// `other_config:lacp-system-priority`.
    pub system_priority: u16,
    /// The key of links that have none of their own.
    pub key: u16,
    /// Without a partner one link carries alone (`other_config:lacp-fallback-ab`).
    pub falls_back: bool,
}

/// Numbers of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LacpPort {
    /// `other_config:lacp-port-id`, else its `OpenFlow` number.
    pub port: u16,
    /// `other_config:lacp-port-priority`.
    pub port_priority: u16,
    /// `other_config:lacp-aggregation-key`; 0 takes the bond's.
    pub key: u16,
}

/// What is known of the partner on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LacpStatus {
    /// It spoke of late.
    Current,
    /// It did not: what it said does not count until it speaks again.
    Expired,
    /// Nothing.
    Defaulted,
}

impl LacpStatus {
    /// As Open vSwitch shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Expired => "expired",
            Self::Defaulted => "defaulted",
        }
    }
}

/// One link at one moment.
#[derive(Debug, Clone, Copy)]
pub struct LacpLink {
    /// What is known of the partner.
    pub status: LacpStatus,
    /// It may be one with the others.
    pub is_attached: bool,
    /// It may carry frames.
    pub may_enable: bool,
    /// We.
    pub actor: End,
    /// The other end.
    pub partner: End,
}

#[derive(Debug)]
struct Member {
    id: PortId,
    numbers: LacpPort,
    has_carrier: bool,
    status: LacpStatus,
    is_attached: bool,
    partner: End,
    /// What the partner knows of us: what it said last, or what it was told since.
    told: End,
    /// When its silence means more than now.
    silent_at: Instant,
    /// When it is told again.
    tell_at: Instant,
    /// When it was told the last times, oldest first.
    sent: [Option<Instant>; BURST],
}

/// The protocol on all links of a bond.
#[derive(Debug)]
pub(in crate::datapath) struct Lacp {
    config: LacpConfig,
    members: Vec<Member>,
    is_negotiated: bool,
}

impl Lacp {
    pub(in crate::datapath) fn new(config: LacpConfig) -> Self {
        Self { config, members: Vec::new(), is_negotiated: false }
    }

    pub(in crate::datapath) fn config(&self) -> &LacpConfig {
        &self.config
    }

    /// Changes what we are; partners are told when it is run.
    pub(in crate::datapath) fn set_config(&mut self, config: LacpConfig, now: Instant) {
        self.config = config;
        let latest = now + self.patience();
        for member in self.members.iter_mut().filter(|member| member.status == LacpStatus::Current) {
            member.silent_at = member.silent_at.min(latest);
        }
    }

    /// Adds a link without a carrier, or changes the numbers of one that is there.
    pub(in crate::datapath) fn set_link(&mut self, id: PortId, numbers: LacpPort, now: Instant) {
        if let Some(member) = self.members.iter_mut().find(|member| member.id == id) {
            member.numbers = numbers;
            return;
        }
        self.members.push(Member {
            id,
            numbers,
            has_carrier: false,
            status: LacpStatus::Defaulted,
            is_attached: false,
            partner: End::UNKNOWN,
            told: End::UNKNOWN,
            silent_at: now,
            tell_at: now,
            sent: [None; BURST],
        });
    }

    pub(in crate::datapath) fn remove(&mut self, id: PortId) {
        self.members.retain(|member| member.id != id);
    }

    /// What is seen of a link: when that changes, whoever was there may not be any more.
    pub(in crate::datapath) fn set_carrier(&mut self, id: PortId, has_carrier: bool, now: Instant) {
        let is_active = self.config.is_active;
        if let Some(member) = self.members.iter_mut().find(|m| m.id == id && m.has_carrier != has_carrier) {
            member.has_carrier = has_carrier;
            if is_active || member.status != LacpStatus::Defaulted {
                member.expire(now);
            }
        }
    }

    /// What came in over a link; nothing counts that came before its carrier was seen.
    pub(in crate::datapath) fn receive(&mut self, id: PortId, pdu: &Pdu, now: Instant) {
        let (patience, is_active) = (self.patience(), self.config.is_active);
        let Some(at) = self.members.iter().position(|member| member.id == id && member.has_carrier) else { return };
        let Some(actor) = self.members.get(at).map(|member| self.actor(member)) else { return };
        let Some(member) = self.members.get_mut(at) else { return };
        (member.status, member.silent_at, member.partner) = (LacpStatus::Current, now + patience, pdu.actor);
        // In step with what we are, or with nobody: then it is one link by itself (§6.4.9, recordPDU).
        let means_us = same(&pdu.partner, &actor) && (pdu.partner.state ^ actor.state) & state::AGGREGATION == 0;
        let speaks = is_active || pdu.actor.is(state::ACTIVITY);
        let is_individual = !pdu.actor.is(state::AGGREGATION);
        let is_in_step = speaks && (means_us || is_individual);
        if !is_in_step {
            member.partner.state &= !state::SYNCHRONIZED;
        }
        if member.partner.is(state::TIMEOUT) {
            member.tell_at = member.tell_at.min(now + FAST);
        }
        let kept = member.told.state & !ECHOED;
        member.told = End { state: pdu.partner.state & ECHOED | kept, ..pdu.partner };
    }

    /// Does what is due, after whatever came; gives what is to be sent over which link.
    pub(in crate::datapath) fn run(&mut self, now: Instant) -> Vec<(PortId, Pdu)> {
        for member in self.members.iter_mut().filter(|member| now >= member.silent_at) {
            match member.status {
                LacpStatus::Current => member.expire(now),
                LacpStatus::Expired => {
                    (member.status, member.partner) = (LacpStatus::Defaulted, End::UNKNOWN);
                }
                LacpStatus::Defaulted => {}
            }
        }
        self.attach();
        let actors: Vec<End> = self.members.iter().map(|member| self.actor(member)).collect();
        let is_active = self.config.is_active;
        let mut sent = Vec::new();
        for (member, actor) in self.members.iter_mut().zip(actors) {
            if member.is_due(&actor, is_active, now) && member.room_at().is_none_or(|room| now >= room) {
                member.note_sent(actor, now);
                sent.push((member.id, Pdu { actor, partner: member.partner }));
            }
        }
        sent
    }

    /// When [`Self::run`] has something to do, if nothing comes before. It was run since something came.
    pub(in crate::datapath) fn due(&self) -> Option<Instant> {
        let of = |member: &Member| {
            let silent = Some(member.silent_at).filter(|_| member.status != LacpStatus::Defaulted);
            let tell = match member.room_at() {
                Some(room) if !member.knows(&self.actor(member)) => room,
                Some(room) => member.tell_at.max(room),
                None => member.tell_at,
            };
            silent.into_iter().chain(Some(tell).filter(|_| member.may_speak(self.config.is_active))).min()
        };
        self.members.iter().filter_map(of).min()
    }

    /// Somebody at another end wants to be one with us.
    pub(in crate::datapath) fn is_negotiated(&self) -> bool {
        self.is_negotiated
    }

    pub(in crate::datapath) fn may_enable(&self, id: PortId) -> bool {
        self.members.iter().any(|member| member.id == id && self.may_carry(member))
    }

    /// What others go by: when it changes the bond is settled.
    pub(in crate::datapath) fn outcome(&self) -> (bool, Vec<(bool, LacpStatus)>) {
        (self.is_negotiated, self.members.iter().map(|member| (self.may_carry(member), member.status)).collect())
    }

    pub(in crate::datapath) fn link(&self, id: PortId) -> Option<LacpLink> {
        let member = self.members.iter().find(|member| member.id == id)?;
        let (may_enable, actor) = (self.may_carry(member), self.actor(member));
        let Member { status, is_attached, partner, .. } = *member;
        Some(LacpLink { status, is_attached, may_enable, actor, partner })
    }

    fn patience(&self) -> Duration {
        PATIENCE * if self.config.is_fast { FAST } else { SLOW }
    }

    fn may_carry(&self, member: &Member) -> bool {
        let is_alone = self.config.falls_back && member.status == LacpStatus::Defaulted;
        member.is_attached && (member.partner.is(state::SYNCHRONIZED) || is_alone)
    }

    fn actor(&self, member: &Member) -> End {
        let bits = [
            (state::ACTIVITY, self.config.is_active),
            (state::TIMEOUT, self.config.is_fast),
            (state::AGGREGATION, true),
            (state::SYNCHRONIZED, member.is_attached),
            (USE, self.may_carry(member)),
            (state::DEFAULTED, member.status == LacpStatus::Defaulted),
            (state::EXPIRED, member.status == LacpStatus::Expired),
        ];
        let state = bits.iter().filter(|(_, is_set)| *is_set).fold(0, |state, (bit, _)| state | bit);
        let LacpPort { port, port_priority, key } = member.numbers;
        let LacpConfig { system, system_priority, .. } = self.config;
        End { system_priority, system, key: if key == 0 { self.config.key } else { key }, port_priority, port, state }
    }

    /// What decides about a link: the numbers at the end whose system has the better ones.
    fn rank(&self, member: &Member) -> (u16, Mac, u16, u16) {
        let [ours, theirs] = [self.actor(member), member.partner]
            .map(|end| (end.system_priority, end.system, end.port_priority, end.port));
        if (ours.0, ours.1) < (theirs.0, theirs.1) { ours } else { theirs }
    }

    /// Finds the links that can be one: those to the partner, and with the keys, of the link that leads. One that carries
    /// goes on leading, then the best by priority. A partner that takes a link for one by itself has no other.
    fn attach(&mut self) {
        let is_candidate = |member: &&Member| {
            // Nobody was heard yet, or our own address is at the other end: a cable from us to us.
            let is_other = ![End::UNKNOWN.system, self.config.system].contains(&member.partner.system);
            member.has_carrier && member.status != LacpStatus::Defaulted && is_other
        };
        let candidates = self.members.iter().filter(is_candidate);
        let lead = candidates.min_by_key(|member| {
            let carries = member.status == LacpStatus::Current && member.is_attached;
            (!carries, !self.may_carry(member), self.rank(member))
        });
        let lead = lead.map(|lead| (lead.id, self.group(lead), lead.partner.is(state::AGGREGATION)));
        self.is_negotiated = lead.is_some();
        let attached: Vec<bool> = self
            .members
            .iter()
            .map(|member| match lead {
                None => self.config.falls_back && member.status == LacpStatus::Defaulted,
                Some((id, ..)) if id == member.id => true,
                Some((_, group, is_aggregate)) => {
                    let is_in = is_candidate(&member) && self.group(member) == group;
                    is_in && is_aggregate && member.partner.is(state::AGGREGATION)
                }
            })
            .collect();
        for (member, is_attached) in self.members.iter_mut().zip(attached) {
            member.is_attached = is_attached;
        }
    }

    /// What links that can be one have in common.
    fn group(&self, member: &Member) -> (u16, u16, Mac, u16) {
        let End { system_priority, system, key, .. } = member.partner;
        (self.actor(member).key, system_priority, system, key)
    }
}

impl Member {
    fn expire(&mut self, now: Instant) {
        self.status = LacpStatus::Expired;
        self.partner.state = self.partner.state & !state::SYNCHRONIZED | state::TIMEOUT;
        (self.silent_at, self.tell_at) = (now + PATIENCE * FAST, now);
    }

    fn may_speak(&self, is_active: bool) -> bool {
        self.has_carrier && (is_active || self.status != LacpStatus::Defaulted)
    }

    /// True if the partner knows what it must of us, as far as we know.
    fn knows(&self, actor: &End) -> bool {
        same(actor, &self.told) && (actor.state ^ self.told.state) & (ECHOED | USE) == 0
    }

    fn is_due(&self, actor: &End, is_active: bool, now: Instant) -> bool {
        self.may_speak(is_active) && (now >= self.tell_at || !self.knows(actor))
    }

    /// From when on one more may be sent; None if that was always so.
    fn room_at(&self) -> Option<Instant> {
        self.sent.first().copied().flatten().map(|oldest| oldest + FAST)
    }

    fn note_sent(&mut self, actor: End, now: Instant) {
        self.told = actor;
        let period = if self.partner.is(state::TIMEOUT) { FAST } else { SLOW };
        self.tell_at = now + period;
        self.sent.rotate_left(1);
        if let Some(last) = self.sent.last_mut() {
            *last = Some(now);
        }
    }
}

/// True if both name the same link, as what.
fn same(a: &End, b: &End) -> bool {
    End { state: 0, ..*a } == End { state: 0, ..*b }
}

#[cfg(test)]
mod tests;
