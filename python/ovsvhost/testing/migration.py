"""Moving a running guest from one QEMU to another by pre-copy, both on this machine.

QEMU copies the guest's memory while it runs, again and again what was written meanwhile, then stops it, copies the rest
and lets the other QEMU go on. What the switch wrote to the guest is in no dirty log but the switch's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.guest import Guest

# So slow that the guest's memory takes seconds, and much of it is written meanwhile.
_BYTES_PER_S = 48 << 20
_MIGRATION_TIMEOUT_S = 120
_HURRY_BYTES_PER_S = 1 << 30


class Migration:
    """One move.

    Args:
        source: the guest that runs.
        destination: one made with ``incoming="defer"`` and the same devices, on sockets of its own; started.
    """

    def __init__(self, source: Guest, destination: Guest) -> None:
        self._source = source
        self._destination = destination

    def start(self, *, bytes_per_s: int = _BYTES_PER_S) -> None:
        """Begins; returns while memory is on its way, for long if it is slow."""
        uri = f"unix:{self._destination.folder / 'migration'}"
        self._destination.qmp.execute("migrate-incoming", uri=uri)
        self._begin(uri, bytes_per_s)

    def hurry(self) -> None:
        """Lets a slow one come to its end."""
        self._source.qmp.execute("migrate-set-parameters", max_bandwidth=_HURRY_BYTES_PER_S)

    @property
    def status(self) -> str:
        """QEMU's word for how far it is, such as ``active`` or ``completed``."""
        return str(self._source.qmp.execute("query-migrate").get("status", "none"))

    def wait(self) -> int:
        """Waits until the destination runs; gives the milliseconds for which neither did.

        Raises:
            RigError: it failed, with both QEMUs' logs.
        """

        def completed() -> bool:
            if self.status == "failed":
                raise RigError(
                    f"the migration failed\nsource: {self._source.logs()}\ndestination: {self._destination.logs()}"
                )
            return self.status == "completed"

        wait_for(completed, timeout_s=_MIGRATION_TIMEOUT_S, what="the guest to move")
        wait_for(
            lambda: self._destination.qmp.execute("query-status")["status"] == "running",
            timeout_s=_MIGRATION_TIMEOUT_S,
            what="the destination to run",
        )
        return int(self._source.qmp.execute("query-migrate")["downtime"])

    def begin_in_vain(self) -> None:
        """Copies memory to nowhere, for ``give_up`` to end."""
        self._begin("exec:cat >/dev/null")

    def give_up(self) -> None:
        """Ends it before the guest moved; the source goes on."""
        self._source.qmp.execute("migrate_cancel")
        what = "the migration to be given up"
        wait_for(lambda: self.status == "cancelled", timeout_s=_MIGRATION_TIMEOUT_S, what=what)

    def _begin(self, uri: str, bytes_per_s: int = _BYTES_PER_S) -> None:
        self._source.qmp.execute("migrate-set-parameters", max_bandwidth=bytes_per_s)
        self._source.qmp.execute("migrate", uri=uri)
