"""Moving a running guest from one QEMU to another by post-copy: it runs at its new place, and its memory follows.

From the start until ``bring_rest`` the source sends hardly anything but what it is asked for, so whoever uses a page
asks for it: the guest's own processor, QEMU, or the switch. (At an ordinary rate most pages that a switch needs come by
themselves first: QEMU sends what lies behind each page that was asked for, and its own start asks for the rings.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.guest import Guest

_TRICKLE_BYTES_PER_S = 64 << 10
_FULL_BYTES_PER_S = 1 << 30
_TIMEOUT_S = 60


class Postcopy:
    """One move.

    Args:
        source: the guest that runs.
        destination: one made with ``incoming="defer"`` and the same devices, on sockets of its own; started.
    """

    def __init__(self, source: Guest, destination: Guest) -> None:
        self._source = source
        self._destination = destination

    def start(self) -> None:
        """Moves the guest; returns when it runs at its new place, nearly all of its memory still here."""
        for guest in (self._source, self._destination):
            guest.qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        uri = f"unix:{self._destination.folder / 'migration'}"
        self._destination.qmp.execute("migrate-incoming", uri=uri)
        self._limit(_TRICKLE_BYTES_PER_S)
        self._source.qmp.execute("migrate", uri=uri)
        self._wait("active")
        self._source.qmp.execute("migrate-start-postcopy")
        self._wait("postcopy-active")
        wait_for(
            lambda: self._destination.qmp.execute("query-status")["status"] == "running",
            timeout_s=_TIMEOUT_S,
            what=f"{self._destination.name} to run",
        )

    def bring_rest(self) -> None:
        """Sends all that is left as fast as it goes, and waits until it is there."""
        self._limit(_FULL_BYTES_PER_S)
        self._wait("completed")

    @property
    def status(self) -> str:
        """The source's word for how far it is, such as ``postcopy-active`` or ``completed``.

        Raises:
            RigError: it failed, with both QEMUs' logs.
        """
        status = str(self._source.qmp.execute("query-migrate").get("status", "none"))
        if status == "failed":
            raise RigError(
                f"the migration failed\nsource: {self._source.logs()}\ndestination: {self._destination.logs()}"
            )
        return status

    def _limit(self, bytes_per_s: int) -> None:
        self._source.qmp.execute("migrate-set-parameters", max_postcopy_bandwidth=bytes_per_s)

    def _wait(self, wanted: str) -> None:
        wait_for(lambda: self.status == wanted, timeout_s=_TIMEOUT_S, what=f"the migration to be {wanted}")
