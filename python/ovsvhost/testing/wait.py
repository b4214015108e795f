"""Waiting for something outside the process, always with a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_for(condition: Callable[[], T], *, timeout_s: float, what: str, interval_s: float = 0.02) -> T:
    """Polls until ``condition`` gives something true, and gives that back.

    Raises:
        RigError: it did not within ``timeout_s``; ``what`` says what was waited for, with the last value seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RigError(f"waited {timeout_s:g} s for {what}; the last answer was {value!r}")
        time.sleep(interval_s)
