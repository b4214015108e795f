//! Bridges: what is set on them, and what they have learned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::FdbEntry;
use super::State;
use crate::error::{Error, Result};
use crate::switch::PortId;
use crate::switch::fdb::Fdb;

#[derive(Debug)]
pub(in crate::datapath) struct Bridge {
    pub(super) index: usize,
    pub(super) fdb: Arc<Fdb>,
    pub(super) forward_bpdu: bool,
}

impl State {
    pub(in crate::datapath) fn bridge(&self, name: &str) -> Result<&Bridge> {
        self.bridges.get(name).ok_or_else(|| Error::Config(format!("no bridge named {name}")))
    }

    pub(in crate::datapath) fn add_bridge(&mut self, name: &str) -> Result<()> {
        if self.bridges.contains_key(name) {
            return Err(Error::Config(format!("a bridge named {name} exists already")));
        }
        let used: BTreeSet<usize> = self.bridges.values().map(|b| b.index).collect();
        let index = (0..used.len()).find(|i| !used.contains(i)).unwrap_or(used.len());
        let bridge = Bridge { index, fdb: Arc::new(Fdb::new(8192, 300)), forward_bpdu: false };
        self.bridges.insert(name.to_owned(), bridge);
        Ok(())
    }

    pub(in crate::datapath) fn set_bridge(
        &mut self,
        name: &str,
        aging_s: u32,
        table_size: usize,
        forward_bpdu: bool,
        now_s: u32,
    ) -> Result<()> {
        if !(15..=3600).contains(&aging_s) {
            return Err(Error::Config(format!("bridge {name}: mac-aging-time {aging_s} is not in 15..3600")));
        }
        if !(10..=1_000_000).contains(&table_size) {
            return Err(Error::Config(format!("bridge {name}: mac-table-size {table_size} is not in 10..1000000")));
        }
        self.bridge(name)?;
        if let Some(bridge) = self.bridges.get_mut(name) {
            if bridge.fdb.max() != table_size {
                bridge.fdb = Arc::new(bridge.fdb.resized(table_size, now_s));
            }
            bridge.fdb.set_aging(aging_s);
            bridge.forward_bpdu = forward_bpdu;
        }
        Ok(())
    }

    pub(in crate::datapath) fn del_bridge(&mut self, name: &str) -> Result<()> {
        self.bridge(name)?;
        self.bridges.remove(name);
        Ok(())
    }

    /// What is known of who is where on a bridge.
    pub(in crate::datapath) fn fdb_of(&self, bridge: &str) -> Option<&Fdb> {
        self.bridges.get(bridge).map(|bridge| &*bridge.fdb)
    }

    pub(in crate::datapath) fn fdb(&self, bridge: &str, now_s: u32) -> Result<Vec<FdbEntry>> {
        let mut ofports: BTreeMap<PortId, u16> =
            self.ports.values().map(|p| (p.record.id, p.settings.ofport)).collect();
        // As in Open vSwitch, a bond is shown as the first of its links.
        for bond in self.bonds.values() {
            if let Some(ofport) = bond.first_link().and_then(|id| ofports.get(&id).copied()) {
                ofports.insert(bond.id, ofport);
            }
        }
        let learned = self.bridge(bridge)?.fdb.list(now_s);
        Ok(learned
            .into_iter()
            .filter_map(|learned| Some(FdbEntry { ofport: *ofports.get(&learned.port)?, learned }))
            .collect())
    }

    pub(in crate::datapath) fn fdb_stats(&self, bridge: &str) -> Result<[(&'static str, u64); 4]> {
        let stats = &self.bridge(bridge)?.fdb.stats;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok([
            ("learned", count(&stats.learned)),
            ("expired", count(&stats.expired)),
            ("evicted", count(&stats.evicted)),
            ("moved", count(&stats.moved)),
        ])
    }

    pub(in crate::datapath) fn flush_fdb(&self, bridge: &str) -> Result<()> {
        self.bridge(bridge)?.fdb.flush();
        Ok(())
    }

    pub(in crate::datapath) fn sweep(&self, now_s: u32) {
        for bridge in self.bridges.values() {
            bridge.fdb.sweep(now_s);
        }
    }
}
