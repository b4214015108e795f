// SPDX-License-Identifier: Apache-2.0
//! Guests that move in by post-copy: their memory is taken away, and comes back as the source of each test serves it.
//! Beside every one of them another pair of guests goes on exchanging frames.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ovsvhost::sys::cpu;
use ovsvhost::testing::driver::{ChainDriver, PackedDriver, SplitDriver};
use ovsvhost::testing::frontend::{FrontendConfig, MemoryMessage, Migration, Serve};
use ovsvhost::testing::memory::{Backing, RegionSpec};
use ovsvhost::testing::wire::features::{RING_PACKED, protocol};
use ovsvhost::testing::wire::{Message, Request};
use ovsvhost::vhost::EndpointKind;

use super::rig::{Switch, wait};
use super::station::{Station, StationOf};

/// The region with the rings; the other has the buffers.
const RINGS: usize = 0;

fn moves(config: &mut FrontendConfig) {
    config.protocol |= protocol::PAGEFAULT;
}

/// A switch that offers post-copy; the guest that will move, whom it talks to, and two that have nothing to do with it.
fn four<D: ChainDriver>(change: impl Fn(&mut FrontendConfig)) -> (Switch, StationOf<D>, Station, [Station; 2]) {
    let mut switch = Switch::new();
    switch.datapath().offer_postcopy().unwrap();
    let moving = StationOf::join_with(&mut switch, "moving", 1, |config| {
        moves(config);
        change(config);
    });
    let friend = Station::join(&mut switch, "friend", 2);
    let others = [Station::join(&mut switch, "c", 3), Station::join(&mut switch, "d", 4)];
    (switch, moving, friend, others)
}

/// Everybody says where it is, so that no frame is flooded from now on.
fn introduce<D: ChainDriver>(moving: &mut StationOf<D>, others: &mut [&mut Station]) {
    let frame = moving.frame([0xff; 6], 60);
    moving.send(&frame);
    for other in &mut *others {
        assert_eq!(other.next()[6..12], moving.mac);
    }
    for from in 0..others.len() {
        let frame = others[from].frame([0xff; 6], 60);
        others[from].send(&frame);
        let mac = others[from].mac;
        assert_eq!(moving.next()[6..12], mac);
        for to in (0..others.len()).filter(|&to| to != from) {
            assert_eq!(others[to].next()[6..12], mac);
        }
    }
}

/// Every one of `count` frames that one sends reaches the other.
#[track_caller]
fn exchange<A: ChainDriver, B: ChainDriver>(from: &mut StationOf<A>, to: &mut StationOf<B>, count: usize) {
    for number in 0..count {
        let frame = from.frame(to.mac, 60 + number % 1000);
        from.send(&frame);
        assert_eq!(to.next(), frame, "frame {number}");
    }
}

/// A guest that came without its buffers, and they do not come: its rings run, and its first frame waits.
struct Arrived {
    switch: Switch,
    moving: Station,
    friend: Station,
    others: [Station; 2],
    /// Where its rings stopped when it left.
    bases: Vec<u32>,
    /// What waits, for its friend.
    sent: Vec<u8>,
    source: Migration,
}

fn arrive_without_buffers() -> Arrived {
    let (switch, mut moving, mut friend, [mut c, mut d]) = four::<SplitDriver>(|_| {});
    introduce(&mut moving, &mut [&mut friend, &mut c, &mut d]);
    let bases = moving.leave();
    let sent = moving.frame(friend.mac, 500);
    moving.send(&sent);
    let source = moving.arrive(&bases, |region, _| if region == RINGS { Serve::Now } else { Serve::Never });
    switch.wait_link("moving", true);
    Arrived { switch, moving, friend, others: [c, d], bases, sent, source }
}

fn status(switch: &Switch, key: &str) -> String {
    switch.port("moving").status.get(key).cloned().unwrap_or_default()
}

/// Bytes of the moving guest's memory that its files hold.
fn held(station: &Station, region: usize) -> u64 {
    station.frontend.ram().regions()[region].file().metadata().unwrap().blocks() * 512
}

