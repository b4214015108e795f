"""The error object of RFC 7047 §3.1: what a client reads when its request was refused.

Texts are those of ovsdb-server(1), because scripts and client libraries match on them.
"""

from __future__ import annotations

import json
from typing import Any

from ovsvhost.errors import PeerError


def compact(value: Any) -> str:
    """The JSON text of ``value``, without spaces, members sorted, as the errors and the log carry it."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


class OvsdbError(PeerError):
    """One refused operation; the transaction it stood in has no effect.

    Args:
        details: what is wrong with what, for a person.
        tag: the ``error`` member, one of the strings of RFC 7047 §3.1 and §5.2.
        syntax: the offending piece of JSON, if one is to blame.
        io_error: the kernel's words, for a failed write.
    """

    def __init__(
        self, details: str, *, tag: str = "ovsdb error", syntax: Any = None, io_error: str | None = None
    ) -> None:
        super().__init__(f"{tag}: {details}")
        self.tag = tag
        self.details = details
        self.syntax = syntax
        self.io_error = io_error

    def to_json(self) -> dict[str, Any]:
        """The ``<error>`` object, with ovsdb-server's members ``syntax`` and ``io-error`` where they say more."""
        body: dict[str, Any] = {"error": self.tag, "details": self.details}
        if self.syntax is not None:
            body["syntax"] = compact(self.syntax)
        if self.io_error is not None:
            body["io-error"] = self.io_error
        return body


def syntax_error(syntax: Any, details: str, *, tag: str = "syntax error") -> OvsdbError:
    """An error that quotes the JSON it is about."""
    return OvsdbError(details, tag=tag, syntax=syntax)


def constraint_violation(details: str) -> OvsdbError:
    """A value that the schema forbids (RFC 7047 §5.2.1)."""
    return OvsdbError(details, tag="constraint violation")
