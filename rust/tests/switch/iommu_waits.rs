// SPDX-License-Identifier: Apache-2.0
//! Frames of guests with an IOMMU that wait: mappings go and come under them, and pages of a migration besides.

use std::time::{Duration, Instant};

use ovsvhost::datapath::PortChange;
use ovsvhost::testing::frontend::iommu::{READ_WRITE, iotlb, message};
use ovsvhost::testing::frontend::{Answer, Serve};
use ovsvhost::testing::memory::Gpa;
use ovsvhost::testing::wire::features::protocol;

use super::iommu::{PAGE, REGIONS, SIZE, exchange, introduce, iommu, switch};
use super::rig::{Switch, wait};
use super::station::Station;

/// Buffers of a station's receiveq.
const BUFFERS: usize = 64;
/// The longest that frames can be made to wait for buffers.
const LONGEST_US: u32 = 100_000;

/// A guest with an IOMMU whose frames wait, for its friend has no buffers, and how many; nobody has taken any yet. None
/// if they did not wait long enough on this machine.
fn waiting(count: usize, answer: Answer) -> Option<(Switch, Station, Station, Vec<Vec<u8>>)> {
    let mut switch = switch();
    let mut guarded = Station::join_with(&mut switch, "guarded", 1, |config| config.guard(answer));
    let mut friend = Station::join(&mut switch, "friend", 2);
    introduce(&mut [&mut guarded, &mut friend]);
    let change = PortChange { backpressure_us: Some(LONGEST_US), ..PortChange::default() };
    switch.datapath().set_port("friend", &change).unwrap();
    for _ in 0..BUFFERS {
        guarded.send(&guarded.frame(friend.mac, 64));
        guarded.wait_sent();
    }
    let late: Vec<_> = (0..count).map(|n| guarded.frame(friend.mac, 100 + n)).collect();
    guarded.send_together(&late);
    wait("the frames to wait", || switch.count("friend", "tx_q0_waits") == 1);
    (switch.count("friend", "tx_drop_backpressure") == 0).then_some((switch, guarded, friend, late))
}

/// A machine under load may overrun the longest wait; then the next attempt begins anew.
fn attempts(attempt: impl FnMut() -> Option<()>) {
    let found = std::iter::repeat_with(attempt).take(50).any(|done| done.is_some());
    assert!(found, "this machine never got through in {LONGEST_US} microseconds");
}

/// All that the friend gets, up to the last frame; None once frames for it were given up.
fn take(switch: &Switch, friend: &mut Station, last: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &Vec<u8>| frame != last) {
        let mut frame = None;
        wait("a frame, or the end of waiting", || {
            frame = friend.receive();
            frame.is_some() || switch.count("friend", "tx_drop_backpressure") > 0
        });
        frames.push(frame?.1);
    }
    Some(frames)
}

/// Rows: A14, C9.
#[test]
fn frames_that_wait_outlive_the_mappings_they_came_by() {
    attempts(|| {
        let (switch, guarded, mut friend, late) = waiting(10, Answer::Page)?;
        // As a guest with lazy invalidation does, whose mappings are there all the same.
        guarded.frontend.invalidate(Gpa(0), u64::MAX).unwrap();
        let arrived = take(&switch, &mut friend, late.last()?)?;
        assert_eq!(arrived[BUFFERS..], late, "in order, each once");
        assert_eq!(switch.count("friend", "tx_dropped"), 0);
        Some(())
    });
}

/// Rows: A14, C9, C13.
#[test]
fn frames_that_wait_are_dropped_by_name_when_their_addresses_mean_something_else() {
    attempts(|| {
        let (switch, mut guarded, mut friend, _) = waiting(10, Answer::Region)?;
        iommu(&guarded).answer(Answer::Never);
        let uva = guarded.frontend.ram().user_address(Gpa(REGIONS[1])).unwrap();
        let elsewhere = message(iotlb::UPDATE, REGIONS[1], SIZE - PAGE, uva + PAGE, READ_WRITE);
        assert_eq!(guarded.frontend.tell_iotlb(elsewhere).unwrap(), 0);
        wait("the frames to be dropped, or given up", || switch.count("friend", "tx_dropped") == 10);
        if switch.count("friend", "tx_drop_iotlb_wait") != 10 {
            return None;
        }
        guarded.wait_sent();
        for _ in 0..BUFFERS {
            assert_eq!(friend.next().len(), 64);
        }
        assert!(switch.port("guarded").error.is_none());
        Some(())
    });
}

