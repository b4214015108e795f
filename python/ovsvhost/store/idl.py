"""A replica of an OVSDB database that this process may also write to, on `ovs.db.idl`.

Two additions to the stock class: the schema is asked from the server (so columns that an older server lacks are left
out instead of failing the monitor), and ``write`` sends operations as they are. The stock transaction walks every
row and column it touches in Python; a raw ``update`` of a thousand ports' statistics costs a twentieth of it. No
reply is waited for: it comes back in ``run`` and goes to the caller's function.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import ovs.db.idl
import ovs.jsonrpc

from ovsvhost.errors import ConfigError
from ovsvhost.poll import Poller
from ovsvhost.store import json_shim

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    Operation = dict[str, Any]
    Done = Callable[[list[str]], None]

DATABASE = "Open_vSwitch"
LOCK = "ovs_vswitchd"
"""Held by whoever carries the configuration out, so that two switches never serve one database."""


class Replica(ovs.db.idl.Idl):  # type: ignore[misc] # ovs has no types
    """The replica. ``run`` and ``wait`` are the stock ones; ``tables`` holds the rows."""

    def __init__(self, remote: str, schema: dict[str, Any], columns: Mapping[str, Sequence[str]]) -> None:
        helper = ovs.db.idl.SchemaHelper(schema_json=schema)
        for table, names in columns.items():
            known = schema["tables"].get(table, {"columns": {}})["columns"]
            present = [name for name in names if name in known]
            if present:
                helper.register_columns(table, present)
        super().__init__(remote, helper, leader_only=False)
        self.schema_version: str = schema["version"]
        self.on_change: Callable[[UUID], None] = lambda _row: None
        """Called for every row that a running monitor changed; a new connection starts over without a word."""

    @property
    def connection(self) -> int:
        """Counts connections and losses of them; what was written on another one may be lost."""
        return int(self._session.get_seqno())

    @property
    def connected(self) -> bool:
        """Whether the rows are complete and live."""
        return bool(self._session.is_connected() and self.state == self.IDL_S_MONITORING)

    @property
    def unanswered(self) -> int:
        """How many writes have no reply yet."""
        return len(self._outstanding_txns)

    def notify(self, event: str, row: Any, updates: Any = None) -> None:  # noqa: ARG002 - ovs's signature
        """Called by `ovs.db.idl` for each changed row."""
        self.on_change(row.uuid)

    def write(self, operations: Sequence[Operation], done: Done) -> bool:
        """Sends one transaction under the lock, if there is one; does not wait.

        Args:
            operations: RFC 7047 §5.2 operations.
            done: called from ``run`` with what went wrong, one sentence each; empty is success. Not called when the
                connection is lost before the reply.

        Returns:
            False when there is no connection: nothing was sent.
        """
        if not self._session.is_connected():
            return False
        guard: list[Operation] = [{"op": "assert", "lock": self.lock_name}] if self.lock_name else []
        message = ovs.jsonrpc.Message.create_request("transact", [DATABASE, *guard, *operations])
        if self._session.send(message) != 0:
            return False
        self._outstanding_txns[message.id] = _Reply(done)
        return True


class _Reply:
    """What the stock ``run`` looks for when the reply to a transaction comes, or the connection goes."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._status: str | None = None

    def _process_reply(self, message: Any) -> None:
        if message.type == ovs.jsonrpc.Message.T_ERROR:
            self._done([str(message.error)])
            return
        errors = [result for result in message.result if isinstance(result, dict) and "error" in result]
        self._done([": ".join(filter(None, (error["error"], error.get("details")))) for error in errors])


def prepare() -> None:
    """Gives every `ovs.jsonrpc` connection of this process our JSON parser. Once, before any connection."""
    json_shim.install()


def fetch_schema(
    remote: str, timeout_s: float | None, keep_waiting: Callable[[Poller], bool] = lambda _poller: True
) -> Any:
    """Asks a server for the schema of ``Open_vSwitch``; connects again and again until it answers.

    Args:
        remote: one remote or several, separated by commas, as ``unix:PATH`` or ``tcp:HOST:PORT``.
        timeout_s: how long to try; None for ever.
        keep_waiting: called before each wait with the poller, to add what else shall wake it; False gives up.

    Returns:
        The schema, or None when ``keep_waiting`` gave up.

    Raises:
        ConfigError: no answer in time, or the server has no such database.
    """
    check_remote(remote)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    session = ovs.jsonrpc.Session.open_multiple(remote.split(","), probe_interval=0)
    poller, asked_on, request = Poller(), None, None
    try:
        while True:
            session.run()
            if session.is_connected() and asked_on != session.get_seqno():
                asked_on = session.get_seqno()
                request = ovs.jsonrpc.Message.create_request("get_schema", [DATABASE])
                session.send(request)
            message = session.recv()
            if message is not None and request is not None and message.id == request.id:
                if message.type == ovs.jsonrpc.Message.T_REPLY:
                    return message.result
                raise ConfigError(f"database {remote} has no {DATABASE}: give --db the remote of a vswitch database")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ConfigError(_silence(remote))
            session.wait(poller)
            session.recv_wait(poller)
            if left is not None:
                poller.timer_wait(left * 1000)
            if not keep_waiting(poller):
                return None
            poller.block()
    finally:
        session.close()


def check_remote(remote: str) -> None:
    """ConfigError if ``remote`` cannot be a database's."""
    for part in remote.split(","):
        kind, _, address = part.partition(":")
        if kind not in {"unix", "tcp"} or not address:
            raise ConfigError(f"database remote {part!r} is none: give unix:PATH or tcp:HOST:PORT")


def _silence(remote: str) -> str:
    """Why nobody answers, as far as it can be seen."""
    why = ""
    if remote.startswith("unix:") and "," not in remote:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(remote.removeprefix("unix:"))
            except OSError as error:
                why = f" ({error.strerror or error})"
    return f"database {remote} does not answer{why}: start its server, or give its remote with --db"


def snapshot(remote: str, columns: Mapping[str, Sequence[str]], timeout_s: float) -> Any:
    """Reads a database once: the ``tables`` of a replica that is complete.

    Raises:
        ConfigError: the server does not answer in ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    replica = Replica(remote, fetch_schema(remote, timeout_s), columns)
    poller = Poller()
    try:
        while True:
            replica.run()
            if replica.connected:
                return replica.tables
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ConfigError(_silence(remote))
            replica.wait(poller)
            poller.timer_wait(left_s * 1000)
            poller.block()
    finally:
        replica.close()
