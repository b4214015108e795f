//! `pmd-auto-lb`: whether sharing the queues out anew is worth it. A pure judgement over measured loads.
//!
//! The rules are Open vSwitch's (`ovs-vswitchd.conf.db(5)`: pmd-auto-lb and its thresholds): a thread was busier than the
//! load threshold for a whole minute; the policy looks at loads; at least two cores are open to queues that are not
//! pinned, and one of those polls two; the variance of the cores' loads would shrink by the improvement threshold.

use super::assign::{Assignment, Core, Policy, Rxq, assign, improvement};

/// What `pmd-auto-lb` is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoLb {
    /// `pmd-auto-lb-rebal-interval`: minutes between two looks, 1..20000.
    pub every_min: u64,
    /// `pmd-auto-lb-load-threshold`, %: a thread is overloaded from here on.
    pub load_pct: u64,
    /// `pmd-auto-lb-improvement-threshold`, %: what a change must gain.
    pub improvement_pct: u64,
}

impl Default for AutoLb {
    fn default() -> Self {
        Self { every_min: 1, load_pct: 95, improvement_pct: 25 }
    }
}

impl AutoLb {
    /// The assignment that is worth a change from `now`, if there is one. `capacity`: cycles that a core had meanwhile.
    pub fn advises(
        &self,
        rxqs: &[Rxq],
        now: &[usize],
        cores: &[Core],
        policy: Policy,
        isolate: bool,
        capacity: u64,
    ) -> Option<Assignment> {
        if policy == Policy::RoundRobin {
            return None;
        }
        let then = assign(rxqs, cores, policy, isolate);
        let open = cores.iter().filter(|core| !then.isolated.contains(&core.cpu));
        let polls_two = |core: &Core| now.iter().filter(|cpu| **cpu == core.cpu).count() > 1;
        if open.clone().count() < 2 || !open.clone().any(polls_two) {
            return None;
        }
        let gain = improvement(rxqs, now, &then, cores, capacity);
        (gain >= self.improvement_pct.max(1)).then_some(then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [Core; 2] = [Core { cpu: 1, numa: 0 }, Core { cpu: 2, numa: 0 }];

    fn rxqs(loads: &[u64]) -> Vec<Rxq> {
        let rxq = |(port, &load): (u16, &u64)| Rxq { port, queue: 0, load, numa: None, pinned: None };
        (0..).zip(loads).map(rxq).collect()
    }

    #[test]
    fn change_is_advised_only_where_it_gains_enough() {
        let all = rxqs(&[50, 45, 1]);
        let auto = AutoLb::default();
        let advice = auto.advises(&all, &[1, 1, 2], &TWO, Policy::Cycles, true, 100);
        assert_eq!(advice.map(|then| then.cpus), Some(vec![1, 2, 2]));
        assert_eq!(auto.advises(&all, &[1, 2, 2], &TWO, Policy::Cycles, true, 100), None, "as good as it gets");
        // Loads 60 and 40 become 50 and 50 + 0: all of the variance goes; of 51 and 49 nothing that counts.
        let nearly = rxqs(&[26, 25, 24, 25]);
        let strict = AutoLb { improvement_pct: 100, ..auto };
        assert!(strict.advises(&nearly, &[1, 1, 2, 2], &TWO, Policy::Cycles, true, 100).is_some());
        assert!(strict.advises(&rxqs(&[60, 30, 10]), &[1, 1, 2], &TWO, Policy::Cycles, true, 100).is_none());
    }

    #[test]
    fn nothing_is_advised_where_nothing_can_be_gained() {
        let (all, auto) = (rxqs(&[50, 45]), AutoLb::default());
        let ask =
            |rxqs: &[Rxq], now: &[usize], cores: &[Core], policy| auto.advises(rxqs, now, cores, policy, true, 100);
        assert_eq!(ask(&all, &[1, 1], &TWO, Policy::RoundRobin), None, "which does not look at loads");
        assert_eq!(ask(&all, &[1, 1], &TWO[..1], Policy::Cycles), None, "one core");
        assert_eq!(ask(&all, &[1, 2], &TWO, Policy::Group), None, "one queue each");
        let mut pinned = all.clone();
        pinned[0].pinned = Some(1);
        assert_eq!(ask(&pinned, &[1, 2], &TWO, Policy::Cycles), None, "one core is isolated");
        let foreign = [Core { cpu: 1, numa: 0 }, Core { cpu: 2, numa: 0 }, Core { cpu: 3, numa: 1 }];
        let mut far = rxqs(&[50, 45, 5]);
        for rxq in &mut far {
            rxq.numa = Some(0);
        }
        assert!(ask(&far, &[1, 1, 1], &foreign, Policy::Cycles).is_some());
        far[2].numa = Some(7);
        assert_eq!(ask(&far, &[1, 1, 1], &foreign, Policy::Cycles), None, "loads on a foreign node do not compare");
    }
}
