"""``ovsvhost/nic-show``: what it prints, and what it does not take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ovsvhost.daemon import nic_commands
from ovsvhost.errors import ConfigError


def port(*, up: bool = True, error: str | None = None) -> Any:
    status = {"if_name": "eth0", "n_txq_desc": "128"} | ({"xdp-mode-in-use": "native"} if up else {})
    return SimpleNamespace(status=status, link_up=up, error=error)


def queue(latency_us: list[int], **more: int) -> Any:
    counts = {"inflight": 3, "completed": 100, "inflight_max": 91, "abandoned": 2, "rx_missed": 0}
    counts |= {"latency_max_us": 0, "untimed": 0}
    return SimpleNamespace(**counts | more, latency_us=latency_us)


def buckets(**counts: int) -> list[int]:
    """``n5=7``: seven frames of times of five bits."""
    return [counts.get(f"n{bits}", 0) for bits in range(24)]


@pytest.mark.rows("A20", "A21")
def test_a_queue_shows_its_descriptors_and_how_long_the_device_has_them() -> None:
    shown = nic_commands.nic_show({"p0": (port(), [queue(buckets(n3=98, n9=2), latency_max_us=412, untimed=5)])})
    assert shown == (
        "p0: eth0, native, link up\n"
        "  queue 0:\n"
        "    tx in flight: 3 of 128, at most 91; completed: 100; abandoned: 2\n"
        "    post to completion (us): p50 < 8, p99 < 512, max 412; untimed: 5\n"
        "    rx missed: 0\n"
    )


def test_shares_are_the_bounds_that_so_many_frames_are_below() -> None:
    for counts, p50, p99 in (
        ({"n0": 1}, 1, 1),
        ({"n2": 50, "n6": 50}, 4, 64),
        ({"n2": 49, "n6": 51}, 64, 64),
        ({"n2": 99, "n23": 1}, 4, 4),
        ({"n2": 98, "n23": 2}, 4, 9_000_001),
    ):
        shown = nic_commands.nic_show({"p0": (port(), [queue(buckets(**counts), latency_max_us=9_000_000)])})
        assert f"p50 < {p50}, p99 < {p99}, max" in shown, counts


def test_a_histogram_has_a_line_for_each_power_of_two_between_the_first_and_the_last() -> None:
    shown = nic_commands.nic_show({"p0": (port(), [queue(buckets(n2=5, n4=1))])}, histograms=True)
    assert [line.split() for line in shown.splitlines()[-3:]] == [
        ["<", "4", "us", "5"],
        ["<", "8", "us", "0"],
        ["<", "16", "us", "1"],
    ]


def test_a_port_without_its_device_says_why_and_nothing_of_times() -> None:
    shown = nic_commands.nic_show({"p0": (port(up=False, error="there is no network device eth0"), [])})
    assert shown == "p0: eth0, link down\n  error: there is no network device eth0\n"
    assert "post to completion" not in nic_commands.nic_show({"p0": (port(), [queue(buckets())])})


def test_options_that_are_none_are_refused() -> None:
    assert nic_commands.asked(["-hist", "p0"]) == nic_commands.Asked("p0", histograms=True)
    assert nic_commands.asked([]) == nic_commands.Asked()
    for arguments in (["-pmd"], ["p0", "p1"]):
        with pytest.raises(ConfigError):
            nic_commands.asked(arguments)
