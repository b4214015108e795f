"""The project's own vhost-user front-end as a process: ``vhost-frontend``, one or two ends of traffic.

::

    with Frontend([f"socket={path}", f"socket={other}"], folder=folder) as pair:
        pair.event("ready")                          both links are up, frames flow
        pair.tell("hang-up a")
        report = pair.finish()                       every frame counted, every byte checked

What an end can be told stands in ``vhost-frontend help``. Built by ``scripts/setup test``; another build is named by
``$OVSVHOST_FRONTEND``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_BUILT = Path(__file__).parents[3] / "target" / "release" / "vhost-frontend"


class Frontend:
    """One running front-end.

    Args:
        ends: settings of one or two ends, as ``--end`` takes them.
        folder: where its log goes.
        options: options of the run, as ``--duration=3``; without an end it runs until `finish`.
    """

    def __init__(self, ends: Sequence[str], *, folder: Path, options: Sequence[str] = ()) -> None:
        self.log = folder / f"frontend-{id(self):x}.log"
        arguments = [*options, *(f"--end={end}" for end in ends)]
        self._program = Program(
            [str(program()), "run", "--events=yes", "--control=yes", *arguments], log=self.log, stdin=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        """The process number."""
        return self._program.pid

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind so far, as ``link``, ``ready`` or ``result``."""
        lines = self.log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if event.get("event") == kind]

    def event(self, kind: str, *, timeout_s: float = 20, **facts: Any) -> dict[str, Any]:
        """Waits for an event of a kind with these facts; RigError when the program ends without it."""

        def found() -> dict[str, Any] | None:
            for event in self.events(kind):
                if facts.items() <= event.items():
                    return event
            self._program.check()
            return None

        return wait_for(found, timeout_s=timeout_s, what=f"event {kind} {facts} in {self.log}") or {}

    def tell(self, command: str) -> None:
        """A command on its standard input, as ``stats`` or ``hang-up a``."""
        stdin = self._program.stdin
        if stdin is None:
            raise RigError("the front-end has no standard input")
        stdin.write(f"{command}\n".encode())
        stdin.flush()

    def finish(self, *, timeout_s: float = 30) -> dict[str, Any]:
        """Ends the run in order and gives its report."""
        if self._program.running:
            self.tell("stop")
        if self._program.wait(timeout_s) != 0:
            raise RigError(f"the front-end failed:\n{tail(self.log)}")
        return self.events("result")[-1]

    def kill(self) -> None:
        """SIGKILL, as a guest's end that nobody announced."""
        self._program.kill()

    def __enter__(self) -> Self:
        """Already running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self._program.stop()


def program() -> Path:
    """The program; MissingError when it was not built."""
    path = Path(os.environ.get("OVSVHOST_FRONTEND") or _BUILT)
    if not path.is_file():
        raise MissingError(f"no {path}: run scripts/setup test")
    return path
