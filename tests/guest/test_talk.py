"""Two virtual machines exchange packets: every QEMU release, port type and order of appearance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.traffic import address, copy_file, ping

if TYPE_CHECKING:
    from ovsvhost.testing.pair import Pair

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

_PINGS = 20


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_A8_A12_L2_guests_ping_each_other_without_loss(pair: Pair, family: str) -> None:
    seen = ping(pair.first, getattr(pair.target, family), count=_PINGS, interval_s=0.05)
    assert seen.received == seen.sent == _PINGS


@pytest.mark.parametrize("size", [0, 1400, 4000], ids=["empty", "one-frame", "fragments"])
def test_pings_of_every_size_are_answered(pair: Pair, size: int) -> None:
    assert ping(pair.second, address(1).ipv4, count=5, size=size).received == 5


@pytest.mark.long
@pytest.mark.parametrize("size_mib", [8, pytest.param(64, marks=pytest.mark.soak)])
def test_A9_B6_file_arrives_byte_for_byte(pair: Pair, size_mib: int) -> None:
    copy = copy_file(pair.first, pair.second, address(1).ipv4, size_mib=size_mib)
    assert copy.size == size_mib << 20
    assert copy.received == copy.size
    assert copy.sha256_received == copy.sha256_sent


@pytest.mark.long
def test_file_arrives_byte_for_byte_over_ipv6(pair: Pair) -> None:
    copy = copy_file(pair.second, pair.first, pair.target.ipv6, size_mib=4)
    assert copy.intact


def test_B1_B2_port_says_that_its_guest_is_there(pair: Pair) -> None:
    for port in pair.ports:
        pair.switch.wait_link(port)
        assert pair.switch.column(port, "error") == "[]"
        for counter in ("rx_packets", "tx_packets"):
            assert pair.switch.wait_statistic(port, counter) > 0


def test_B3_switch_learned_where_both_guests_are(pair: Pair) -> None:
    ping(pair.first, pair.target.ipv4, count=1)
    learned = pair.switch.appctl("fdb/show", "br0")
    assert "52:54:00:00:00:01" in learned
    assert "52:54:00:00:00:02" in learned
