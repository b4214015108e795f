// SPDX-License-Identifier: Apache-2.0
//! Guests with an IOMMU before their device: every address is an I/O virtual one, and means what the front-end says until
//! it takes that back. Beside every one of them another pair of guests goes on exchanging frames.

use ovsvhost::testing::driver::{ChainDriver, PackedDriver, SplitDriver};
use ovsvhost::testing::frontend::iommu::{READ_WRITE, iotlb, message};
use ovsvhost::testing::frontend::{Answer, FrontendConfig, Iommu, Order, Side};
use ovsvhost::testing::memory::Gpa;
use ovsvhost::testing::wire::features::{IOMMU_PLATFORM, RING_PACKED, protocol};
use ovsvhost::testing::wire::{Message, Request};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::station::{Station, StationOf};

pub(super) const PAGE: u64 = 4096;
/// Where the regions of a station begin: the one with the rings, and the one with the buffers.
pub(super) const REGIONS: [u64; 2] = [0, 1 << 32];
pub(super) const SIZE: u64 = 2 << 20;

pub(super) fn switch() -> Switch {
    let switch = Switch::new();
    switch.datapath().offer_iommu();
    switch
}

/// A switch that serves guests with an IOMMU; one that has one, whom it talks to, and two that have nothing to do with it.
pub(super) fn four(answer: Answer) -> (Switch, Station, Station, [Station; 2]) {
    let mut switch = switch();
    let guarded = Station::join_with(&mut switch, "guarded", 1, |config| config.guard(answer));
    let friend = Station::join(&mut switch, "friend", 2);
    let others = [Station::join(&mut switch, "c", 3), Station::join(&mut switch, "d", 4)];
    (switch, guarded, friend, others)
}

pub(super) fn iommu<D: ChainDriver>(station: &StationOf<D>) -> &Iommu {
    station.frontend.iommu().unwrap()
}

/// Everybody says where it is, so that no frame is flooded from now on.
pub(super) fn introduce(all: &mut [&mut Station]) {
    for from in all.iter_mut() {
        announce(from);
    }
    for station in all.iter_mut() {
        while station.receive().is_some() {}
    }
}

/// A guest says where it is.
fn announce<D: ChainDriver>(from: &mut StationOf<D>) {
    let frame = from.frame([0xff; 6], 60);
    from.send(&frame);
    // Who sent has its buffer back when everybody had the frame, or is counted as not having it.
    from.wait_sent();
}

/// A frame reaches its receiver. On a machine that is busy the front-end may answer later than a frame waits: one that is
/// counted as lost for that is sent again.
#[track_caller]
fn hand_over<A: ChainDriver, B: ChainDriver>(
    switch: &Switch,
    from: &mut StationOf<A>,
    to: &mut StationOf<B>,
    frame: &[u8],
) {
    let to_mac = to.mac;
    let lost = || -> u64 {
        // Others wait too, and for other guests.
        let behind = switch.behind(to_mac);
        let ports = switch.datapath().ports().into_iter().filter(|port| behind.is_none_or(|at| at == port.ofport));
        let reasons = ["tx_drop_iotlb_wait", "tx_drop_postcopy_wait"];
        ports.map(|port| reasons.iter().filter_map(|reason| port.statistics.get(*reason)).sum::<u64>()).sum()
    };
    loop {
        let before = lost();
        from.send(frame);
        let mut got = None;
        wait("a frame", || {
            got = to.receive();
            got.is_some() || lost() != before
        });
        if let Some((_, got)) = got {
            return assert_eq!(got, frame);
        }
    }
}

/// Every one of `count` frames that one sends reaches the other.
#[track_caller]
pub(super) fn exchange<A: ChainDriver, B: ChainDriver>(
    switch: &Switch,
    from: &mut StationOf<A>,
    to: &mut StationOf<B>,
    count: usize,
) {
    for number in 0..count {
        let frame = from.frame(to.mac, 60 + 37 * number % 1400);
        hand_over(switch, from, to, &frame);
    }
}

fn is_ours(switch: &Switch) -> bool {
    switch.port("guarded").status.get("iommu").is_some_and(|value| value == "on")
}

