"""What loads the switches: two guests in one process on one core, one of them sending, or both.

- ``Frontend``: the project's own front-end. Writes a number and a descriptor into what comes back, counts used elements
  and looks at one number in a block, so that its transmitq stays full and the switch is the limit. Also the frames in
  flight one at a time, and guests that are connected and silent.
- ``VirtioUser``: DPDK's virtio-user driver under the generator of ``generator.c``: a real driver, and often the limit.

All create the sockets, say when their window begins, and count at the far end.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from cases import Load

from ovsvhost.testing import hugepages
from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.testpmd import virtio_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cable import Cable
    from cases import Case

RING_SIZE = 1024
_SMALL_BUFFER, _GAP = 64, 4096 - 64 - 12
"""Such a buffer with its header, and what then is left of its page. The front-end adds a line, for the caches' sake."""
_QUIET_RING = "--ring-size=256"
_START_TIMEOUT_S = 30
_END_TIMEOUT_S = 30
_MEMORY_MIB = 192
_TIMES = ("p50_us", "p99_us", "p999_us")
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Counts:
    """What a generator saw in one window.

    Attributes:
        pps: frames per second that arrived at the far end, of both directions.
        ring_full_share: part of the looks at the transmitq that found it full (0.9 full for ``Frontend``), 0..1.
        lost_share: part of the frames sent that did not arrive.
        wait_share: part of the time the generator's core was not its own.
        transit: of frames that were timed on their way: ``p50_us``, ``p99_us``, ``p999_us``.
    """

    pps: float
    ring_full_share: float
    lost_share: float
    wait_share: float
    transit: dict[str, float]


class Generator(ABC):
    """One kind of load.

    Args:
        cpu: the core it runs on.
        folder: where it keeps logs and what it builds.
    """

    name: str

    def __init__(self, cpu: int, folder: Path) -> None:
        self.cpu = cpu
        self.folder = folder

    @abstractmethod
    def command(
        self, case: Case, sockets: tuple[Path, Path], warmup_s: float, duration_s: float, *, pair: int = 0
    ) -> list[str]:
        """The command line of one run, of the pair of guests with that number."""

    def on(self, cpu: int) -> Self:
        """The same on another core."""
        other = copy.copy(self)
        other.cpu = cpu
        return other

    def start(self, sockets: Sequence[Path], command: list[str]) -> Run:
        """Starts a command of this generator on fresh sockets; a context that ends it."""
        for socket in sockets:
            socket.unlink(missing_ok=True)
        return Run(self, command)


