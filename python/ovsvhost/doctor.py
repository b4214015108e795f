"""What this machine offers a switch: each finding says what was looked at, how it is, and the cure.

Nothing is changed and nothing needs root. ``fail`` means the switch cannot run as asked; ``warn`` that something users
often want will not work or will be slow; ``ok`` needs no reader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovsvhost.rundir import DATABASE_SOCKET, PIDFILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Level = Literal["ok", "warn", "fail"]

DESCRIPTORS_WANTED = 65536
"""Ten a port and queue, for a few thousand ports."""
INOTIFY_WANTED = 4096
"""One a client port that waits for its guest."""
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
_AF_XDP = 44
"""What Python 3.11's socket module does not name."""
_NIC_RIGHTS = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39}
"""To attach a program to a device, to open its sockets, and to load the program (``capabilities(7)``)."""
_NIC_QUEUE_MIB = 16
"""Of frames, with rings of 2048 descriptors, as they are unless asked for otherwise: 4096 frames of 4 KiB."""
_SWITCHES = frozenset({"ovs-vswitchd", "vpp", "vpp_main", "dpdk-testpmd", "testpmd", "snabb"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: a stable word, for scripts.
        level: see the page above.
        text: how it is.
        cure: what to do; empty when nothing is to be done.
    """

    name: str
    level: Level
    text: str
    cure: str = ""


def examine(rundir: Path, state_dir: Path) -> list[Finding]:
    """Looks at everything; takes a few milliseconds."""
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        hugepages,
        userfaultfd,
        limits,
        cpus,
        shared_memory,
        network_devices,
        lambda: directories(rundir, state_dir),
        lambda: neighbours(rundir),
    )
    return [finding for check in checks for finding in check()]


def hugepages(root: Path = _HUGEPAGES) -> Iterable[Finding]:
    """Pages for guests; the switch itself needs none."""
    for pool in sorted(root.glob("hugepages-*kB")):
        size_kib = int(pool.name.removeprefix("hugepages-").removesuffix("kB"))
        total, free = (_number(pool / file) for file in ("nr_hugepages", "free_hugepages"))
        if total:
            yield Finding(f"hugepages-{size_kib}k", "ok", f"{free} of {total} hugepages of {size_kib} KiB are free")
    pools = {pool.name: _number(pool / "nr_hugepages") for pool in root.glob("hugepages-*kB")}
    if not any(pools.values()):
        yield Finding(
            "hugepages",
            "warn",
            "no hugepages are reserved: guests can use memfd, and lose some speed to the TLB",
            "sysctl vm.nr_hugepages=512 (1 GiB in pages of 2 MiB), or hugepages=512 on the kernel's command line",
        )


def userfaultfd() -> Iterable[Finding]:
    """What guests that move in by post-copy need."""
    device = Path("/dev/userfaultfd")
    allowed = os.access(device, os.R_OK | os.W_OK) or os.geteuid() == 0
    if not allowed:
        allowed = _number(Path("/proc/sys/vm/unprivileged_userfaultfd")) == 1
    if allowed:
        yield Finding("userfaultfd", "ok", "userfaultfd may be used")
    else:
        yield Finding(
            "userfaultfd",
            "warn",
            "userfaultfd may not be used by this user: no post-copy migration",
            f"give the switch's user access to {device}, or sysctl vm.unprivileged_userfaultfd=1",
        )


def limits() -> Iterable[Finding]:
    """Descriptors, watches and locked memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_WANTED:
        yield Finding(
            "descriptors",
            "warn",
            f"a process here may open {hard} files, which is enough for about {hard // 20} ports",
            f"LimitNOFILE={DESCRIPTORS_WANTED} in the unit, or ulimit -Hn {DESCRIPTORS_WANTED}",
        )
    else:
        yield Finding("descriptors", "ok", "a process here may open enough files")
    watches = _number(Path("/proc/sys/fs/inotify/max_user_instances"))
    if watches < INOTIFY_WANTED:
        yield Finding(
            "inotify",
            "warn",
            f"a user here may have {watches} inotify instances: past that many client ports, new guests are found by "
            "retry, which takes up to a second",
            f"sysctl fs.inotify.max_user_instances={INOTIFY_WANTED}",
        )
    else:
        yield Finding("inotify", "ok", "enough directories can be watched for new guests")
    _, locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked == resource.RLIM_INFINITY or os.geteuid() == 0:
        yield Finding("memlock", "ok", "memory may be locked without limit")
    else:
        yield Finding(
            "memlock",
            "warn",
            f"{locked // 1024} KiB of memory may be locked: a network device over AF_XDP locks {_NIC_QUEUE_MIB} MiB a "
            "queue, and zero-copy transmit a guest's memory; ports of guests need none",
            "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited",
        )


def cpus() -> Iterable[Finding]:
    """Cores for poll threads, and their vector units."""
    allowed = os.sched_getaffinity(0)
    listed = ",".join(map(str, sorted(allowed)))
    if len(allowed) == 1:
        yield Finding(
            "cpus",
            "warn",
            f"this process may use core {listed} only: the poll thread shares it with everything else",
            "allow a second core (taskset, cpuset) and pin with other_config:pmd-cpu-mask",
        )
    else:
        yield Finding("cpus", "ok", f"cores {listed} may be used")
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    if "constant_tsc" not in flags:
        yield Finding("tsc", "warn", "the cores' cycle counter is not constant: cycles per packet will be rough")
    if "avx2" not in flags:
        yield Finding("vectors", "warn", "the cores have no AVX2: packets are copied more slowly")


def shared_memory() -> Iterable[Finding]:
    """Memory that a guest without hugepages shares."""
    with contextlib.suppress(OSError):
        os.close(os.memfd_create("ovsvhost-doctor"))
        yield Finding("memfd", "ok", "memfd works: guests need no hugepages")
        return
    yield Finding(
        "memfd", "fail", "memfd_create is refused: guests without hugepages cannot attach", "lift the seccomp filter"
    )


def network_devices(status: Path = Path("/proc/self/status")) -> Iterable[Finding]:
    """What ports of ``type=afxdp`` and ``dpdk`` need; guests' ports need none of it."""
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EACCES}:
            yield Finding(
                "af-xdp",
                "warn",
                f"this kernel has no AF_XDP ({error.strerror}): network devices cannot be ports",
                "a kernel with CONFIG_XDP_SOCKETS=y",
            )
            return
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    missing = [name for name, bit in _NIC_RIGHTS.items() if not held >> bit & 1]
    if missing:
        yield Finding(
            "af-xdp",
            "warn",
            f"this user lacks {', '.join(missing)}: network devices cannot be ports",
            f"AmbientCapabilities={' '.join(_NIC_RIGHTS)} in the unit, or run the switch as root",
        )
    else:
        yield Finding("af-xdp", "ok", "network devices can be ports over AF_XDP")


def directories(rundir: Path, state_dir: Path) -> Iterable[Finding]:
    """Whether sockets and the database can be created."""
    longest = len(os.fsencode(rundir / "x")) - 1 + len("ovs-vswitchd.4194304.ctl")
    if longest > 107:
        yield Finding(
            "rundir", "fail", f"run directory {rundir} is too long a path for sockets", "choose a shorter --rundir"
        )
    for name, directory in (("rundir", rundir), ("state-dir", state_dir)):
        there = directory
        while not there.exists() and there != there.parent:
            there = there.parent
        if os.access(there, os.W_OK | os.X_OK) and there.is_dir():
            yield Finding(name, "ok", f"{directory} can be used")
        else:
            yield Finding(
                name, "fail", f"{directory} cannot be written by uid {os.geteuid()}", f"choose another --{name}"
            )


def neighbours(rundir: Path, proc: Path = Path("/proc")) -> Iterable[Finding]:
    """Other switches: on the run directory, or polling the same cores."""
    holder = _locked_by(rundir)
    if holder is not None:
        yield Finding("daemon", "ok", f"a switch runs on {rundir} (pid {holder}, database {rundir / DATABASE_SOCKET})")
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "comm").read_text().strip()
            if command in _SWITCHES:
                yield Finding(
                    "other-switch",
                    "warn",
                    f"{command} (pid {process.name}) runs too and may poll the same cores",
                    "give each its own cores with other_config:pmd-cpu-mask",
                )


def _locked_by(rundir: Path) -> str | None:
    """Pid of the living daemon on ``rundir``; its lock tells, not the file."""
    try:
        with (rundir / PIDFILE).open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip()
    except OSError:
        pass
    return None


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