/// Frames both ways, of all sizes, with answers of this kind.
fn talk<D: ChainDriver>(change: impl FnOnce(&mut FrontendConfig)) -> (Switch, u64) {
    let mut switch = switch();
    let mut guarded = StationOf::<D>::join_with(&mut switch, "guarded", 1, change);
    let mut friend = Station::join(&mut switch, "friend", 2);
    assert!(is_ours(&switch));
    announce(&mut guarded);
    announce(&mut friend);
    while guarded.receive().is_some() {}
    while friend.receive().is_some() {}
    exchange(&switch, &mut guarded, &mut friend, 200);
    exchange(&switch, &mut friend, &mut guarded, 200);
    let asked = iommu(&guarded).asked();
    assert!(switch.count("guarded", "rx_q0_iotlb_hits") >= 200);
    assert!(switch.count("guarded", "tx_q0_iotlb_hits") >= 200);
    (switch, asked)
}

/// Rows: A14, C9.
#[test]
fn every_frame_passes_when_each_page_has_to_be_asked_for() {
    let (switch, asked) = talk::<SplitDriver>(|config| config.guard(Answer::Page));
    assert!(switch.count("guarded", "rx_q0_iotlb_misses") > 0);
    // A page is asked for once for reading and once for writing, whoever needs it.
    assert!(asked <= 2 * 2 * SIZE / PAGE, "{asked} questions");
}

/// Rows: A14.
#[test]
fn every_frame_passes_through_packed_rings_too() {
    let (_, asked) = talk::<PackedDriver>(|config| {
        config.guard(Answer::Page);
        config.features |= RING_PACKED;
        config.required |= RING_PACKED;
    });
    assert!(asked > 0);
}

/// Rows: A14.
#[test]
fn mappings_of_whole_regions_are_asked_for_once() {
    let (_, asked) = talk::<SplitDriver>(|config| config.guard(Answer::Region));
    // Before the first answer is there, those of 64 buffers and of the rings are asked for ahead.
    assert!(asked <= 64, "{asked} questions");
}

/// Rows: A14.
#[test]
fn every_frame_passes_when_neighbours_differ_in_what_they_allow() {
    let (_, asked) = talk::<SplitDriver>(|config| config.guard_by(16 * PAGE, Answer::Apart));
    assert!(asked > 0);
}

/// Rows: A14.
#[test]
fn memory_may_come_before_the_iommu_and_in_several_messages() {
    talk::<SplitDriver>(|config| {
        config.guard(Answer::Page);
        config.memory_message = ovsvhost::testing::frontend::MemoryMessage::Regions;
    });
}

/// Rows: A14, C9.
#[test]
fn a_mapping_that_comes_late_parks_its_queue_alone() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    iommu(&guarded).answer(Answer::Never);
    guarded.frontend.invalidate(Gpa(REGIONS[1]), SIZE).unwrap();
    let sent: Vec<_> = (0..5).map(|n| guarded.frame(friend.mac, 100 + n)).collect();
    let asked = iommu(&guarded).asked();
    for frame in &sent {
        guarded.send(frame);
    }
    wait("the question", || iommu(&guarded).asked() > asked);
    exchange(&switch, &mut c, &mut d, 100);
    exchange(&switch, &mut friend, &mut c, 50);
    // Nobody waits for a guest that does not say where its buffers are for longer than a moment.
    let lost = switch.count("guarded", "tx_drop_iotlb_wait");
    let to_it = friend.frame(guarded.mac, 60);
    friend.send(&to_it);
    wait("the frame to be dropped by name", || switch.count("guarded", "tx_drop_iotlb_wait") == lost + 1);
    exchange(&switch, &mut friend, &mut d, 50);
    wait("the address to be named", || {
        switch.port("guarded").error.is_some_and(|text| text.contains("does not answer"))
    });
    // What is still wanted is asked for again.
    iommu(&guarded).answer(Answer::Page);
    for frame in &sent {
        assert_eq!(friend.next(), *frame);
    }
    exchange(&switch, &mut friend, &mut guarded, 5);
    wait("nothing to be wrong any more", || switch.port("guarded").error.is_none());
}

/// Rows: A14, C9.
#[test]
fn what_was_taken_back_is_not_touched_after_the_answer() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    exchange(&switch, &mut friend, &mut guarded, 70);
    for _ in 0..20 {
        // Bursts are under way both ways while mappings go.
        let frames: Vec<_> = (0..16).map(|n| guarded.frame(friend.mac, 200 + n)).collect();
        guarded.send_together(&frames);
        let to_it: Vec<_> = (0..16).map(|n| friend.frame(guarded.mac, 200 + n)).collect();
        friend.send_together(&to_it);
        iommu(&guarded).answer(Answer::Never);
        guarded.frontend.invalidate(Gpa(REGIONS[1]), SIZE).unwrap();
        let buffers = guarded.frontend.ram().window(Gpa(REGIONS[1]), SIZE as usize).unwrap();
        let sum = || (0..SIZE as usize / 8).fold(0_u64, |sum, at| sum.rotate_left(1) ^ buffers.load_u64(8 * at));
        let before = sum();
        exchange(&switch, &mut c, &mut d, 5);
        assert_eq!(sum(), before);
        iommu(&guarded).answer(Answer::Page);
        for frame in &frames {
            assert_eq!(friend.next(), *frame);
        }
        friend.wait_sent();
        while guarded.receive().is_some() {}
    }
    // What was asked for meanwhile and is not wanted any more is forgotten.
    wait("nothing to be wrong", || switch.port("guarded").error.is_none());
}

