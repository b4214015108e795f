"""The switches, side by side behind one shape: start, ports, counters of the one thread that moves frames.

All poll on the same core, so only one may run at a time: the others are stopped (SIGSTOP) until it is their turn.
Each connects to sockets that the front-ends create, as ``dpdkvhostuserclient`` ports do. The first two ports have the
traffic; the guests of the others are connected and silent.
"""

from __future__ import annotations

import os
import re
import signal
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import machine
from cable import Cable
from cases import OURS, OURS_AWAKE, OVS, OVS_FLOWS, TESTPMD

from ovsvhost.appctl.client import transact
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.errors import RigError
from ovsvhost.testing.ovs_dpdk import OvsDpdk
from ovsvhost.testing.testpmd import Testpmd, vhost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cases import Case

_COMMAND_TIMEOUT_S = 20
_USUAL_TABLE_SIZE, _TABLE_SIZE = 8192, 1 << 17
"""Addresses that a bridge may learn where a case has more than the usual 8192."""


@dataclass(frozen=True)
class Work:
    """What a poll thread counted in a window, or since its start: frames, and TSC cycles of rounds with and without."""

    packets: int
    busy: int
    idle: int

    def __sub__(self, earlier: Work) -> Work:
        """What came to pass between two readings."""
        return Work(self.packets - earlier.packets, self.busy - earlier.busy, self.idle - earlier.idle)

    @property
    def busy_share(self) -> float:
        """Part of its cycles spent on frames, 0..1."""
        total = self.busy + self.idle
        return self.busy / total if total else 0.0

    @property
    def cycles_per_packet(self) -> float:
        """Busy ones; 0 if it had no frames."""
        return self.busy / self.packets if self.packets else 0.0


class Switch(ABC):
    """One switch under measurement.

    Args:
        folder: its run directory and logs.
        cpu: the core of its poll thread.

    Attributes:
        cable: its network device, if a case wants one.
        known: addresses it knew at the end of its last window; None where it does not learn.
    """

    name: str

    def __init__(self, folder: Path, cpu: int) -> None:
        self.folder = folder
        self.cpu = cpu
        self.plugged: tuple[object, ...] | None = None
        self.cable: Cable | None = None
        self.known: int | None = None
        self._before = (Work(0, 0, 0), machine.SchedulerClock(0, 0))

    @property
    def sockets(self) -> tuple[Path, Path]:
        """Where the first two guests with traffic are met."""
        return self.pair(0)

    def pair(self, number: int) -> tuple[Path, Path]:
        """Where a pair of guests with traffic is met."""
        return (self.folder / f"{2 * number}.sock", self.folder / f"{2 * number + 1}.sock")

    def other_sockets(self, case: Case) -> list[Path]:
        """Where the guests of a case without traffic are met."""
        return [self.folder / f"{number}.sock" for number in range(2 * case.pairs, case.ports)]

    def all_sockets(self, case: Case) -> list[Path]:
        """Where every guest of a case is met."""
        return [self.folder / f"{number}.sock" for number in range(case.ports)]

    def fit(self, case: Case) -> bool:
        """Makes the ports as the case wants them, anew unless they are so already; true if they are new."""
        cable = (case.cable_mtu, case.zero_copy) if case.nic else None
        wanted = (case.mtu, case.ports, case.queues, case.addresses > _USUAL_TABLE_SIZE, cable)
        if wanted == self.plugged:
            return False
        self.plugged = None
        if self.cable is not None:
            self.unplug()
            self.pull_cable()
        self.plug(case)
        self.plugged = wanted
        return True

    def pull_cable(self) -> None:
        """Takes its network device away."""
        if self.cable is not None:
            self.cable.unplug()
            self.cable = None

    @abstractmethod
    def plug(self, case: Case) -> None:
        """Makes the ports as the case wants them, anew."""

    def addresses(self) -> int | None:
        """Addresses it knows; None where it does not learn."""
        return None

    @abstractmethod
    def unplug(self) -> None:
        """Takes the ports away: nothing is polled."""

    @abstractmethod
    def counters(self) -> Work:
        """What the poll thread counted so far."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process."""

    @property
    @abstractmethod
    def thread_prefix(self) -> str:
        """How the name of its poll thread begins."""

    def begin(self) -> None:
        """A window begins."""
        self._before = (self.counters(), self.clock())

    def end(self) -> tuple[Work, machine.SchedulerClock]:
        """A window ends: its work, and what the scheduler let the poll thread have."""
        work, clock = self.counters(), self.clock()
        return work - self._before[0], clock - self._before[1]

    def clock(self) -> machine.SchedulerClock:
        """The scheduler's account of its poll thread."""
        return machine.scheduler_clock(self.pid, self.thread)

    @property
    def thread(self) -> int:
        """The number of its poll thread."""
        return machine.thread_named(self.pid, self.thread_prefix)

    def hold(self) -> None:
        """Stops it, so that it leaves the core to another. One that ended needs no stopping."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Lets it run for a while."""
        self.resume()
        try:
            yield
        finally:
            self.hold()


