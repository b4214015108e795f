"""A guest: QEMU with vhost-user NICs, memory that a switch can map, and a way to run commands inside.

::

    with Guest(image, qemu, [Nic(socket="/run/x/v0", type="dpdkvhostuserclient", mac="52:54:00:00:00:01")]) as guest:
        guest.run("ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up")

Starting one does not wait, so several boot at the same time; the first command does. A QEMU with a NIC waits in its
command line for the switch to take the socket, and boots then. Leaving the ``with`` block kills QEMU: it has no disk to
save. Under memfd memory it needs no right that a user lacks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from ovsvhost.qemu import Nic, memory_arguments, nic_arguments
from ovsvhost.testing.errors import RigError
from ovsvhost.testing.lasting import Lasting
from ovsvhost.testing.machine import BOOT_TIMEOUT_S, Job, Machine
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.qmp import Qmp
from ovsvhost.testing.tsc import tsc_khz
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.testing.agent import Agent
    from ovsvhost.testing.image import GuestImage
    from ovsvhost.testing.qemu import Qemu

# Sockets of QEMU itself, each a file in the guest's folder.
_CONTROLS = ("console", "agent", "qmp")
# Fast under emulation, a console, and devices called eth0, eth1, …
_KERNEL_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0"
)

__all__ = ["BOOT_TIMEOUT_S", "Guest", "Job", "Nic", "kernel_command_line"]


def kernel_command_line() -> str:
    """What a guest's kernel is told: boot fast under emulation, talk on a console, keep a steady clock."""
    khz = tsc_khz()
    return f"{_KERNEL_LINE} tsc_early_khz={khz}" if khz else _KERNEL_LINE


