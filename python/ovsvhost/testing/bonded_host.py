"""A host behind two cables, which is what a bond is plugged into: its end of them is a bridge's, or a bond of its own.

::

    with OvsHost(folder, 2) as neighbour:
        first, second = neighbour.plug_cables()   # the ends that are outside, for the switch
        switch.vsctl("add-bond", "br0", "bond0", first, second, "lacp=active", ...)
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ovsvhost.nic import ethtool
from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.kernel_host import INSIDE, KernelHost
from ovsvhost.testing.namespace import device_name, ip_command
from ovsvhost.testing.ovsdb import OvsdbServer
from ovsvhost.testing.process import Program
from ovsvhost.testing.vsctl_twins import create_database
from ovsvhost.testing.wait import wait_for

_START_TIMEOUT_S = 30
_UPLINKS = ("up0", "up1")
"""What the host calls its ends of the cables."""


class CabledHost(KernelHost):
    """A namespace with two cables out of it; what joins them inside is a subclass's."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.cables: tuple[str, ...] = ()

    def plug_cables(self) -> tuple[str, str]:
        """Makes both, all ends up, and gives the names of the ends that are outside.

        Raises:
            MissingError: what joins them is not on this machine; the text names it.
        """
        self.cables = (device_name("ov"), device_name("ov"))
        for outside, uplink in zip(self.cables, _UPLINKS, strict=True):
            ip_command(
                *("ip", "link", "add", outside, "type", "veth"),
                *("peer", "name", uplink, "netns", str(self.pid)),
            )
            self.inside(lambda uplink=uplink: ethtool.set_tx_checksum(uplink, on=False))  # type: ignore[misc]
        self._join()
        for outside, uplink in zip(self.cables, _UPLINKS, strict=True):
            self.ip("link", "set", uplink, "up")
            ip_command("ip", "link", "set", outside, "addrgenmode", "none", "up")
        self.ip("addr", "add", f"{self.address.ipv4}/24", "dev", INSIDE)
        self.ip("addr", "add", f"{self.address.ipv6}/64", "dev", INSIDE, "nodad")
        self.ip("link", "set", INSIDE, "up")
        first, second = self.cables
        return first, second

    def _join(self) -> None:
        """Makes the device with the host's address out of both ends, which are down yet."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it; veth pairs go with the ends inside, by hand, for the kernel takes its time."""
        for cable in self.cables:
            with contextlib.suppress(RigError):  # the test may have deleted it
                ip_command("ip", "link", "del", cable)
        super().stop()


class BridgedHost(CabledHost):
    """A host behind a switch with two uplinks that knows of no bond: Linux's own bridge."""

    def _join(self) -> None:
        no_delay = ("forward_delay", "0", "mcast_snooping", "0")
        self.ip("link", "add", INSIDE, "address", self.mac, "type", "bridge", *no_delay)
        for uplink in _UPLINKS:
            self.ip("link", "set", uplink, "master", INSIDE)


class LinuxBondHost(CabledHost):
    """A host whose kernel bonds both cables by LACP (``bonding.rst``: 802.3ad)."""

    def _join(self) -> None:
        mode = ("mode", "802.3ad", "lacp_rate", "fast", "miimon", "100", "xmit_hash_policy", "layer3+4")
        try:
            self.ip("link", "add", INSIDE, "type", "bond", *mode)
        except RigError as error:
            raise MissingError(f"no bonding driver in this kernel (CONFIG_BONDING): {error}") from error
        for uplink in _UPLINKS:
            self.ip("link", "set", uplink, "master", INSIDE)


class OvsHost(CabledHost):
    """A host whose Open vSwitch bonds both cables: its userspace datapath, over packet sockets."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self._rundir = folder / f"ovs{number}"
        self._database: OvsdbServer | None = None
        self._switch: Program | None = None

    def vsctl(self, *arguments: str) -> str:
        """``ovs-vsctl`` on its database; waits until its switch followed."""
        if self._database is None:
            raise RigError(f"Open vSwitch of {self.name} is not started: call plug_cables()")
        return ip_command("ovs-vsctl", f"--timeout={_START_TIMEOUT_S}", f"--db={self._database.remote}", *arguments)

    def appctl(self, *arguments: str) -> str:
        """``ovs-appctl`` to its switch."""
        return ip_command("ovs-appctl", "-t", str(self._control), *arguments)

    def stop(self) -> None:
        """Ends its switch and its database, and the rest."""
        for program in (self._switch, self._database):
            if program is not None:
                program.stop()
        self._switch = self._database = None
        super().stop()

    @property
    def _control(self) -> Path:
        return self._rundir / "ovs-vswitchd.ctl"

    def _join(self) -> None:
        self._rundir.mkdir()
        # the kernel sees what comes over the cables too, and would answer for eth0 with a cable's address
        self.inside(lambda: Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1"))
        for uplink in _UPLINKS:
            self.ip("link", "set", uplink, "addrgenmode", "none")
        self._database = OvsdbServer(self._rundir, create_database(self._rundir))
        where = {"OVS_RUNDIR": str(self._rundir), "OVS_LOGDIR": str(self._rundir)}
        inside = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")
        self._switch = Program(
            [*inside, "ovs-vswitchd", self._database.remote, "--disable-system", f"--unixctl={self._control}"],
            log=self._rundir / "ovs-vswitchd.out",
            environment={**os.environ, **where},
            name=f"ovs-vswitchd of {self.name}",
        )
        wait_for(self._control.is_socket, timeout_s=_START_TIMEOUT_S, what=f"{self._switch.name} to listen")
        self.vsctl(
            *(
                "add-br",
                INSIDE,
                "--",
                "set",
                "Bridge",
                INSIDE,
                "datapath_type=netdev",
                f"other_config:hwaddr={self.mac}",
            ),
            *("--", "add-bond", INSIDE, "bond0", *_UPLINKS, "bond_mode=balance-tcp", "lacp=active"),
            *("other_config:lacp-time=fast",),
        )
