"""What the kernel sees of the packet path: next to nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.frontend import Frontend, program
from ovsvhost.testing.process import Program
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

# Long enough for a million frames where nothing else runs, and for some ten thousand where much does.
WATCHED_S = 2


@pytest.fixture
def busy_switch(tmp_path: Path) -> Iterator[SwitchDaemon]:
    """A daemon whose poll thread never sleeps, with server ports ``a`` and ``b``; guests may move in by post-copy."""
    if shutil.which("strace") is None:
        pytest.skip("no strace: run scripts/setup test")
    with SwitchDaemon(tmp_path / "sw") as switch:
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:pmd-sleep-max=0")
        switch.offer_postcopy()
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


def _watched(switch: SwitchDaemon, folder: Path) -> tuple[int, list[str]]:
    """The frames of a pair of guests that arrived while its poll thread was watched, and the calls of that."""
    ends = [f"socket={switch.rundir / port},side=connect" for port in ("a", "b")]
    with Frontend(ends, folder=folder) as pair:
        pair.event("ready")
        (thread,) = _poll_threads(switch.pid)
        before = _received(pair)
        calls = _calls(thread, folder / "calls")
        return _received(pair) - before, calls


@contextmanager
def _arriving(switch: SwitchDaemon, folder: Path) -> Iterator[Callable[[], int]]:
    """A guest at port ``c`` whose frames lie on pages that come 20 ms late; tells later how many were asked for."""
    socket, log = switch.rundir / "c.sock", folder / "arriving.log"
    port = ["add-port", "br0", "c", "--", "set", "Interface", "c", "type=dpdkvhostuserclient"]
    switch.vsctl(*port, f"options:vhost-server-path={socket}")
    words = ["arriving", "--late=0.02", "--ring-size=256", f"--end=socket={socket}"]
    with Program([str(program()), *words], log=log, stdin=subprocess.PIPE) as guest:

        def is_there() -> bool:
            guest.check()
            return "ready" in log.read_text()

        wait_for(is_there, timeout_s=30, what="the guest to move in")
        yield lambda: int(json.loads(log.read_text().splitlines()[-1])["pages_asked"])
        assert guest.stdin is not None
        guest.stdin.close()
        assert guest.wait(30) == 0


def _received(pair: Frontend) -> int:
    """Frames that arrived at the receiving end so far."""
    known = len(pair.events("stats"))
    pair.tell("stats")
    wait_for(lambda: len(pair.events("stats")) > known, timeout_s=30, what="a report of the front-end")
    return int(pair.events("stats")[-1]["ends"][1]["received"])


def test_a_poll_thread_makes_no_system_call_for_a_frame(busy_switch: SwitchDaemon, tmp_path: Path) -> None:
    """Guests that poll get their frames without one; the few left are housekeeping, bounded by time, not by frames."""
    frames, calls = _watched(busy_switch, tmp_path)
    assert frames > 10_000
    assert len(calls) * 1000 < frames, Counter(calls)


@pytest.mark.rows("A15", "C8")
def test_a_poll_thread_makes_no_more_calls_than_pages_are_missing_beside_a_guest_in_post_copy(
    busy_switch: SwitchDaemon, tmp_path: Path
) -> None:
    """A page that is missing costs it a word to that port's own thread, at most; it never waits for one."""
    with _arriving(busy_switch, tmp_path) as asked:
        frames, calls = _watched(busy_switch, tmp_path)
    assert frames > 10_000
    assert (len(calls) - asked()) * 1000 < frames, Counter(calls)
