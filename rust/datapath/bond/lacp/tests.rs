//! Two systems and the cables between them, on a clock that the test turns.

use super::*;
use proptest::prelude::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn config(system: u64) -> LacpConfig {
    let (is_active, is_fast, falls_back) = (true, true, false);
    LacpConfig { is_active, is_fast, system: Mac(system), system_priority: 65_534, key: 1, falls_back }
}

fn port(port: u16) -> LacpPort {
    LacpPort { port, port_priority: 65_535, key: 0 }
}

/// Links 0 and 1 of each system are the ends of cables 0 and 1.
struct Bench {
    now: Instant,
    ends: [Lacp; 2],
    /// Cables that are cut swallow PDUs; their carriers stay.
    is_cut: [bool; 2],
    /// PDUs that each end sent.
    sent: [Vec<(PortId, Pdu)>; 2],
}

impl Bench {
    fn new(a: LacpConfig, b: LacpConfig) -> Self {
        let now = Instant::now();
        let mut bench = Self { now, ends: [Lacp::new(a), Lacp::new(b)], is_cut: [false; 2], sent: [vec![], vec![]] };
        for end in &mut bench.ends {
            for link in 0..2 {
                end.set_link(link, port(link + 1), now);
                end.set_carrier(link, true, now);
            }
        }
        bench.settle();
        bench
    }

