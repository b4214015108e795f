//! Sessions of a port with front-ends that mean well, in whatever order they speak.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ovsvhost::vhost::EndpointKind;
use ovsvhost::vhost::features::LOG_ALL;
use ovsvhost::vhost::offer::Limit;
use rig::{
    ALL_PROTOCOL, MEMORY, MRG_RXBUF, Memory, NEED_REPLY, PLAIN, PROTOCOL_FEATURES, Port, Raw, Told, VERSION_1, Vm,
    config, eventfd, memfd, message,
};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::tempdir::TempDir;

#[test]
fn a_guest_brings_the_link_up_and_its_stop_brings_it_down() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    port.wait_status("status", "connected");
    assert!(!port.endpoint.link_up());
    vm.start(1);
    assert!(port.endpoint.link_up());
    assert_eq!(port.endpoint.error(), None);
    let status = port.endpoint.status();
    let want = [
        ("mode", "server"),
        ("status", "connected"),
        ("socket", port.socket.to_str().unwrap()),
        ("features", "0x0000000140008000"),
        ("mtu", "1500"),
        ("num_of_vrings", "2"),
        ("vring_0_size", "256"),
        ("vring_1_size", "256"),
        ("n_rxq", "1"),
        ("n_txq", "1"),
        ("peer-pid", &std::process::id().to_string()),
    ];
    for (key, value) in want {
        assert_eq!(status.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!status.contains_key("waiting-for"));
    let path = port.socket.display();
    for text in [
        format!("State of queue 0 ( tx_qid 0 ) of vhost device '{path}' changed to 'enabled'"),
        format!("State of queue 1 ( rx_qid 0 ) of vhost device '{path}' changed to 'enabled'"),
    ] {
        port.recorder.wait_event("queue_state", &text);
    }
    port.recorder.wait_event("added", &format!("vHost Device '{path}' has been added on numa node "));

    assert_eq!(vm.frontend.get_vring_base(0).unwrap(), 0);
    assert!(!port.endpoint.link_up());
    port.recorder.wait_event("removed", &format!("vHost Device '{path}' has been removed"));
    assert!(!port.recorder.holds(0) && port.recorder.holds(1));
    drop(vm);
    port.wait_status("status", "disconnected");
    assert!(!port.recorder.holds(1));
}

#[test]
fn the_base_answered_is_where_the_ring_stands() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.memory.set_used_index(1, 77);
    vm.start(1);
    assert_eq!(vm.frontend.get_vring_base(1).unwrap(), 77);
    assert_eq!(vm.frontend.get_vring_base(0).unwrap(), 0);
    assert!(!port.endpoint.link_up());
}

#[test]
fn an_enable_that_comes_before_the_features_counts() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    for at in 0..2 {
        raw.send_vring(FrontendReq::SET_VRING_ENABLE, at, 1);
    }
    raw.send_number(FrontendReq::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
    raw.share_and_start(&memory);
    assert!(port.endpoint.link_up());
}

#[test]
fn without_protocol_features_a_ring_is_enabled_from_its_start() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.share_and_start(&memory);
    assert!(port.endpoint.link_up());
}

#[test]
fn with_protocol_features_a_ring_waits_to_be_enabled_and_says_so() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, PROTOCOL_FEATURES);
    raw.share_and_start(&memory);
    assert!(!port.endpoint.link_up());
    assert_eq!(port.endpoint.status()["waiting-for"], "receiveq 0 to be enabled (SET_VRING_ENABLE)");
    raw.send_vring(FrontendReq::SET_VRING_ENABLE, 0, 1);
    raw.send_vring(FrontendReq::SET_VRING_ENABLE, 1, 1);
    raw.settle();
    assert!(port.endpoint.link_up());
}

#[test]
fn messages_in_any_order_end_in_the_same_state() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.start_rings(&memory);
    raw.share(&memory);
    raw.settle();
    assert!(!port.endpoint.link_up());
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.settle();
    assert!(port.endpoint.link_up());
}

#[test]
fn a_ring_without_a_kick_descriptor_starts_too() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.share_and_start(&memory);
    raw.send_number(FrontendReq::SET_VRING_KICK, 1 | 1 << 8);
    raw.settle();
    assert!(port.endpoint.link_up());
}

#[test]
fn the_same_addresses_or_memory_sent_again_leave_a_running_ring_alone() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(1);
    port.recorder.forget();
    vm.share_memory();
    for at in 0..2 {
        vm.frontend.set_vring_addr(at, &vm.memory.vring(at)).unwrap();
        vm.frontend.set_vring_num(at, rig::SIZE).unwrap();
        vm.enable(at, true);
    }
    vm.frontend.set_features(VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES).unwrap();
    assert_eq!(port.recorder.told(), []);
}