/// Rows: A14, C9.
#[test]
fn what_addresses_meant_before_the_device_stopped_is_asked_for_again() {
    for order in [Order::Qemu, Order::VirtioUser] {
        let mut switch = switch();
        let mut guarded = Station::join_with(&mut switch, "guarded", 1, |config| {
            config.guard(Answer::Region);
            config.order = order;
        });
        let mut friend = Station::join(&mut switch, "friend", 2);
        introduce(&mut [&mut guarded, &mut friend]);
        exchange(&switch, &mut friend, &mut guarded, 5);
        iommu(&guarded).answer(Answer::Never);
        let bases = if order == Order::Qemu {
            guarded.frontend.stop_rings().unwrap()
        } else {
            // A front-end need not ask where they stopped, if it says then which features the next driver takes.
            guarded.frontend.enable_pair(0, false).unwrap();
            [&guarded.rx, &guarded.tx].map(|driver| driver.ring().used_index().into()).to_vec()
        };
        // As QEMU does, nobody says what the guest's IOMMU takes back now. The next driver's buffers are other pages.
        let asked = iommu(&guarded).pages().len();
        guarded.resume(&bases);
        assert_eq!(guarded.frontend.map(Gpa(REGIONS[0]), SIZE, READ_WRITE).unwrap(), 0);
        switch.wait_link("guarded", true);
        let mut frame = friend.frame(guarded.mac, 14);
        frame.resize(300, 0xe7);
        friend.send(&frame);
        wait("its buffers to be asked for", || iommu(&guarded).pages()[asked..].iter().any(|page| *page >= REGIONS[1]));
        let uva = guarded.frontend.ram().user_address(Gpa(REGIONS[1])).unwrap();
        let elsewhere = message(iotlb::UPDATE, REGIONS[1], SIZE - PAGE, uva + PAGE, READ_WRITE);
        assert_eq!(guarded.frontend.tell_iotlb(elsewhere).unwrap(), 0);
        // If the machine was slow the first was given up.
        friend.send(&frame);
        assert_ne!(guarded.next(), frame, "it is in the page that the last driver's buffer was");
        let mut bytes = vec![0; SIZE as usize];
        guarded.frontend.ram().window(Gpa(REGIONS[1]), bytes.len()).unwrap().read(0, &mut bytes);
        assert!(bytes.windows(frame.len()).any(|found| found == frame));
    }
}