    /// Until nobody has anything to say now.
    fn settle(&mut self) {
        for _ in 0..100 {
            let mut is_quiet = true;
            for at in 0..2 {
                for (link, pdu) in self.ends[at].run(self.now) {
                    is_quiet = false;
                    self.sent[at].push((link, pdu));
                    if !self.is_cut[usize::from(link)] {
                        self.ends[1 - at].receive(link, &pdu, self.now);
                    }
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("they never stop talking");
    }

    /// Lets time pass, from one thing that is due to the next.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.ends.iter().filter_map(Lacp::due).min().filter(|due| *due <= end) {
            assert!(due > self.now, "due in the past");
            self.now = due;
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn carries(&self) -> [[bool; 2]; 2] {
        [0, 1].map(|at| [0, 1].map(|link| self.ends[at].may_enable(link)))
    }

    fn status(&self, at: usize, link: PortId) -> LacpStatus {
        self.ends[at].link(link).unwrap().status
    }
}

const ALL: [[bool; 2]; 2] = [[true; 2]; 2];
const NONE: [[bool; 2]; 2] = [[false; 2]; 2];

#[test]
fn two_systems_agree_within_their_first_words_and_say_so() {
    for (a, b) in [(true, true), (true, false), (false, true)] {
        let bench = Bench::new(LacpConfig { is_active: a, ..config(2) }, LacpConfig { is_active: b, ..config(4) });
        assert_eq!(bench.carries(), ALL, "active: {a}, {b}");
        for (at, other) in [(0, 1), (1, 0)] {
            assert!(bench.ends[at].is_negotiated());
            let (link, there) = (bench.ends[at].link(0).unwrap(), bench.ends[other].link(0).unwrap());
            assert_eq!((link.status, link.is_attached), (LacpStatus::Current, true));
            assert_eq!(link.partner, there.actor, "each knows the other as it is");
            assert!(link.actor.is(state::SYNCHRONIZED | USE | state::AGGREGATION | state::TIMEOUT));
            assert!(bench.sent[at].len() <= 6, "{} PDUs", bench.sent[at].len());
        }
    }
}

#[test]
fn two_that_wait_to_be_spoken_to_never_agree() {
    let passive = |system| LacpConfig { is_active: false, ..config(system) };
    let mut bench = Bench::new(passive(2), passive(4));
    bench.pass(seconds(300));
    assert_eq!(bench.carries(), NONE);
    assert_eq!(bench.sent, [vec![], vec![]]);
}

#[test]
fn each_is_told_as_often_as_it_asks_to_be() {
    let mut bench = Bench::new(config(2), LacpConfig { is_fast: false, ..config(4) });
    bench.pass(seconds(2));
    bench.sent = [vec![], vec![]];
    bench.pass(seconds(60));
    // To the one that asks for every second, and the one that asks for every thirty, over two links.
    assert_eq!(bench.sent.each_ref().map(Vec::len), [4, 120]);
}

#[test]
fn a_partner_that_falls_silent_counts_no_more_after_three_periods() {
    for (is_fast, patience) in [(true, 3), (false, 90)] {
        let mut bench = Bench::new(LacpConfig { is_fast, ..config(2) }, config(4));
        bench.is_cut[1] = true;
        bench.pass(ms(1000 * patience - 1));
        // Its last word came up to a period ago.
        bench.pass(ms(2));
        assert_eq!(bench.status(0, 1), LacpStatus::Expired);
        assert_eq!(bench.carries()[0], [true, false], "the other link goes on");
        bench.sent = [vec![], vec![]];
        bench.pass(seconds(2));
        let words = bench.sent[0].iter().filter(|(link, _)| *link == 1).count();
        assert!((1..=3).contains(&words), "asks each second: {words}");
        bench.pass(seconds(1));
        assert_eq!(bench.status(0, 1), LacpStatus::Defaulted);
        assert!(bench.sent[0].iter().any(|(link, pdu)| *link == 1 && pdu.actor.is(state::EXPIRED)));
        bench.is_cut[1] = false;
        bench.pass(seconds(31));
        assert_eq!(bench.carries(), ALL);
    }
}

#[test]
fn a_link_without_a_carrier_does_not_carry_and_does_again_when_it_is_back() {
    let mut bench = Bench::new(config(2), config(4));
    for end in [0, 1] {
        bench.ends[end].set_carrier(0, false, bench.now);
    }
    bench.settle();
    assert_eq!(bench.carries(), [[false, true]; 2]);
    bench.sent = [vec![], vec![]];
    bench.pass(seconds(100));
    assert!(bench.sent.iter().flatten().all(|(link, _)| *link == 1), "nothing is said into the void");
    assert_eq!(bench.status(0, 0), LacpStatus::Defaulted);
    for end in [0, 1] {
        bench.ends[end].set_carrier(0, true, bench.now);
    }
    bench.settle();
    assert_eq!(bench.carries(), ALL);
}

/// Of a system that says what the test says.
fn said(system: u64, key: u16, port: u16, bits: u8, partner: End) -> Pdu {
    let state = state::ACTIVITY | state::TIMEOUT | bits;
    Pdu { actor: End { system_priority: 1, system: Mac(system), key, port_priority: 1, port, state }, partner }
}

/// A system alone with two links, and what it said last over each.
fn alone(config: LacpConfig) -> (Lacp, Instant) {
    let (mut lacp, now) = (Lacp::new(config), Instant::now());
    for link in 0..2 {
        lacp.set_link(link, port(link + 1), now);
        lacp.set_carrier(link, true, now);
    }
    lacp.run(now);
    (lacp, now)
}

const WILLING: u8 = state::AGGREGATION | state::SYNCHRONIZED;

fn hear(lacp: &mut Lacp, link: PortId, system: u64, key: u16, now: Instant) {
    // What it knows of us is right.
    let us = lacp.link(link).unwrap().actor;
    lacp.receive(link, &said(system, key, link + 1, WILLING, us), now);
    lacp.run(now);
}

#[test]
fn links_to_different_systems_or_of_different_keys_are_not_one() {
    for (system, key) in [(4, 8), (6, 7)] {
        let (mut lacp, now) = alone(config(2));
        hear(&mut lacp, 0, 4, 7, now);
        hear(&mut lacp, 1, system, key, now);
        assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [true, false], "the first goes on");
        // When the one that led is gone, the other leads.
        lacp.set_carrier(0, false, now);
        lacp.run(now);
        assert!(lacp.may_enable(1) && !lacp.may_enable(0));
    }
    let (mut lacp, now) = alone(config(2));
    lacp.set_link(1, LacpPort { key: 9, ..port(2) }, now);
    hear(&mut lacp, 0, 4, 7, now);
    hear(&mut lacp, 1, 4, 7, now);
    assert!(lacp.may_enable(0) && !lacp.may_enable(1), "a key of our own");
}

#[test]
fn a_partner_that_takes_its_link_for_one_by_itself_has_no_other() {
    let (mut lacp, now) = alone(config(2));
    for link in 0..2 {
        let us = lacp.link(link).unwrap().actor;
        lacp.receive(link, &said(4, 7, link + 1, state::SYNCHRONIZED, us), now);
        lacp.run(now);
    }
    assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [true, false]);
}

#[test]
fn a_cable_from_us_to_us_does_not_carry() {
    let (mut lacp, now) = alone(config(2));
    hear(&mut lacp, 0, 2, 1, now);
    assert!(!lacp.may_enable(0) && !lacp.is_negotiated());
}

#[test]
fn being_in_step_counts_if_it_is_with_what_we_are() {
    let (mut lacp, now) = alone(config(2));
    let us = lacp.link(0).unwrap().actor;
    let wrong = [
        End { key: 2, ..us },
        End { port: 2, ..us },
        End { system: Mac(8), ..us },
        End { system_priority: 1, ..us },
        End { port_priority: 1, ..us },
        End { state: us.state & !state::AGGREGATION, ..us },
        End::UNKNOWN,
    ];
    for partner in wrong {
        lacp.receive(0, &said(4, 7, 1, WILLING, partner), now);
        lacp.run(now);
        assert!(!lacp.may_enable(0), "{partner:?}");
    }
    lacp.receive(0, &said(4, 7, 1, state::AGGREGATION, us), now);
    lacp.run(now);
    assert!(!lacp.may_enable(0), "it is not in step");
    lacp.receive(0, &said(4, 7, 1, WILLING, us), now);
    lacp.run(now);
    assert!(lacp.may_enable(0));
}

#[test]
fn whatever_comes_a_link_speaks_three_times_a_second_at_most() {
    let (mut lacp, now) = alone(config(2));
    let mut sent = Vec::new();
    for at in 0..1000 {
        let now = now + ms(10 * at);
        lacp.receive(0, &said(4, u16::try_from(at).unwrap(), 1, WILLING, End::UNKNOWN), now);
        sent.extend(lacp.run(now).iter().filter(|(link, _)| *link == 0).map(|_| now));
    }
    assert!((25..=33).contains(&sent.len()), "{} in ten seconds", sent.len());
    assert!(sent.windows(4).all(|four| four[3] - four[0] >= FAST));
}

#[test]
fn without_a_partner_links_may_carry_where_that_was_asked_for() {
    let (mut lacp, now) = alone(LacpConfig { falls_back: true, ..config(2) });
    assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [false, false], "somebody may answer yet");
    lacp.run(now + seconds(3));
    assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [true, true]);
    assert!(!lacp.is_negotiated(), "so that the bond uses one of them only");
    let later = now + seconds(4);
    hear(&mut lacp, 0, 4, 7, later);
    assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [true, false], "one has a partner");
    assert!(lacp.is_negotiated());
    lacp.set_config(config(2), later);
    lacp.run(later + seconds(7));
    assert_eq!([0, 1].map(|link| lacp.may_enable(link)), [false, false]);
}