#[test]
fn a_ring_that_moves_keeps_its_index() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.memory.set_used_index(1, 500);
    vm.start(1);
    port.recorder.forget();
    // Its new place holds the same index, as a driver that moves a ring would leave it.
    vm.memory.set_used_index(3, 500);
    vm.frontend.set_vring_addr(1, &vm.memory.vring(3)).unwrap();
    assert_eq!(port.recorder.told()[..2], [Told::Stop(1), Told::Start(1)]);
    assert_eq!(vm.frontend.get_vring_base(1).unwrap(), 500);
}

#[test]
fn a_new_call_descriptor_reaches_a_running_ring() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(1);
    port.recorder.forget();
    vm.frontend.set_vring_call(0, &eventfd()).unwrap();
    assert_eq!(port.recorder.told(), [Told::SetCall(0, true)]);
}

#[test]
fn regions_come_and_go_and_the_rings_come_back() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    assert_eq!(vm.frontend.get_max_mem_slots().unwrap(), 509);
    vm.frontend.add_mem_region(&vm.memory.info()).unwrap();
    for at in 0..2 {
        vm.set_up(at);
        vm.enable(at, true);
    }
    assert!(port.endpoint.link_up());
    let file = memfd(MEMORY);
    let mut more = vm.memory.info();
    (more.guest_phys_addr, more.userspace_addr) = (rig::GPA + MEMORY, vm.memory.uva + (1 << 30));
    more.mmap_handle = file.as_raw_fd();
    port.recorder.forget();
    vm.frontend.add_mem_region(&more).unwrap();
    assert!(port.recorder.holds(0) && port.recorder.holds(1));
    vm.frontend.remove_mem_region(&more).unwrap();
    assert!(port.recorder.holds(0) && port.recorder.holds(1));
    // The link was never told down: nothing changed for the guest.
    assert!(!port.recorder.told().contains(&Told::Link(false)) || port.endpoint.link_up());
    assert!(vm.frontend.remove_mem_region(&more).is_err());
    assert!(port.endpoint.error().unwrap().contains("no region"));
    vm.frontend.remove_mem_region(&vm.memory.info()).unwrap();
    assert!(!port.endpoint.link_up());
    assert!(!port.recorder.holds(0) && !port.recorder.holds(1));
}

/// QEMU 7.2 sends the same region for every queue pair of a device.
///
/// Rows: C5.
#[test]
fn a_region_that_every_queue_pair_announces_is_one_region_and_goes_with_the_last() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    let region = vm.memory.info();
    vm.frontend.add_mem_region(&region).unwrap();
    for at in 0..2 {
        vm.set_up(at);
        vm.enable(at, true);
    }
    vm.frontend.add_mem_region(&region).unwrap();
    assert!(port.endpoint.link_up());
    assert!(port.recorder.holds(0) && port.recorder.holds(1));
    // Other memory at the same place is a lie all the same.
    let file = memfd(MEMORY);
    let mut other = vm.memory.info();
    other.mmap_handle = file.as_raw_fd();
    assert!(vm.frontend.add_mem_region(&other).is_err());
    assert!(port.endpoint.error().unwrap().contains("overlap"));
    vm.frontend.remove_mem_region(&region).unwrap();
    assert!(port.endpoint.link_up());
    vm.frontend.remove_mem_region(&region).unwrap();
    assert!(!port.endpoint.link_up());
    assert!(!port.recorder.holds(0) && !port.recorder.holds(1));
    assert!(vm.frontend.remove_mem_region(&region).is_err());
}

