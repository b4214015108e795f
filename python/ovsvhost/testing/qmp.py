"""QEMU's machine protocol, as much as the rig needs: one command at a time, events set aside."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from pathlib import Path


class Qmp:
    """A session on one QMP socket. Not thread-safe.

    Args:
        path: the socket QEMU listens on.
        timeout_s: the longest wait for an answer.
    """

    def __init__(self, path: Path, *, timeout_s: float = 30) -> None:
        self.events: list[dict[str, Any]] = []
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._message()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Runs one command and gives what it returns; underscores in argument names become dashes.

        Raises:
            RigError: QEMU refused it, or the connection ended.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        while True:
            message = self._message()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise RigError(f"qemu refused '{command}': {message['error']['desc']}")
            elif "return" in message:
                return message["return"]

    def close(self) -> None:
        """Ends the session; QEMU goes on."""
        self._lines.close()
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise RigError(f"qemu did not answer on {self._path} in {self._socket.gettimeout():g} s") from None
        if not line:
            raise RigError(f"qemu closed {self._path}: its log says why")
        message: dict[str, Any] = json.loads(line)
        return message
