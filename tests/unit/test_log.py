"""The daemon's log: for people, for machines, and never more lines than events."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from ovsvhost import log
from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A log file; the process's own logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield tmp_path / "log"
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_is_one_object_a_line_with_the_facts_beside_the_text(file: Path) -> None:
    log.configure(form="json", file=file)
    logging.getLogger("ovsvhost.daemon").warning("port %s is gone", "v0", extra={"port": "v0"})
    (line,) = file.read_text().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {"event": "port v0 is gone", "level": "warning", "logger": "ovsvhost.daemon", "port": "v0"}


def test_console_lines_hold_the_text_and_the_facts_without_colours(file: Path) -> None:
    log.configure(file=file)
    logging.getLogger("ovsvhost.daemon").info("ready", extra={"rundir": "/run/x"})
    (line,) = file.read_text().splitlines()
    assert "[info     ] ready" in line
    assert line.endswith("rundir=/run/x")
    assert "\x1b" not in line


def test_structlogs_own_loggers_write_to_the_same_place(file: Path) -> None:
    log.configure(form="json", file=file)
    structlog.get_logger("ovsvhost.store").error("the disk is full", file="conf.db")
    event = json.loads(file.read_text())
    assert (event["event"], event["level"], event["file"]) == ("the disk is full", "error", "conf.db")


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_text_with_line_breaks_and_escapes_stays_one_plain_line(file: Path, form: str) -> None:
    log.configure(form="json" if form == "json" else "console", file=file)
    logging.getLogger("ovsvhost").warning("a\nb \x1b[31m", extra={"port": "c\nd"})
    text = file.read_text()
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_lesser_events_are_left_out(file: Path) -> None:
    log.configure("warning", file=file)
    logging.getLogger("ovsvhost").info("small talk")
    logging.getLogger("ovsvhost").error("trouble")
    assert "small talk" not in file.read_text()
    assert "trouble" in file.read_text()


def test_a_log_that_was_rotated_away_goes_on_in_a_new_file(file: Path) -> None:
    log.configure(file=file)
    logging.getLogger("ovsvhost").info("before")
    file.rename(file.with_name("log.1"))
    logging.getLogger("ovsvhost").info("after")
    assert "before" not in file.read_text()
    assert "after" in file.read_text()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log file .* cannot be opened"):
        log.configure(file=tmp_path / "missing" / "log")
