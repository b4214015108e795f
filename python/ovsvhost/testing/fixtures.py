"""The rig as pytest fixtures; loaded by ``pytest_plugins = ["ovsvhost.testing"]``.

Two rules hold for every test that uses the rig, fixtures or not: what the machine lacks (``MissingError``) skips the
test with the message that names it, and a test that fails shows the ends of all logs of its programs and guests and
keeps the logs under ``build/test-logs``.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing import image
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.errors import MissingError
from ovsvhost.testing.process import Program, tail

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_LOG_LINES = 60


@pytest.fixture(scope="session")
def guest_image() -> image.GuestImage:
    """What guests boot."""
    return image.guest_image()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for socket names (a socket's path has at most 107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="ov-") as name:
        yield Path(name)


@pytest.fixture
def switch(short_folder: Path) -> Iterator[SwitchDaemon]:
    """A running ``ovsvhost daemon`` in a run directory of its own, without bridges."""
    with SwitchDaemon(short_folder / "sw") as daemon:
        yield daemon


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    """Skips a test whose fixtures miss something on this machine."""
    try:
        yield
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skips a test that misses something on this machine."""
    try:
        yield
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps the logs of a test that failed, and shows their ends."""
    report = yield
    if report.failed and Program.logs:
        kept = Path(item.config.rootpath, "build", "test-logs", re.sub(r"[^\w.-]+", "_", item.nodeid))
        kept.mkdir(parents=True, exist_ok=True)
        for name, log in Program.logs.items():
            if log.is_file():
                shutil.copy(log, kept / f"{log.parent.name}-{log.name}")
                report.sections.append((f"{call.when}: {name}", tail(log, _LOG_LINES)))
    return report