/// Frames that wait in the guest's ring while it moves, frames to it as it arrives, frames after that.
fn move_in<D: ChainDriver>(
    change: impl Fn(&mut FrontendConfig),
    policy: impl FnMut(usize, usize) -> Serve + Send + 'static,
) {
    let (switch, mut moving, mut friend, [mut c, mut d]) = four::<D>(change);
    introduce(&mut moving, &mut [&mut friend, &mut c, &mut d]);
    exchange(&mut moving, &mut friend, 5);
    exchange(&mut friend, &mut moving, 5);
    let bases = moving.leave();
    let sent: Vec<_> = (0..10).map(|number| moving.frame(friend.mac, 100 + 100 * number)).collect();
    for frame in &sent {
        moving.send(frame);
    }
    let source = moving.arrive(&bases, policy);
    exchange(&mut c, &mut d, 50);
    for frame in &sent {
        assert_eq!(friend.next(), *frame);
    }
    // Those that come before the buffers do are dropped by name, and no other way.
    let (mut arrived, to_it) = (0, 30);
    let before = switch.count("moving", "tx_drop_postcopy_wait");
    for number in 0..to_it {
        let frame = friend.frame(moving.mac, 60 + number);
        friend.send(&frame);
    }
    wait("every frame to be delivered or counted", || {
        while let Some((_, frame)) = moving.receive() {
            assert_eq!(frame[6..12], friend.mac);
            arrived += 1;
        }
        arrived + switch.count("moving", "tx_drop_postcopy_wait") - before == to_it as u64
    });
    let served = || status(&switch, "postcopy-faults-served").parse::<u64>().unwrap_or_default();
    wait("the faults to be shown", || served() > 0);
    assert_eq!(status(&switch, "postcopy"), "on");
    assert!(source.asked() >= served(), "{} asked, {} served", source.asked(), served());
    source.serve_all();
    exchange(&mut moving, &mut friend, 5);
    moving.frontend.end_postcopy().unwrap();
    drop(source);
    exchange(&mut moving, &mut friend, 40);
    exchange(&mut friend, &mut moving, 40);
    exchange(&mut d, &mut c, 50);
    assert_eq!(status(&switch, "postcopy"), "over");
    assert!(switch.port("moving").error.is_none(), "{:?}", switch.port("moving").error);
}

/// Rows: A15.
#[test]
fn a_guest_that_moves_in_page_by_page_loses_no_frame_that_is_not_counted() {
    move_in::<SplitDriver>(|_| {}, |_, _| Serve::Now);
}

/// Rows: A15.
#[test]
fn regions_that_are_added_one_by_one_come_page_by_page_too() {
    move_in::<SplitDriver>(|config| config.memory_message = MemoryMessage::Regions, |_, _| Serve::Now);
}

/// Rows: A15.
#[test]
fn pages_may_come_late_and_in_any_order() {
    move_in::<SplitDriver>(|_| {}, |_, page| Serve::After(Duration::from_millis(if page % 2 == 0 { 4 } else { 1 })));
}

/// Rows: A15, C3.
#[test]
fn packed_rings_come_page_by_page_as_well() {
    move_in::<PackedDriver>(|config| config.features |= RING_PACKED, |_, _| Serve::Now);
}

/// Rows: A9, A15.
#[test]
fn memory_of_huge_pages_comes_page_by_page() {
    let backing = Backing::Huge2M;
    if free_pages(&backing) < 2 {
        eprintln!("skipped: no free 2 MiB pages; raise vm.nr_hugepages");
        return;
    }
    let regions = RegionSpec::spread(2, backing.page_size(), &backing);
    move_in::<SplitDriver>(move |config| config.regions.clone_from(&regions), |_, _| Serve::Now);
}

fn free_pages(backing: &Backing) -> usize {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages", backing.page_size() / 1024);
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Rows: A15, C8.
#[test]
fn a_source_that_does_not_answer_stalls_its_port_alone_and_is_named() {
    let Arrived { switch, mut moving, mut friend, others: [mut c, mut d], sent, source, .. } = arrive_without_buffers();
    let to_it = friend.frame(moving.mac, 60);
    friend.send(&to_it);
    wait("a frame to it to be dropped by name", || switch.count("moving", "tx_drop_postcopy_wait") == 1);
    exchange(&mut c, &mut d, 200);
    exchange(&mut friend, &mut c, 50);
    wait("the page to be named", || switch.port("moving").error.is_some_and(|text| text.contains("does not come")));
    assert!(status(&switch, "postcopy-pages-missing").parse::<u64>().unwrap() > 0);
    exchange(&mut d, &mut c, 200);
    source.serve_all();
    assert_eq!(friend.next(), sent);
    // A frame to a buffer that is not there yet is dropped after a moment.
    wait("every page to come", || status(&switch, "postcopy-pages-missing") == "0");
    exchange(&mut friend, &mut moving, 5);
    wait("nothing to be wrong any more", || switch.port("moving").error.is_none());
}

/// The cores that this process's thread of that name may run on.
fn cores_of(thread: &str) -> Vec<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    // One may end while it is looked at.
    let is_it = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end().starts_with(thread))
    };
    let task = tasks.into_iter().find(is_it).unwrap_or_else(|| panic!("there is no thread {thread}"));
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let ranges = list.trim().split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap()).collect()
}