/// Rows: A14, C13.
#[test]
fn iotlb_messages_that_make_no_sense_are_refused_and_harm_nobody() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    let uva = guarded.frontend.ram().user_address(Gpa(REGIONS[1])).unwrap();
    let lies = [
        ("memory outside the table", message(iotlb::UPDATE, 1 << 50, PAGE, 0x1000, READ_WRITE)),
        ("memory that begins in the table and ends outside", message(iotlb::UPDATE, 1 << 50, 1 << 42, uva, READ_WRITE)),
        ("no bytes", message(iotlb::UPDATE, 1 << 50, 0, uva, READ_WRITE)),
        ("addresses that wrap", message(iotlb::UPDATE, !0xfff, 2 * PAGE, uva, READ_WRITE)),
        ("memory that wraps", message(iotlb::UPDATE, 1 << 50, 2 * PAGE, !0xfff, READ_WRITE)),
        ("all addresses there are", message(iotlb::UPDATE, 1, u64::MAX, uva, READ_WRITE)),
        ("an address inside a page", message(iotlb::UPDATE, (1 << 50) + 1, PAGE, uva, READ_WRITE)),
        ("a part of a page", message(iotlb::UPDATE, 1 << 50, 1, uva, READ_WRITE)),
        ("memory inside a page", message(iotlb::UPDATE, 1 << 50, PAGE, uva + 8, READ_WRITE)),
        ("unknown permissions", message(iotlb::UPDATE, 1 << 50, PAGE, uva, 4)),
        ("an invalidation of nothing", message(iotlb::INVALIDATE, 1 << 50, 0, 0, 0)),
        ("a question, which only we ask", message(iotlb::MISS, 1 << 50, PAGE, uva, READ_WRITE)),
        ("our own complaint", message(iotlb::ACCESS_FAIL, 1 << 50, PAGE, uva, READ_WRITE)),
        ("a kind that nobody knows", message(77, 1 << 50, PAGE, uva, READ_WRITE)),
    ];
    for (what, lie) in lies {
        assert_ne!(guarded.frontend.tell_iotlb(lie).unwrap(), 0, "{what}");
        exchange(&switch, &mut guarded, &mut friend, 2);
    }
    // These are odd, and no lies.
    for (what, odd) in [
        ("past the last address", message(iotlb::INVALIDATE, 1 << 50, !0, 0, 0)),
        ("what was never there", message(iotlb::INVALIDATE, 1 << 50, PAGE, 0, 0)),
        ("a part of a page", message(iotlb::INVALIDATE, REGIONS[1] + 8, 16, 0, 0)),
        ("a mapping over others", message(iotlb::UPDATE, REGIONS[1] + PAGE, 64 * PAGE, uva + PAGE, READ_WRITE)),
        ("a page of a mapping again", message(iotlb::UPDATE, REGIONS[1] + PAGE, PAGE, uva + PAGE, READ_WRITE)),
        ("one address for two", message(iotlb::UPDATE, 1 << 50, PAGE, uva, READ_WRITE)),
    ] {
        assert_eq!(guarded.frontend.tell_iotlb(odd).unwrap(), 0, "{what}");
        exchange(&switch, &mut guarded, &mut friend, 2);
    }
    exchange(&switch, &mut friend, &mut guarded, 20);
    exchange(&switch, &mut c, &mut d, 20);
}

/// Rows: A14, C13.
#[test]
fn a_message_of_the_wrong_size_ends_the_session_alone() {
    let (switch, guarded, _friend, [mut c, mut d]) = four(Answer::Page);
    let channel = guarded.frontend.session().unwrap().channel();
    channel.send(&Message::new(Request::IOTLB_MSG).words(&[1, 2]), &[]).unwrap();
    wait("the session to end", || {
        switch
            .port("guarded")
            .error
            .is_some_and(|text| text.contains("IOTLB_MSG with 16 bytes of payload instead of 32"))
    });
    exchange(&switch, &mut c, &mut d, 10);
}

/// Rows: A14, C13.
#[test]
fn a_page_that_may_not_be_touched_is_complained_of_and_parks_its_queue() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    guarded.frontend.invalidate(Gpa(REGIONS[1]), SIZE).unwrap();
    iommu(&guarded).answer(Answer::Refused);
    let frame = guarded.frame(friend.mac, 300);
    guarded.send(&frame);
    wait("the complaint", || iommu(&guarded).refusals() > 0);
    wait("the address to be named", || {
        switch.port("guarded").error.is_some_and(|text| text.contains("does not let the device use address"))
    });
    // It is said once, however often the page is asked for.
    assert!(iommu(&guarded).refusals() <= 2 * iommu(&guarded).asked());
    exchange(&switch, &mut c, &mut d, 50);
    iommu(&guarded).answer(Answer::Page);
    assert_eq!(friend.next(), frame);
    exchange(&switch, &mut friend, &mut guarded, 5);
}

/// Rows: A14, C13.
#[test]
fn memory_that_may_only_be_read_is_not_written() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    iommu(&guarded).answer(Answer::Never);
    guarded.frontend.invalidate(Gpa(REGIONS[1]), SIZE).unwrap();
    let code = guarded.frontend.map(Gpa(REGIONS[1]), SIZE, 1).unwrap();
    assert_eq!(code, 0);
    exchange(&switch, &mut guarded, &mut friend, 20);
    let asked = iommu(&guarded).asked();
    let buffers = guarded.frontend.ram().window(Gpa(REGIONS[1]), 64 * 2048).unwrap();
    let sum = || (0..64 * 2048 / 8).fold(0_u64, |sum, at| sum.rotate_left(1) ^ buffers.load_u64(8 * at));
    let before = sum();
    let to_it = friend.frame(guarded.mac, 300);
    friend.send(&to_it);
    wait("leave to write to be asked for", || iommu(&guarded).asked() > asked);
    exchange(&switch, &mut c, &mut d, 20);
    assert_eq!(sum(), before);
}

