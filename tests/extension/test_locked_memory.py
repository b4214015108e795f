"""A process whose memory is locked has its pages before anybody can say that they are elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

_OFFERS = """
import ctypes, resource
from ovsvhost import ConfigError
from ovsvhost._core import Datapath

datapath = Datapath()
datapath.offer_postcopy()
page = ctypes.create_string_buffer(4096)
if ctypes.CDLL(None).mlock(page, len(page)) != 0:
    raise SystemExit("no memory may be locked")
try:
    datapath.offer_postcopy()
except ConfigError as error:
    print(error)
"""


@pytest.mark.rows("A16")
def test_A16_postcopy_is_refused_where_memory_is_locked() -> None:
    """In a process of its own: locked memory is seen by all that runs in it."""
    told = subprocess.run([sys.executable, "-c", _OFFERS], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "run the switch without mlockall" in told.stdout