/// Rows: A15, C8.
#[test]
fn who_touches_missing_pages_keeps_off_the_poll_threads_core() {
    let cores = cpu::allowed_cpus().unwrap();
    if cores.len() < 2 {
        eprintln!("skipped: one core; there is none to keep to");
        return;
    }
    let arrived = arrive_without_buffers();
    let polled = cores_of("pmd-c");
    assert_eq!(polled.len(), 1);
    let others: Vec<_> = cores.into_iter().filter(|core| !polled.contains(core)).collect();
    wait("the thread to be elsewhere", || cores_of("fault-moving") == others);
    drop(arrived);
}

/// Rows: A15, C8.
#[test]
fn memory_that_is_taken_away_after_it_came_is_zeroes_and_puts_no_poll_thread_to_sleep() {
    let (switch, mut moving, mut friend, [mut c, mut d]) = four::<SplitDriver>(|_| {});
    introduce(&mut moving, &mut [&mut friend, &mut c, &mut d]);
    let bases = moving.leave();
    let is_willing = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_willing);
    let policy = move |_, _| if asked.load(Ordering::Acquire) { Serve::Now } else { Serve::Never };
    let source = moving.arrive(&bases, policy);
    source.serve_all();
    wait("every page to come", || status(&switch, "postcopy-pages-missing") == "0");
    exchange(&mut friend, &mut moving, 5);
    is_willing.store(false, Ordering::Release);
    moving.punch_buffers();
    assert_eq!(held(&moving, 1), 0);
    exchange(&mut c, &mut d, 50);
    // The page that the frame is written into is a new one, without a word to the source.
    let asked = source.asked();
    exchange(&mut friend, &mut moving, 1);
    assert_eq!((held(&moving, 1), source.asked()), (4096, asked));
    exchange(&mut d, &mut c, 50);
    assert!(switch.port("moving").error.is_none(), "{:?}", switch.port("moving").error);
    drop(source);
}

/// Rows: A15, C8.
#[test]
fn a_front_end_that_goes_in_mid_migration_leaves_its_memory_as_it_was_and_may_come_back() {
    let Arrived { switch, mut moving, mut friend, others: [mut c, mut d], bases, sent, source } =
        arrive_without_buffers();
    wait("the switch to ask for a buffer", || source.asked() > 0 && switch.port("moving").error.is_some());
    moving.frontend.hang_up();
    switch.wait_link("moving", false);
    exchange(&mut c, &mut d, 50);
    // A page of zeroes would be in the guest's way when its own comes.
    assert_eq!(held(&moving, 1), 0);
    source.serve_all();
    moving.reconnect();
    drop(source);
    moving.resume(&bases);
    assert_eq!(friend.next(), sent);
    exchange(&mut friend, &mut moving, 40);
}

/// Rows: A13, A15, C8.
#[test]
fn a_front_end_that_comes_back_in_mid_migration_waits_for_the_rest_of_its_memory() {
    let Arrived { switch, mut moving, mut friend, others: [mut c, mut d], bases, sent, source } =
        arrive_without_buffers();
    moving.frontend.hang_up();
    switch.wait_link("moving", false);
    moving.reconnect();
    // As QEMU, it says no word of a migration.
    moving.resume(&bases);
    wait("what it waits for to be shown", || status(&switch, "waiting-for").contains("the rest of the guest's memory"));
    exchange(&mut c, &mut d, 50);
    assert_eq!(held(&moving, 1), 0);
    source.serve_all();
    switch.wait_link("moving", true);
    assert_eq!(friend.next(), sent);
    exchange(&mut friend, &mut moving, 40);
    // It is memory like any other now: a hole in it is one.
    moving.frontend.hang_up();
    switch.wait_link("moving", false);
    moving.punch_buffers();
    drop(source);
    moving.reconnect();
    moving.resume(&[moving.rx.ring().used_index(), moving.tx.ring().used_index()].map(u32::from));
    switch.wait_link("moving", true);
}

