"""What the kernel tells of network devices: bytes to values, and the real socket."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.nic.links import LinkWatch
from ovsvhost.nic.rtnetlink import Done, Gone, Link, dump_request, messages

NEWLINK, DELLINK, DONE, ERROR = 16, 17, 3, 2
ADDRESS, IFNAME, MTU = 1, 3, 4
UP, RUNNING = 0x1, 0x40
DUMP_INTR = 0x10


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body + bytes(-len(body) % 4)


def link(ifindex: int, flags: int, *attributes: bytes, family: int = socket.AF_UNSPEC) -> bytes:
    return struct.pack("=BxHiII", family, 1, ifindex, flags, 0) + b"".join(attributes)


ETH0 = link(
    7,
    UP | RUNNING,
    attribute(IFNAME, b"eth0\0"),
    attribute(MTU, struct.pack("=I", 9000)),
    attribute(ADDRESS, bytes.fromhex("0200000000ff")),
)


def test_a_new_link_is_read_with_its_name_address_mtu_and_state() -> None:
    assert list(messages(message(NEWLINK, ETH0))) == [Link(7, "eth0", "02:00:00:00:00:ff", 9000, True, True)]


def test_a_link_is_up_when_somebody_set_it_up_and_there_is_a_signal() -> None:
    for flags in (0, UP, RUNNING, UP | RUNNING):
        (told,) = messages(message(NEWLINK, link(1, flags, attribute(IFNAME, b"e\0"))))
        assert isinstance(told, Link)
        assert told.is_up == (flags == UP | RUNNING)


def test_a_deleted_link_is_gone_by_its_number() -> None:
    assert list(messages(message(DELLINK, ETH0))) == [Gone(7)]


def test_a_device_that_leaves_a_bridge_is_not_gone() -> None:
    left = link(7, UP, attribute(IFNAME, b"eth0\0"), family=socket.AF_BRIDGE)
    assert list(messages(message(DELLINK, left))) == []


def test_several_messages_of_one_datagram_are_read_in_order() -> None:
    data = message(NEWLINK, ETH0) + message(DELLINK, ETH0) + message(DONE, bytes(4))
    assert list(messages(data)) == [Link(7, "eth0", "02:00:00:00:00:ff", 9000, True, True), Gone(7), Done()]


def test_a_dump_during_which_something_changed_says_so() -> None:
    data = message(NEWLINK, ETH0, DUMP_INTR) + message(DONE, bytes(4))
    assert list(messages(data))[-1] == Done(torn=True)


def test_a_refused_dump_has_the_kernels_number() -> None:
    assert list(messages(message(ERROR, struct.pack("=i", -1) + bytes(16)))) == [Done(errno=1)]


@given(st.integers(0, len(ETH0) + 15))
def test_a_message_that_is_cut_short_is_not_guessed(length: int) -> None:
    assert list(messages(message(NEWLINK, ETH0)[:length])) == []


@given(st.binary())
def test_any_bytes_end_the_reading_without_a_value_of_the_wrong_kind(data: bytes) -> None:
    assert all(isinstance(found, Link | Gone | Done) for found in messages(data))


@given(st.binary())
def test_any_body_of_a_link_is_read_or_passed_over(body: bytes) -> None:
    for found in messages(message(NEWLINK, body)):
        assert isinstance(found, Link)
        assert found.name


def test_the_request_asks_for_every_device() -> None:
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", dump_request(3))
    assert (length, kind, flags, sequence, port) == (32, 18, 0x301, 3, 0)


def test_this_machines_loopback_is_known_and_nothing_changes_by_itself() -> None:
    watch = LinkWatch()
    try:
        assert watch.links["lo"].ifindex == socket.if_nametoindex("lo")
        before = watch.links["lo"]
        watch.run()
        assert watch.links["lo"] == before
    finally:
        watch.close()
