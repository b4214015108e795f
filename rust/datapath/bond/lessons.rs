//! What is taught behind a bond once it uses other links: where to find everybody else, in parts that a burst holds.
//!
//! A lesson belongs to its bond and ends with it: a bond's number may be another port's the next moment.

use super::super::state::State;
use crate::pmd::LESSON_LEN;
use crate::switch::PortId;
use crate::switch::fdb::Key;

impl State {
    /// Whom to teach what next, since other links are used than before: a bond's id, and some of the addresses that were
    /// learned elsewhere on its bridge.
    pub(super) fn next_lesson(&mut self, now_s: u32) -> Option<(PortId, Vec<Key>)> {
        let behind: Vec<String> =
            self.bonds.iter().filter(|(_, bond)| bond.has_lesson).map(|(name, _)| name.clone()).collect();
        for name in behind {
            let Some(bond) = self.bonds.get(&name) else { continue };
            let fdb = self.fdb_of(&bond.bridge).filter(|_| bond.teaches());
            let learned = fdb.map(|fdb| fdb.list(now_s)).unwrap_or_default();
            let addresses: Vec<Key> =
                learned.into_iter().filter(|entry| entry.port != bond.id).map(|entry| entry.key).collect();
            if let Some(bond) = self.bonds.get_mut(&name) {
                // The newest says it all.
                (bond.has_lesson, bond.lesson) = (false, addresses.chunks(LESSON_LEN).map(<[Key]>::to_vec).collect());
            }
        }
        self.bonds.values_mut().find_map(|bond| Some((bond.id, bond.lesson.pop_front()?)))
    }

    /// True while there is something to teach.
    pub(super) fn has_lessons(&self) -> bool {
        self.bonds.values().any(|bond| bond.has_lesson || !bond.lesson.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::BondConfig;
    use super::*;
    use crate::frame::ethernet::Mac;

    fn named(name: &str) -> BondConfig {
        BondConfig { name: name.to_owned(), ..BondConfig::default() }
    }

    /// Rows: A22.
    #[test]
    fn a_lesson_ends_with_its_bond_whoever_has_its_number_then() {
        let mut state = State::default();
        state.add_bridge("br0").unwrap();
        state.add_bond("br0", named("bond0")).unwrap();
        let id = state.bonds["bond0"].id;
        let stations = 3 * LESSON_LEN as u64 + 1;
        for station in 0..stations {
            state.fdb_of("br0").unwrap().learn(Key::new(0, Mac(0x0200_0000_0000 + station)), id + 7, 0);
        }
        assert!(!state.has_lessons());
        state.bond_mut("bond0").unwrap().has_lesson = true;
        let mut taught = Vec::new();
        while let Some((to, part)) = state.next_lesson(0) {
            assert!(to == id && part.len() <= LESSON_LEN);
            taught.extend(part);
        }
        taught.sort_by_key(|key| key.mac().0);
        taught.dedup();
        assert_eq!(taught.len() as u64, stations);
        state.bond_mut("bond0").unwrap().has_lesson = true;
        assert!(state.next_lesson(0).is_some() && state.has_lessons());
        let freed = state.remove_bond("bond0").unwrap();
        state.free(freed);
        state.add_bond("br0", named("bond1")).unwrap();
        assert_eq!(state.bonds["bond1"].id, id, "its number is another's");
        assert!(!state.has_lessons());
        assert_eq!(state.next_lesson(0), None);
    }
}
