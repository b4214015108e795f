"""Two guests on one switch, put together in any of the ways a user may.

What the demo shows and what most tests with guests start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.traffic import address, bring_up, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovsvhost.qemu import PortType
    from ovsvhost.testing.image import GuestImage
    from ovsvhost.testing.qemu import Qemu
    from ovsvhost.testing.traffic import Address

BRIDGE = "br0"
_REACHABLE_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a pair is put together.

    Attributes:
        qemu: both guests' QEMU.
        type: both ports' type.
        guest_first: whether the guests start before the ports exist.
        queues: queue pairs and virtual CPUs of each guest.
        ports: the ports' names.
        nic_options: further properties of both guests' devices, such as ``packed=on``.
        stays: True lets all of it outlive this process.
    """

    qemu: Qemu
    type: PortType = "dpdkvhostuserclient"
    guest_first: bool = False
    queues: int = 1
    ports: tuple[str, str] = ("v1", "v2")
    nic_options: Mapping[str, str] = field(default_factory=dict)
    stays: bool = False


class Pair:
    """A switch with one bridge, a port for each of two guests, and the guests.

    Args:
        setting: how they are put together.
        folder: where everything lies, sockets too: keep its path short.
        image: what the guests boot.
    """

    def __init__(self, setting: Setting, folder: Path, image: GuestImage) -> None:
        self.setting = setting
        self.folder = folder
        self.switch = SwitchDaemon(folder, stays=setting.stays)
        self._image = image
        self.guests = [self.guest(number) for number in (1, 2)]

    @property
    def ports(self) -> tuple[str, str]:
        """The ports' names, the first guest's first."""
        return self.setting.ports

    @property
    def first(self) -> Guest:
        """The guest on the first port."""
        return self.guests[0]

    @property
    def second(self) -> Guest:
        """The guest on the second port."""
        return self.guests[1]

    @property
    def target(self) -> Address:
        """The second guest's addresses."""
        return address(2)

    def guest(self, number: int) -> Guest:
        """A guest for the first or second port, not started; replaces one that was killed."""
        nic = Nic(
            socket=str(self.socket(self.ports[number - 1])),
            type=self.setting.type,
            mac=f"52:54:00:00:00:{number:02x}",
            queues=self.setting.queues,
            options=self.setting.nic_options,
        )
        return Guest(
            self._image,
            self.setting.qemu,
            [nic],
            name=f"guest{number}",
            folder=self.folder,
            cpus=self.setting.queues,
            stays=self.setting.stays,
        )

    def socket(self, port: str) -> Path:
        """Where a port's socket lies: in the folder if QEMU makes it, in the run directory if the switch does."""
        return (self.folder if self.setting.type == "dpdkvhostuserclient" else self.switch.rundir) / port

    def port_command(self, port: str) -> list[str]:
        """The words of ``vsctl`` that add a port."""
        words = ["add-port", BRIDGE, port, "--", "set", "Interface", port, f"type={self.setting.type}"]
        if self.setting.type == "dpdkvhostuserclient":
            words.append(f"options:vhost-server-path={self.socket(port)}")
        return words

    def bridge_command(self) -> list[str]:
        """The words of ``vsctl`` that add the bridge."""
        return ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"]

    def add_port(self, port: str) -> None:
        """Adds a port for a guest."""
        self.switch.vsctl(*self.port_command(port))

    def start_switch(self) -> None:
        """Starts the switch and gives it the bridge."""
        self.switch.start()
        self.switch.vsctl(*self.bridge_command())

    def start_guests(self) -> None:
        """Starts both guests; they boot at the same time."""
        for guest in self.guests:
            guest.start()

    def join(self) -> None:
        """Waits until both guests are booted and on the network."""
        for number, guest in enumerate(self.guests, start=1):
            bring_up(guest, number)
        self.wait_reachable()

    def start(self) -> Self:
        """Starts everything in the setting's order; returns when the guests reach each other."""
        self.start_switch()
        if self.setting.guest_first:
            self.start_guests()
        for port in self.ports:
            self.add_port(port)
        if not self.setting.guest_first:
            self.start_guests()
        self.join()
        return self

    def wait_reachable(self, timeout_s: float = _REACHABLE_TIMEOUT_S) -> None:
        """Waits until the second guest answers the first."""
        wait_for(
            lambda: ping(self.first, self.target.ipv4, count=1).received,
            timeout_s=timeout_s,
            what="the second guest to answer a ping",
        )

    def stop(self) -> None:
        """Ends the guests, then the switch."""
        for guest in self.guests:
            guest.stop()
        self.switch.stop()

    def __enter__(self) -> Self:
        """Starts nothing: the caller chooses how."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends everything, and leaves nothing."""
        self.stop()
        self.switch.close()
