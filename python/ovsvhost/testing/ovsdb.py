"""Database servers to test against: the real ovsdb-server in a directory of its own, and a client without opinions.

The client sends what it is told, right or wrong, and hands back what comes: it is for comparing servers, not for use.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.process import Program
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path


class OvsdbServer:
    """A real ovsdb-server(1).

    Args:
        directory: for its socket, log and pid file; it exists and is empty of those.
        database: the file it serves; ovsdb-tool can make one.
    """

    def __init__(self, directory: Path, database: Path) -> None:
        self.socket = directory / "peer.sock"
        environment = os.environ | {"OVS_RUNDIR": str(directory), "OVS_LOGDIR": str(directory)}
        self._program = Program(
            ["ovsdb-server", f"--remote=punix:{self.socket}", f"--unixctl={directory / 'peer.ctl'}", str(database)],
            log=directory / "ovsdb-server.log",
            environment=environment,
        )
        wait_for(self._answers, timeout_s=10, what=f"ovsdb-server on {self.socket}")

    def _answers(self) -> bool:
        self._program.check()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    @property
    def remote(self) -> str:
        """What to give to ``ovs-vsctl --db=``."""
        return f"unix:{self.socket}"

    def stop(self) -> None:
        """End it. Idempotent."""
        self._program.stop()

    def __enter__(self) -> Self:
        """Already running."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stop()


class OvsdbClient:
    """A JSON-RPC connection to a database server.

    Args:
        path: the server's unix socket.
        timeout_s: how long an answer may take.

    Notifications that come before an answer are collected in ``notifications``.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(str(path))
        self.notifications: list[dict[str, Any]] = []
        self._text = ""
        self._next_id = 0
        self._decoder = json.JSONDecoder()

    def send(self, method: str, params: Any, request_id: Any) -> None:
        """Send a request, or a notification if ``request_id`` is None."""
        message = {"method": method, "params": params, "id": request_id}
        self.socket.sendall(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The next message. Errors: `RigError` if the server hung up, ``TimeoutError`` if none comes."""
        while True:
            text = self._text.lstrip()
            with suppress(json.JSONDecodeError):
                message, end = self._decoder.raw_decode(text)
                self._text = text[end:]
                return dict(message)
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionResetError:
                # What the server had not read yet went with it.
                data = b""
            if not data:
                raise RigError("the database server hung up")
            self._text += data.decode()

    def request(self, method: str, *params: Any) -> dict[str, Any]:
        """Ask and wait for the answer: the whole message."""
        self._next_id += 1
        self.send(method, list(params), self._next_id)
        return self.answer(self._next_id)

    def answer(self, request_id: Any) -> dict[str, Any]:
        """The answer to a request that was sent; what comes before is put with ``notifications``."""
        while True:
            message = self.receive()
            if message.get("id") == request_id and "method" not in message:
                return message
            self.notifications.append(message)

    def transact(self, database: str, *operations: Any) -> Any:
        """The results of a transaction."""
        return self.request("transact", database, *operations)["result"]

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Self:
        """Already connected."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()
