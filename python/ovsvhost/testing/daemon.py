"""The switch under test as a process: ``ovsvhost daemon`` in a run directory of its own, driven as a user drives it.

It can be killed and started again on the same directories, which is what most of the tests with guests are about.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.wait import wait_for
from ovsvhost.vsctl import main as vsctl

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 30
_COMMAND_TIMEOUT_S = 60


class SwitchDaemon:
    """One daemon.

    Args:
        folder: holds its run directory (``run``), its state directory (``state``) and its log. Keep it short: sockets
            lie in it, and a socket's path has at most 107 bytes.
        arguments: further arguments of ``ovsvhost daemon``.
        stays: True lets it outlive this process.
    """

    def __init__(self, folder: Path, arguments: Sequence[str] = (), *, stays: bool = False) -> None:
        self.folder = folder
        self.rundir = folder / "run"
        self.log = folder / "switch.log"
        self._arguments = [f"--rundir={self.rundir}", f"--state-dir={folder / 'state'}", *arguments]
        self._environment = {**os.environ, "OVS_RUNDIR": str(self.rundir)}
        self._stays = stays
        self._program: Program | None = None

    @property
    def remote(self) -> str:
        """Its database, as ``ovs-vsctl --db`` takes it."""
        return f"unix:{self.rundir}/db.sock"

    @property
    def pid(self) -> int:
        """The process number."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._program is not None and self._program.running

    def start(self, *, wait: bool = True) -> Self:
        """Starts it; returns when its database answers, or at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._program = Program(
            [*_command(), "daemon", *self._arguments],
            log=self.log,
            environment=self._environment,
            stays=self._stays,
            name="ovsvhost daemon",
        )
        if wait:
            wait_for(self._answers, timeout_s=_START_TIMEOUT_S, what="the daemon's database to answer")
        return self

    def vsctl(self, *arguments: str) -> str:
        """``ovsvhost vsctl``; waits until the switch followed. From the main thread only.

        Raises:
            RigError: it failed; with its words and the end of the daemon's log.
        """
        status, said, complaints = self._vsctl(f"--timeout={_COMMAND_TIMEOUT_S}", *arguments)
        if status != 0:
            words = " ".join(arguments)
            raise RigError(f"vsctl {words} ended with {status}: {complaints.strip()}\n{tail(self.log)}")
        return said

    def appctl(self, *arguments: str) -> str:
        """``ovsvhost appctl``; RigError when it fails."""
        done = self.call("appctl", *arguments)
        if done.returncode != 0:
            words = " ".join(arguments)
            raise RigError(f"appctl {words} ended with {done.returncode}: {done.stderr.strip()}\n{tail(self.log)}")
        return done.stdout

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any command of ``ovsvhost`` against this run directory; the caller judges the result."""
        return subprocess.run(
            [*_command(), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )

    def column(self, interface: str, column: str) -> str:
        """One column of an Interface row, as ``vsctl get`` prints it, without its quotes."""
        return self.vsctl("get", "Interface", interface, column).strip().strip('"')

    def statistic(self, interface: str, name: str) -> int:
        """One counter of an interface as the database has it, refreshed every few seconds; 0 before the first time."""
        return int(self.vsctl("--if-exists", "get", "Interface", interface, f"statistics:{name}").strip() or 0)

    def wait_column(self, interface: str, column: str, expected: str, *, timeout_s: float = 60) -> None:
        """Waits until a column of an Interface row, such as ``status:n_rxq``, has a value."""
        seen = ""

        def reached() -> bool:
            nonlocal seen
            seen = self.vsctl("--if-exists", "get", "Interface", interface, column).strip().strip('"')
            return seen == expected

        try:
            wait_for(reached, timeout_s=timeout_s, what=f"{column} of {interface}", interval_s=0.1)
        except RigError:
            error = self.column(interface, "error")
            raise RigError(
                f"waited {timeout_s:g} s for {column} of {interface} to become '{expected}'; it is '{seen}', and error "
                f"is '{error}'\n{tail(self.log)}"
            ) from None

    def wait_link(self, interface: str, state: str = "up", *, timeout_s: float = 60) -> None:
        """Waits until an interface's ``link_state`` is ``up`` or ``down``."""
        self.wait_column(interface, "link_state", state, timeout_s=timeout_s)

    def wait_statistic(self, interface: str, name: str, *, more_than: int = 0, timeout_s: float = 30) -> int:
        """Waits until a counter passed a value; gives it."""
        wait_for(
            lambda: self.statistic(interface, name) > more_than,
            timeout_s=timeout_s,
            what=f"{name} of {interface} to pass {more_than}",
            interval_s=0.2,
        )
        return self.statistic(interface, name)

    def offer_postcopy(self) -> None:
        """Starts it anew with ``vhost-postcopy-support``: guests may move in by post-copy from now on."""
        self.vsctl("set", "Open_vSwitch", ".", "other_config:vhost-postcopy-support=true")
        self.stop()
        self.start()

    def wait_faults(self, interface: str) -> None:
        """Waits until a port has asked for a page of a guest that moves in by post-copy."""

        def served() -> bool:
            shown = self.vsctl("--if-exists", "get", "Interface", interface, "status:postcopy-faults-served")
            return shown.strip().strip('"') not in {"", "0"}

        wait_for(served, timeout_s=60, what=f"{interface} to have asked for a page")

    def kill(self) -> None:
        """SIGKILL; ``start`` brings it back."""
        self._started().kill()

    def stop(self) -> int:
        """SIGTERM; gives the exit code. Idempotent."""
        return self._program.stop(_STOP_TIMEOUT_S) if self._program else 0

    def close(self) -> None:
        """Ends it for good: what it keeps of rings, for guests to come back to, goes too. Idempotent."""
        self.stop()
        shutil.rmtree(_ring_state(self.rundir), ignore_errors=True)

    def __enter__(self) -> Self:
        """Starts it, unless it runs."""
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        """As `close`."""
        self.close()

    def _started(self) -> Program:
        if self._program is None:
            raise RigError("the daemon is not started: call start()")
        return self._program

    def _answers(self) -> bool:
        self._started().check()
        if not (self.rundir / "db.sock").is_socket():
            return False
        return self.call("vsctl", f"--db={self.remote}", "--timeout=5", "show").returncode == 0

    def _vsctl(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr. Within this process: an interpreter's start takes longer than an answer."""
        said, complaints = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
            status = vsctl([f"--db={self.remote}", *arguments], rundir=self.rundir)
        return status, said.getvalue(), complaints.getvalue()


def _ring_state(rundir: Path) -> Path:
    """Where the switch keeps the state of its rings when the run directory is not on tmpfs."""
    digest = 0xCBF29CE484222325
    for byte in os.fsencode(rundir.resolve()):
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return Path(f"/dev/shm/ovsvhost-{os.geteuid()}-{digest:016x}")  # noqa: S108 - where it is, not where to write


def _command() -> list[str]:
    # The module rather than the script: it is this interpreter's, whatever PATH says.
    return [sys.executable, "-m", "ovsvhost"]
