"""The standard library's JSON parser in the place of the one of ``ovs``.

The ``ovs`` package parses JSON in Python, a character at a time, unless its C extension is there: a database of a
thousand ports takes seconds to arrive. This module cuts the incoming text into messages with two regular
expressions and hands each to :mod:`json`, which is written in C: about twenty times as fast.

It refuses what ``ovs.json`` refuses: text that is not UTF-8 or holds half a surrogate pair or a NUL, numbers that
JSON does not know, a document that is neither object nor array.
"""

from __future__ import annotations

import json
import re
from typing import Any

import ovs.json

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SPACES = " \t\n\r"


def install() -> None:
    """Lets every later connection of ``ovs.jsonrpc`` parse with this module; safe to call again."""
    if ovs.json.PARSER != ovs.json.PARSER_C:
        ovs.json.Parser = Parser


class Parser:
    """Takes ``ovs.json.Parser``'s place: text goes in piece by piece, one document comes out.

    Args:
        check_trailer: whether anything but white space behind the document is an error.
    """

    def __init__(self, check_trailer: bool = False) -> None:
        self._check_trailer = check_trailer
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._error: str | None = None
        self._done = False

    def feed(self, text: str) -> int:
        """Takes text in.

        Returns:
            How many characters it took: all of them, unless the document ended before or is malformed.
        """
        if self._done:
            return 0
        start = 0
        if not self._pieces:
            start = len(text) - len(text.lstrip(_SPACES))
            if start == len(text):
                return start
            if text[start] not in "{[":
                return self._fail("syntax error at beginning of input", start)
        end = self._scan(text, start)
        self._pieces.append(text[start:end])
        if self._check_trailer and self._done:
            tail = text[end:].lstrip(_SPACES)
            return self._fail("trailing garbage at end of input", end) if tail else len(text)
        return end

    def is_done(self) -> bool:
        """Whether there is a document, or an error, to fetch with :meth:`finish`."""
        return self._done

    def finish(self) -> Any:
        """The document.

        Returns:
            Its value, or a str that says what is wrong with it.
        """
        if self._error is not None:
            return self._error
        if not self._done:
            return "unexpected end of input"
        text = "".join(self._pieces)
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
            if _SUSPECT.search(text):
                _check_strings(value)
        except RecursionError:
            return "input exceeds maximum nesting depth"
        except ValueError as problem:
            return str(problem)
        return value

    def _scan(self, text: str, at: int) -> int:
        """Follows strings and brackets up to the end of the document or of the text."""
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if match is None:
                return len(text)
            at = match.end()
            mark = match[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == "\\":
                self._escaped = True
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    self._done = True
                    return at
        return at

    def _fail(self, text: str, at: int) -> int:
        self._error = text
        self._done = True
        return at


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_strings(value: Any) -> None:
    """Refuses what no UTF-8 string of OVS can hold."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_strings(key)
            _check_strings(each)
    elif isinstance(value, list):
        for each in value:
            _check_strings(each)
    elif isinstance(value, str):
        if "\0" in value:
            raise ValueError("null bytes not supported in quoted strings")
        value.encode()  # a lone half of a surrogate pair raises UnicodeEncodeError, a ValueError
