// SPDX-License-Identifier: Apache-2.0
//! The project's own front-end against the real datapath: every frame counted, every byte checked, whatever the
//! layout; and what is left of it while a third guest attacks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::time::Duration;

use ovsvhost::datapath::{Datapath, PortConfig};
use ovsvhost::testing::hostile::Case;
use ovsvhost::testing::traffic::{EndSettings, Json, RunSettings, Runner};
use ovsvhost::vhost::EndpointKind;
use vmm_sys_util::tempdir::TempDir;

const FRAMES: u64 = 400;

struct Bench {
    datapath: Datapath,
    dir: TempDir,
    kind: EndpointKind,
}

impl Bench {
    /// A bridge with three ports of a kind: `v0` and `v1` for a pair, `v2` for who disturbs it.
    fn new(kind: EndpointKind) -> Self {
        let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
        let datapath = Datapath::new(&[], None).unwrap();
        datapath.add_bridge("br0").unwrap();
        for ofport in 1..=3 {
            let name = format!("v{}", ofport - 1);
            let config = PortConfig::new(&name, kind, ofport, dir.as_path().join(&name));
            datapath.add_port("br0", PortConfig { mtu: 9000, ..config }).unwrap();
        }
        Self { datapath, dir, kind }
    }

    /// An end on a port, with further settings as `name=value,…`.
    fn end(&self, port: &str, settings: &str) -> EndSettings {
        let mut end = EndSettings::default();
        let side = if self.kind == EndpointKind::Server { "connect" } else { "listen" };
        end.set("side", side).unwrap();
        end.set("socket", &self.dir.as_path().join(port).display().to_string()).unwrap();
        for entry in settings.split(',').filter(|entry| !entry.is_empty()) {
            let (name, value) = entry.split_once('=').unwrap();
            end.set(name, value).unwrap();
        }
        end
    }

    /// Sends `FRAMES` per queue from `v0` to `v1` and gives the report.
    fn traffic(&self, run: &str, both: &str, second: &str) -> Json {
        let mut settings = RunSettings::default();
        for entry in ["frames=400", "duration=20", "in-flight=32", "drain=10"].into_iter().chain(run.split(',')) {
            if let Some((name, value)) = entry.split_once('=') {
                settings.set(name, value).unwrap();
            }
        }
        let ends = vec![self.end("v0", both), self.end("v1", &format!("{both},{second}"))];
        Runner::new(settings, ends).unwrap().run().unwrap()
    }

    fn assert_exact(&self, both: &str, second: &str, queues: u64) {
        let report = self.traffic("", both, second);
        let what = format!("'{both}' and '{second}': {report}");
        let exact = &report.get("exact").unwrap().items()[0];
        assert_eq!(exact.count("received"), queues * FRAMES, "{what}");
        assert_eq!((exact.count("lost"), exact.count("duplicated"), exact.count("reordered")), (0, 0, 0), "{what}");
        for end in report.get("ends").unwrap().items() {
            let Some(Json::Object(kinds)) = end.get("corrupt") else { panic!("{what}") };
            assert!(kinds.iter().all(|(_, count)| *count == Json::Count(0)), "{what}");
            assert_eq!(end.get("violations"), Some(&Json::Object(Vec::new())), "{what}");
        }
    }
}

#[test]
fn every_layout_of_a_frame_arrives_whole_and_once() {
    let bench = Bench::new(EndpointKind::Server);
    for layout in ["one", "two", "chain:3", "chain:8", "indirect:2", "indirect:9"] {
        bench.assert_exact(&format!("sizes=mix,ring-size=512,layout={layout}"), "", 1);
    }
}

#[test]
fn every_layout_of_a_receive_buffer_is_filled_rightly() {
    let bench = Bench::new(EndpointKind::Server);
    for settings in
        ["one,buffer=500", "two", "chain:3", "indirect:4", "one,without=mrg_rxbuf", "chain:4,without=mrg_rxbuf"]
    {
        bench.assert_exact("sizes=mix,ring-size=1024", &format!("rx-layout={settings}"), 1);
    }
}

#[test]
fn every_kind_of_header_and_notification_is_understood() {
    let bench = Bench::new(EndpointKind::Server);
    for both in [
        "without=version_1+mrg_rxbuf",
        "without=version_1",
        "without=event_idx",
        "without=indirect_desc+event_idx",
        "order=virtio-user",
        "order=virtio-user,memory-message=regions,regions=3",
        "regions=3,ring-size=128",
        "network=ipv6,transport=tcp,sizes=84+1500",
        "checksum=partial,with=csum+guest_csum,sizes=64+1500",
    ] {
        bench.assert_exact(both, "", 1);
    }
}

#[test]
fn a_checksum_is_completed_for_a_receiver_that_cannot() {
    let bench = Bench::new(EndpointKind::Server);
    for both in ["sizes=64+1500", "sizes=84+1500,network=ipv6,transport=tcp"] {
        bench.assert_exact(&format!("checksum=partial,with=csum+guest_csum,{both}"), "without=guest_csum", 1);
    }
}

#[test]
fn rings_of_any_size_carry_traffic() {
    let bench = Bench::new(EndpointKind::Server);
    for size in [32, 64, 256, 4096, 32_768] {
        bench.assert_exact(&format!("ring-size={size}"), "", 1);
    }
}

/// Rows: A10.
#[test]
fn frames_of_a_flow_stay_in_order_over_many_queues() {
    let bench = Bench::new(EndpointKind::Server);
    bench.assert_exact("pairs=2,flows=16", "", 2);
    bench.assert_exact("pairs=8,flows=64", "", 8);
}

#[test]
fn a_guest_that_listens_is_found() {
    Bench::new(EndpointKind::Client).assert_exact("sizes=mix,ring-size=512", "", 1);
}

/// Rows: C8, C13.
#[test]
fn no_attack_of_a_third_guest_disturbs_a_pair() {
    let bench = Bench::new(EndpointKind::Server);
    bench.assert_exact("", "", 1);
    for case in Case::all() {
        let outcome = case.run(&bench.end("v2", "ring-size=256"), Duration::from_millis(20));
        assert!(outcome.is_ok(), "{}: {outcome:?}; {:?}", case.name(), bench.datapath.port("v2"));
        bench.assert_exact("", "", 1);
    }
    let survivors = bench.datapath.ports();
    assert!(survivors.iter().filter(|port| port.name != "v2").all(|port| port.error.is_none()), "{survivors:?}");
}

/// Rows: C13.
#[test]
fn a_front_end_may_hang_up_at_any_message() {
    let bench = Bench::new(EndpointKind::Server);
    for number in 0.. {
        let case = Case::find(&format!("hang-up-at:{number}")).unwrap();
        let report = case.run(&bench.end("v2", ""), Duration::ZERO).unwrap();
        if report.get("outcome").unwrap().get("reaction") == Some(&Json::text("finished")) {
            assert!(number > 20, "a session has more messages than {number}");
            break;
        }
    }
    bench.assert_exact("", "", 1);
}
