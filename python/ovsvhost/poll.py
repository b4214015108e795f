"""One poll(2) over everything a control loop waits for.

The same interface as `ovs.poller.Poller`, which cannot be used here: it waits with select(2), and a switch with a few
hundred guests has descriptors past 1023.
"""

from __future__ import annotations

import select
import time
from typing import Protocol


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


class Poller:
    """Collects descriptors and deadlines for one `block`, then forgets them."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}
        self._timeout_ms: float | None = None

    def fd_wait(self, fd: int | HasFileno, events: int) -> None:
        """Wakes `block` when ``fd`` has one of ``events`` (``select.POLLIN`` …)."""
        number = fd if isinstance(fd, int) else fd.fileno()
        self._events[number] = self._events.get(number, 0) | events

    def timer_wait(self, ms: float) -> None:
        """Wakes `block` after at most ``ms``."""
        ms = max(ms, 0)
        self._timeout_ms = ms if self._timeout_ms is None else min(self._timeout_ms, ms)

    def timer_wait_until(self, ms: float) -> None:
        """Wakes `block` when ``ovs.timeval.msec()`` reaches ``ms``; `ovs` calls it."""
        self.timer_wait(ms - time.monotonic_ns() // 1_000_000)

    def immediate_wake(self) -> None:
        """Makes `block` return at once."""
        self._timeout_ms = 0

    def block(self) -> set[int]:
        """Waits; returns the descriptors that are ready."""
        poll = select.poll()
        for number, events in self._events.items():
            poll.register(number, events)
        # rounded up: a timer that wakes a fraction early would spin until its time
        timeout = None if self._timeout_ms is None else int(-(-self._timeout_ms // 1))
        self._events, self._timeout_ms = {}, None
        return {number for number, _ in poll.poll(timeout)}
