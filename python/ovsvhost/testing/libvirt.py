"""libvirt without systemd: a daemon of its own beside whatever this machine runs, and the guide's sample domain on it.

::

    with Libvirt(folder, hugepages=mount) as libvirt:
        domain = libvirt.create(Domain("demovm", image, qemu, interfaces, folder=folder))
        domain.run("ip addr")

libvirt's folders are compiled in. The daemon gets a mount namespace in which those are its own, and a process
namespace, so that the guests it starts cannot outlive it. Its QEMUs run as Debian's ``libvirt-qemu`` (``QEMU_UID``),
made up in there if this machine has none, so they open only what such a user may. Needs root, ``libvirt-daemon`` and
``libvirt-clients``.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self
from xml.sax.saxutils import escape

from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.guest import kernel_command_line
from ovsvhost.testing.lasting import Lasting
from ovsvhost.testing.machine import Machine
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.testing.image import GuestImage
    from ovsvhost.testing.qemu import Qemu

# Debian's numbers for the user and group of libvirt's QEMUs.
QEMU_UID = 64055
_ACCOUNTS = {
    "passwd": f"libvirt-qemu:x:{QEMU_UID}:{QEMU_UID}::/nonexistent:/usr/sbin/nologin\n",
    "group": f"libvirt-qemu:x:{QEMU_UID}:\n",
}
_START_TIMEOUT_S = 60
_VIRSH_TIMEOUT_S = 120
_DAEMON_CONF = """\
unix_sock_dir = "{folder}"
auth_unix_rw = "none"
"""
_QEMU_CONF = """\
user = "libvirt-qemu"
group = "libvirt-qemu"
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
remember_owner = 0
hugetlbfs_mount = "{hugepages}"
"""
# In namespaces of its own, where the folders that libvirt keeps things in are empty and gone afterwards. The shell
# stays: as the first process it takes away QEMUs that ended, whose parent is gone; libvirtd would wait for ever.
_ENTER = """\
set -e
mount --bind "$0/etc" /etc/libvirt
for accounts in passwd group; do mount --bind "$0/etc/$accounts" "/etc/$accounts"; done
for parent in /var/lib /var/cache /var/log /run; do
    mount -t tmpfs -o mode=0755 none "$parent"
    mkdir "$parent/libvirt"
done
# A console that is in use has a lock file here.
mkdir /run/lock
libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid &
wait $!
"""


class Libvirt(Lasting):
    """One libvirt daemon.

    Args:
        folder: holds its configuration, its sockets and its log. Keep it short, and out of ``/run`` and ``/var``, which
            the daemon and its guests see empty.
        hugepages: a hugetlbfs mount point, for the domains' memory.
    """

    def __init__(self, folder: Path, *, hugepages: Path) -> None:
        self.folder = folder
        self.log = folder / "libvirtd.log"
        self._hugepages = hugepages
        self._program: Program | None = None

    @property
    def uri(self) -> str:
        """What ``virsh -c`` takes."""
        return f"qemu+unix:///system?socket={self.folder}/libvirt-sock"

    def start(self) -> Self:
        """Starts it; returns when virsh reaches it.

        Raises:
            MissingError: no root, or no libvirt.
        """
        if os.geteuid() != 0:
            raise MissingError("libvirt's system daemon takes root: run this test as root")
        (self.folder / "etc").mkdir(parents=True, exist_ok=True)
        (self.folder / "etc/libvirtd.conf").write_text(_DAEMON_CONF.format(folder=self.folder))
        (self.folder / "etc/qemu.conf").write_text(_QEMU_CONF.format(hugepages=self._hugepages))
        for name, entry in _ACCOUNTS.items():
            known = Path("/etc", name).read_text()
            others = [line for line in known.splitlines(keepends=True) if not line.startswith("libvirt-qemu:")]
            (self.folder / "etc" / name).write_text("".join([*others, entry]))
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._program = Program(
            [*namespaces, "sh", "-c", _ENTER, str(self.folder)],
            log=self.log,
            name="libvirtd",
        )
        wait_for(self._answers, timeout_s=_START_TIMEOUT_S, what="libvirtd to answer virsh")
        return self

    def virsh(self, *words: str) -> str:
        """One command of virsh; gives what it printed.

        Raises:
            RigError: it failed; with its words and the end of libvirtd's log.
        """
        done = self._virsh(*words)
        if done.returncode != 0:
            raise RigError(f"virsh {' '.join(words)}: {done.stderr.strip()}\n{tail(self.log)}")
        return done.stdout

    def create(self, domain: Domain) -> Domain:
        """``virsh create``: starts a domain that is forgotten when it ends."""
        domain.prepare()
        description = domain.folder / f"{domain.name}.xml"
        description.write_text(domain.xml())
        self.virsh("create", str(description))
        domain.attach(domain.agent)
        return domain

    def console(self, domain: Domain, command: str, expected: str, *, timeout_s: float = 60) -> None:
        """``virsh console``: types a command at the guest's first serial port and waits for its answer."""
        keyboard, terminal = pty.openpty()
        log = self.folder / "console.log"
        try:
            with (
                os.fdopen(terminal, "rb", buffering=0) as stdin,
                Program(["virsh", "-c", self.uri, "console", domain.name], log=log, stdin=stdin, name="virsh") as virsh,
            ):

                def says(text: str) -> bool:
                    virsh.check()
                    return text in log.read_text(errors="replace")

                wait_for(lambda: says("Escape character"), timeout_s=timeout_s, what="virsh console to be there")
                os.write(keyboard, f"{command}\n".encode())
                wait_for(lambda: says(expected), timeout_s=timeout_s, what=f"'{command}' to be answered")
                # Control and ], which leaves the console.
                os.write(keyboard, b"\x1d")
                virsh.wait(timeout_s)
        finally:
            os.close(keyboard)

    def stop(self) -> None:
        """Ends it and every domain with it. Idempotent."""
        if self._program:
            # The namespaces end with the process, and nothing in them is worth a farewell.
            self._program.kill()
            self._program.stop()

    def _answers(self) -> bool:
        if self._program:
            self._program.check()
        return self._virsh("version").returncode == 0

    def _virsh(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True,
            text=True,
            timeout=_VIRSH_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )


