// SPDX-License-Identifier: Apache-2.0
//! Rings that stop and go on: a virtual machine that is paused, one that goes on over a new connection, one queue that
//! its driver resets while the others run.

use ovsvhost::testing::traffic::LinkState;
use ovsvhost::vhost::EndpointKind;

use super::rig::Switch;
use super::traffic::Crew;

const FORMATS: [(&str, &str); 3] = [("version_1", "128"), ("ring_packed", "128"), ("ring_packed+in_order", "100")];

/// Rows: C3.
#[test]
fn rings_go_on_where_the_back_end_said_they_stopped() {
    for (format, size) in FORMATS {
        let mut switch = Switch::new();
        let settings = [("require", format), ("ring-size", size), ("sizes", "64+1500+9000"), ("pairs", "2")];
        let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
        for round in 0..6 {
            crew.send(0, 1, 30);
            crew.send(1, 0, 20);
            let paused = &mut crew.ends[round % 2];
            paused.stop_rings().unwrap();
            if round >= 3 {
                // The same over a new connection: a back-end that was restarted meanwhile.
                paused.hang_up();
            } else {
                paused.start_rings().unwrap();
            }
            crew.until("the link", |crew| crew.ends.iter().all(|end| end.link() == LinkState::Up));
            for port in ["a", "b"] {
                switch.wait_link(port, true);
            }
        }
        crew.send(0, 1, 30);
        crew.send(1, 0, 20);
        crew.assert_exact(0, 1);
        crew.assert_exact(1, 0);
    }
}

/// Rows: C3.
#[test]
fn a_queue_that_its_driver_resets_begins_anew_while_the_others_run() {
    for (format, size) in FORMATS {
        let mut switch = Switch::new();
        let settings = [("require", format), ("ring-size", size), ("sizes", "64+1500+9000"), ("pairs", "2")];
        let mut crew = Crew::pair(&mut switch, EndpointKind::Client, &settings);
        for round in 0..6 {
            crew.send(0, 1, 30);
            crew.send(1, 0, 20);
            crew.ends[round % 2].reset_pair(u16::try_from(round / 2 % 2).unwrap()).unwrap();
        }
        crew.send(0, 1, 30);
        crew.send(1, 0, 20);
        crew.assert_exact(0, 1);
        crew.assert_exact(1, 0);
    }
}
