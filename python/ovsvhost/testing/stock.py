"""Open vSwitch's own ``ovs-vsctl`` and ``ovs-appctl`` on a daemon under test: what users' scripts call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.process import tail

if TYPE_CHECKING:
    from ovsvhost.testing.daemon import SwitchDaemon

_TIMEOUT_S = 20


def ovs_vsctl(daemon: SwitchDaemon, *arguments: str) -> str:
    """``ovs-vsctl``; waits until the switch followed. RigError when it fails or waits in vain."""
    done = run("ovs-vsctl", daemon, f"--timeout={_TIMEOUT_S}", f"--db={daemon.remote}", *arguments)
    return _output(done, daemon)


def ovs_appctl(daemon: SwitchDaemon, *arguments: str) -> str:
    """``ovs-appctl`` as a script calls it: the daemon is found by its pid file. RigError when it fails."""
    return _output(run("ovs-appctl", daemon, f"--timeout={_TIMEOUT_S}", *arguments), daemon)


def run(program: str, daemon: SwitchDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Either program in the daemon's run directory; the caller judges the result.

    Raises:
        MissingError: it is not installed.
    """
    if shutil.which(program) is None:
        raise MissingError(f"no program '{program}' on this machine: run scripts/setup test")
    return subprocess.run(
        [program, *arguments],
        env={**os.environ, "OVS_RUNDIR": str(daemon.rundir), "OVS_LOGDIR": str(daemon.folder)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S + 10,
        check=False,
    )


def row(daemon: SwitchDaemon, table: str, record: str) -> dict[str, Any]:
    """One row as plain values: sets as lists, or the one value they may hold at most, maps as dicts."""
    answer = json.loads(ovs_vsctl(daemon, "--format=json", "list", table, record))
    return dict(zip(answer["headings"], map(_plain, answer["data"][0]), strict=True))


def _plain(value: Any) -> Any:
    match value:
        case ["map", pairs]:
            return dict(pairs)
        case ["set", []]:
            return None
        case ["set", items]:
            return [_plain(item) for item in items]
        case ["uuid", name]:
            return name
    return value


def _output(done: subprocess.CompletedProcess[str], daemon: SwitchDaemon) -> str:
    if done.returncode != 0:
        words = " ".join(done.args)
        raise RigError(f"{words} ended with {done.returncode}: {done.stderr.strip()}\n{tail(daemon.log)}")
    return done.stdout