class Domain(Machine):
    """The guide's sample domain, cut to what an emulated guest without a disk has.

    Args:
        name: the domain's name.
        image: what it boots.
        qemu: the emulator.
        interfaces: ``<interface>`` elements, ``eth0`` first.
        folder: where its description and its agent's socket go; QEMU's user must be able to enter it.
        memory_mib: MiB of memory.
    """

    def __init__(
        self,
        name: str,
        image: GuestImage,
        qemu: Qemu,
        interfaces: Sequence[str],
        *,
        folder: Path,
        memory_mib: int = 256,
    ) -> None:
        super().__init__(name)
        self.folder = folder
        self.agent = folder / f"{name}.agent"
        self._image = image
        self._qemu = qemu
        self._interfaces = interfaces
        self._memory_mib = memory_mib

    def prepare(self) -> None:
        """Puts what it boots where QEMU's user can read it; libvirt gives it that user, and then root."""
        for file in (self._image.kernel, self._image.initramfs):
            shutil.copy(file, self.folder)

    def xml(self) -> str:
        """The domain's description."""
        return f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(self.name)}</name>
  <memory unit='MiB'>{self._memory_mib}</memory>
  <currentMemory unit='MiB'>{self._memory_mib}</currentMemory>
  <memoryBacking>
    <hugepages>
      <page size='2' unit='M' nodeset='0'/>
    </hugepages>
  </memoryBacking>
  <vcpu placement='static'>2</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='0'/>
    <vcpupin vcpu='1' cpuset='1'/>
    <emulatorpin cpuset='0,1'/>
  </cputune>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(self.folder / self._image.kernel.name))}</kernel>
    <initrd>{escape(str(self.folder / self._image.initramfs.name))}</initrd>
    <cmdline>{escape(kernel_command_line())}</cmdline>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu>
    <topology sockets='2' cores='1' threads='1'/>
    <numa>
      <cell id='0' cpus='0-1' memory='{self._memory_mib}' unit='MiB' memAccess='shared'/>
    </numa>
  </cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{escape(str(self._qemu.program))}</emulator>
    {"".join(self._interfaces)}
    <serial type='pty'>
      <target port='0'/>
    </serial>
    <console type='pty'>
      <target type='serial' port='0'/>
    </console>
    <serial type='unix'>
      <source mode='bind' path='{escape(str(self.agent))}'/>
      <target port='1'/>
    </serial>
    <memballoon model='none'/>
  </devices>
  {self._override()}
</domain>
"""

    def _override(self) -> str:
        if self._qemu.msix_is_safe:
            return ""
        devices = "".join(
            f"<qemu:device alias='net{index}'><qemu:frontend>"
            "<qemu:property name='vectors' type='unsigned' value='0'/></qemu:frontend></qemu:device>"
            for index in range(len(self._interfaces))
        )
        return f"<qemu:override>{devices}</qemu:override>"