class Guest(Machine, Lasting):
    """One virtual machine.

    Args:
        image: what it boots.
        qemu: which QEMU.
        nics: its NICs, ``eth0`` first.
        name: what messages and logs call it.
        memory: ``memfd``; ``private`` for memory no switch can map; or a hugetlbfs mount point.
        private_file: for a hugetlbfs mount point: map it privately, so that what the switch writes never arrives.
        memory_mib: MiB of memory, a multiple of the page size.
        cpus: virtual CPUs; as many as queue pairs that shall be used.
        cpu: their model; QEMU's default knows SSE2 and little more.
        kernel_line: further words for the kernel, such as ``hugepages=80``.
        iommu: has one before its devices, which NICs with the options ``iommu_platform`` and ``ats`` use; the kernel
            needs ``intel_iommu=on`` for it.
        folder: where sockets and logs go; made if None, and removed at the end. Keep it short: a socket's path has at
            most 107 bytes.
        incoming: a state saved by ``save`` to resume instead of booting; or ``defer`` to wait for another guest that
            moves here (``migration``).
        stays: True lets it outlive this process.
    """

    def __init__(
        self,
        image: GuestImage,
        qemu: Qemu,
        nics: Sequence[Nic] = (),
        *,
        name: str = "guest",
        memory: Literal["memfd", "private"] | Path = "memfd",
        private_file: bool = False,
        memory_mib: int = 256,
        cpus: int = 1,
        cpu: str | None = None,
        kernel_line: str = "",
        iommu: bool = False,
        folder: Path | None = None,
        incoming: Path | Literal["defer"] | None = None,
        stays: bool = False,
    ) -> None:
        super().__init__(name)
        self.qemu = qemu
        self.nics = tuple(nics)
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._owns_folder = folder is None
        self._image = image
        self._memory = memory
        self._private_file = private_file
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._cpu = cpu
        self._kernel_line = f"{kernel_command_line()} {kernel_line}".rstrip()
        self._iommu = iommu
        self._incoming = incoming
        self._stays = stays
        self._program: Program | None = None
        self._qmp: Qmp | None = None

    @property
    def console(self) -> Path:
        """The socket of the first serial port, where a shell waits."""
        return self.folder / f"{self.name}.console"

    @property
    def pid(self) -> int:
        """QEMU's process number."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._program is not None and self._program.running

    @property
    def qmp(self) -> Qmp:
        """QEMU's control socket; answers once the switch took the NICs' sockets."""
        if self._qmp is None:
            self._qmp = Qmp(self._path("qmp"))
        return self._qmp

    def arguments(self) -> list[str]:
        """QEMU's command line."""
        command = [*self.qemu.arguments(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        machine = "q35,kernel-irqchip=split" if self._iommu else "q35"
        command += ["-machine", machine, "-accel", os.environ.get("OVSVHOST_ACCEL", "tcg,thread=multi")]
        command += ["-smp", str(self._cpus), "-name", self.name]
        command += ["-cpu", self._cpu] if self._cpu else []
        hugepages = str(self._memory) if isinstance(self._memory, Path) else None
        shared = self._memory != "private" and not self._private_file
        command += memory_arguments(self._memory_mib, hugepages=hugepages, shared=shared)
        command += [
            "-kernel",
            str(self._image.kernel),
            "-initrd",
            str(self._image.initramfs),
            "-append",
            self._kernel_line,
        ]
        # Before the devices it translates for.
        command += ["-device", "intel-iommu,intremap=on,device-iotlb=on"] if self._iommu else []
        for index in range(len(self.nics) if self._iommu else 0):
            # Without a port of its own a NIC is no PCIe device, and its kernel does not use its `ats`.
            command += ["-device", f"pcie-root-port,id=port{index},chassis={index},slot={index}"]
        # These come before the NICs, whose netdev blocks until the switch is there.
        for label in _CONTROLS:
            suffix = f",logfile={self._path('console.log')}" if label == "console" else ""
            command += ["-chardev", f"socket,id={label},path={self._path(label)},server=on,wait=off{suffix}"]
        command += ["-serial", "chardev:console", "-serial", "chardev:agent", "-mon", "chardev=qmp,mode=control"]
        for index, nic in enumerate(self.nics):
            fitted = self._fitted(nic)
            if self._iommu:
                fitted = replace(fitted, options={**fitted.options, "bus": f"port{index}"})
            command += nic_arguments(fitted, name=f"net{index}", version=self.qemu.version)
        if self._incoming:
            command += ["-incoming", f"exec:cat {self._incoming}" if self._incoming != "defer" else "defer"]
        return command

    def start(self) -> Self:
        """Starts QEMU and comes back at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for label in _CONTROLS:
            # Left by a QEMU that was killed; connecting to it would be refused.
            self._path(label).unlink(missing_ok=True)
        Program.logs[f"console of {self.name} ({self._path('console.log')})"] = self._path("console.log")
        self._program = Program(self.arguments(), log=self._path("qemu.log"), stays=self._stays, name=self.name)
        wait_for(self._listens, timeout_s=BOOT_TIMEOUT_S, what=f"{self.name} to open its control sockets")
        self.attach(self._path("agent"))
        return self

    def save(self, path: Path) -> None:
        """Writes the running state to a file, for ``incoming``; the guest is stopped then and can only be killed."""
        self.wait_booted()
        self.qmp.execute("migrate", uri=f"exec:cat > {path}")

        def ended() -> bool:
            state = self.qmp.execute("query-migrate").get("status")
            if state == "failed":
                raise RigError(f"{self.name} could not save its state to {path}:\n{self.logs()}")
            return bool(state == "completed")

        wait_for(ended, timeout_s=BOOT_TIMEOUT_S, what=f"{self.name} to save its state")

    def kill(self) -> None:
        """SIGKILL to QEMU, as a crash would be."""
        self._started().kill()
        self._forget()

    def stop(self) -> None:
        """Ends QEMU and removes the folder if it was made here. Idempotent."""
        self._forget()
        if self._program:
            # A guest without a disk has nothing to flush.
            self._program.kill()
            self._program.stop()
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """The ends of QEMU's log and of the guest's console."""
        return f"qemu:\n{tail(self._path('qemu.log'))}\nconsole:\n{tail(self._path('console.log'))}"

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def _fitted(self, nic: Nic) -> Nic:
        vectors = nic.vectors if self.qemu.msix_is_safe or nic.vectors is not None else 0
        # No boot from the network, so no firmware of the NIC either.
        return replace(nic, vectors=vectors, options={"romfile": "", **nic.options})

    def _listens(self) -> bool:
        self._started().check()
        return all(self._path(label).is_socket() for label in _CONTROLS)

    def _started(self) -> Program:
        if self._program is None:
            raise RigError(f"{self.name} is not started: call start()")
        return self._program

    def _forget(self) -> None:
        self.detach()
        if self._qmp:
            self._qmp.close()
        self._qmp = None

    def _greet(self, agent: Agent, timeout_s: float) -> None:
        if self._incoming:
            agent.call("true", timeout_s)
        else:
            super()._greet(agent, timeout_s)
