"""What the switch takes of its host's memory: no hugepage, and little for each port with a guest."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.frontend import Frontend, program
from ovsvhost.testing.process import Program
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

GUESTS = 16
# A port with one queue pair: its session's thread, bursts and journals of two rings, its rows in database and model.
# Measured: 60 KiB, and 100 KiB where frames flow; with some room for other allocators.
PER_PORT_KIB = 256


def _memory_kib(pid: int) -> dict[str, int]:
    """What the kernel says about a process's memory, KiB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) for name, value, _unit in lines}


def _add_ports(switch: SwitchDaemon, names: list[str]) -> list[Path]:
    words = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
    for name in names:
        words += ["--", "add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuser"]
    switch.vsctl(*words)
    return [switch.rundir / name for name in names]


def _wait_links(switch: SwitchDaemon, names: list[str]) -> None:
    words = [word for name in names for word in ("--", "get", "Interface", name, "link_state")]
    wait_for(lambda: switch.vsctl(*words).split() == ["up"] * len(names), timeout_s=30, what="every link to be up")


def _received(pair: Frontend) -> int:
    """Frames that arrived at the second end so far."""
    known = len(pair.events("stats"))
    pair.tell("stats")
    wait_for(lambda: len(pair.events("stats")) > known, timeout_s=30, what="a report of the front-end")
    return int(pair.events("stats")[-1]["ends"][1]["received"])


@pytest.mark.rows("C12")
def test_each_port_with_a_guest_takes_little_memory_and_none_takes_a_hugepage(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    names = [f"v{n}" for n in range(GUESTS)]
    sockets = _add_ports(switch, names)
    before = _memory_kib(switch.pid)
    ends = [f"--end=socket={socket},side=connect" for socket in sockets]
    command = [str(program()), "crowd", "--memory=memfd", *ends]
    crowd = Program(command, log=short_folder / "crowd.log", stdin=subprocess.PIPE, name="crowd")
    assert crowd.stdin is not None
    with crowd.stdin:  # it stays until this is closed
        _wait_links(switch, names)
        after = _memory_kib(switch.pid)
    crowd.stop(timeout_s=10)
    assert after["RssAnon"] - before["RssAnon"] < GUESTS * PER_PORT_KIB
    assert after["HugetlbPages"] == 0


@pytest.mark.rows("C12")
def test_frames_of_every_size_and_shape_take_no_more(switch: SwitchDaemon, short_folder: Path) -> None:
    sockets = _add_ports(switch, ["a", "b"])
    before = _memory_kib(switch.pid)
    ends = [f"socket={socket},side=connect,memory=memfd,sizes=mix,layout=chain:5" for socket in sockets]
    with Frontend(ends, folder=short_folder, options=["--rate=20000"]) as pair:
        pair.event("ready")
        wait_for(lambda: _received(pair) > 5_000, timeout_s=30, what="some thousand frames to arrive")
        after = _memory_kib(switch.pid)
        pair.finish()
    assert after["RssAnon"] - before["RssAnon"] < len(sockets) * PER_PORT_KIB
    assert after["HugetlbPages"] == 0
