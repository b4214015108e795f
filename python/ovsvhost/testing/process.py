"""Programs of the rig: each with a log file, a deadline for its end, and no way to outlive its parent.

A program dies with the *thread* that started it (``PR_SET_PDEATHSIG``), so start programs from the thread that stays.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from typing import IO, TYPE_CHECKING, ClassVar, Self

from ovsvhost.testing.errors import MissingError, RigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 40


class Program:
    """A running program.

    Args:
        command: program and arguments.
        log: where its output goes, appended.
        environment: its whole environment; None inherits.
        stays: True lets it outlive its parent: for a demo that is left running.
        stdin: what it reads; nothing by default.
        name: what messages call it; the program's name by default.
    """

    # Logs of what runs now or ended since a test began: shown when that test fails.
    logs: ClassVar[dict[str, Path]] = {}

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        stays: bool = False,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        name: str | None = None,
    ) -> None:
        if shutil.which(command[0], path=environment.get("PATH") if environment else None) is None:
            raise MissingError(f"no program '{command[0]}' on this machine: run scripts/setup test")
        self.name = name or command[0].rpartition("/")[2]
        self.log = log
        Program.logs[f"{self.name} ({log})"] = log
        tied = [] if stays else ["setpriv", "--pdeathsig", "KILL", "--"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*tied, *command],
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=stays,
            )

    @property
    def pid(self) -> int:
        """The program's process number; ``setpriv`` gives its own to the program."""
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe it reads, when it was started with one."""
        return self._process.stdin

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raises RigError with the end of its log when it has ended."""
        if not self.running:
            raise RigError(f"{self.name} ended with {self._process.returncode}:\n{tail(self.log)}")

    def wait(self, timeout_s: float) -> int:
        """Waits for its end and gives the exit code; RigError past the deadline."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RigError(f"{self.name} still runs after {timeout_s:g} s:\n{tail(self.log)}") from None

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, timeout_s: float = 10) -> int:
        """SIGTERM, then SIGKILL past the deadline; gives the exit code. Idempotent."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._process.stdin:
            self._process.stdin.close()
        return self._process.returncode

    def __enter__(self) -> Self:
        """Already running."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.stop()


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The end of a log, for a message."""
    if not log.is_file():
        return f"({log} was never written)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
