// SPDX-License-Identifier: Apache-2.0
//! VLAN tags are part of a frame on its way to a guest and back, whatever the device would do with them.

use ovsvhost::sys::netdev::Asker;

use super::cable::{FAR, ip, join, wait_with_news, with_cable};
use super::exchange::from_far;
use super::rig::Switch;
use super::station::Station;

const TAKES_TAGS: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Those of a device's switches that would take tags off and are on.
fn takes_tags() -> Vec<&'static str> {
    Asker::new().unwrap().features_on("near", &TAKES_TAGS).unwrap()
}

/// Rows: A22.
#[test]
fn tags_come_and_go_and_the_device_is_told_to_leave_them_while_it_is_ours() {
    with_cable(1500, |mut cable| {
        let mut switch = Switch::new();
        let mut guest = Station::join(&mut switch, "a", 1);
        assert_eq!(takes_tags(), TAKES_TAGS, "what veth does by itself");
        join(&switch, |_| {});
        assert!(takes_tags().is_empty());
        for (n, tags) in
            [&[0x8100_0007_u32][..], &[0x8100_6fff], &[0x88a8_0064], &[0x88a8_0064, 0x8100_0007]].iter().enumerate()
        {
            let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.to_be_bytes()).collect();
            let tagged = |mut frame: Vec<u8>| {
                frame.splice(12..12, tags.iter().copied());
                frame
            };
            for size in [60, 1400, 1506] {
                let frame = tagged(from_far(guest.mac, size, n));
                cable.send(&frame);
                assert_eq!(guest.next(), frame);
                let frame = tagged(guest.frame(FAR, size));
                guest.send(&frame);
                assert_eq!(cable.next(), frame);
            }
        }
        switch.datapath().del_port("n0").unwrap();
        assert_eq!(takes_tags(), TAKES_TAGS, "as it was");
    });
}

/// Rows: A22.
#[test]
fn what_was_off_before_stays_off_and_another_device_of_the_name_is_its_own() {
    with_cable(1500, |mut cable| {
        let switch = Switch::new();
        Asker::new().unwrap().set_features("near", &TAKES_TAGS[..1], false).unwrap();
        join(&switch, |_| {});
        assert!(takes_tags().is_empty());
        switch.datapath().del_port("n0").unwrap();
        assert_eq!(takes_tags(), TAKES_TAGS[1..]);
        join(&switch, |_| {});
        cable.replace();
        wait_with_news(&switch, "n0", "the new device to be taken over", || takes_tags().is_empty());
        switch.datapath().del_port("n0").unwrap();
        assert_eq!(takes_tags(), TAKES_TAGS);
        ip("link del near");
    });
}