/// Rows: A14, B2.
#[test]
fn frames_that_wait_as_their_ring_stops_without_its_mapping_are_sent_at_its_next_start() {
    attempts(|| {
        let (switch, mut guarded, mut friend, late) = waiting(10, Answer::Page)?;
        iommu(&guarded).answer(Answer::Never);
        guarded.frontend.invalidate(Gpa(0), u64::MAX).unwrap();
        let bases = guarded.frontend.stop_rings().unwrap();
        if switch.count("friend", "tx_drop_backpressure") != 0 {
            return None;
        }
        assert_eq!(switch.count("friend", "tx_dropped"), 0, "none is lost that is still in the ring");
        iommu(&guarded).answer(Answer::Page);
        guarded.resume(&bases);
        let arrived = take(&switch, &mut friend, late.last()?)?;
        assert_eq!(arrived[BUFFERS..], late, "in order, each once");
        Some(())
    });
}

/// Rows: A14, C9, C13.
#[test]
fn a_guest_whose_mappings_come_just_in_time_soon_has_nobody_wait_for_them() {
    // Each time they come before anybody gives up.
    const LATE: Duration = Duration::from_millis(60);
    const ROUNDS: u64 = 60;
    let mut switch = switch();
    let mut guarded = Station::join_with(&mut switch, "guarded", 1, |config| config.guard(Answer::Page));
    let mut friend = Station::join(&mut switch, "friend", 2);
    introduce(&mut [&mut guarded, &mut friend]);
    exchange(&switch, &mut friend, &mut guarded, 5);
    let lost = || switch.count("guarded", "tx_drop_iotlb_wait");
    let first = lost();
    for _ in 0..ROUNDS {
        iommu(&guarded).answer(Answer::Never);
        guarded.frontend.invalidate(Gpa(REGIONS[1]), SIZE).unwrap();
        let (before, sent) = (lost(), Instant::now());
        friend.send(&friend.frame(guarded.mac, 60));
        wait("the frame to be dropped, or to have waited", || lost() > before || sent.elapsed() > LATE);
        iommu(&guarded).answer(Answer::Page);
        guarded.frontend.map(Gpa(REGIONS[1]), SIZE, READ_WRITE).unwrap();
        friend.wait_sent();
        while guarded.receive().is_some() {}
    }
    let lost = lost() - first;
    assert!(lost >= ROUNDS / 3, "{lost} of {ROUNDS} frames did not wait");
    // It answers at once again.
    exchange(&switch, &mut friend, &mut guarded, 20);
    exchange(&switch, &mut guarded, &mut friend, 20);
}

/// Rows: A14, A15.
#[test]
fn a_guest_with_an_iommu_moves_in_page_by_page() {
    let mut switch = switch();
    switch.datapath().offer_postcopy().unwrap();
    let mut moving = Station::join_with(&mut switch, "moving", 1, |config| {
        config.guard(Answer::Page);
        config.protocol |= protocol::PAGEFAULT;
    });
    let mut friend = Station::join(&mut switch, "friend", 2);
    introduce(&mut [&mut moving, &mut friend]);
    exchange(&switch, &mut moving, &mut friend, 5);
    exchange(&switch, &mut friend, &mut moving, 5);
    let bases = moving.leave();
    let sent: Vec<_> = (0..10).map(|number| moving.frame(friend.mac, 100 + 100 * number)).collect();
    moving.send_together(&sent);
    let source = moving.arrive(&bases, |_, _| Serve::Now);
    for frame in &sent {
        assert_eq!(friend.next(), *frame);
    }
    exchange(&switch, &mut friend, &mut moving, 5);
    let status = |key: &str| switch.port("moving").status.get(key).cloned().unwrap_or_default();
    assert_eq!((status("postcopy"), status("iommu")), ("on".into(), "on".into()));
    source.serve_all();
    exchange(&switch, &mut moving, &mut friend, 5);
    moving.frontend.end_postcopy().unwrap();
    drop(source);
    exchange(&switch, &mut moving, &mut friend, 20);
    exchange(&switch, &mut friend, &mut moving, 20);
    assert_eq!(status("postcopy"), "over");
    assert!(switch.port("moving").error.is_none(), "{:?}", switch.port("moving").error);
}