#[test]
fn settings_change_live_and_the_partner_learns() {
    let mut bench = Bench::new(LacpConfig { is_fast: false, ..config(2) }, config(4));
    bench.pass(seconds(1));
    let now = bench.now;
    bench.ends[0].set_config(config(2), now);
    bench.ends[0].set_link(0, LacpPort { port_priority: 5, ..port(1) }, now);
    bench.settle();
    let seen = bench.ends[1].link(0).unwrap().partner;
    assert!(seen.is(state::TIMEOUT) && seen.port_priority == 5, "{seen:?}");
    bench.pass(seconds(2));
    assert_eq!(bench.carries(), ALL);
    bench.is_cut = [true; 2];
    bench.pass(seconds(4));
    assert_eq!(bench.carries(), NONE, "three seconds are enough from now on");
    bench.is_cut = [false; 2];
    bench.ends[0].set_config(config(6), bench.now);
    bench.settle();
    bench.pass(seconds(31));
    assert_eq!(bench.carries(), ALL, "another system");
}

#[test]
fn a_link_that_leaves_is_forgotten() {
    let mut bench = Bench::new(config(2), config(4));
    bench.ends[0].remove(1);
    bench.sent = [vec![], vec![]];
    bench.pass(seconds(7));
    assert!(bench.ends[0].link(1).is_none() && !bench.ends[0].may_enable(1));
    assert!(bench.sent[0].iter().all(|(link, _)| *link == 0));
    assert_eq!(bench.carries()[1], [true, false], "its partner misses it");
}

