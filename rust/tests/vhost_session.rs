//! Sessions of a port, driven by the `vhost` crate's own front-end and by bare bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rig::{
    ALL_PROTOCOL, DEADLINE, MEMORY, MRG_RXBUF, Memory, NEED_REPLY, PLAIN, PROTOCOL_FEATURES, Port, Raw, Told,
    VERSION_1, Vm, eventfd, memfd, message,
};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;

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
    share_and_start(&mut raw, &memory);
    assert!(port.endpoint.link_up());
}

#[test]
fn without_protocol_features_a_ring_is_enabled_from_its_start() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    share_and_start(&mut raw, &memory);
    assert!(port.endpoint.link_up());
}

#[test]
fn with_protocol_features_a_ring_waits_to_be_enabled_and_says_so() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, PROTOCOL_FEATURES);
    share_and_start(&mut raw, &memory);
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
    start_rings(&mut raw, &memory);
    share(&mut raw, &memory);
    raw.settle();
    assert!(!port.endpoint.link_up());
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    raw.settle();
    assert!(port.endpoint.link_up());
}

/// Shares memory, then starts the first pair of rings, all without asking for answers.
fn share_and_start(raw: &mut Raw, memory: &Memory) {
    share(raw, memory);
    start_rings(raw, memory);
    raw.settle();
}

