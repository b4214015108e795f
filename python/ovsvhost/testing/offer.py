"""What a switch offers a front-end that comes to it, asked over the wire (vhost-user: GET_FEATURES).

The port under question is of type ``dpdkvhostuserclient``: this side listens, asks two questions and hangs up. It says
nothing of itself that a switch could keep, so the port is as new afterwards.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from pathlib import Path

_GET_FEATURES, _GET_PROTOCOL_FEATURES = 1, 15
_VERSION = 1
_HEADER = struct.Struct("=III")
_TIMEOUT_S = 30


class Offer(NamedTuple):
    """Feature bits, as sent."""

    virtio: int
    protocol: int


def ask_offer(path: Path) -> Offer:
    """Waits for a switch at ``path``, where nothing may be yet, and asks it.

    Raises:
        RigError: it answered something else, or nothing within 30 s.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(_TIMEOUT_S)
        listener.bind(str(path))
        try:
            listener.listen()
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(_TIMEOUT_S)
                return Offer(_ask(stream, _GET_FEATURES), _ask(stream, _GET_PROTOCOL_FEATURES))
        except TimeoutError:
            raise RigError(f"no switch came to {path}, or none answered, within {_TIMEOUT_S} s") from None
        finally:
            path.unlink()


def _ask(stream: socket.socket, request: int) -> int:
    stream.sendall(_HEADER.pack(request, _VERSION, 0))
    answer = stream.recv(_HEADER.size + 8, socket.MSG_WAITALL)
    if len(answer) != _HEADER.size + 8 or _HEADER.unpack_from(answer)[::2] != (request, 8):
        raise RigError(f"request {request} was answered with {answer.hex() or 'nothing'}")
    (value,) = struct.unpack_from("=Q", answer, _HEADER.size)
    return int(value)