class Frontend(Generator):
    """``vhost-frontend``: every frame counted, ring kept full.

    Args:
        cpu: the core it runs on.
        folder: where its log goes.
        program: the built binary.
    """

    name = Load.OWN

    def __init__(self, cpu: int, folder: Path, program: Path) -> None:
        super().__init__(cpu, folder)
        self.program = program

    def command(
        self, case: Case, sockets: tuple[Path, Path], warmup_s: float, duration_s: float, *, pair: int = 0
    ) -> list[str]:
        words = self.base(warmup_s, duration_s)
        settings = [f"--sizes={case.size}", "--check=count", f"--ring-size={case.buffers or RING_SIZE}", "--burst=256"]
        settings.append(f"--layout={case.layout}")
        if case.queues > 1:
            settings += [f"--pairs={case.queues}", f"--flows={case.queues}"]
        if case.buffers:
            settings += [f"--buffer={_SMALL_BUFFER}", f"--gap={_GAP}"]
        if case.iommu_kib:
            settings.append(f"--iommu={case.iommu_kib}")
        if case.packed:
            settings += ["--with=ring_packed", "--require=ring_packed"]
        sender, receiver = sockets
        receives = f"--end=socket={receiver},role={'send' if case.both else 'receive'},mac={_mac(pair, 2)}"
        if case.addresses > 1:
            receives += f",addresses={case.addresses}"
        if case.log != "no":
            receives += f",log={case.log}"
        return [*words, *settings, f"--end=socket={sender},role=send,mac={_mac(pair, 1)}", receives]

    def paced(
        self, case: Case, sockets: tuple[Path, Path], rate_pps: float, warmup_s: float, duration_s: float
    ) -> list[str]:
        """The command line of frames sent evenly, and timed on their way."""
        words = [*self.base(warmup_s, duration_s), "--mode=transit", f"--rate={rate_pps:.0f}"]
        words += [f"--sizes={case.size}", "--check=sequence", f"--ring-size={RING_SIZE}"]
        sender, receiver = sockets
        return [*words, f"--end=socket={sender},role=send", f"--end=socket={receiver},role=receive"]

    def round_trips(self, case: Case, sockets: tuple[Path, Path], warmup_s: float, duration_s: float) -> list[str]:
        """The command line of frames in flight one at a time."""
        words = self.base(warmup_s, duration_s)
        words += ["--mode=latency", f"--interval-us={case.interval_us}", f"--sizes={case.size}", "--check=sequence"]
        return [*words, _QUIET_RING, *(f"--end=socket={socket}" for socket in sockets)]

    @contextmanager
    def crowd(self, sockets: Sequence[Path]) -> Iterator[None]:
        """Guests that are connected to all of these sockets and say nothing, asleep; gone at the end."""
        ends = [f"--end=socket={socket}" for socket in sockets]
        with self.start(sockets, [str(self.program), "crowd", _QUIET_RING, *ends]) as run:
            run.wait_for_event("ready")
            yield

    def base(self, warmup_s: float, duration_s: float) -> list[str]:
        """What every run with traffic has, without the ends."""
        times = [f"--warmup={warmup_s}", f"--duration={duration_s}", "--drain=0.2", "--link-timeout=20"]
        return [str(self.program), "run", f"--cpu={self.cpu}", "--events=yes", *times]


