"""Guests that move: what a move costs the guest, and the neighbours of one whose memory is on its way.

- ``at_once``: the project's own front-end stops a guest's rings on one port and starts them on another, one following
  the other at once, while a third end sends numbered frames: what is missing is the switch's part of the downtime.
- ``MovingGuest``: a Linux guest goes from port to port between two QEMUs by pre-copy, pinged by another: what is seen
  of a move in all, most of it QEMU's and the emulation's.
- ``arriving``: a guest whose frames lie on pages that come 20 ms after the switch asked for them, for whoever is
  measured beside it.
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.image import guest_image
from ovsvhost.testing.migration import Migration
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import PingStream, address, bring_up, longest_gap_s, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from generators import Frontend
    from rounds import Window
    from switches import Switch

LATE_S = 0.02
"""How long a page of the arriving guest takes."""
_RATE_PPS = 20_000
"""Of the sender: a frame each 50 µs is the resolution, and little enough to leave its core to others."""
_QEMU = "10.0"
_PING_S = 0.005
_BYTES_PER_S = 256 << 20
_PINGS = 200
_TIMEOUT_S = 60
_MAC = "52:54:00:00:00:02"


def at_once(switch: Switch, frontend: Frontend, sockets: list[Path]) -> Window:
    """One guest from port to port; ``sockets`` are the sender's, the guest's, and where it goes."""
    ends = [f"--end=socket={socket}" for socket in sockets]
    with switch.turn():
        clock = switch.clock()
        with frontend.start(sockets, [str(frontend.program), "moving", f"--rate={_RATE_PPS}", *ends]) as run:
            found = run.report()
        clock = switch.clock() - clock
    return {
        **{name: found[name] for name in ("outage_ms", "stop_ms", "start_ms", "first_ms")},
        "wait_share": clock.wait_share,
    }


@contextmanager
def arriving(frontend: Frontend, socket: Path) -> Iterator[None]:
    """A guest in post-copy that the switch waits for inside of this.

    Whoever brings its pages shares the generators' core, and sleeps until one is asked for or due.

    Raises:
        RigError: the switch asked for none of its pages: nobody was measured beside anything.
    """
    command = ["taskset", "-c", str(frontend.cpu), str(frontend.program), "arriving", f"--late={LATE_S}"]
    with frontend.start([socket], [*command, "--ring-size=256", f"--end=socket={socket}"]) as guest:
        guest.wait_for_event("ready")
        yield
        if not guest.end()["pages_asked"]:
            raise RigError("the guest in post-copy was asked for no page")


class MovingGuest:
    """Two Linux guests behind a switch: one pings the other, which moves between two of its ports.

    Args:
        switch: has its ports already, and runs.
        sockets: those of who pings, and of the two ports that the other moves between.
    """

    def __init__(self, switch: Switch, sockets: list[Path]) -> None:
        self._folder = switch.folder
        self._image, self._qemu = guest_image(), find_qemu(_QEMU)
        self._asks, *self._places = sockets
        self._numbers = itertools.count()
        self._peer = self._guest(self._asks, "52:54:00:00:00:01")
        self._moves = self._guest(self._places[0], _MAC)

    def __enter__(self) -> Self:
        """Boots both; returns when they reach each other."""
        try:
            for number, guest in enumerate((self._peer, self._moves), start=1):
                guest.start()
                bring_up(guest, number)
            target = address(2).ipv4
            wait_for(
                lambda: ping(self._peer, target, count=1).received,
                timeout_s=_TIMEOUT_S,
                what="the guest that moves to answer",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends both."""
        self._peer.stop()
        self._moves.stop()

    def move(self) -> Window:
        """To the other port."""
        self._places.reverse()
        there = self._guest(self._places[0], _MAC, moves_in=True).start()
        try:
            pings = PingStream(self._peer, address(2).ipv4, interval_s=_PING_S)
            pings.wait_answers(_PINGS)
            migration = Migration(self._moves, there)
            migration.start(bytes_per_s=_BYTES_PER_S)
            downtime_ms = migration.wait()
            pings.wait_answers(_PINGS)
            gap_s = longest_gap_s(pings.stop())
        except BaseException:
            there.stop()
            raise
        self._moves.stop()
        self._moves = there
        return {"outage_ms": 1000 * gap_s, "monitor_ms": float(downtime_ms), "wait_share": 0.0}

    def _guest(self, socket: Path, mac: str, *, moves_in: bool = False) -> Guest:
        nic = Nic(socket=str(socket), type="dpdkvhostuserclient", mac=mac)
        socket.unlink(missing_ok=True)
        name = f"moving{next(self._numbers)}"
        incoming = "defer" if moves_in else None
        return Guest(self._image, self._qemu, [nic], name=name, folder=self._folder, incoming=incoming)
