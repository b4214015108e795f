"""The named locks that clients take from each other (RFC 7047 §4.1.8 to §4.1.10).

A lock is a queue of sessions; the first one owns it. ovs-vswitchd's is ``ovs_vswitchd``, so that two of them never
work on one database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Holder(Protocol):
    """A client that can own a lock."""

    def notify_lock(self, method: str, name: str) -> None:
        """Tell the client ``locked`` or ``stolen`` (RFC 7047 §4.1.11, §4.1.12)."""


class _Waiter:
    __slots__ = ("did_steal", "holder")

    def __init__(self, holder: Holder, *, did_steal: bool) -> None:
        self.holder = holder
        self.did_steal = did_steal


class LockTable:
    """All locks of one server."""

    def __init__(self) -> None:
        self._queues: dict[str, list[_Waiter]] = {}
        # Who asked for what and has not unlocked it, also after it was stolen twice over.
        self._asked: dict[str, set[int]] = {}

    def has_asked(self, holder: Holder, name: str) -> bool:
        """Whether the client took or awaits the lock and has not given it back."""
        return id(holder) in self._asked.get(name, ())

    def owns(self, holder: Holder, name: str) -> bool:
        """Whether the client owns the lock now."""
        queue = self._queues.get(name)
        return bool(queue) and queue is not None and queue[0].holder is holder

    def lock(self, holder: Holder, name: str) -> bool:
        """Take the lock or queue for it; True if it is the client's now."""
        self._asked.setdefault(name, set()).add(id(holder))
        self._queues.setdefault(name, []).append(_Waiter(holder, did_steal=False))
        return self.owns(holder, name)

    def steal(self, holder: Holder, name: str) -> bool:
        """Take the lock from whoever has it, who is told and stays in the queue unless he stole it himself."""
        queue = self._queues.setdefault(name, [])
        victim = queue[0] if queue else None
        self._asked.setdefault(name, set()).add(id(holder))
        queue.insert(0, _Waiter(holder, did_steal=True))
        if victim is not None:
            if victim.did_steal:
                queue.remove(victim)
            victim.holder.notify_lock("stolen", name)
        return True

    def unlock(self, holder: Holder, name: str) -> None:
        """Give the lock back, or leave the queue; the next one is told if it is his now."""
        asked = self._asked.get(name, set())
        asked.discard(id(holder))
        queue = self._queues.get(name, [])
        was_owner = self.owns(holder, name)
        queue[:] = [waiter for waiter in queue if waiter.holder is not holder]
        if not queue:
            self._queues.pop(name, None)
        elif was_owner:
            queue[0].holder.notify_lock("locked", name)
        if not asked:
            self._asked.pop(name, None)

    def unlock_all(self, holder: Holder) -> None:
        """What happens when a client hangs up."""
        for name in list(self._names_of(holder)):
            self.unlock(holder, name)

    def _names_of(self, holder: Holder) -> Iterator[str]:
        return (name for name, asked in self._asked.items() if id(holder) in asked)
