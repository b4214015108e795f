"""What the kernel sees of the packet path: next to nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.frontend import Frontend
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

# Long enough for a million frames where nothing else runs, and for some ten thousand where much does.
WATCHED_S = 2


@pytest.fixture
def busy_switch(tmp_path: Path) -> Iterator[SwitchDaemon]:
    """A daemon whose poll thread never sleeps, with server ports ``a`` and ``b``."""
    with SwitchDaemon(tmp_path / "sw") as switch:
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-sleep-max=0")
        switch.stop()
        switch.start()
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for port in ("a", "b"):
            switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, "type=dpdkvhostuser")
        yield switch


def _poll_threads(pid: int) -> list[int]:
    names = {int(task.name): (task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
    return [thread for thread, name in names.items() if name.startswith("pmd-c")]


def _calls(thread: int, log: Path) -> list[str]:
    """The system calls a thread makes while it is watched, by name."""
    watch = ["timeout", "--signal=INT", str(WATCHED_S), "strace", "-qq", "-p", str(thread), "-o", str(log)]
    subprocess.run(watch, check=False, capture_output=True)
    return [line.split("(")[0] for line in log.read_text().splitlines() if "(" in line]


def _received(pair: Frontend) -> int:
    """Frames that arrived at the receiving end so far."""
    known = len(pair.events("stats"))
    pair.tell("stats")
    wait_for(lambda: len(pair.events("stats")) > known, timeout_s=30, what="a report of the front-end")
    return int(pair.events("stats")[-1]["ends"][1]["received"])


def test_a_poll_thread_makes_no_system_call_for_a_frame(busy_switch: SwitchDaemon, tmp_path: Path) -> None:
    """Guests that poll get their frames without one; the few left are housekeeping, bounded by time, not by frames."""
    if shutil.which("strace") is None:
        pytest.skip("no strace: run scripts/setup test")
    ends = [f"socket={busy_switch.rundir / port},side=connect" for port in ("a", "b")]
    with Frontend(ends, folder=tmp_path) as pair:
        pair.event("ready")
        (thread,) = _poll_threads(busy_switch.pid)
        before = _received(pair)
        calls = _calls(thread, tmp_path / "calls")
        frames = _received(pair) - before
    assert frames > 10_000
    assert len(calls) * 1000 < frames, Counter(calls)
