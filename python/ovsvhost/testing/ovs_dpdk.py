"""OVS-DPDK as a peer: Debian's own build in a private run directory and network namespace, beside anything else.

It is what the switch under test is compared with, and what the rig itself is proved with. Needs root (hugepages, a
network namespace for its taps) and the packages ``openvswitch-switch-dpdk`` and ``openvswitch-switch``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

from ovsvhost.testing import hugepages
from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.lasting import Lasting
from ovsvhost.testing.process import Program, tail
from ovsvhost.testing.wait import wait_for

_VSWITCHD = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_START_TIMEOUT_S = 60


class OvsDpdk(Lasting):
    """One OVS-DPDK: a database server and a switch.

    Args:
        folder: its run directory; sockets of ``dpdkvhostuser`` ports appear in it.
        pmd_cpu: the core its poll thread is pinned to.
        memory_mib: hugepage memory of the switch.
        sleeps: True lets an idle poll thread sleep up to 200 µs (``pmd-maxsleep``), for when it is not measured.
        offloads: True offers segmentation and checksum offloads to guests (``userspace-tso-enable``).
        postcopy: True lets guests move in by post-copy (``vhost-postcopy-support``).
        iommu: True serves guests with an IOMMU before the device (``vhost-iommu-support``).
    """

    def __init__(
        self,
        folder: Path,
        *,
        pmd_cpu: int = 1,
        memory_mib: int = 384,
        sleeps: bool = True,
        offloads: bool = False,
        postcopy: bool = False,
        iommu: bool = False,
    ) -> None:
        self.folder = folder
        self._environment = {**os.environ, "OVS_RUNDIR": str(folder), "OVS_LOGDIR": str(folder)}
        self._memory_mib = memory_mib
        self._settings = {
            "dpdk-init": "true",
            # All DPDK processes share one telemetry socket, and each start asks its owner: a stopped one never answers.
            "dpdk-extra": '"--no-pci --iova-mode=va --in-memory --no-telemetry"',
            "dpdk-socket-mem": str(memory_mib),
            "pmd-cpu-mask": hex(1 << pmd_cpu),
            "userspace-tso-enable": str(offloads).lower(),
            "vhost-postcopy-support": str(postcopy).lower(),
            "vhost-iommu-support": str(iommu).lower(),
        }
        if sleeps:
            self._settings["pmd-maxsleep"] = "200"
        self._database: Program | None = None
        self._switch: Program | None = None

    @property
    def pid(self) -> int:
        """The switch's process number."""
        if self._switch is None:
            raise RigError("ovs-vswitchd-dpdk is not started: call start()")
        return self._switch.pid

    def start(self) -> Self:
        """Starts the database if it is not running, and the switch; returns when the switch is ready (0.3 s)."""
        for needed in (_VSWITCHD, _SCHEMA):
            if not needed.exists():
                raise MissingError(f"no {needed}: install openvswitch-switch-dpdk and openvswitch-switch")
        hugepages.reserve(self._memory_mib // 2)
        if self._database is None:
            self._start_database()
        self._switch = Program(
            [
                "unshare",
                "--net",
                str(_VSWITCHD),
                self._database_remote,
                f"--log-file={self._log}",
                "--unixctl",
                str(self._control),
            ],
            log=self.folder / "ovs-vswitchd.out",
            environment=self._environment,
            name="ovs-vswitchd-dpdk",
        )
        Program.logs["ovs-vswitchd.log"] = self._log
        wait_for(self._ready, timeout_s=_START_TIMEOUT_S, what="ovs-vswitchd-dpdk to initialise", interval_s=0.05)
        return self

    def vsctl(self, *arguments: str) -> str:
        """``ovs-vsctl`` on this switch's database; waits for the switch to follow."""
        return self._tool("ovs-vsctl", f"--db={self._database_remote}", "--timeout=30", *arguments)

    def appctl(self, *arguments: str) -> str:
        """``ovs-appctl`` to the switch."""
        return self._tool("ovs-appctl", "-t", str(self._control), *arguments)

    def ofctl(self, *arguments: str) -> str:
        """``ovs-ofctl`` to one of the switch's bridges: a command, the bridge, and what else it takes."""
        command, bridge, *rest = arguments
        return self._tool("ovs-ofctl", command, f"unix:{self.folder}/{bridge}.mgmt", *rest)

    def kill(self) -> None:
        """SIGKILL to the switch; the database stays. ``start`` brings it back."""
        if self._switch:
            self._switch.kill()
        # Who kills it also clears up: OVS cannot bind over its own stale sockets.
        self._control.unlink(missing_ok=True)
        self._switch = None

    def stop(self) -> None:
        """Ends both."""
        for program in (self._switch, self._database):
            if program:
                program.stop()
        self._switch = self._database = None

    @property
    def _database_remote(self) -> str:
        return f"unix:{self.folder}/db.sock"

    @property
    def _control(self) -> Path:
        return self.folder / "ovs-vswitchd.ctl"

    @property
    def _log(self) -> Path:
        return self.folder / "ovs-vswitchd.log"

    def _start_database(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        database = self.folder / "conf.db"
        if not database.exists():
            self._tool("ovsdb-tool", "create", str(database), str(_SCHEMA))
        self._database = Program(
            ["ovsdb-server", str(database), f"--remote=p{self._database_remote}", "--unixctl", f"{self.folder}/db.ctl"],
            log=self.folder / "ovsdb-server.out",
            environment=self._environment,
        )
        wait_for((self.folder / "db.sock").is_socket, timeout_s=_START_TIMEOUT_S, what="ovsdb-server to listen")
        settings = [f"other_config:{key}={value}" for key, value in self._settings.items()]
        remote = f"--db={self._database_remote}"
        self._tool("ovs-vsctl", remote, "--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings)

    def _ready(self) -> bool:
        if self._switch is None:
            return False
        self._switch.check()
        asked = self._tool("ovs-vsctl", f"--db={self._database_remote}", "get", "Open_vSwitch", ".", "dpdk_initialized")
        return asked.strip() == "true" and self._control.is_socket()

    def _tool(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            log = tail(self._log)
            raise RigError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}\n{log}")
        return done.stdout
