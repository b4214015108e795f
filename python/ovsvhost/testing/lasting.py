"""What lasts from ``start`` to ``stop``: in a ``with`` statement it is started, and ended whatever happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Lasting(ABC):
    """Something of the rig that is started, used and ended, and can be started again."""

    @abstractmethod
    def start(self) -> Self:
        """Starts it; what it waits for, its own words say."""

    @abstractmethod
    def stop(self) -> object:
        """Ends it. Idempotent."""

    def __enter__(self) -> Self:
        """Starts it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.stop()
