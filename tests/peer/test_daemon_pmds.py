"""Many poll threads, set by stock ``ovs-vsctl`` and read by stock ``ovs-appctl``, with guests attached."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.frontend import Frontend
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = pytest.mark.peer

CORES = sorted(os.sched_getaffinity(0))


def threads(switch: SwitchDaemon) -> set[str]:
    """Names of the daemon's poll threads."""
    names = (Path(task.path, "comm").read_text().strip() for task in os.scandir(f"/proc/{switch.pid}/task"))
    return {name for name in names if name.startswith("pmd-c")}


def set_options(switch: SwitchDaemon, *options: str) -> None:
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", *(f"other_config:{option}" for option in options))


def mask(*cores: int) -> str:
    return hex(sum(1 << core for core in cores))


@contextmanager
def pair(switch: SwitchDaemon, folder: Path, names: tuple[str, str], rate: int) -> Iterator[Frontend]:
    """Two guests on ports of these names, each of which sends the other ``rate`` frames a second."""
    paths = [folder / f"{name}.sock" for name in names]
    for path in paths:
        port = ("add-port", "br0", path.stem, "--", "set", "Interface", path.stem, "type=dpdkvhostuserclient")
        ovs_vsctl(switch, *port, f"options:vhost-server-path={path}")
    before = ovs_appctl(switch, "dpif-netdev/pmd-rxq-show").count("(enabled)")
    ends = [f"socket={path},side=listen,role=send" for path in paths]
    with Frontend(ends, folder=folder, options=[f"--rate={rate}"]) as frontend:
        frontend.event("ready")
        wait_for(
            lambda: ovs_appctl(switch, "dpif-netdev/pmd-rxq-show").count("(enabled)") == before + len(ends),
            timeout_s=20,
            what="both guests' queues to be polled",
        )
        yield frontend
        frontend.finish()


@pytest.fixture
def guests(switch: SwitchDaemon, short_folder: Path) -> Iterator[Frontend]:
    """Two guests that send to one another."""
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    with pair(switch, short_folder, ("a", "b"), rate=1000) as frontend:
        yield frontend


@pytest.mark.rows("B5")
@pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
def test_threads_follow_the_mask_and_queues_their_affinity(switch: SwitchDaemon, guests: Frontend) -> None:
    one, two = CORES[:2]
    set_options(switch, f"pmd-cpu-mask={mask(one, two)}")
    assert threads(switch) == {f"pmd-c{one}", f"pmd-c{two}"}
    ovs_vsctl(switch, "set", "Interface", "a", f"other_config:pmd-rxq-affinity=0:{two}")
    shown = ovs_appctl(switch, "dpif-netdev/pmd-rxq-show", "-pmd", str(two))
    assert re.fullmatch(
        r"Displaying last 60 seconds pmd usage %\n"
        rf"pmd thread numa_id \d+ core_id {two}:\n"
        r"  isolated : true\n"
        r"  port: a                 queue-id:  0 \(enabled\)   pmd usage: ( ?\d+ %|NOT AVAIL)\n"
        r"  overhead: ( ?\d+ %|NOT AVAIL)\n",
        shown,
    )
    assert "port: b " in ovs_appctl(switch, "dpif-netdev/pmd-rxq-show", "-pmd", str(one))
    assert ovs_appctl(switch, "dpif-netdev/pmd-rxq-rebalance") == "pmd rxq rebalance requested.\n"
    set_options(switch, f"pmd-cpu-mask={mask(two)}")
    assert threads(switch) == {f"pmd-c{two}"}
    assert ovs_appctl(switch, "pmd-rxq-show").count("(enabled)") == 2
    ovs_appctl(switch, "dpif-netdev/pmd-stats-clear", "-pmd", str(two))
    wait_for(
        lambda: re.search(r"\(\d+ Kpps, \d+ cycles/pkt\)", ovs_appctl(switch, "pmd-perf-show")) is not None,
        timeout_s=20,
        what="frames after the clear",
    )
    assert "pkts/batch" in ovs_appctl(switch, "dpif-netdev/pmd-perf-show", "-hist")
    assert "packets received: " in ovs_appctl(switch, "dpif-netdev/pmd-stats-show", "-pmd", str(two), "ovs-netdev")
    assert guests is not None


@pytest.mark.rows("B5", "L5")
def test_the_longest_sleep_is_live(switch: SwitchDaemon) -> None:
    core = CORES[0]
    assert ovs_appctl(switch, "dpif-netdev/pmd-sleep-show").startswith("Default max sleep: adaptive\n")
    set_options(switch, f'pmd-sleep-max="100,{core}:50"')
    shown = ovs_appctl(switch, "dpif-netdev/pmd-sleep-show")
    assert shown.startswith("Default max sleep:  100 us\n")
    assert shown.endswith(f"core_id {core}:\n  max sleep:   50 us\n")


@pytest.mark.rows("B5", "L5")
def test_a_value_that_cannot_be_is_named_and_the_old_one_stays(switch: SwitchDaemon) -> None:
    core = CORES[0]
    set_options(switch, f"pmd-cpu-mask={mask(core)}")
    for wrong, named in ((mask(4000), "core 4000"), ("sideways", "give a hexadecimal mask")):
        set_options(switch, f"pmd-cpu-mask={wrong}")
        assert threads(switch) == {f"pmd-c{core}"}
        wait_for(lambda: named in switch.log.read_text(), timeout_s=20, what=f"the log to say {named!r}")  # noqa: B023


def cores_of(switch: SwitchDaemon) -> dict[str, int]:
    """Which core polls the queue of each port."""
    core, found = -1, {}
    for line in ovs_appctl(switch, "dpif-netdev/pmd-rxq-show").splitlines():
        if thread := re.match(r"pmd thread numa_id \d+ core_id (\d+):", line):
            core = int(thread[1])
        elif port := re.match(r"  port: (\S+)", line):
            found[port[1]] = core
    return found


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.rows("B5")
@pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
def test_queues_that_crowd_one_core_are_moved_once_that_was_seen_for_a_minute(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    one, two = CORES[:2]
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    set_options(switch, f"pmd-cpu-mask={mask(one, two)}", "pmd-rxq-isolate=false", "pmd-rxq-assign=group")
    with pair(switch, short_folder, ("c", "d"), rate=1):
        # The silent two fill one core, so those that come to send share the other.
        for port in ("c", "d"):
            ovs_vsctl(switch, "set", "Interface", port, f"other_config:pmd-rxq-affinity=0:{two}")
        with pair(switch, short_folder, ("a", "b"), rate=150_000):
            assert cores_of(switch) == {"a": one, "b": one, "c": two, "d": two}
            set_options(switch, "pmd-auto-lb-load-threshold=0", "pmd-auto-lb=true")
            wait_for(lambda: cores_of(switch)["a"] != cores_of(switch)["b"], timeout_s=200, what="a or b to be moved")