fn share(raw: &mut Raw, memory: &Memory) {
    let mut body = [1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
    body.extend(region(memory));
    raw.send_with(FrontendReq::SET_MEM_TABLE, PLAIN, &body, &[memory.file.as_raw_fd()]);
}

fn region(memory: &Memory) -> Vec<u8> {
    [rig::GPA, MEMORY, memory.uva, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn start_rings(raw: &mut Raw, memory: &Memory) {
    for at in 0..2_u32 {
        raw.send_vring(FrontendReq::SET_VRING_NUM, at, u32::from(rig::SIZE));
        let vring = memory.vring(usize::try_from(at).unwrap());
        let mut body = [at.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
        for word in [vring.desc_table_addr, vring.used_ring_addr, vring.avail_ring_addr, 0] {
            body.extend(word.to_ne_bytes());
        }
        raw.send(FrontendReq::SET_VRING_ADDR, &body);
        let kick = eventfd();
        raw.send_with(FrontendReq::SET_VRING_KICK, PLAIN, &u64::from(at).to_ne_bytes(), &[kick.as_raw_fd()]);
    }
}

#[test]
fn a_ring_without_a_kick_descriptor_starts_too() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let memory = Memory::new(libc::MAP_SHARED);
    raw.send_number(FrontendReq::SET_FEATURES, 0);
    share_and_start(&mut raw, &memory);
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

#[test]
fn memory_that_a_stranger_could_pull_away_is_refused_and_named() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(OwnedFd::from(pipe));
    let disk = File::open(std::env::current_exe().unwrap()).unwrap();
    let short = memfd(4096);
    for (file, part) in [(pipe, "not a file"), (disk, "allow-file-memory"), (short, "has 4096 bytes")] {
        let (port, stream) = Port::connected();
        let vm = Vm::new(stream);
        let mut info = vm.memory.info();
        info.mmap_handle = file.as_raw_fd();
        assert!(vm.frontend.set_mem_table(&[info]).is_err());
        assert!(port.endpoint.error().unwrap().contains(part), "{:?}", port.endpoint.error());
        port.recorder.wait_event("peer_error", "SET_MEM_TABLE is refused: ");
        // The session lives, and better memory cures it.
        vm.share_memory();
        assert_eq!(port.endpoint.error(), None);
    }
}

#[test]
fn memory_that_the_vmm_keeps_private_is_named() {
    let (port, stream) = Port::connected();
    let vm = Vm::with(stream, Memory::new(libc::MAP_PRIVATE));
    assert!(vm.frontend.set_mem_table(&[vm.memory.info()]).is_err());
    let error = port.endpoint.error().unwrap();
    assert!(error.contains("private") && error.contains("share=on"), "{error}");
}

#[test]
fn a_queue_started_without_any_memory_is_named() {
    let (port, stream) = Port::connected();
    let vm = Vm::new(stream);
    vm.set_up(0);
    let error = port.endpoint.error().unwrap();
    assert!(error.contains("shared no memory") && error.contains("share=on"), "{error}");
    vm.share_memory();
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn a_kick_call_or_err_that_is_no_eventfd_is_refused_and_named() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    let null = File::open("/dev/null").unwrap();
    for (request, what) in [
        (FrontendReq::SET_VRING_CALL, "call"),
        (FrontendReq::SET_VRING_ERR, "err"),
        (FrontendReq::SET_VRING_KICK, "kick"),
    ] {
        raw.send_with(request, NEED_REPLY, &0_u64.to_ne_bytes(), &[null.as_raw_fd()]);
        assert_eq!(raw.reply_number(), 1);
        port.recorder.wait_event("peer_error", &format!("receiveq 0: its {what} descriptor is not an eventfd"));
    }
    port.wait_error("its kick descriptor is not an eventfd");
    let kick = eventfd();
    raw.send_with(FrontendReq::SET_VRING_KICK, NEED_REPLY, &0_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
    assert_eq!(raw.reply_number(), 0);
}

#[test]
fn a_ring_outside_the_shared_memory_stops_that_ring_only() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(1);
    vm.set_up(2);
    let mut elsewhere = vm.memory.vring(3);
    elsewhere.desc_table_addr = vm.memory.uva + MEMORY;
    vm.frontend.set_vring_num(3, rig::SIZE).unwrap();
    vm.frontend.set_vring_addr(3, &elsewhere).unwrap();
    vm.frontend.set_vring_err(3, &vm.errs[3]).unwrap();
    vm.enable(3, true);
    vm.frontend.set_vring_kick(3, &vm.kicks[3]).unwrap();
    let error = port.endpoint.error().unwrap();
    assert!(error.starts_with("transmitq 1: descriptor table at") && error.contains("outside"), "{error}");
    assert_eq!(vm.errs[3].read().unwrap(), 1);
    assert!(port.endpoint.link_up());
    vm.frontend.set_vring_addr(3, &vm.memory.vring(3)).unwrap();
    assert_eq!(port.endpoint.error(), None);
    assert!(port.recorder.holds(3));
}

#[test]
fn a_ring_that_a_poll_thread_found_broken_is_stopped_and_told() {
    let (port, stream) = Port::connected();
    let mut vm = Vm::new(stream);
    vm.start(2);
    port.endpoint.fail_vring(3, "a descriptor chain loops".into());
    port.recorder.wait_told(&Told::Stop(3));
    assert_eq!(port.wait_error("transmitq 1: "), "transmitq 1: a descriptor chain loops");
    port.recorder.wait_event("peer_error", "v0: transmitq 1: a descriptor chain loops");
    assert_eq!(vm.errs[3].read().unwrap(), 1);
    assert!(port.endpoint.link_up());
    assert!(port.recorder.holds(0) && port.recorder.holds(1) && port.recorder.holds(2));
    // A report about a ring that is not running any more hits nobody.
    port.endpoint.fail_vring(3, "again".into());
    vm.set_up(3);
    assert!(port.recorder.holds(3));
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn features_that_were_not_offered_are_refused_and_named() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    let body = (VERSION_1 | 1 << 34 | 1 << 11).to_ne_bytes();
    raw.send_with(FrontendReq::SET_FEATURES, NEED_REPLY, &body, &[]);
    assert_eq!(raw.reply_number(), 1);
    port.wait_error("accepted features that were not offered: HOST_TSO4, RING_PACKED");
    // A driver learns it from the status: FEATURES_OK does not stick.
    raw.send_number(FrontendReq::SET_STATUS, 1 | 2 | 8);
    raw.send(FrontendReq::GET_STATUS, &[]);
    assert_eq!(raw.reply_number(), 1 | 2);
    raw.send_number(FrontendReq::SET_FEATURES, VERSION_1);
    raw.send_number(FrontendReq::SET_STATUS, 1 | 2 | 8);
    raw.send(FrontendReq::GET_STATUS, &[]);
    assert_eq!(raw.reply_number(), 1 | 2 | 8);
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn a_front_end_that_lives_on_after_it_hung_up_over_the_offer_is_named() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.settle();
    drop(raw);
    let error = port.wait_error("hung up after it saw the features on offer");
    assert!(error.contains("MRG_RXBUF"), "{error}");
    // It stays until a link is up, then it is history.
    let stream = UnixStream::connect(&port.socket).unwrap();
    let mut vm = Vm::new(stream);
    assert!(port.endpoint.error().is_some());
    vm.start(1);
    assert_eq!(port.endpoint.error(), None);
}

#[test]
fn what_is_served_is_offered_and_nothing_else() {
    let (_port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send(FrontendReq::GET_FEATURES, &[]);
    assert_eq!(raw.reply_number(), 0x1_7862_800b);
    raw.send(FrontendReq::GET_PROTOCOL_FEATURES, &[]);
    assert_eq!(raw.reply_number(), ALL_PROTOCOL.bits());
    raw.send(FrontendReq::GET_QUEUE_NUM, &[]);
    assert_eq!(raw.reply_number(), 128);
}

#[test]
fn a_request_that_was_never_offered_is_answered_no_where_an_answer_is_wanted() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    raw.send_with(FrontendReq::SET_LOG_BASE, NEED_REPLY, &[0; 16], &[]);
    assert_eq!(raw.reply_number(), 1);
    port.recorder.wait_event("peer_error", "SET_LOG_BASE is refused: SET_LOG_BASE was never offered");
    raw.settle();
    raw.send(FrontendReq::GET_INFLIGHT_FD, &[0; 20]);
    raw.wait_hang_up();
    port.wait_error("GET_INFLIGHT_FD was never offered");
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
    share_and_start(&mut raw, &memory);
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
    share_and_start(&mut raw, &memory);
    assert!(port.endpoint.link_up());
    raw.send_number(FrontendReq::SET_STATUS, 0);
    raw.settle();
    assert!(!port.endpoint.link_up());
    assert!(!port.recorder.holds(0) && !port.recorder.holds(1));
    start_rings(&mut raw, &memory);
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
fn garbage_ends_the_session_and_is_named() {
    let cases: [(&[u8], &str); 5] = [
        (&[0xff; 64], "request 4294967295 with flags 0xffffffff"),
        (&message(FrontendReq::GET_FEATURES, 4 | 1, &[]), "GET_FEATURES with flags 0x5"),
        (&message(FrontendReq::SET_FEATURES, PLAIN, &[0; 4]), "SET_FEATURES with 4 bytes of payload instead of 8"),
        (&message(FrontendReq::SET_VRING_NUM, PLAIN, &[0xff; 8]), "SET_VRING_NUM for vring 4294967295"),
        (&message(FrontendReq::SET_MEM_TABLE, PLAIN, &[1, 0, 0, 0, 0, 0, 0, 0]), "instead of 40"),
    ];
    for (bytes, part) in cases {
        let (port, stream) = Port::connected();
        let mut raw = Raw(stream);
        raw.0.write_all(bytes).unwrap();
        raw.wait_hang_up();
        port.wait_error(part);
        port.recorder.wait_event("peer_error", part);
        // The next front-end is served as if nothing had been.
        let mut vm = Vm::new(UnixStream::connect(&port.socket).unwrap());
        vm.start(1);
        assert_eq!(port.endpoint.error(), None);
    }
}

#[test]
fn a_huge_payload_is_refused_before_it_is_read() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let mut head = message(FrontendReq::SET_MEM_TABLE, PLAIN, &[]);
    head[8..].copy_from_slice(&u32::MAX.to_ne_bytes());
    raw.0.write_all(&head).unwrap();
    raw.wait_hang_up();
    port.wait_error("4294967295 bytes of payload, more than the 4096 accepted");
}

#[test]
fn a_hang_up_in_the_middle_of_a_message_is_named() {
    let whole = message(FrontendReq::SET_FEATURES, PLAIN, &[0; 8]);
    for (cut, part) in [(5, "a message header (5 of 12 bytes)"), (14, "SET_FEATURES (2 of 8 bytes of payload)")] {
        let (port, mut stream) = Port::connected();
        stream.write_all(&whole[..cut]).unwrap();
        drop(stream);
        port.wait_error(&format!("it hung up in the middle of {part}"));
    }
}

#[test]
fn a_front_end_that_stops_in_the_middle_of_a_message_is_dropped() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let begin = Instant::now();
    raw.0.write_all(&message(FrontendReq::SET_FEATURES, PLAIN, &[0; 8])[..15]).unwrap();
    raw.wait_hang_up();
    assert!(begin.elapsed() >= Duration::from_secs(4));
    port.wait_error("it stopped in the middle of SET_FEATURES (3 of 8 bytes of payload)");
}

#[test]
fn a_front_end_that_never_reads_its_answers_is_dropped() {
    let (port, stream) = Port::connected();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let mut raw = Raw(stream);
    let question = message(FrontendReq::GET_FEATURES, PLAIN, &[]);
    // Until the socket's buffers are full both ways, and the back-end loses patience.
    while raw.0.write_all(&question).is_ok() {}
    port.wait_error("it did not read an answer");
}

#[test]
fn descriptors_of_a_refused_message_are_closed() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    let (mut reader, writer) = std::io::pipe().unwrap();
    raw.send_with(FrontendReq::GET_FEATURES, PLAIN, &[], &[writer.as_raw_fd(), writer.as_raw_fd()]);
    drop(writer);
    raw.wait_hang_up();
    port.wait_error("GET_FEATURES with 2 file descriptors instead of 0");
    // The end of the pipe says that nobody holds its other side any more.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
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

#[test]
fn a_front_end_that_says_nothing_is_named() {
    let (port, stream) = Port::connected();
    port.wait_error("has said nothing");
    let mut raw = Raw(stream);
    raw.settle();
    assert_eq!(port.endpoint.error(), None);
}
