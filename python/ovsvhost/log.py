"""One line per event a user cares about, for people or for machines.

Everything ends in the standard library's loggers (``ovsvhost.…``), so a program that uses `Switch` decides for itself;
the daemon calls `configure` and gets structlog's rendering. Facts travel beside the text, as ``extra={"port": …}``, or
as structlog's keywords.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from typing import TYPE_CHECKING, Literal

import structlog

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str = "info", form: Literal["console", "json"] = "console", file: Path | None = None) -> None:
    """Sends the log to stderr, or to ``file`` (opened anew when it was rotated away).

    Args:
        level: one of `LEVELS`; lesser events are left out.
        form: ``console`` for people, ``json`` for one object a line.
        file: where to append; None is stderr.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        handler: logging.Handler = (
            logging.handlers.WatchedFileHandler(file) if file else logging.StreamHandler(sys.stderr)
        )
    except OSError as error:
        raise ConfigError(f"log file {str(file)!r} cannot be opened ({error.strerror}): choose another") from error
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last: Processor
    if form == "json":
        last = structlog.processors.JSONRenderer()
    else:
        last = structlog.dev.ConsoleRenderer(
            colors=file is None and sys.stderr.isatty(), timestamp_key="time", pad_event_to=0
        )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _printable,
                last,
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Names come from a database and from guests: a line stays a line, whatever they hold."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event
