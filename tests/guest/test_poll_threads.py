"""Poll threads come and go under guests whose traffic goes on."""

from __future__ import annotations

import os
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.errors import MissingError
from ovsvhost.testing.traffic import Stream, address, ping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.pair import Pair

pytestmark = [pytest.mark.guest, pytest.mark.multiqueue, pytest.mark.timeout(600)]


@pytest.fixture
def masks(pair: Pair) -> Iterator[list[str]]:
    """CPU masks of two threads, of one, and of the other; the setting is as before afterwards."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise MissingError("a second CPU: poll threads on two cores need two")
    first, second = (1 << cpu for cpu in cpus[:2])
    yield [f"{mask:#x}" for mask in (first | second, first, second)]
    pair.switch.vsctl("remove", "Open_vSwitch", ".", "other_config", "pmd-cpu-mask")


@pytest.mark.rows("A10", "B5")
def test_file_arrives_byte_for_byte_while_poll_threads_come_and_go(
    pair: Pair, masks: list[str], one_family: str
) -> None:
    for guest in pair.guests:
        guest.run("ethtool -L eth0 combined 2")
    stream = Stream(pair.first, pair.second, getattr(address(1), one_family), size_mib=12)
    for changes, mask in enumerate(cycle(masks)):
        if stream.ended and changes >= len(masks):
            break
        pair.switch.vsctl("set", "Open_vSwitch", ".", f"other_config:pmd-cpu-mask={mask}")
    assert stream.intact()
    assert ping(pair.first, getattr(pair.target, one_family), count=5).received == 5
