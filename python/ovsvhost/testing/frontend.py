"""The project's own vhost-user front-end as a process: ``vhost-frontend``, one or two ends of traffic.

::

    ends = [end(path, packed=True, pairs=2), end(other, packed=True, pairs=2)]
    with Frontend(ends, folder=folder) as pair:
        pair.event("ready")                          both links are up, frames flow
        pair.disable_queue(1, "b")
        pair.tell("hang-up a")
        report = pair.finish()                       every frame counted, every byte checked

What else an end can be told stands in ``vhost-frontend help``. Built by ``scripts/setup test``; another build is named
by ``$OVSVHOST_FRONTEND``.
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

_BUILT = Path(__file__).parents[3] / "target" / "release" / "vhost-frontend"


def end(
    socket: Path | str,
    *,
    packed: bool = False,
    in_order: bool = False,
    mergeable: bool = True,
    require: Sequence[str] = (),
    without: Sequence[str] = (),
    **settings: object,
) -> str:
    """The settings of one end, as `Frontend` takes them.

    Args:
        socket: path of its vhost-user socket.
        packed: packed rings; a switch that does not offer them is given up.
        in_order: take batches of used buffers from a device that works in order, likewise required.
        mergeable: receive buffers may be merged.
        require: further features without which the session is given up, as ``host_tso4``.
        without: features not asked for, as ``event_idx``.
        settings: any other setting by its name in ``vhost-frontend help`` with ``_`` for ``-``, as ``ring_size=1000``,
            ``layout="indirect:2"`` or ``gso="tso"``; names before those that depend on them.
    """
    required = [*(["ring_packed"] if packed else []), *(["in_order"] if in_order else []), *require]
    refused = [*([] if mergeable else ["mrg_rxbuf"]), *without]
    words = [f"socket={socket}"]
    words += [f"require={'+'.join(required)}"] if required else []
    words += [f"without={'+'.join(refused)}"] if refused else []
    return ",".join([*words, *(f"{name.replace('_', '-')}={value}" for name, value in settings.items())])


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
        # What comes after the last end of a line is a line that is being written.
        *lines, _ = self.log.read_text().split("\n")
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

    def enable_queue(self, pair: int, end: str = "a") -> None:
        """Enables a queue pair of an end, as ``ethtool -L`` does."""
        self.tell(f"enable-queue {pair} {end}")

    def disable_queue(self, pair: int, end: str = "a") -> None:
        """Disables a queue pair of an end."""
        self.tell(f"disable-queue {pair} {end}")

    def reset_queue(self, pair: int, end: str = "a") -> None:
        """Resets both rings of a queue pair and starts them anew, while the others run."""
        self.tell(f"reset-queue {pair} {end}")

    def stop_rings(self, end: str = "a") -> None:
        """Stops all rings of an end, as a virtual machine that is paused does."""
        self.tell(f"stop-rings {end}")

    def start_rings(self, end: str = "a") -> None:
        """Starts them where the switch said they stopped."""
        self.tell(f"start-rings {end}")

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

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._program.stop()


def program() -> Path:
    """The program; MissingError when it was not built."""
    path = Path(os.environ.get("OVSVHOST_FRONTEND") or _BUILT)
    if not path.is_file():
        raise MissingError(f"no {path}: run scripts/setup test")
    return path