class Ours(Switch):
    """``ovsvhost daemon``: the product as users run it.

    Args:
        folder: its run directory and logs.
        cpu: the core of its poll thread, or of the one whose account is kept.
        sleeps: False keeps poll threads from sleeping.
        more_cpus: cores of further poll threads.
        postcopy: True lets guests move in by post-copy.
        iommu: True serves guests with an IOMMU.
    """

    def __init__(
        self,
        folder: Path,
        cpu: int,
        *,
        sleeps: bool = True,
        more_cpus: tuple[int, ...] = (),
        postcopy: bool = False,
        iommu: bool = False,
    ) -> None:
        super().__init__(folder, cpu)
        self.name = OURS if sleeps else OURS_AWAKE
        self._daemon = SwitchDaemon(folder)
        mask = sum(1 << core for core in {cpu, *more_cpus})
        settings = [f"other_config:pmd-cpu-mask={mask:#x}", f"other_config:vhost-postcopy-support={postcopy}".lower()]
        settings.append(f"other_config:vhost-iommu-support={iommu}".lower())
        if not sleeps:
            settings.append("other_config:pmd-sleep-max=0")
        self._daemon.start()
        self._daemon.vsctl("set", "Open_vSwitch", ".", *settings)
        # Poll threads are placed at start.
        self._daemon.stop()
        self._daemon.start()
        self._control = next(self._daemon.rundir.glob("ovs-vswitchd.*.ctl"))

    def plug(self, case: Case) -> None:
        if case.nic:
            self.cable = Cable(mtu=case.cable_mtu, more_to_send=int(case.zero_copy is not None))
        self._daemon.vsctl(*_bridge(self.all_sockets(case), case, self.cable))

    def lanes_opened(self) -> int:
        """How often a guest got a way to a network device without a copy, so far."""
        return self._daemon.log.read_text().count("Zero copy enabled for vHost port")

    def addresses(self) -> int:
        return _number(r"entries in the table: (\d+)", _ask(self._control, "fdb/stats-show", "br0"))

    def unplug(self) -> None:
        self._daemon.vsctl("--if-exists", "del-br", "br0")

    def counters(self) -> Work:
        printed = _ask(self._control, "dpif-netdev/pmd-perf-show")
        names = ("Rx packets", "busy cycles", "idle cycles")
        return Work(*(sum(map(int, re.findall(rf"{name}: +(\d+)", printed))) for name in names))

    def stop(self) -> None:
        self.resume()
        self._daemon.close()
        self.pull_cable()

    @property
    def pid(self) -> int:
        return self._daemon.pid

    @property
    def thread_prefix(self) -> str:
        return f"pmd-c{self.cpu}"


class Ovs(Switch):
    """OVS-DPDK with a NORMAL bridge, as Debian ships it.

    Args:
        folder: its run directory and logs.
        cpu: the core of its poll thread.
        offloads: True offers segmentation and checksum offloads to guests.
        postcopy: True lets guests move in by post-copy.
        iommu: True serves guests with an IOMMU.
    """

    name = OVS

    def __init__(
        self, folder: Path, cpu: int, *, offloads: bool = False, postcopy: bool = False, iommu: bool = False
    ) -> None:
        super().__init__(folder, cpu)
        self._mtu: int | None = None
        self._ovs = OvsDpdk(
            folder, pmd_cpu=cpu, memory_mib=1024, sleeps=False, offloads=offloads, postcopy=postcopy, iommu=iommu
        )
        self._ovs.start()

    def plug(self, case: Case) -> None:
        if self._mtu not in {None, case.mtu}:
            # Buffers of the size before stay allocated as long as it lives, and there is no memory for both.
            self.unplug()
            self._ovs.stop()
            self._ovs.start()
        self._mtu = case.mtu
        if case.nic:
            self.cable = Cable(self.pid)
        self._ovs.vsctl(*_bridge(self.all_sockets(case), case, self.cable))

    def unplug(self) -> None:
        self._ovs.vsctl("--if-exists", "del-br", "br0")

    def counters(self) -> Work:
        printed = _ask(self.folder / "ovs-vswitchd.ctl", "dpif-netdev/pmd-stats-show")
        # The main thread has a section of its own; only a poll thread's has cycles of interest.
        section = printed.partition(f"core_id {self.cpu}:")[2]
        return Work(
            _number(r"packets received: (\d+)", section),
            _number(r"processing cycles: (\d+)", section),
            _number(r"idle cycles: (\d+)", section),
        )

    def stop(self) -> None:
        self.resume()
        self._ovs.stop()
        self.pull_cable()

    @property
    def pid(self) -> int:
        return self._ovs.pid

    @property
    def thread_prefix(self) -> str:
        return f"pmd-c{self.cpu:02}"


