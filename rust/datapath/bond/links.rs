//! Which links of a bond may carry frames, and which one is active: pure, on a clock that the caller reads.
//!
//! ```text
//!            carrier, for updelay                    chosen: the primary, else the one
//!   disabled ───────────────────▶ enabled ─────────▶ that was active last, else the
//!      ▲  ◀───────────────────────   │               first by name
//!      │    no carrier, for downdelay│
//!      └──── told so, until its carrier changes
//! ```
//!
//! Where no link is enabled, the first with a carrier is at once: to wait is worse then.

use std::time::{Duration, Instant};

use crate::switch::PortId;

/// One link.
#[derive(Debug, Clone)]
pub(in crate::datapath) struct Link {
    pub id: PortId,
    pub name: String,
    pub has_carrier: bool,
    pub is_enabled: bool,
    /// When it becomes what its carrier says.
    pub due: Option<Instant>,
    /// Somebody said what it shall be: that holds until its carrier changes.
    is_held: bool,
}

/// What decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::datapath) struct Rules {
    pub updelay: Duration,
    pub downdelay: Duration,
    /// The link that is active whenever it can be.
    pub primary: Option<String>,
}

/// What became of a look at the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::datapath) enum Change {
    /// A link may carry frames now, or no longer.
    Enabled { link: String, is_enabled: bool },
    /// Another link is active; None if none can be.
    Active(Option<String>),
}

/// The links of one bond, by name.
#[derive(Debug, Default)]
pub(in crate::datapath) struct Links {
    all: Vec<Link>,
    active: Option<PortId>,
    /// The name of the one that was active last: it is preferred.
    last: Option<String>,
    /// The one that was active in an earlier run, until it is enabled here: after a start links come one by one.
    returning: Option<String>,
}

impl Links {
    /// None that were there; `last` is the name of the link that was active before, if that is known.
    pub(in crate::datapath) fn new(last: Option<String>) -> Self {
        Self { last: last.clone(), returning: last, ..Self::default() }
    }

    pub(in crate::datapath) fn all(&self) -> &[Link] {
        &self.all
    }

    pub(in crate::datapath) fn active(&self) -> Option<PortId> {
        self.active
    }

    pub(in crate::datapath) fn add(&mut self, id: PortId, name: &str) {
        let (name, has_carrier, is_enabled, due, is_held) = (name.to_owned(), false, false, None, false);
        self.all.push(Link { id, name, has_carrier, is_enabled, due, is_held });
        self.all.sort_by(|a, b| a.name.cmp(&b.name));
    }

    pub(in crate::datapath) fn remove(&mut self, id: PortId) {
        self.all.retain(|link| link.id != id);
        self.active = self.active.filter(|active| *active != id);
    }

    /// What is seen of a link.
    pub(in crate::datapath) fn set_carrier(&mut self, id: PortId, has_carrier: bool) {
        if let Some(link) = self.all.iter_mut().find(|link| link.id == id && link.has_carrier != has_carrier) {
            (link.has_carrier, link.is_held) = (has_carrier, false);
        }
    }

    /// Enables or disables a link now, whatever its carrier says, until that changes. False if there is none of that name.
    pub(in crate::datapath) fn hold(&mut self, name: &str, is_enabled: bool) -> bool {
        let link = self.all.iter_mut().find(|link| link.name == name);
        link.map(|link| (link.is_enabled, link.due, link.is_held) = (is_enabled, None, true)).is_some()
    }

    /// Makes an enabled link the active one; None if there is none of that name, false if it is disabled.
    pub(in crate::datapath) fn activate(&mut self, name: &str) -> Option<bool> {
        let link = self.all.iter().find(|link| link.name == name)?;
        if link.is_enabled {
            (self.last, self.returning) = (Some(link.name.clone()), None);
            self.active = Some(link.id);
        }
        Some(link.is_enabled)
    }