class VirtioUser(Generator):
    """Two virtio-user devices under ``generator.c``, or one and the far end of a cable.

    Args:
        cpu: the core it runs on.
        folder: where it is built.
        backoff_us: pause of the sender when its ring is full, µs; 0 polls it, which slows the switch down.
    """

    def __init__(self, cpu: int, folder: Path, backoff_us: float) -> None:
        super().__init__(cpu, folder)
        self.name = Load.VIRTIO_USER if backoff_us else Load.VIRTIO_USER_POLLING
        self._backoff_us = backoff_us
        self._program = _build(folder)

    def command(
        self, case: Case, sockets: tuple[Path, Path], warmup_s: float, duration_s: float, *, pair: int = 0
    ) -> list[str]:
        # Its drivers choose addresses at random: pairs need none of their own.
        del pair
        return self._between([self._guest(socket, case) for socket in sockets], case, warmup_s, duration_s)

    def with_cable(self, case: Case, socket: Path, cable: Cable, warmup_s: float, duration_s: float) -> list[str]:
        """The command line of a guest and the far end of a cable, which way the case says."""
        ends = [self._guest(socket, case), cable.as_station]
        return self._between(ends if case.nic == "out" else ends[::-1], case, warmup_s, duration_s)

    def _guest(self, socket: Path, case: Case) -> str:
        options = f"mrg_rxbuf=1,in_order=0,packed_vq={int(case.packed)}"
        return virtio_user(socket, queue_size=RING_SIZE, options=options)

    def _between(self, devices: list[str], case: Case, warmup_s: float, duration_s: float) -> list[str]:
        hugepages.reserve(_MEMORY_MIB // 2)
        eal = [f"--lcores=0@{self.cpu}", "--no-pci", "--iova-mode=va", "--in-memory", "--single-file-segments"]
        # Its socket is one for all DPDK processes; connecting to it waits for ever when its owner is held.
        eal += ["--no-telemetry", "-m", str(_MEMORY_MIB), "--log-level=lib.eal:error"]
        eal += [f"--vdev={device.format(index)}" for index, device in enumerate(devices)]
        settings = [f"size={case.size}", f"both={int(case.both)}", f"backoff-us={self._backoff_us:g}"]
        return [str(self._program), *eal, "--", *settings, f"warmup={warmup_s}", f"duration={duration_s}"]


class Run:
    """One run of a generator, which dies with this process."""

    def __init__(self, generator: Generator, command: list[str]) -> None:
        self._name = generator.name
        self._log = (generator.folder / f"generator-{next(_NUMBERS)}.log").open("w+")
        tied = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self._process = subprocess.Popen(
            tied, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        # Its own buffer of lines: select must see what a buffered reader would hide.
        self._pending = ""

    @property
    def pid(self) -> int:
        """The process number."""
        return self._process.pid

    def wait_for_window(self, warmup_s: float) -> None:
        """Returns when the measurement begins; RigError with its log if it does not."""
        deadline = time.monotonic() + _START_TIMEOUT_S + warmup_s
        while "measuring" not in self._line(deadline):
            pass

    def wait_for_event(self, event: str) -> None:
        """Returns when the front-end prints an event, such as ``ready``."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while f'"event": "{event}"' not in self._line(deadline):
            pass

    def report(self) -> dict[str, Any]:
        """The JSON object at its end."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        last = ""
        while line := self._line(deadline, at_end=True):
            last = line
        if self._process.wait(_END_TIMEOUT_S) != 0 or not last:
            raise self._error("ended without a report")
        report: dict[str, Any] = json.loads(last)
        return report

    def end(self) -> dict[str, Any]:
        """Ends a guest that stays until its standard input ends; what it has to say."""
        _stream(self._process.stdin).close()
        return self.report()

    def result(self) -> Counts:
        """The load of its window; waits for the end of it.

        Raises:
            RigError: nothing was sent, nothing arrived, or something arrived twice or out of order.
        """
        report = self.report()
        measured = report.get("measured", report)
        senders = [end for end in measured["ends"] if end["sent_pps"] > 0]
        sent = sum(end["sent_pps"] for end in senders)
        received = sum(end["received_pps"] for end in measured["ends"])
        transit = measured.get("transit") or {}
        if not sent or not received:
            raise self._error("sent nothing" if not sent else "sent frames, and none arrived at the far end")
        if any(end.get("behind") for end in report.get("ends", [])):
            raise self._error("received frames again, or out of order")
        return Counts(
            pps=received,
            ring_full_share=sum(end["ring_full_share"] for end in senders) / len(senders),
            lost_share=max(0.0, 1 - received / sent),
            wait_share=measured["wait_share"],
            transit={name: transit[name] for name in _TIMES if name in transit},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _line(self, deadline: float, *, at_end: bool = False) -> str:
        """The next line with its end; empty at the end of the output where ``at_end`` allows it."""
        out = _stream(self._process.stdout)
        while "\n" not in self._pending:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._error("said nothing in time")
            more = os.read(out.fileno(), 65536).decode()
            if not more:
                if at_end:
                    rest, self._pending = self._pending, ""
                    return rest
                raise self._error("ended early")
            self._pending += more
        line, _, self._pending = self._pending.partition("\n")
        return line + "\n"

    def _error(self, what: str) -> RigError:
        self._log.flush()
        return RigError(f"{self._name} {what}:\n{Path(self._log.name).read_text()[-4000:]}")


def _mac(pair: int, number: int) -> str:
    """Addresses of guests of different pairs differ; behind a guest's own there is room for many more."""
    return f"02:00:{pair:02x}:00:00:{number:02x}"


def _stream(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RigError("the generator was started without its pipes")
    return stream


def _build(folder: Path) -> Path:
    """Compiles ``generator.c`` against the machine's libdpdk."""
    for needed, package in (("gcc", "gcc"), ("pkg-config", "pkg-config")):
        if shutil.which(needed) is None:
            raise MissingError(f"no program '{needed}' on this machine: install {package}, or run scripts/setup bench")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libdpdk"], capture_output=True, text=True, check=False)
    if flags.returncode != 0:
        raise MissingError("no libdpdk on this machine: install libdpdk-dev, or run scripts/setup bench")
    program = folder / "generator"
    source = Path(__file__).with_name("generator.c")
    command = ["gcc", "-O3", "-march=native", str(source), "-o", str(program), *flags.stdout.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(f"generator.c does not compile:\n{done.stderr}")
    return program
