"""A guest that forwards: testpmd inside it polls two of its virtio NICs and passes frames from one to the other.

::

    with Guest(forwarder_image(), qemu, nics, **FORWARDER) as guest:
        forwarder = Forwarder(guest)
        forwarder.start()
        ...
        forwarder.statistics()[0].rx_packets

The program and its libraries are those installed here (package ``dpdk-dev``). Linux lets go of the NICs for
``uio_pci_generic``, which needs no IOMMU, or in a guest that has one (``GUARDED_FORWARDER``) for ``vfio-pci``, which
maps testpmd's hugepages for them and nothing else.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.image import Extra, GuestImage, guest_image
from ovsvhost.testing.testpmd import PortStatistics, statistics_of
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.guest import Guest, Job

_PROGRAM = "dpdk-testpmd"
# testpmd loads what lies in this folder of the guest.
_PLUGINS = Path("/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0")
_NEEDED = ("bus_pci", "bus_vdev", "mempool_ring", "mempool_stack", "net_virtio")
# Of both drivers, in the order in which they load.
_MODULES = (
    "uio",
    "uio_pci_generic",
    "irqbypass",
    "vfio",
    "vfio_virqfd",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
)
HUGEPAGES = 80
"""Of 2 MiB, which testpmd has in its guest."""
_START_TIMEOUT_S = 120
_LOG = "/tmp/testpmd.log"  # noqa: S108 - a path inside the guest

# What a guest needs for it: testpmd takes SSE4.2, a core to poll with, and hugepages.
FORWARDER: dict[str, Any] = {"memory_mib": 512, "cpus": 2, "cpu": "max", "kernel_line": f"hugepages={HUGEPAGES}"}
# The same with an IOMMU before its NICs. They need the options in GUARDED_NIC.
GUARDED_FORWARDER = {**FORWARDER, "iommu": True, "kernel_line": f"{FORWARDER['kernel_line']} intel_iommu=on iommu=pt"}
GUARDED_NIC = {"disable-legacy": "on", "disable-modern": "off", "iommu_platform": "on", "ats": "on"}


def forwarder_image(cache: Path | None = None) -> GuestImage:
    """The guests' image with testpmd in it (32 MB).

    Raises:
        MissingError: no testpmd on this machine.
    """
    program = shutil.which(_PROGRAM)
    if program is None or not _PLUGINS.is_dir():
        raise MissingError(f"no program '{_PROGRAM}' on this machine: install dpdk-dev, or run scripts/setup test")
    plugins = [_PLUGINS / f"librte_{name}.so.23" for name in _NEEDED]
    libraries = {path.name: path for file in (Path(program), *plugins) for path in _linked(file)}
    libraries |= {plugin.name: plugin for plugin in plugins}
    # What glibc itself looks for when a thread ends.
    libraries["libgcc_s.so.1"] = Path("/lib/x86_64-linux-gnu/libgcc_s.so.1")
    loaders = {name: path for name, path in libraries.items() if name.startswith("ld-linux")}
    files = {f"lib/x86_64-linux-gnu/{name}": path for name, path in libraries.items() if name not in loaders}
    files[f"usr/bin/{_PROGRAM}"] = Path(program)
    # A plug-in that is also a linked library must be the same file, or it would register its driver twice. Only what
    # ends in .so is taken for one.
    links = {str(plugin.with_suffix(""))[1:]: f"/lib/x86_64-linux-gnu/{plugin.name}" for plugin in plugins}
    return guest_image(cache, extra=Extra(files, links, _MODULES))


class Forwarder:
    """testpmd in a guest that was made with ``FORWARDER`` and boots ``forwarder_image``.

    Args:
        guest: the guest; its first two NICs become testpmd's ports 0 and 1.
        driver: who hands them to it: ``vfio-pci`` in a guest that was made with ``GUARDED_FORWARDER``.
    """

    def __init__(self, guest: Guest, driver: Literal["uio_pci_generic", "vfio-pci"] = "uio_pci_generic") -> None:
        self._guest = guest
        self._driver = driver
        self._job: Job | None = None

    def start(self) -> None:
        """Takes the NICs from Linux and starts forwarding; returns when it does."""
        for device in ("eth0", "eth1"):
            self._guest.run(
                f"cd $(dirname $(readlink -f /sys/class/net/{device}/device)) && "
                f"echo {self._driver} >driver_override && "
                "echo ${PWD##*/} >driver/unbind && "
                "echo ${PWD##*/} >/sys/bus/pci/drivers_probe"
            )
        # DPDK refuses plug-ins where anybody may write.
        self._guest.run("chmod 755 /; mkdir -p /var/run /dev/hugepages; mount -t hugetlbfs none /dev/hugepages")
        memory = f"--lcores=0,1 -m {HUGEPAGES * 2} --huge-unlink --no-telemetry"
        mode = "--forward-mode=io --total-num-mbufs=8192 --stats-period=1"
        self._job = self._guest.spawn(f"{_PROGRAM} {memory} -- {mode} >{_LOG} 2>&1")
        wait_for(self._forwards, timeout_s=_START_TIMEOUT_S, what="testpmd in the guest to forward", interval_s=0.5)

    def statistics(self) -> dict[int, PortStatistics]:
        """The counters of both ports as it last printed them, at most a second ago."""
        return statistics_of(self._log())

    def stop(self) -> None:
        """Ends it; Linux does not get the NICs back."""
        if self._job is None:
            raise RigError("testpmd in the guest is not started: call start()")
        self._job.interrupt(_PROGRAM)
        self._job.wait()

    def _forwards(self) -> bool:
        if self._job and self._job.ended:
            raise RigError(f"testpmd ended in {self._guest.name}:\n{self._log()}")
        return "NIC statistics for port 1" in self._log()

    def _log(self) -> str:
        return self._guest.call(f"tail -n 60 {_LOG}")[1]


def _linked(program: Path) -> list[Path]:
    """The libraries that the loader gives a program."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)]