    /// Brings everything up to date; gives what changed.
    pub(in crate::datapath) fn settle(&mut self, rules: &Rules, now: Instant) -> Vec<Change> {
        let (mut changes, mut chooses) = (Vec::new(), false);
        for link in &mut self.all {
            if link.is_held || link.is_enabled == link.has_carrier {
                link.due = None;
                continue;
            }
            let delay = if link.has_carrier { rules.updelay } else { rules.downdelay };
            if now >= *link.due.get_or_insert(now + delay) {
                (link.is_enabled, link.due) = (link.has_carrier, None);
                changes.push(Change::Enabled { link: link.name.clone(), is_enabled: link.is_enabled });
                let is_back = link.is_enabled && self.returning.take_if(|name| *name == link.name).is_some();
                if is_back {
                    self.last = Some(link.name.clone());
                }
                chooses |= is_back || (link.is_enabled && rules.primary.as_ref() == Some(&link.name));
            }
        }
        let is_enabled = |id| self.all.iter().any(|link| link.id == id && link.is_enabled);
        if chooses || !self.active.is_some_and(is_enabled) {
            let before = self.active;
            self.choose(rules, &mut changes);
            if self.active != before {
                changes.push(Change::Active(self.active.and(self.last.clone())));
            }
        }
        changes
    }

    /// When [`Self::settle`] has something to do next, if nothing happens before.
    pub(in crate::datapath) fn due(&self) -> Option<Instant> {
        self.all.iter().filter_map(|link| link.due).min()
    }

