//! What is taught behind a bond once it uses other links: where to find everybody else, in parts that a burst holds.
//!
//! A lesson belongs to its bond and ends with it: a bond's number may be another port's the next moment.

use super::super::state::State;
use crate::pmd::LESSON_LEN;
use crate::switch::PortId;
use crate::switch::fdb::Key;

impl State {
    /// What to teach next, since other links are used than before: each bond's id, and some of the addresses that were
    /// learned elsewhere on its bridge. Each has its turn, however often the links of others change.
    pub(super) fn next_lessons(&mut self, now_s: u32) -> Vec<(PortId, Vec<Key>)> {
        let behind: Vec<String> =
            self.bonds.iter().filter(|(_, bond)| bond.has_lesson).map(|(name, _)| name.clone()).collect();
        for name in behind {
            let Some(bond) = self.bonds.get(&name) else { continue };
            let learned = self.fdb_of(&bond.bridge).map(|fdb| fdb.list(now_s)).unwrap_or_default();
            let addresses: Vec<Key> =
                learned.into_iter().filter(|entry| entry.port != bond.id).map(|entry| entry.key).collect();
            if let Some(bond) = self.bonds.get_mut(&name) {
                (bond.has_lesson, bond.lesson) = (false, addresses.chunks(LESSON_LEN).map(<[Key]>::to_vec).collect());
            }
        }
        self.bonds.values_mut().filter_map(|bond| Some((bond.id, bond.lesson.pop_front()?))).collect()
    }

    /// True while there is something to teach.
    pub(super) fn has_lessons(&self) -> bool {
        self.bonds.values().any(|bond| bond.has_lesson || !bond.lesson.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::{Bond, BondConfig, BondMode};
    use super::*;
    use crate::frame::ethernet::Mac;

    const STATIONS: u64 = 3 * LESSON_LEN as u64 + 1;

    fn named(name: &str) -> BondConfig {
        BondConfig { name: name.to_owned(), ..BondConfig::default() }
    }

    /// A bridge with these bonds, and stations that were learned elsewhere.
    fn bridge(bonds: &[&str]) -> State {
        let mut state = State::default();
        state.add_bridge("br0").unwrap();
        for name in bonds {
            state.add_bond("br0", named(name)).unwrap();
        }
        for station in 0..STATIONS {
            state.fdb_of("br0").unwrap().learn(Key::new(0, Mac(0x0200_0000_0000 + station)), 100, 0);
        }
        state
    }

    fn change(state: &mut State, bond: &str) {
        state.bond_mut(bond).unwrap().has_lesson = true;
    }

    /// Rows: A22.
    #[test]
    fn a_lesson_ends_with_its_bond_whoever_has_its_number_then() {
        let mut state = bridge(&["bond0"]);
        let id = state.bonds["bond0"].id;
        assert!(!state.has_lessons());
        change(&mut state, "bond0");
        let mut taught = Vec::new();
        while state.has_lessons() {
            for (to, part) in state.next_lessons(0) {
                assert!(to == id && part.len() <= LESSON_LEN);
                taught.extend(part);
            }
        }
        taught.sort_by_key(|key| key.mac().0);
        taught.dedup();
        assert_eq!(taught.len() as u64, STATIONS);
        change(&mut state, "bond0");
        assert!(!state.next_lessons(0).is_empty() && state.has_lessons());
        let freed = state.remove_bond("bond0").unwrap();
        state.free(freed);
        state.add_bond("br0", named("bond1")).unwrap();
        assert_eq!(state.bonds["bond1"].id, id, "its number is another's");
        assert!(!state.has_lessons());
        assert_eq!(state.next_lessons(0), []);
    }

    /// Rows: A22.
    #[test]
    fn a_bond_whose_links_change_all_the_time_keeps_no_other_from_teaching() {
        let mut state = bridge(&["bond0", "bond1"]);
        change(&mut state, "bond1");
        let (other, mut taught) = (state.bonds["bond1"].id, 0);
        for _ in 0..STATIONS.div_ceil(LESSON_LEN as u64) {
            change(&mut state, "bond0");
            let parts = state.next_lessons(0).into_iter().filter(|(to, _)| *to == other);
            taught += parts.map(|(_, part)| part.len() as u64).sum::<u64>();
        }
        assert_eq!(taught, STATIONS);
    }

    /// Rows: A22.
    #[test]
    fn a_lesson_is_due_when_other_links_carry_whatever_the_cause_and_then_only() {
        let (mut bond, now) = (Bond::new("br0", 9, named("bond0")), Instant::now());
        for (id, name) in [(1, "p0"), (2, "p1")] {
            bond.add_link(id, name);
        }
        let mut is_due = |what: &str, up: &[PortId], change: &dyn Fn(&mut Bond), expected: bool| {
            change(&mut bond);
            bond.settle(|id| up.contains(&id), now);
            assert_eq!(std::mem::take(&mut bond.has_lesson), expected, "{what}");
        };
        let set = |change: fn(&mut BondConfig)| {
            move |bond: &mut Bond| {
                let mut config = bond.config.clone();
                change(&mut config);
                bond.set_config(config, now);
            }
        };
        let nothing: &dyn Fn(&mut Bond) = &|_| {};
        is_due("no link is there", &[], nothing, false);
        is_due("the first is there", &[1], nothing, true);
        is_due("a second that waits", &[1, 2], nothing, false);
        is_due("it is gone", &[1], nothing, false);
        is_due("there again", &[1, 2], nothing, false);
        is_due("the other is active", &[1, 2], &|bond| assert_eq!(bond.links.activate("p1"), Some(true)), true);
        is_due("another name of the same", &[1, 2], &set(|config| config.primary = Some("p1".into())), false);
        is_due("one that is not there is to be", &[1, 2], &set(|config| config.primary = Some("p7".into())), false);
        is_due("the first is to be", &[1, 2], &set(|config| config.primary = Some("p0".into())), true);
        is_due("both carry", &[1, 2], &set(|config| config.mode = BondMode::BalanceSlb), true);
        is_due("a share moved", &[1, 2], &|bond| assert!(bond.balance.give(7, 2) && bond.balance.give(8, 2)), true);
        is_due("one carries", &[1, 2], &set(|config| config.mode = BondMode::ActiveBackup), true);
        is_due("nothing is carried without LACP", &[1, 2], &set(|config| config.mode = BondMode::BalanceTcp), false);
        is_due("one carries again", &[1, 2], &set(|config| config.mode = BondMode::ActiveBackup), true);
        is_due("all are gone", &[], nothing, false);
    }
}
