//! What a front-end or a guest does wrong is refused and named, costs its own session or queue, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rig::{
    ALL_PROTOCOL, DEADLINE, MEMORY, Memory, NEED_REPLY, PLAIN, Port, Raw, Told, VERSION_1, Vm, eventfd, memfd, message,
};
use vhost::VhostBackend;
use vhost::vhost_user::message::FrontendReq;

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
    // A VMM that gives up over it leaves the reason behind, until a guest gets through.
    drop(vm);
    port.recorder.wait_event("disconnected", "is disconnected");
    assert_eq!(port.endpoint.error().as_ref(), Some(&error));
    let mut vm = Vm::new(UnixStream::connect(&port.socket).unwrap());
    vm.start(1);
    assert_eq!(port.endpoint.error(), None);
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
    let body = (VERSION_1 | 1 << 33 | 1 << 2).to_ne_bytes();
    raw.send_with(FrontendReq::SET_FEATURES, NEED_REPLY, &body, &[]);
    assert_eq!(raw.reply_number(), 1);
    port.wait_error("accepted features that were not offered: CTRL_GUEST_OFFLOADS, IOMMU_PLATFORM");
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
fn a_request_that_was_never_offered_is_answered_no_where_an_answer_is_wanted() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    raw.send_with(FrontendReq::SET_VRING_ENDIAN, NEED_REPLY, &[0; 8], &[]);
    assert_eq!(raw.reply_number(), 1);
    port.recorder.wait_event("peer_error", "SET_VRING_ENDIAN is refused: SET_VRING_ENDIAN was never offered");
    raw.settle();
    raw.send(FrontendReq::GET_INFLIGHT_FD, &[0; 20]);
    raw.wait_hang_up();
    port.wait_error("GET_INFLIGHT_FD was never offered");
}

#[test]
fn a_front_end_cannot_flood_the_log_with_refusals() {
    let (port, stream) = Port::connected();
    let mut raw = Raw(stream);
    raw.send_number(FrontendReq::SET_PROTOCOL_FEATURES, ALL_PROTOCOL.bits());
    for _ in 0..1000 {
        raw.send_with(FrontendReq::SET_VRING_ENDIAN, NEED_REPLY, &[0; 8], &[]);
        assert_eq!(raw.reply_number(), 1);
    }
    port.recorder.wait_event("peer_error", "further refusals in this session are not logged");
    assert!(port.recorder.events().len() < 50);
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
fn a_front_end_that_says_nothing_is_named() {
    let (port, stream) = Port::connected();
    port.wait_error("has said nothing");
    let mut raw = Raw(stream);
    raw.settle();
    assert_eq!(port.endpoint.error(), None);
}
