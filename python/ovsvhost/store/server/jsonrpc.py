"""Messages on a byte stream: JSON objects one after the other, nothing between them (RFC 7047 §4, JSON-RPC 1.0).

Where a message ends is found by counting brackets outside of strings, with the operations that CPython does in C;
the text is then parsed once. A message of one megabyte costs a few milliseconds, however it is cut into pieces.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from itertools import accumulate
from typing import Any

from ovsvhost.errors import PeerError

MAX_MESSAGE_SIZE = 64 * 1024 * 1024
"""Bytes. A thousand ports with all their statistics are two of them; more is a mistake or an attack."""

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_BLANKS = re.compile(r"[ \t\n\r]*")
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_MEMBERS = frozenset({"method", "params", "result", "error", "id"})


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


class Framer:
    """Cuts a stream into messages.

    Args:
        max_size: bytes that one message may have.
    """

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._max_size = max_size
        self._to_text = codecs.getincrementaldecoder("utf-8")()
        self._parts: list[str] = []
        self._size = 0
        self._depth = 0
        self._in_string = False
        self._after_backslash = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that these bytes complete.

        Errors: `PeerError` for what is no JSON object or too long; the stream is of no use afterwards.
        """
        self._size += len(data)
        try:
            self._parts.append(self._to_text.decode(data))
        except UnicodeDecodeError as error:
            raise PeerError("the stream is not UTF-8") from error
        complete = self._count_messages(data)
        if not complete:
            if self._size > self._max_size:
                raise PeerError(f"a message is longer than {self._max_size} bytes")
            if self._depth == 0 and "".join(self._parts).strip(" \t\r\n"):
                raise PeerError("the stream is not JSON-RPC: an object was expected")
            return []
        return self._parse(complete)

    def _count_messages(self, data: bytes) -> int:
        if self._after_backslash:
            data = b"\\" + data
            self._after_backslash = False
        if b"\\" in data:
            data = _ESCAPED.sub(b"", data)
            if data.endswith(b"\\"):
                self._after_backslash = True
        pieces = data.split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= (len(pieces) - 1) % 2 == 1
        steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
        if not steps:
            return 0
        depths = list(accumulate(steps, initial=self._depth))
        self._depth = depths[-1]
        if min(depths) < 0:
            raise PeerError("the stream is not JSON-RPC: a bracket closes that was not open")
        return depths.count(0) - (depths[0] == 0)

    def _parse(self, complete: int) -> list[dict[str, Any]]:
        text = "".join(self._parts)
        messages = []
        position = 0
        try:
            for _ in range(complete):
                position = _skip_blanks(text, position)
                message, end = _decoder.raw_decode(text, position)
                if text.find("\\u", position, end) >= 0:
                    _check_strings(message, text, position, end)
                if type(message) is not dict:
                    raise PeerError("the stream is not JSON-RPC: an object was expected")
                messages.append(message)
                position = end
        except (ValueError, RecursionError) as error:
            raise PeerError(f"the stream is not JSON: {error}") from error
        rest = text[_skip_blanks(text, position) :]
        self._parts = [rest] if rest else []
        self._size = len(rest.encode(errors="surrogatepass"))
        return messages


def _skip_blanks(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    return position if match is None else match.end()


def _check_strings(message: Any, text: str, start: int, end: int) -> None:
    """Refuse what ovsdb-server refuses too: NUL and half a surrogate pair, which only an escape can write."""
    if _NUL.search(text, start, end):
        raise ValueError("a string holds NUL")
    json.dumps(message, ensure_ascii=False).encode()


def check_message(message: dict[str, Any]) -> str:
    """What kind of message it is: ``request``, ``notification`` or ``reply``.

    Errors: `PeerError` for a member that is missing or does not belong there.
    """
    unexpected = message.keys() - _MEMBERS
    if unexpected:
        raise PeerError(f'message has unexpected member "{min(unexpected)}"')
    if message.get("result") is not None or message.get("error") is not None:
        return "reply"
    if type(message.get("method")) is not str:
        raise PeerError('a request must have "method", a string')
    if type(message.get("params")) is not list:
        raise PeerError('a request must have "params", an array')
    return "notification" if message.get("id") is None else "request"


def encode(message: dict[str, Any]) -> bytes:
    """The bytes of a message."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