/// Rows: A13, A15.
#[test]
fn a_front_end_that_comes_back_says_that_the_rest_of_its_memory_came() {
    let Arrived { switch, mut moving, bases, source, .. } = arrive_without_buffers();
    moving.frontend.hang_up();
    switch.wait_link("moving", false);
    moving.reconnect();
    moving.resume(&bases);
    assert!(!switch.port("moving").link_up);
    moving.frontend.end_postcopy().unwrap();
    switch.wait_link("moving", true);
    drop(source);
}

/// Rows: A15.
#[test]
fn every_message_is_answered_while_the_pages_of_the_rings_are_missing() {
    let (mut switch, mut moving, _friend, [mut c, mut d]) = four::<SplitDriver>(|_| {});
    let bases = moving.leave();
    // The front-end waits for an answer to each message as it starts.
    let source = moving.arrive(&bases, |_, _| Serve::Never);
    wait("what it waits for to be shown", || status(&switch, "waiting-for").contains("receiveq 0 to come"));
    assert_eq!(moving.frontend.stop_rings().unwrap(), bases);
    exchange(&mut c, &mut d, 20);
    switch.delete("moving");
    assert!(switch.datapath().events().iter().all(|event| event.kind != "kernel_error"));
    assert_eq!((held(&moving, 0), held(&moving, 1)), (0, 0));
    drop(source);
}

/// Rows: A15.
#[test]
fn an_end_that_is_told_too_early_frees_everybody() {
    let Arrived { switch, mut moving, others: [mut c, mut d], source, .. } = arrive_without_buffers();
    moving.frontend.end_postcopy().unwrap();
    // By the front-end's word the buffers are what the file holds: zeroes.
    moving.wait_sent();
    exchange(&mut c, &mut d, 50);
    assert!(switch.port("moving").link_up);
    drop(source);
}

/// Rows: A7, A15.
#[test]
fn post_copy_is_offered_where_it_was_asked_for_and_never_on_a_server_port() {
    let mut switch = Switch::new();
    let agreed = |station: &Station| station.frontend.session().unwrap().protocol() & protocol::PAGEFAULT != 0;
    let before = Station::join_with(&mut switch, "before", 1, moves);
    assert!(!agreed(&before));
    switch.datapath().offer_postcopy().unwrap();
    let after = Station::join_with(&mut switch, "after", 2, moves);
    assert!(agreed(&after));
    let socket = switch.add("server", EndpointKind::Server);
    let server = Station::plug(&socket, 3, |config| {
        moves(config);
        config.side = ovsvhost::testing::frontend::Side::Connect;
    });
    assert!(!agreed(&server));
    // Who asks all the same gets an answer without a descriptor.
    let channel = server.frontend.session().unwrap().channel();
    assert!(channel.ask(&Message::new(Request::POSTCOPY_ADVISE)).unwrap().file.is_none());
    let said = || switch.port("server").error.unwrap_or_default();
    wait("the reason", || said().contains("vhost-postcopy-support"));
}

/// Rows: A15, C13.
#[test]
fn steps_of_a_migration_out_of_order_are_refused_and_harm_nobody() {
    let (_switch, mut moving, mut friend, [mut c, mut d]) = four::<SplitDriver>(|_| {});
    let channel = moving.frontend.session().unwrap().channel();
    let ask = |request| {
        channel.send(&Message::new(request).need_reply(), &[]).unwrap();
        channel.reply(request).unwrap()
    };
    assert_ne!(ask(Request::POSTCOPY_LISTEN).number().unwrap(), 0);
    assert_ne!(ask(Request::POSTCOPY_END).number().unwrap(), 0);
    assert!(ask(Request::POSTCOPY_ADVISE).file.is_some());
    assert!(ask(Request::POSTCOPY_ADVISE).file.is_none());
    // Its memory is here and in use.
    assert_ne!(ask(Request::POSTCOPY_LISTEN).number().unwrap(), 0);
    assert_eq!(ask(Request::POSTCOPY_END).number().unwrap(), 0);
    introduce(&mut moving, &mut [&mut friend, &mut c, &mut d]);
    exchange(&mut moving, &mut friend, 10);
}
