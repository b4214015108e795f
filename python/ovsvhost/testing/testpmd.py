"""DPDK's testpmd: virtio-user front-ends without a virtual machine, and a second peer switch (net_vhost, io).

Both are lists of virtual devices given to one process that is then steered over its command line::

    with Testpmd([virtio_user("/run/x/v0"), virtio_user("/run/x/v1")], folder=folder) as pmd:
        pmd.command("set fwd txonly")
        pmd.command("start")
        pmd.statistics()[0].tx_packets

Needs the package ``dpdk-dev`` and 2 MiB hugepages. At most 32 ports a process.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ovsvhost.testing import hugepages
from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.lasting import Lasting
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROMPT = b"testpmd> "
_START_TIMEOUT_S = 60
_BUFFERS = 32768


def virtio_user(
    socket: str | Path,
    *,
    server: bool = True,
    queues: int = 1,
    queue_size: int = 1024,
    mac: str | None = None,
    options: str = "mrg_rxbuf=1,in_order=0,packed_vq=0",
) -> str:
    """A front-end. ``server=True`` creates the socket, for a ``dpdkvhostuserclient`` port of the switch.

    A socket left behind by an earlier run is removed, since DPDK would drop the port without a word.
    """
    if server:
        Path(socket).unlink(missing_ok=True)
    address = f",mac={mac}" if mac else ""
    size = f"queues={queues},queue_size={queue_size}"
    return f"net_virtio_user{{}},path={socket},server={int(server)},{size}{address},{options}"


def vhost(socket: str | Path, *, client: bool = True, queues: int = 1) -> str:
    """A back-end, for testpmd as a switch. ``client=True`` connects to a socket that the front-end creates."""
    return f"net_vhost{{}},iface={socket},client={int(client)},queues={queues}"


@dataclass(frozen=True)
class PortStatistics:
    """Cumulative counters of one testpmd port, from testpmd's own side: its rx is what it received."""

    rx_packets: int
    rx_missed: int
    rx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_bytes: int


def statistics_of(printed: str) -> dict[int, PortStatistics]:
    """The counters in what testpmd printed, by port; the last ones where it printed several."""
    found: dict[int, PortStatistics] = {}
    for section in re.split(r"NIC statistics for port ", printed)[1:]:
        counters = {name: int(value) for name, value in re.findall(r"([RT]X-\w+): +(\d+)", section)}
        found[int(section.split()[0])] = PortStatistics(
            counters["RX-packets"],
            counters["RX-missed"],
            counters["RX-bytes"],
            counters["TX-packets"],
            counters["TX-errors"],
            counters["TX-bytes"],
        )
    return found


class Testpmd(Lasting):
    """One testpmd process.

    Args:
        devices: what ``virtio_user`` and ``vhost`` gave; port numbers follow their order.
        folder: where its log goes.
        cores: cores of the main and of each forwarding thread.
        forward: forwarding mode to begin with: ``io``, ``mac``, ``macswap``, ``txonly``, ``rxonly``, …
        memory_mib: hugepage memory.
        options: further arguments of testpmd, such as ``--txpkts=1518``.
    """

    # Not a class of tests, whatever pytest makes of its name.
    __test__ = False

    def __init__(
        self,
        devices: Sequence[str],
        *,
        folder: Path,
        cores: Sequence[int] = (0, 1),
        forward: str = "io",
        memory_mib: int = 192,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._devices = [device.format(index) for index, device in enumerate(devices)]
        self._cores = cores
        self._forward = forward
        self._memory_mib = memory_mib
        self._options = options
        self._program: Program | None = None
        self._read = 0

    @property
    def pid(self) -> int:
        """The process number."""
        return self._running().pid

    def start(self) -> Self:
        """Starts it and waits for its prompt; ports wait for their peers by themselves."""
        if shutil.which("dpdk-testpmd") is None:
            raise MissingError("no program 'dpdk-testpmd' on this machine: install dpdk-dev, or run scripts/setup test")
        self.folder.mkdir(parents=True, exist_ok=True)
        hugepages.reserve(self._memory_mib // 2)
        threads = ",".join(f"{index}@{core}" for index, core in enumerate(self._cores))
        # Files of hugepages in memory only: nothing to mount, nothing left behind.
        memory = ["--no-pci", "--iova-mode=va", "--in-memory", "--single-file-segments", "-m", str(self._memory_mib)]
        # All DPDK processes share one telemetry socket, and each start asks its owner: a stopped one never answers.
        memory.append("--no-telemetry")
        devices = [f"--vdev={device}" for device in self._devices]
        mode = ["--interactive", f"--forward-mode={self._forward}", f"--nb-cores={len(self._cores) - 1}"]
        mode += [f"--total-num-mbufs={_BUFFERS}"]
        # Unbuffered, or its answers would come after its next prompt.
        command = [
            "stdbuf",
            "-o0",
            "dpdk-testpmd",
            f"--lcores={threads}",
            *memory,
            *devices,
            "--",
            *mode,
            *self._options,
        ]
        log = self.folder / "testpmd.log"
        log.unlink(missing_ok=True)
        self._read = 0
        self._program = Program(command, log=log, stdin=subprocess.PIPE, name="dpdk-testpmd")
        self._answer(_START_TIMEOUT_S)
        return self

    def command(self, text: str, *, timeout_s: float = 10) -> str:
        """Types one command and gives what it printed."""
        stdin = self._running().stdin
        if stdin is None:
            raise RigError("testpmd was started without a command line")
        stdin.write(f"{text}\n".encode())
        stdin.flush()
        return self._answer(timeout_s)

    def statistics(self) -> dict[int, PortStatistics]:
        """The counters of every port."""
        return statistics_of(self.command("show port stats all"))

    def kill(self) -> None:
        """SIGKILL."""
        self._running().kill()

    def stop(self) -> None:
        """Asks it to quit, then makes it."""
        if self._program and self._program.running and self._program.stdin:
            try:
                self._program.stdin.write(b"quit\n")
                self._program.stdin.flush()
                self._program.wait(10)
            except (RigError, BrokenPipeError):
                self._program.kill()
        if self._program:
            self._program.stop()

    def _running(self) -> Program:
        if self._program is None:
            raise RigError("testpmd is not started: call start()")
        return self._program

    def _answer(self, timeout_s: float) -> str:
        program = self._running()

        def printed() -> str:
            answer, ended, _ = program.log.read_bytes()[self._read :].partition(_PROMPT)
            if not ended:
                program.check()
                return ""
            # What comes after the prompt is an event of a port and belongs to the next answer.
            self._read += len(answer) + len(ended)
            return answer.decode(errors="replace") + "\n"

        try:
            return wait_for(printed, timeout_s=timeout_s, what="testpmd's prompt")
        except RigError as error:
            raise RigError(f"{error}\n{tail(program.log)}") from None