/// Rows: A14, C13.
#[test]
fn ten_thousand_mappings_that_come_and_go_harm_nobody() {
    let (switch, mut guarded, mut friend, [mut c, mut d]) = four(Answer::Page);
    introduce(&mut [&mut guarded, &mut friend, &mut c, &mut d]);
    let uva = guarded.frontend.ram().user_address(Gpa(REGIONS[1])).unwrap();
    for n in 0..10_000 {
        // No two are neighbours in memory.
        let place = uva + n * 7 % (SIZE / PAGE) * PAGE;
        let update = message(iotlb::UPDATE, (1 << 50) + 2 * n * PAGE, PAGE, place, READ_WRITE);
        assert_eq!(guarded.frontend.tell_iotlb(update).unwrap(), 0);
    }
    exchange(&switch, &mut guarded, &mut friend, 50);
    for n in 0..500 {
        guarded.frontend.invalidate(Gpa((1 << 50) + 2 * n * PAGE), PAGE).unwrap();
        exchange(&switch, &mut friend, &mut guarded, 1);
    }
    exchange(&switch, &mut c, &mut d, 10);
}

/// Rows: A14, C13.
#[test]
fn messages_before_their_time_are_refused() {
    let mut switch = switch();
    let mut plain = Station::join_with(&mut switch, "plain", 1, |config| config.protocol |= protocol::BACKEND_REQ);
    let mut friend = Station::join(&mut switch, "friend", 2);
    introduce(&mut [&mut plain, &mut friend]);
    let uva = plain.frontend.ram().user_address(Gpa(0)).unwrap();
    // Its guest has no IOMMU.
    assert_ne!(plain.frontend.tell_iotlb(message(iotlb::UPDATE, 0, PAGE, uva, READ_WRITE)).unwrap(), 0);
    let channel = plain.frontend.session().unwrap().channel();
    let not_a_socket = std::fs::File::open("/dev/null").unwrap();
    let fds = [std::os::fd::AsRawFd::as_raw_fd(&not_a_socket)];
    channel.send(&Message::new(Request::SET_BACKEND_REQ_FD).need_reply(), &fds).unwrap();
    assert_ne!(channel.reply(Request::SET_BACKEND_REQ_FD).unwrap().number().unwrap(), 0);
    exchange(&switch, &mut plain, &mut friend, 20);
}

/// Rows: A14.
#[test]
fn a_guest_without_an_iommu_is_served_as_if_the_option_were_off() {
    let mut switch = switch();
    let mut plain = Station::join(&mut switch, "plain", 1);
    let mut friend = Station::join(&mut switch, "friend", 2);
    introduce(&mut [&mut plain, &mut friend]);
    exchange(&switch, &mut plain, &mut friend, 100);
    assert_eq!((switch.count("plain", "rx_q0_iotlb_hits"), switch.count("plain", "rx_q0_iotlb_misses")), (0, 0));
    assert!(!switch.port("plain").status.contains_key("iommu"));
}

/// Rows: A7, A14.
#[test]
fn an_iommu_is_offered_where_it_was_asked_for_and_never_on_a_server_port() {
    let mut switch = Switch::new();
    let offered = |station: &Station| {
        let session = station.frontend.session().unwrap();
        (session.offered() & IOMMU_PLATFORM != 0, session.protocol() & protocol::BACKEND_REQ != 0)
    };
    let asks = |config: &mut FrontendConfig| config.protocol |= protocol::BACKEND_REQ;
    assert_eq!(offered(&Station::join_with(&mut switch, "before", 1, asks)), (false, false));
    switch.datapath().offer_iommu();
    assert_eq!(offered(&Station::join_with(&mut switch, "after", 2, asks)), (true, true));
    let socket = switch.add("server", EndpointKind::Server);
    let server = Station::plug(&socket, 3, |config| {
        asks(config);
        config.side = Side::Connect;
    });
    assert_eq!(offered(&server), (false, false));
    // Who asks all the same is told why not.
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let channel = server.frontend.session().unwrap().channel();
    let fds = [std::os::fd::AsRawFd::as_raw_fd(&ours)];
    channel.send(&Message::new(Request::SET_BACKEND_REQ_FD).need_reply(), &fds).unwrap();
    assert_ne!(channel.reply(Request::SET_BACKEND_REQ_FD).unwrap().number().unwrap(), 0);
    wait("the reason", || switch.port("server").error.is_some_and(|text| text.contains("vhost-iommu-support")));
}
