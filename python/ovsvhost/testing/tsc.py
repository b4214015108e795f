"""How fast this machine's time-stamp counter runs, in kHz: an emulated guest reads the very same counter.

A guest that boots measures it against an emulated timer. On a busy machine that goes wrong, and its clock then runs on
that timer, which leaps when the emulator was kept waiting. Told the figure, it need not measure.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from functools import cache

# Reads the counter (rdtsc), joins its two halves in rax, returns.
_READ_COUNTER = bytes.fromhex("0f3148c1e2204809d0c3")
_SPELL_S = 0.05
_TRIES = 20


@cache
def tsc_khz() -> int | None:
    """The counter's frequency; None where there is none, or nobody may run code it wrote."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except PermissionError:
        return None
    page.write(_READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def now() -> tuple[int, int]:
        """A moment in ns and in counts: of some tries the one that nothing came between."""
        tries = [(_now_ns(), read(), _now_ns()) for _ in range(_TRIES)]
        before_ns, count, _ = min(tries, key=lambda one: one[2] - one[0])
        return before_ns, count

    begin_ns, begin = now()
    time.sleep(_SPELL_S)
    end_ns, end = now()
    return (end - begin) * 1_000_000 // (end_ns - begin_ns)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
