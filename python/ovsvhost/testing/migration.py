"""Moving a running guest from one QEMU to another, both on this machine.

By *pre-copy* QEMU copies the guest's memory while it runs, again and again what was written meanwhile, then stops it,
copies the rest and lets the other QEMU go on. What the switch wrote to the guest is in no dirty log but the switch's.

By *post-copy* the guest runs at its new place first, and its memory follows. From ``start_postcopy`` until ``hurry``
the source sends hardly anything but what it is asked for, so whoever uses a page asks for it: the guest's own
processor, QEMU, or the switch. (At an ordinary rate most pages that a switch needs come by themselves first: QEMU sends
what lies behind each page that was asked for, and its own start asks for the rings.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.guest import Guest

# So slow that the guest's memory takes seconds, and much of it is written meanwhile.
_BYTES_PER_S = 48 << 20
_TRICKLE_BYTES_PER_S = 64 << 10
_HURRY_BYTES_PER_S = 1 << 30
_TIMEOUT_S = 120


class Migration:
    """One move.

    Args:
        source: the guest that runs.
        destination: one made with ``incoming="defer"`` and the same devices, on sockets of its own; started.
    """

    def __init__(self, source: Guest, destination: Guest) -> None:
        self._source = source
        self._destination = destination
        self._ways = 0

    def start(self, *, bytes_per_s: int = _BYTES_PER_S) -> None:
        """Begins a move by pre-copy; returns while memory is on its way, for long if it is slow."""
        self._send(self._way("migrate-incoming"), bytes_per_s)

    def start_postcopy(self) -> None:
        """Moves the guest by post-copy; returns when it runs at its new place, nearly all of its memory still here."""
        for guest in (self._source, self._destination):
            guest.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        self._set(max_postcopy_bandwidth=_TRICKLE_BYTES_PER_S)
        self._send(self._way("migrate-incoming"), _BYTES_PER_S)
        self.wait_status("active")
        self._source.qmp.execute("migrate-start-postcopy")
        self.wait_status("postcopy-active")
        self._wait_runs()

    def hurry(self) -> None:
        """Lets a slow one come to its end: all that is left is sent as fast as it goes."""
        self._set(max_bandwidth=_HURRY_BYTES_PER_S, max_postcopy_bandwidth=_HURRY_BYTES_PER_S)

    @property
    def status(self) -> str:
        """The source's word for how far it is, such as ``active``, ``postcopy-active`` or ``completed``.

        Raises:
            RigError: it failed, with both QEMUs' logs.
        """
        status = _status(self._source)
        if status == "failed":
            raise RigError(
                f"the migration failed\nsource: {self._source.logs()}\ndestination: {self._destination.logs()}"
            )
        return status

    @property
    def arriving_status(self) -> str:
        """The destination's word for the same."""
        return _status(self._destination)

    def wait_status(self, wanted: str) -> None:
        """Waits for the source to say so."""
        wait_for(lambda: self.status == wanted, timeout_s=_TIMEOUT_S, what=f"the migration to be {wanted}")

    def wait_arriving_status(self, wanted: str) -> None:
        """Waits for the destination to say so."""
        what = f"the migration to be {wanted} where it goes"
        wait_for(lambda: self.arriving_status == wanted, timeout_s=_TIMEOUT_S, what=what)

    def wait(self) -> int:
        """Waits for its end, at which the destination runs; gives the milliseconds for which neither did.

        Raises:
            RigError: it failed, with both QEMUs' logs.
        """
        self.wait_status("completed")
        self._wait_runs()
        return int(self._source.qmp.execute("query-migrate")["downtime"])

    def begin_in_vain(self) -> None:
        """Copies memory to nowhere, for ``give_up`` to end."""
        self._send("exec:cat >/dev/null", _BYTES_PER_S)

    def give_up(self) -> None:
        """Ends it before the guest moved; the source goes on."""
        self._source.qmp.execute("migrate_cancel")
        self.wait_status("cancelled")

    def lose_network(self) -> None:
        """Shuts the connection between the two QEMUs in the middle of post-copy; both notice."""
        self._source.qmp.execute("migrate-pause")
        self.wait_status("postcopy-paused")
        self.wait_arriving_status("postcopy-paused")

    def recover(self) -> None:
        """Connects them again, by another way, after ``lose_network``."""
        self._source.qmp.execute("migrate", uri=self._way("migrate-recover"), resume=True)
        self.wait_status("postcopy-active")

    def _way(self, command: str) -> str:
        """Has the destination listen, each time on a new socket; gives where."""
        self._ways += 1
        uri = f"unix:{self._destination.folder / f'migration{self._ways}'}"
        self._destination.qmp.execute(command, uri=uri)
        return uri

    def _send(self, uri: str, bytes_per_s: int) -> None:
        self._set(max_bandwidth=bytes_per_s)
        self._source.qmp.execute("migrate", uri=uri)

    def _set(self, **parameters: Any) -> None:
        self._source.qmp.execute("migrate-set-parameters", **parameters)

    def _wait_runs(self) -> None:
        wait_for(
            lambda: self._destination.qmp.execute("query-status")["status"] == "running",
            timeout_s=_TIMEOUT_S,
            what=f"{self._destination.name} to run",
        )


def _status(guest: Guest) -> str:
    return str(guest.qmp.execute("query-migrate").get("status", "none"))