class OvsFlows(Ovs):
    """The same with two flows instead of NORMAL: what comes in on one port goes out of the other."""

    name = OVS_FLOWS

    def plug(self, case: Case) -> None:
        super().plug(case)
        self._ovs.ofctl("del-flows", "br0")
        for port, other in ((1, 2), (2, 1)):
            self._ovs.ofctl("add-flow", "br0", f"in_port={port},actions=output:{other}")


class TestpmdIo(Switch):
    """testpmd with two net_vhost devices in ``io`` mode: DPDK's copy, and no switching: what comes from A goes to B."""

    # Not a class of tests, whatever pytest makes of its name.
    __test__ = False
    name = TESTPMD

    def __init__(self, folder: Path, cpu: int, *, main_cpu: int) -> None:
        super().__init__(folder, cpu)
        self._main_cpu = main_cpu
        self._testpmd: Testpmd | None = None
        self._since = 0.0

    def plug(self, case: Case) -> None:
        self.unplug()
        options = ["--record-core-cycles"]
        if case.size > case.mtu or case.mtu > 2000:
            # One buffer a frame, which is the best it can do.
            options += ["--mbuf-size=9728", "--total-num-mbufs=8192"]
        if case.queues > 1:
            options += [f"--rxq={case.queues}", f"--txq={case.queues}"]
        devices = [vhost(socket, queues=case.queues) for socket in self.sockets]
        if case.nic:
            self.cable = Cable()
            devices[1] = self.cable.as_port
        self._testpmd = Testpmd(
            devices, folder=self.folder, cores=(self._main_cpu, self.cpu), memory_mib=256, options=options
        )
        self._testpmd.start()
        self._testpmd.command("start")

    def unplug(self) -> None:
        if self._testpmd is not None:
            self.resume()
            self._testpmd.stop()
            self._testpmd = None

    def counters(self) -> Work:
        if self._testpmd is None:
            raise RigError("testpmd has no ports: call plug()")
        # It counts the cycles of polls that found frames; what is left of the time were the others.
        printed = self._testpmd.command("show fwd stats all")
        busy, packets = _number(r"total cycles=(\d+)", printed), _number(r"total io packets=(\d+)", printed)
        elapsed = round((time.monotonic() - self._since) * machine.tsc_hz())
        return Work(packets, busy, max(0, elapsed - busy))

    def begin(self) -> None:
        if self._testpmd is not None:
            self._testpmd.command("clear fwd stats all")
        self._since = time.monotonic()
        self._before = (Work(0, 0, 0), self.clock())

    def stop(self) -> None:
        self.unplug()
        self.pull_cable()

    @property
    def pid(self) -> int:
        if self._testpmd is None:
            raise RigError("testpmd has no ports: call plug()")
        return self._testpmd.pid

    @property
    def thread_prefix(self) -> str:
        return "rte-worker-1"

    def hold(self) -> None:
        if self._testpmd is not None:
            super().hold()

    def resume(self) -> None:
        if self._testpmd is not None:
            super().resume()


def _bridge(sockets: list[Path], case: Case, cable: Cable | None) -> list[str]:
    words = [
        "--if-exists",
        "del-br",
        "br0",
        "--",
        "add-br",
        "br0",
        "--",
        "set",
        "bridge",
        "br0",
        "datapath_type=netdev",
    ]
    if case.addresses > _USUAL_TABLE_SIZE:
        words.append(f"other_config:mac-table-size={_TABLE_SIZE}")
    if cable is not None:
        del sockets[1]
        words += ["--", "add-port", "br0", "p0", "--", "set", "Interface", "p0", "type=dpdk", "ofport_request=2"]
        words.append(f"options:dpdk-devargs={cable.as_port.format(0)}")
    for number, socket in enumerate(sockets, start=1):
        name = f"v{number}"
        words += ["--", "add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuserclient"]
        words += [f"options:vhost-server-path={socket}", f"mtu_request={case.mtu}", f"ofport_request={number}"]
        if case.zero_copy:
            words.append("options:dq-zero-copy=true")
    return words


def _ask(control: Path, command: str, *words: str) -> str:
    done, printed = transact(control, command, words, timeout_s=_COMMAND_TIMEOUT_S)
    if not done:
        raise RigError(f"{control}: {command}: {printed.strip()}")
    return printed


def _number(pattern: str, printed: str) -> int:
    found = re.search(pattern, printed)
    return int(found.group(1)) if found else 0
