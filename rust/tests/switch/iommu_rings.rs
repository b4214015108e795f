// SPDX-License-Identifier: Apache-2.0
//! Rings of guests with an IOMMU: where they lie has to be mapped too, in one piece, and may be taken back while they run.

use ovsvhost::testing::frontend::Answer;
use ovsvhost::testing::frontend::iommu::{READ_WRITE, iotlb, message};
use ovsvhost::testing::memory::{Backing, Gpa, RegionSpec};
use ovsvhost::vhost::EndpointKind;

use super::iommu::{PAGE, REGIONS, SIZE, exchange, four, introduce, iommu, switch};
use super::rig::wait;
use super::station::Station;

/// Rows: A14, C9.
#[test]
fn rings_wait_for_their_own_mappings() {
    let mut switch = switch();
    let socket = switch.add("guarded", EndpointKind::Client);
    let mut guarded = Station::plug(&socket, 1, |config| config.guard(Answer::Never));
    let status = |key: &str| switch.port("guarded").status.get(key).cloned().unwrap_or_default();
    wait("what it waits for to be shown", || {
        status("waiting-for").contains("IOMMU to translate the addresses of receiveq 0")
    });
    assert!(!switch.port("guarded").link_up);
    // Every message is answered meanwhile.
    assert_eq!(guarded.frontend.stop_rings().unwrap(), [0, 0]);
    guarded.resume(&[0, 0]);
    iommu(&guarded).answer(Answer::Page);
    switch.wait_link("guarded", true);
}

/// Rows: A14, C9.
#[test]
fn a_ring_whose_mapping_is_taken_back_is_left_alone_until_it_is_there_again() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    let resets = switch.port("guarded").link_resets;
    for _ in 0..50 {
        // As a Linux guest with lazy invalidation does: everything at once.
        guarded.frontend.invalidate(Gpa(0), u64::MAX).unwrap();
        exchange(&switch, &mut guarded, &mut friend, 2);
        exchange(&switch, &mut friend, &mut guarded, 2);
    }
    iommu(&guarded).answer(Answer::Never);
    guarded.frontend.invalidate(Gpa(REGIONS[0]), SIZE).unwrap();
    let used = guarded.tx.ring().used_index();
    let frame = guarded.frame(friend.mac, 300);
    guarded.send(&frame);
    exchange(&switch, &mut c, &mut d, 200);
    assert_eq!(guarded.tx.ring().used_index(), used);
    iommu(&guarded).answer(Answer::Page);
    assert_eq!(friend.next(), frame);
    exchange(&switch, &mut d, &mut guarded, 10);
    assert_eq!(switch.port("guarded").link_resets, resets);
    assert_eq!(switch.count("guarded", "tx_drop_link_down"), 0);
}

/// Rows: A14, C9.
#[test]
fn a_ring_whose_pages_are_scattered_is_refused_with_its_cures() {
    let mut switch = switch();
    let socket = switch.add("guarded", EndpointKind::Client);
    let mut guarded = Station::plug(&socket, 1, |config| {
        config.guard(Answer::Never);
        // Descriptors of two pages.
        (config.ring_size, config.regions) = (512, RegionSpec::spread(2, 16 << 20, &Backing::Memfd));
    });
    let uva = guarded.frontend.ram().user_address(Gpa(0)).unwrap();
    for (page, place) in [(0, 1), (1, 0)] {
        let update = message(iotlb::UPDATE, page * PAGE, PAGE, uva + place * PAGE, READ_WRITE);
        assert_eq!(guarded.frontend.tell_iotlb(update).unwrap(), 0);
    }
    wait("the cures", || {
        switch.port("guarded").error.is_some_and(|text| {
            text.contains("receiveq 0: the pages of its ring are not one after another")
                && text.contains("queues of 256")
                && text.contains("iommu=pt")
        })
    });
    // A guest that sets its queues up anew, in one piece, is served.
    assert_eq!(guarded.frontend.stop_rings().unwrap(), [0, 0]);
    iommu(&guarded).answer(Answer::Page);
    assert_eq!(guarded.frontend.map(Gpa(0), 2 * PAGE, READ_WRITE).unwrap(), 0);
    guarded.resume(&[0, 0]);
    switch.wait_link("guarded", true);
    wait("nothing to be wrong any more", || switch.port("guarded").error.is_none());
}
