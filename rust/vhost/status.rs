//! What a port's endpoint looks like at one moment, in the words of Open vSwitch's Interface `status`.
//!
//! The session thread publishes a new [`Snapshot`] after every message; readers never wait for it.

use std::collections::BTreeMap;

use super::features::IOMMU_PLATFORM;
use super::peer::Peer;
use crate::memory::Progress;

/// One moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The session, while there is one.
    pub(super) session: Option<SessionState>,
    /// What the endpoint waits for while there is none.
    pub(super) waiting_for: Option<String>,
    /// Why the link is down or degraded, with the cure.
    pub(super) error: Option<String>,
}

/// A session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionState {
    pub(super) peer: Peer,
    /// Virtio features accepted, once they were.
    pub(super) features: Option<u64>,
    pub(super) numa: u32,
    /// Elements of each vring, 0 if it was not told.
    pub(super) vring_sizes: Vec<u32>,
    /// Live transmitqs: we receive from them.
    pub(super) n_rxq: usize,
    /// Live receiveqs: we transmit into them.
    pub(super) n_txq: usize,
    /// Bytes; what the front-end said in `NET_SET_MTU`.
    pub(super) guest_mtu: Option<u16>,
    /// What is written to the guest is marked in a dirty log.
    pub(super) is_logging: bool,
    pub(super) link_up: bool,
    pub(super) waiting_for: Option<String>,
    pub(super) problem: Option<String>,
    /// A post-copy migration that brings the guest here, or brought it.
    pub(super) postcopy: Option<PostcopyState>,
    /// What would stop a move to Open vSwitch 3.1.
    pub(super) obstacles_to_ovs: Option<String>,
}

/// A post-copy migration at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PostcopyState {
    /// Not over yet.
    pub(super) is_on: bool,
    pub(super) progress: Progress,
}

impl PostcopyState {
    /// What is worth a look as soon as it changes: its begin, its first page that was asked for, its last page, its end. How
    /// far it is in between changes with every page, and nobody is to be woken for each.
    fn milestone(&self) -> (bool, bool, bool) {
        (self.is_on, self.progress.faults > 0, self.progress.missing > 0)
    }
}