#[derive(Debug, Clone)]
enum Step {
    Carrier(PortId, bool),
    Hear(PortId, u64, u16, u8, bool),
    Wait(u64),
    Configure(bool, bool, bool),
    Leave(PortId),
    Join(PortId),
}

fn step() -> impl Strategy<Value = Step> {
    let link = || 0_u16..3;
    prop_oneof![
        (link(), any::<bool>()).prop_map(|(id, up)| Step::Carrier(id, up)),
        (link(), 1_u64..4, 0_u16..3, any::<u8>(), any::<bool>()).prop_map(|(id, system, key, bits, knows)| Step::Hear(
            id,
            system << 1,
            key,
            bits,
            knows
        )),
        (0_u64..100_000).prop_map(Step::Wait),
        (0_u64..900).prop_map(Step::Wait),
        any::<[bool; 3]>().prop_map(|[active, fast, falls]| Step::Configure(active, fast, falls)),
        link().prop_map(Step::Leave),
        link().prop_map(Step::Join),
    ]
}

proptest! {
    #[test]
    fn only_links_of_one_group_carry_and_nothing_is_due_that_was_not_done(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let (mut lacp, mut now) = (Lacp::new(config(2)), Instant::now());
        let mut sent: [Vec<Instant>; 3] = Default::default();
        for step in steps {
            match step {
                Step::Carrier(id, up) => lacp.set_carrier(id, up, now),
                Step::Hear(id, system, key, bits, knows) => {
                    let us = lacp.link(id).filter(|_| knows).map_or(End::UNKNOWN, |link| link.actor);
                    lacp.receive(id, &said(system, key, id, bits, us), now);
                }
                Step::Wait(n) => now += ms(n),
                Step::Configure(is_active, is_fast, falls_back) => {
                    lacp.set_config(LacpConfig { is_active, is_fast, falls_back, ..config(2) }, now);
                }
                Step::Leave(id) => {
                    lacp.remove(id);
                    sent[usize::from(id)].clear();
                }
                Step::Join(id) => lacp.set_link(id, port(id + 1), now),
            }
            for (id, pdu) in lacp.run(now) {
                sent[usize::from(id)].push(now);
                prop_assert_eq!(pdu.actor, lacp.link(id).unwrap().actor, "what is said is what is");
            }
            prop_assert_eq!(lacp.run(now), [], "done is done");
            prop_assert!(lacp.due().is_none_or(|due| due > now));
            let links: Vec<LacpLink> = (0..3).filter_map(|id| lacp.link(id)).collect();
            let carrying: Vec<&LacpLink> = links.iter().filter(|link| link.may_enable).collect();
            for link in &carrying {
                let is_alone = lacp.config().falls_back && link.status == LacpStatus::Defaulted;
                let is_partnered = link.status == LacpStatus::Current && link.partner.is(state::SYNCHRONIZED);
                prop_assert!(link.is_attached && (is_partnered || is_alone));
                prop_assert!(link.partner.system != Mac(2), "to ourselves");
                prop_assert_eq!(is_partnered, lacp.is_negotiated());
            }
            let same = |pair: &[&LacpLink]| {
                (pair[0].partner.system, pair[0].partner.key) == (pair[1].partner.system, pair[1].partner.key)
            };
            prop_assert!(carrying.windows(2).all(same), "two groups");
        }
        for sent in sent {
            prop_assert!(sent.windows(4).all(|four| four[3] - four[0] >= FAST));
        }
    }
}
