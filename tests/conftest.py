"""Every test may use the rig: guests, peers and the daemon as a process.

Under ``pytest -n 2`` (``make test``) one process runs the tests that want the machine for themselves, one after the
other: those with guests, with peers that poll, and those that judge times. The other runs the rest beside them, for an
emulated guest leaves a core idle most of the time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["ovsvhost.testing"]

# The same examples every time, however long one takes: a run says something about the change, not about the machine or
# its luck. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# What may run beside anything: no guest, no program that polls, no time that is judged to the second.
BESIDE = (
    *("tests/docs/", "tests/extension/", "tests/unit/", "tests/peer/test_appctl_", "tests/peer/test_daemon_bad_input"),
    *("tests/peer/test_daemon_quick_example", "tests/peer/test_ovsdb_", "tests/peer/test_qemu_command"),
    *("tests/peer/test_switch_objects", "tests/peer/test_vsctl_"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What runs beside is dealt out by file; all else is one pile, in the order of a run without ``-n``."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - not every run has it

    class TwoPiles(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if nodeid.startswith(BESIDE) else "alone"

    return TwoPiles(config, log)
