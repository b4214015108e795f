"""Talks to the agent inside a guest over its second serial port: one command line there, exit code and output back.

The other end stands in ``guest-init.sh``. It needs no network, so it works while the network is what is being tested,
and it outlives snapshots. About 60 ms a command under TCG.
"""

from __future__ import annotations

import base64
import binascii
import socket
import time
from typing import TYPE_CHECKING

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from pathlib import Path


class Agent:
    """A connection to one guest's agent. Not thread-safe.

    Args:
        path: the socket of the guest's second serial port. Connect before the guest boots, or its greeting is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._buffer = b""
        self._sequence = 0

    def wait_ready(self, timeout_s: float) -> None:
        """Waits for the agent's greeting after boot."""
        deadline = time.monotonic() + timeout_s
        while self._line(deadline).strip() != b"ready":
            pass

    def call(self, command: str, timeout_s: float) -> tuple[int, str]:
        """Runs a command with the guest's ``sh``; gives exit code, and stdout and stderr together.

        Raises:
            RigError: no answer within ``timeout_s``, or the guest went away.
        """
        self._sequence += 1
        deadline = time.monotonic() + timeout_s
        name = str(self._sequence).encode()
        self._socket.sendall(name + b" " + base64.b64encode(command.encode()) + b"\n")
        while True:
            answered, _, rest = self._line(deadline).strip().partition(b" ")
            # An answer to an earlier command that ran past its deadline is not ours.
            if answered == name:
                break
        code, _, output = rest.partition(b" ")
        try:
            return int(code), base64.b64decode(output, validate=True).decode(errors="replace")
        except (ValueError, binascii.Error):
            raise RigError(f"the guest's agent on {self._path} answered {rest[:200]!r}") from None

    def close(self) -> None:
        """Hangs up; the agent waits for the next caller."""
        self._socket.close()

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._socket.recv(65536)
            except TimeoutError:
                raise RigError(f"the guest's agent on {self._path} did not answer in time") from None
            if not received:
                raise RigError(f"the guest behind {self._path} went away")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