impl Snapshot {
    /// True if whoever showed `before` should look again now, and not just the next time.
    pub(super) fn is_news_after(&self, before: &Self) -> bool {
        let milestone = |snapshot: &Self| {
            let postcopy = snapshot.session.as_ref().and_then(|session| session.postcopy);
            postcopy.map(|state| state.milestone())
        };
        if milestone(self) != milestone(before) {
            return true;
        }
        let mut known = before.clone();
        if let (Some(known), Some(session)) = (&mut known.session, &self.session) {
            known.postcopy = session.postcopy;
        }
        known != *self
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.link_up)
    }

    /// The Interface's `status` column. `mtu` is the port's, in bytes.
    pub(super) fn to_map(&self, mode: &str, path: &str, mtu: u16) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |key: &str, value: String| {
            map.insert(key.to_owned(), value);
        };
        put("mode", mode.to_owned());
        put("status", if self.session.is_some() { "connected" } else { "disconnected" }.to_owned());
        let waiting_for = self.session.as_ref().map_or(&self.waiting_for, |session| &session.waiting_for);
        if let Some(waiting_for) = waiting_for {
            put("waiting-for", waiting_for.clone());
        }
        let Some(session) = &self.session else { return map };
        put("socket", path.to_owned());
        put("features", format!("0x{:016x}", session.features.unwrap_or(0)));
        put("mtu", mtu.to_string());
        put("numa", session.numa.to_string());
        put("num_of_vrings", session.vring_sizes.len().to_string());
        for (vring, size) in session.vring_sizes.iter().enumerate() {
            put(&format!("vring_{vring}_size"), size.to_string());
        }
        put("n_rxq", session.n_rxq.to_string());
        put("n_txq", session.n_txq.to_string());
        if session.features.is_some_and(|features| features & IOMMU_PLATFORM != 0) {
            put("iommu", "on".to_owned());
        }
        if session.is_logging {
            put("migration", "logging".to_owned());
        }
        put("peer-pid", session.peer.pid.to_string());
        put("peer-uid", session.peer.uid.to_string());
        put("peer-program", session.peer.program.clone());
        if let Some(PostcopyState { is_on, progress }) = session.postcopy {
            put("postcopy", if is_on { "on" } else { "over" }.to_owned());
            if is_on {
                put("postcopy-pages-missing", progress.missing.to_string());
            }
            put("postcopy-faults-served", progress.faults.to_string());
            put("postcopy-stall-ms", (progress.stalled_us / 1000).to_string());
        }
        if let Some(obstacles) = &session.obstacles_to_ovs {
            put("stops-move-to-ovs-3.1", obstacles.clone());
        }
        if let Some(guest) = session.guest_mtu.filter(|&guest| guest != mtu) {
            put(
                "mtu-mismatch",
                format!("the guest was given {guest}, the port has {mtu}; set mtu_request or host_mtu"),
            );
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SessionState {
        SessionState {
            peer: Peer { pid: 42, uid: 7, program: "qemu".into() },
            features: Some(0x1_2000_8000),
            numa: 0,
            vring_sizes: vec![256, 512],
            n_rxq: 1,
            n_txq: 1,
            guest_mtu: Some(1500),
            is_logging: false,
            link_up: true,
            waiting_for: None,
            problem: None,
            postcopy: None,
            obstacles_to_ovs: None,
        }
    }

    #[test]
    fn a_session_is_shown_with_the_keys_of_open_vswitch() {
        let snapshot = Snapshot { session: Some(session()), ..Snapshot::default() };
        let map = snapshot.to_map("client", "/run/s", 1500);
        let want = [
            ("features", "0x0000000120008000"),
            ("mode", "client"),
            ("mtu", "1500"),
            ("n_rxq", "1"),
            ("n_txq", "1"),
            ("num_of_vrings", "2"),
            ("numa", "0"),
            ("peer-pid", "42"),
            ("peer-program", "qemu"),
            ("peer-uid", "7"),
            ("socket", "/run/s"),
            ("status", "connected"),
            ("vring_0_size", "256"),
            ("vring_1_size", "512"),
        ];
        let got: Vec<(&str, &str)> = map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn a_post_copy_migration_is_shown_while_it_is_on_and_after() {
        let progress = Progress { missing: 7, faults: 12, stalled_us: 34_567 };
        let shown = |is_on| {
            let session = SessionState { postcopy: Some(PostcopyState { is_on, progress }), ..session() };
            let map = Snapshot { session: Some(session), ..Snapshot::default() }.to_map("client", "/run/s", 1500);
            let keys = ["postcopy", "postcopy-pages-missing", "postcopy-faults-served", "postcopy-stall-ms"];
            keys.map(|key| map.get(key).cloned().unwrap_or_default())
        };
        assert_eq!(shown(true), ["on", "7", "12", "34"]);
        assert_eq!(shown(false), ["over", "", "12", "34"]);
    }

    /// Rows: A15.
    #[test]
    fn pages_that_come_are_no_news_but_the_first_asked_for_and_the_last_are() {
        let at = |is_on, missing, faults| {
            let progress = Progress { missing, faults, stalled_us: 100 * faults };
            let session = SessionState { postcopy: Some(PostcopyState { is_on, progress }), ..session() };
            Snapshot { session: Some(session), ..Snapshot::default() }
        };
        let before = Snapshot { session: Some(session()), ..Snapshot::default() };
        let steps =
            [before, at(true, 9, 0), at(true, 9, 1), at(true, 7, 1), at(true, 3, 5), at(true, 0, 6), at(false, 0, 6)];
        let news: Vec<_> = steps.windows(2).map(|pair| pair[1].is_news_after(&pair[0])).collect();
        assert_eq!(news, [true, true, false, false, true, true]);
        let named = Snapshot { error: Some("a page does not come".into()), ..at(true, 3, 5) };
        assert!(named.is_news_after(&at(true, 7, 1)));
    }

    #[test]
    fn an_mtu_that_differs_from_the_guests_is_named() {
        let snapshot = Snapshot { session: Some(session()), ..Snapshot::default() };
        let map = snapshot.to_map("client", "/run/s", 9000);
        assert!(map["mtu-mismatch"].starts_with("the guest was given 1500, the port has 9000"));
    }

    #[test]
    fn without_a_session_it_says_what_it_waits_for() {
        let snapshot = Snapshot { waiting_for: Some("a socket".into()), ..Snapshot::default() };
        let map = snapshot.to_map("server", "/run/s", 1500);
        let keys: Vec<&str> = map.keys().map(String::as_str).collect();
        assert_eq!(keys, ["mode", "status", "waiting-for"]);
        assert_eq!(map["status"], "disconnected");
    }
}