#[test]
fn what_is_served_is_offered_and_nothing_else() {
    let (_port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send(FrontendReq::GET_FEATURES, &[]);
    assert_eq!(raw.reply_number(), 0x1c0_000d_7c62_ffcb);
    raw.send(FrontendReq::GET_PROTOCOL_FEATURES, &[]);
    assert_eq!(raw.reply_number(), ALL_PROTOCOL.bits());
    raw.send(FrontendReq::GET_QUEUE_NUM, &[]);
    assert_eq!(raw.reply_number(), 128);
}

#[test]
fn an_announcement_waits_for_the_link() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    let mac = [0x52, 0x54, 0, 1, 2, 3];
    raw.send(FrontendReq::SEND_RARP, &[0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.settle();
    assert!(!port.recorder.told().contains(&Told::Announce(mac)));
    raw.share_and_start(&memory);
    assert_eq!(port.recorder.told()[2..], [Told::Link(true), Told::Announce(mac)]);
    port.recorder.forget();
    raw.send(FrontendReq::SEND_RARP, &[0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    raw.settle();
    assert_eq!(port.recorder.told(), [Told::Announce(mac)]);
}

#[test]
fn an_mtu_that_differs_is_a_warning_and_no_refusal() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    for (mtu, answer) in [(9000_u64, 0), (67, 1), (70_000, 1)] {
        raw.send_with(FrontendReq::NET_SET_MTU, NEED_REPLY, &mtu.to_ne_bytes(), &[]);
        assert_eq!(raw.reply_number(), answer, "{mtu}");
    }
    raw.settle();
    let changes = port.recorder.changes();
    raw.send_with(FrontendReq::NET_SET_MTU, NEED_REPLY, &9001_u64.to_ne_bytes(), &[]);
    raw.reply();
    assert_eq!(port.recorder.changes(), changes + 1, "a new state is told once");
    raw.send_with(FrontendReq::NET_SET_MTU, NEED_REPLY, &9000_u64.to_ne_bytes(), &[]);
    raw.reply();
    assert!(port.endpoint.status()["mtu-mismatch"].starts_with("the guest was given 9000, the port has 1500"));
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn a_reset_takes_every_ring_back_and_keeps_the_memory() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(2);
    vm.frontend.reset_device().unwrap();
    assert!(!port.endpoint.link_up());
    assert!((0..4).all(|at| !port.recorder.holds(at)));
    assert_eq!(vm.frontend.get_vring_base(1).unwrap(), 0);
    vm.frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    for at in 0..2 {
        vm.set_up(at);
        vm.enable(at, true);
    }
    assert!(port.endpoint.link_up());
}

#[test]
fn a_device_status_of_zero_takes_every_ring_back() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.share_and_start(&memory);
    assert!(port.endpoint.link_up());
    raw.send_number(FrontendReq::SET_STATUS, 0);
    raw.settle();
    assert!(!port.endpoint.link_up());
    assert!(!port.recorder.holds(0) && !port.recorder.holds(1));
    raw.start_rings(&memory);
    raw.settle();
    assert!(port.endpoint.link_up());
}

#[test]
fn queues_that_are_disabled_and_enabled_are_counted() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(2);
    port.wait_status("n_rxq", "2");
    vm.enable(2, false);
    vm.enable(3, false);
    assert_eq!(port.endpoint.status()["n_rxq"], "1");
    assert_eq!(port.endpoint.status()["n_txq"], "1");
    assert!(port.endpoint.link_up());
    let path = port.socket.display();
    let text = format!("State of queue 3 ( rx_qid 1 ) of vhost device '{path}' changed to 'disabled'");
    port.recorder.wait_event("queue_state", &text);
    vm.enable(2, true);
    assert_eq!(port.endpoint.status()["n_txq"], "2");
}

#[test]
fn descriptors_come_with_whatever_piece_of_the_message_they_like() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let kick = eventfd();
    let bytes = message(FrontendReq::SET_VRING_KICK, PLAIN, &0_u64.to_ne_bytes());
    raw.0.write_all(&bytes[..3]).unwrap();
    vmm_sys_util::sock_ctrl_msg::ScmSocket::send_with_fds(&raw.0, &[&bytes[3..15]], &[kick.as_raw_fd()]).unwrap();
    raw.0.write_all(&bytes[15..]).unwrap();
    raw.settle();
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn the_end_of_a_port_gives_every_ring_back_and_closes_the_session() {
    let (port, stream) = Port::connected();
    let copy = stream.try_clone().unwrap();
    let mut vm = Vm::new(stream);
    vm.start(2);
    let Port { endpoint, recorder, socket, dir } = port;
    let begin = Instant::now();
    endpoint.shutdown();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!((0..4).all(|at| !recorder.holds(at)));
    assert!(!socket.exists());
    Raw(copy).wait_hang_up();
    drop(dir);
}

/// Rows: C2, L5.
#[test]
fn a_limit_holds_for_a_front_end_that_is_new_and_what_it_holds_back_is_refused() {
    let dir = TempDir::new_with_prefix("/tmp/ovsvhost-test-").unwrap();
    let config = config(EndpointKind::Server, &dir.as_path().join("v0"));
    config.offer.set(Limit::Mask(VERSION_1));
    let (offer, port) = (Arc::clone(&config.offer), Port::with(config, dir));
    let ask = || {
        let mut raw = Raw(UnixStream::connect(&port.socket).unwrap());
        raw.send(FrontendReq::GET_FEATURES, &[]);
        (raw.reply_number(), raw)
    };
    let (offered, mut raw) = ask();
    assert_eq!(offered, VERSION_1 | PROTOCOL_FEATURES | LOG_ALL);
    raw.send_number(FrontendReq::SET_FEATURES, VERSION_1 | MRG_RXBUF);
    port.wait_error("accepted features that were not offered: MRG_RXBUF");
    drop(raw);

    port.wait_status("status", "disconnected");
    offer.set(Limit::All);
    let (wide, raw) = ask();
    assert_ne!(wide & MRG_RXBUF, 0);
    drop(raw);
    port.wait_status("status", "disconnected");
    offer.set(Limit::Mask(VERSION_1));
    assert_eq!(ask().0, wide, "the same process is offered no less than before");
}