    fn choose(&mut self, rules: &Rules, changes: &mut Vec<Change>) {
        let enabled = |name: Option<&String>| {
            self.all.iter().position(|link| link.is_enabled && name.is_none_or(|name| *name == link.name))
        };
        let preferred = [&rules.primary, &self.last].into_iter().flatten().find_map(|name| enabled(Some(name)));
        let at = preferred.or_else(|| enabled(None)).or_else(|| {
            // Nothing is enabled: the next one that would be need not wait.
            let waiting = self.all.iter().enumerate().filter(|(_, link)| link.has_carrier && !link.is_held);
            waiting.min_by_key(|(_, link)| link.due).map(|(at, _)| at)
        });
        let chosen = at.and_then(|at| self.all.get_mut(at));
        self.active = chosen.as_ref().map(|link| link.id);
        if let Some(link) = chosen {
            if !std::mem::replace(&mut link.is_enabled, true) {
                link.due = None;
                changes.push(Change::Enabled { link: link.name.clone(), is_enabled: true });
            }
            self.last = Some(link.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn pair() -> (Links, Rules, Instant) {
        let mut links = Links::new(None);
        links.add(2, "p1");
        links.add(1, "p0");
        (links, Rules::default(), Instant::now())
    }

    fn enabled(links: &Links) -> Vec<&str> {
        links.all().iter().filter(|link| link.is_enabled).map(|link| link.name.as_str()).collect()
    }

    fn up(link: &str, is_enabled: bool) -> Change {
        Change::Enabled { link: link.into(), is_enabled }
    }

    fn active(link: &str) -> Change {
        Change::Active(Some(link.into()))
    }

    #[test]
    fn the_first_by_name_is_active_and_the_other_takes_over_when_it_goes() {
        let (mut links, rules, now) = pair();
        assert_eq!(links.settle(&rules, now), []);
        links.set_carrier(1, true);
        links.set_carrier(2, true);
        assert_eq!(links.settle(&rules, now), [up("p0", true), up("p1", true), active("p0")]);
        links.set_carrier(1, false);
        assert_eq!(links.settle(&rules, now), [up("p0", false), active("p1")]);
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now), [up("p0", true)], "who carries goes on");
        links.set_carrier(1, false);
        links.set_carrier(2, false);
        assert_eq!(links.settle(&rules, now), [up("p0", false), up("p1", false), Change::Active(None)]);
        links.set_carrier(1, true);
        links.set_carrier(2, true);
        let changes = links.settle(&rules, now);
        assert_eq!(changes, [up("p0", true), up("p1", true), active("p1")], "the one that was active last");
    }

    #[test]
    fn a_link_waits_out_its_delays_unless_no_other_is_enabled() {
        let (mut links, mut rules, now) = pair();
        (rules.updelay, rules.downdelay) = (ms(100), ms(50));
        links.set_carrier(2, true);
        assert_eq!(links.settle(&rules, now), [up("p1", true), active("p1")], "none was enabled");
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now), []);
        assert_eq!(links.due(), Some(now + ms(100)));
        links.set_carrier(1, false);
        assert_eq!(links.settle(&rules, now + ms(99)), [], "it went before its time");
        assert_eq!(links.due(), None);
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now + ms(100)), []);
        assert_eq!(links.settle(&rules, now + ms(200)), [up("p0", true)]);
        links.set_carrier(2, false);
        assert_eq!(links.settle(&rules, now + ms(200)), []);
        assert_eq!(links.active(), Some(2), "within downdelay it may come back");
        assert_eq!(links.settle(&rules, now + ms(250)), [up("p1", false), active("p0")]);
    }

    #[test]
    fn the_primary_is_active_whenever_it_can_be() {
        let (mut links, mut rules, now) = pair();
        rules.primary = Some("p1".into());
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now), [up("p0", true), active("p0")]);
        links.set_carrier(2, true);
        assert_eq!(links.settle(&rules, now), [up("p1", true), active("p1")]);
        assert_eq!(links.activate("p0"), Some(true));
        assert_eq!(links.settle(&rules, now), [], "somebody said so");
        assert_eq!(links.active(), Some(1));
    }

    #[test]
    fn what_somebody_said_of_a_link_holds_until_its_carrier_changes() {
        let (mut links, rules, now) = pair();
        links.set_carrier(1, true);
        links.set_carrier(2, true);
        links.settle(&rules, now);
        assert!(links.hold("p0", false));
        assert_eq!(links.settle(&rules, now), [active("p1")]);
        assert_eq!(links.settle(&rules, now + ms(10_000)), []);
        assert_eq!(links.activate("p0"), Some(false));
        links.set_carrier(1, false);
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now), [up("p0", true)]);
        assert!(!links.hold("p7", true));
        assert_eq!(links.activate("p7"), None);
    }

    #[test]
    fn the_link_that_was_active_in_an_earlier_run_is_again_when_it_comes_and_only_then() {
        let rules = Rules::default();
        let (mut links, now) = (Links::new(Some("p1".into())), Instant::now());
        links.add(1, "p0");
        links.add(2, "p1");
        links.set_carrier(1, true);
        assert_eq!(links.settle(&rules, now), [up("p0", true), active("p0")], "the only one");
        links.set_carrier(2, true);
        assert_eq!(links.settle(&rules, now), [up("p1", true), active("p1")]);
        links.set_carrier(2, false);
        links.settle(&rules, now);
        links.set_carrier(2, true);
        assert_eq!(links.settle(&rules, now), [up("p1", true)], "who carries goes on");
        assert_eq!(links.active(), Some(1));
    }

    #[test]
    fn a_link_that_leaves_is_followed_by_another() {
        let (mut links, rules, now) = pair();
        links.set_carrier(1, true);
        links.set_carrier(2, true);
        links.settle(&rules, now);
        links.remove(1);
        assert_eq!(links.settle(&rules, now), [active("p1")]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Carrier(PortId, bool),
        Hold(usize, bool),
        Activate(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u16..4, any::<bool>()).prop_map(|(id, up)| Step::Carrier(id, up)),
            (0_usize..4, any::<bool>()).prop_map(|(at, up)| Step::Hold(at, up)),
            (0_usize..4).prop_map(Step::Activate),
            (0_u64..300).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn one_enabled_link_is_active_while_there_is_any(
            steps in prop::collection::vec(step(), 1..60), updelay in 0_u64..200, downdelay in 0_u64..200,
        ) {
            let names = ["a", "b", "c", "d"];
            let rules = Rules { updelay: ms(updelay), downdelay: ms(downdelay), primary: Some("c".into()) };
            let (mut links, mut now) = (Links::new(Some("b".into())), Instant::now());
            for (id, name) in (0..).zip(names) {
                links.add(id, name);
            }
            for step in steps {
                match step {
                    Step::Carrier(id, up) => links.set_carrier(id, up),
                    Step::Hold(at, up) => prop_assert!(links.hold(names[at], up)),
                    Step::Activate(at) => drop(links.activate(names[at])),
                    Step::Wait(n) => now += ms(n),
                }
                links.settle(&rules, now);
                prop_assert_eq!(links.settle(&rules, now), [], "settled is settled");
                let active = links.all().iter().find(|link| Some(link.id) == links.active());
                prop_assert_eq!(active.map(|link| link.is_enabled), (!enabled(&links).is_empty()).then_some(true));
                prop_assert!(links.due().is_none_or(|due| due > now));
                let stuck = links.all().iter().any(|link| link.has_carrier && !link.is_held && enabled(&links).is_empty());
                prop_assert!(!stuck, "a link could carry and none does");
            }
        }
    }
}
