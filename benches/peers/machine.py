"""The machine a measurement runs on: which cores, how undisturbed a window was, and what to print beside the numbers.

Two cores are enough and more are not used: the switch's thread has one, the generator the other. What else runs there
spoils a window; the scheduler's own accounts say how much, so such a window can be thrown away instead of believed.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.testing.errors import RigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOP = Path(__file__).parents[2]


@dataclass(frozen=True)
class SchedulerClock:
    """Nanoseconds a thread ran, and nanoseconds it was ready to run but another thread had its core."""

    ran_ns: int
    waited_ns: int

    def __sub__(self, earlier: SchedulerClock) -> SchedulerClock:
        """What came to pass between two readings."""
        return SchedulerClock(self.ran_ns - earlier.ran_ns, self.waited_ns - earlier.waited_ns)

    @property
    def wait_share(self) -> float:
        """Part of the time it wanted to run in which it could not, 0..1."""
        total = self.ran_ns + self.waited_ns
        return self.waited_ns / total if total else 0.0


def scheduler_clock(pid: int, tid: int) -> SchedulerClock:
    """One thread's account so far (``/proc/PID/task/TID/schedstat``)."""
    ran, waited, _ = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()
    return SchedulerClock(int(ran), int(waited))


def stolen_s() -> float:
    """Seconds so far in which the machine under this one ran something else on its cores (``proc(5)``: steal)."""
    words = Path("/proc/stat").read_text().split(maxsplit=9)
    return int(words[8]) / os.sysconf("SC_CLK_TCK")


def process_clock(pid: int) -> SchedulerClock:
    """The account of all threads a process has now. Threads that ended are not in it."""
    clocks = []
    for tid in threads(pid):
        # One may end between being listed and being asked.
        with suppress(FileNotFoundError, ProcessLookupError):
            clocks.append(scheduler_clock(pid, tid))
    return SchedulerClock(sum(clock.ran_ns for clock in clocks), sum(clock.waited_ns for clock in clocks))


def threads(pid: int) -> dict[int, str]:
    """Thread numbers of a process, with their names."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end while it is looked at.
        with suppress(FileNotFoundError, ProcessLookupError):
            found[int(task.name)] = (task / "comm").read_text().strip()
    return found


def thread_named(pid: int, prefix: str) -> int:
    """The thread whose name begins with ``prefix``; RigError when there is none."""
    for tid, name in threads(pid).items():
        if name.startswith(prefix):
            return tid
    raise RigError(f"process {pid} has no thread '{prefix}…': {sorted(threads(pid).values())}")


@contextmanager
def alone() -> Iterator[None]:
    """One measurement at a time on this machine: waits until it is our turn."""
    with Path(tempfile.gettempdir(), "ovsvhost-bench.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_first() -> str:
    """Asks the scheduler to run this process and what it starts before others'; says what came of it.

    All switches and generators gain alike. Nice values count only inside an autogroup (``sched(7)``), so the group's
    own value is set too. Must be called before anything is started.
    """
    if os.getpid() != os.getsid(0) and os.getpid() != os.getpgrp():
        os.setsid()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        Path("/proc/self/autogroup").write_text("-20")
    except FileNotFoundError:
        return "nice -20"
    except OSError as error:
        return f"usual ({error.strerror})"
    return "nice -20, its autogroup too (sched(7))"


def conditions() -> dict[str, str]:
    """What a reader needs to judge or repeat the numbers."""
    return {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}",
        "kernel": platform.release(),
        "openvswitch-switch-dpdk": _package("openvswitch-switch-dpdk"),
        "dpdk": _package("dpdk"),
        "rustc": _output("rustc", "--version"),
        "commit": _output("git", "-C", str(_TOP), "describe", "--always", "--dirty"),
    }


def tsc_hz() -> float:
    """Cycles per second of the time stamp counter; the kernel's own figure."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("bogomips"):
            # The kernel counts two loops a cycle of the TSC.
            return float(line.partition(":")[2]) / 2 * 1e6
    raise RigError("/proc/cpuinfo tells no bogomips: this benchmark reads the time stamp counter of an x86 processor")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return f"{value.strip()}, {tsc_hz() / 1e6:.0f} MHz TSC{', virtual' if _is_virtual() else ''}"
    return platform.machine()


def _is_virtual() -> bool:
    return " hypervisor " in Path("/proc/cpuinfo").read_text()


def _package(name: str) -> str:
    return _output("dpkg-query", "-W", "-f=${Version}", name)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
