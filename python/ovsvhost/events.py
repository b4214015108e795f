"""What happens in the datapath, as log lines: one line an event, in the words that the core gave it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ovsvhost._core import Event

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("ovsvhost.datapath")


def log(events: Iterable[Event]) -> None:
    """Writes them to the logger ``ovsvhost.datapath``; ``kind`` and ``port`` travel beside the text."""
    for event in events:
        extra = {"kind": event.kind} | ({"port": event.port} if event.port else {})
        _log.log(_LEVELS[event.level], "%s", event.text, extra=extra)
