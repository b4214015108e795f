"""The number of queues follows the guest, at connect and while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.traffic import ping

if TYPE_CHECKING:
    from ovsvhost.testing.pair import Pair

pytestmark = [pytest.mark.guest, pytest.mark.multiqueue, pytest.mark.timeout(600)]


def _wait_queues(pair: Pair, port: str, count: int) -> None:
    for column in ("n_rxq", "n_txq"):
        pair.switch.wait_column(port, f"status:{column}", str(count), timeout_s=20)


def test_A10_L3_queue_count_follows_ethtool(pair: Pair) -> None:
    for count in (2, 1, 2):
        pair.first.run(f"ethtool -L eth0 combined {count}")
        _wait_queues(pair, pair.ports[0], count)
        assert ping(pair.first, pair.target.ipv4, count=5).received == 5


def test_A10_streams_on_two_queues_arrive_while_the_count_changes(pair: Pair, one_family: str) -> None:
    pair.first.run("ethtool -L eth0 combined 2")
    pair.second.run("ethtool -L eth0 combined 2; pidof iperf3 || iperf3 -s -D -1")
    job = pair.first.spawn(f"iperf3 -c {getattr(pair.target, one_family)} -P 4 -t 4")
    for count in (1, 2, 1, 2):
        pair.first.run(f"ethtool -L eth0 combined {count}")
        _wait_queues(pair, pair.ports[0], count)
    assert "receiver" in job.wait(timeout_s=90)
    assert ping(pair.first, getattr(pair.target, one_family), count=5).received == 5
