"""The switch or a guest dies and comes back; the other side goes on without being touched."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import PingStream, Stream, address, bring_up, copy_file, longest_gap_s, ping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(600)]

# From the last answer before the kill to the first one after it, so it includes the start of the new process.
_RESUME_S = 3.0
# What else the machine does shall not decide: the best of so many is judged.
_ATTEMPTS = 5


def _resume_limit_s(pair: Pair) -> float:
    # Where the switch made the socket, QEMU knocks again only every reconnect= seconds.
    return _RESUME_S if pair.setting.type == "dpdkvhostuserclient" else _RESUME_S + pair.first.nics[0].reconnect_s


@pytest.fixture
def known_neighbours(pair: Pair) -> Iterator[None]:
    """Each guest knows the other's hardware address for good.

    QEMU takes the guests' links down while the switch is away, and Linux forgets neighbours over that; its next
    question for one comes on a timer of a second. The gap would be a whole number of those, whatever the switch does.
    """
    peers = [(pair.first, address(2).ipv4, pair.second), (pair.second, address(1).ipv4, pair.first)]
    for guest, host, peer in peers:
        guest.run(f"arp -s {host} {peer.nics[0].mac}")
    yield
    for guest, host, _ in peers:
        guest.run(f"arp -d {host}")


@pytest.mark.usefixtures("known_neighbours")
def test_A13_C6_traffic_resumes_after_the_switch_was_killed_under_it(pair: Pair) -> None:
    limit_s = _resume_limit_s(pair)
    gaps_s: list[float] = []
    while len(gaps_s) < _ATTEMPTS and not any(gap_s <= limit_s for gap_s in gaps_s):
        stream = PingStream(pair.first, pair.target.ipv4)
        stream.wait_answers(10)
        pair.switch.kill()
        pair.switch.start(wait=False)
        stream.wait_answers(10)
        gaps_s.append(longest_gap_s(stream.stop()))
    assert min(gaps_s) <= limit_s


def test_A13_file_arrives_byte_for_byte_after_a_restart(pair: Pair) -> None:
    pair.switch.kill()
    pair.switch.start()
    pair.wait_reachable()
    assert copy_file(pair.second, pair.first, pair.target.ipv4, size_mib=4).intact


def test_A13_switch_killed_in_the_middle_of_a_copy_leaves_the_copy_intact(pair: Pair) -> None:
    stream = Stream(pair.first, pair.second, address(1).ipv4, size_mib=8)
    pair.switch.kill()
    pair.switch.start()
    assert stream.intact()


def test_A13_traffic_resumes_after_the_switch_was_stopped_and_started(pair: Pair) -> None:
    assert pair.switch.stop() == 0
    assert ping(pair.first, pair.target.ipv4, count=1).received == 0
    pair.switch.start()
    pair.wait_reachable()
    for port in pair.ports:
        pair.switch.wait_link(port)


def test_A13_guest_that_was_killed_and_booted_again_is_reachable(pair: Pair) -> None:
    pair.second.kill()
    pair.switch.wait_link(pair.ports[1], "down")
    assert pair.switch.column(pair.ports[0], "link_state") == "up"
    pair.guests[1] = pair.guest(2).start()
    bring_up(pair.second, 2)
    pair.wait_reachable()
    pair.switch.wait_link(pair.ports[1])


def test_L6_port_deleted_under_traffic_and_added_again_serves_the_same_guest(pair: Pair) -> None:
    stream = PingStream(pair.first, pair.target.ipv4)
    stream.wait_answers(5)
    pair.switch.vsctl("del-port", "br0", pair.ports[1])
    assert pair.second.running
    assert pair.switch.column(pair.ports[0], "link_state") == "up"
    pair.add_port(pair.ports[1])
    stream.wait_answers(5)
    stream.stop()
    pair.switch.wait_link(pair.ports[1])


@pytest.fixture(
    scope="module", params=[("10.0", "off"), ("7.2", "on")], ids=["qemu-10.0", "qemu-7.2-without-indirect-tables"]
)
def packed_pair(request: pytest.FixtureRequest, guest_image: GuestImage) -> Iterator[Pair]:
    """Two guests on packed rings, of which nothing in the guests says where they stand."""
    version, direct = request.param
    options = {"packed": "on", "indirect_desc": "off" if direct == "on" else "on"}
    setting = Setting(qemu=find_qemu(version), nic_options=options)
    with (
        tempfile.TemporaryDirectory(prefix="ov-") as folder,
        Pair(setting, Path(folder), guest_image) as pair,
    ):
        pair.start()
        for guest in pair.guests:
            # VIRTIO_F_RING_PACKED
            assert guest.run("cat /sys/class/net/eth0/device/features").strip()[34] == "1"
        yield pair


@pytest.mark.rows("A13", "C3")
def test_C3_guests_on_packed_rings_go_on_after_the_switch_was_killed_under_them(packed_pair: Pair) -> None:
    for _ in range(2):
        stream = PingStream(packed_pair.first, packed_pair.target.ipv4)
        stream.wait_answers(10)
        packed_pair.switch.kill()
        packed_pair.switch.start(wait=False)
        stream.wait_answers(10)
        stream.stop()
    packed_pair.wait_reachable()


@pytest.mark.rows("A13", "C3")
def test_C3_copy_over_packed_rings_survives_the_switch(packed_pair: Pair) -> None:
    first, second = packed_pair.first, packed_pair.second
    first.run("dd if=/dev/urandom of=/var/www/long bs=1M count=8 2>/dev/null; pidof httpd || httpd -h /var/www")
    before = first.run("sha256sum </var/www/long").split()[0]
    job = second.spawn(f"printf 'GET /long HTTP/1.0\\r\\n\\r\\n' | nc 10.0.0.1 80 | tail -c {8 << 20} | sha256sum")
    for _ in range(2):
        packed_pair.switch.kill()
        packed_pair.switch.start()
    after = job.wait(timeout_s=120).split()[0]
    first.run("rm /var/www/long")
    assert after == before


@pytest.mark.rows("C3")
def test_C3_guests_on_packed_rings_go_on_after_the_switch_was_stopped_or_a_port_deleted(packed_pair: Pair) -> None:
    assert packed_pair.switch.stop() == 0
    packed_pair.switch.start()
    packed_pair.wait_reachable()
    packed_pair.switch.vsctl("del-port", "br0", packed_pair.ports[1])
    packed_pair.add_port(packed_pair.ports[1])
    packed_pair.wait_reachable()


@pytest.mark.rows("C3")
def test_C3_guest_on_packed_rings_that_was_rebooted_while_the_switch_was_away_is_reachable(packed_pair: Pair) -> None:
    packed_pair.switch.kill()
    packed_pair.second.kill()
    packed_pair.switch.start()
    packed_pair.guests[1] = packed_pair.guest(2).start()
    bring_up(packed_pair.second, 2)
    packed_pair.wait_reachable()
