// SPDX-License-Identifier: Apache-2.0
//! Many guests and many addresses behind one: what the comparison with other switches is made with.

use std::time::Duration;

use ovsvhost::testing::traffic::{Crowd, EndSettings, RunSettings, Runner};
use ovsvhost::vhost::EndpointKind;

use super::rig::{DEADLINE, Switch, wait};

fn settings(switch: &mut Switch, port: &str, more: &[(&str, &str)]) -> EndSettings {
    let socket = switch.add(port, EndpointKind::Client);
    let mut all = EndSettings::default();
    for (name, value) in [("socket", socket.to_str().unwrap()), ("ring-size", "128")].iter().chain(more) {
        all.set(name, value).unwrap();
    }
    all
}

/// Rows: B3.
#[test]
fn frames_to_many_addresses_of_one_guest_reach_it_and_no_silent_guest() {
    const ADDRESSES: usize = 300;
    let mut switch = Switch::new();
    let silent = ["c", "d", "e"].map(|port| settings(&mut switch, port, &[]));
    let mut crowd = Crowd::new(silent.into()).unwrap();
    crowd.join(DEADLINE).unwrap();
    let ends = vec![settings(&mut switch, "a", &[]), settings(&mut switch, "b", &[("addresses", "300")])];
    let run =
        RunSettings { frames: Some(5_000), in_flight: Some(16), link_timeout: DEADLINE, ..RunSettings::default() };
    let report = Runner::new(run, ends).unwrap().run().unwrap();
    let [account] = report.get("exact").unwrap().items() else { panic!("one end sends: {report}") };
    assert_eq!((account.count("received"), account.count("lost")), (5_000, 0), "{report}");
    assert_eq!(switch.datapath().fdb("br0").unwrap().len(), ADDRESSES + 1);
    for port in ["c", "d", "e"] {
        let heard = || (switch.count(port, "tx_packets"), switch.count(port, "tx_broadcast_packets"));
        wait("the announcements to be counted", || heard().1 > 0);
        let (all, broadcast) = heard();
        assert_eq!(all, broadcast, "{port} got a frame that was for b");
    }
}

#[test]
fn a_crowd_names_the_socket_that_nobody_came_to() {
    let mut lonely = EndSettings::default();
    let socket = std::env::temp_dir().join(format!("ovsvhost-lonely-{}", std::process::id()));
    lonely.set("socket", socket.to_str().unwrap()).unwrap();
    let mut crowd = Crowd::new(vec![lonely]).unwrap();
    let error = crowd.join(Duration::from_millis(20)).unwrap_err().to_string();
    assert!(error.contains(socket.to_str().unwrap()), "{error}");
    drop(crowd);
    let _ = std::fs::remove_file(socket);
}
