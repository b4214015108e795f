"""Guest memory of every kind the switch serves, and the one that it must name."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing import hugepages
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, copy_file, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon
    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


def _add_port(switch: SwitchDaemon, port: str, socket: Path) -> None:
    switch.vsctl("--may-exist", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    options = ["type=dpdkvhostuserclient", f"options:vhost-server-path={socket}"]
    switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, *options)


def _nic(socket: Path, number: int) -> Nic:
    return Nic(socket=str(socket), type="dpdkvhostuserclient", mac=f"52:54:00:00:01:{number:02x}")


def test_A9_guests_on_2_mib_and_1_gib_hugepages_talk(
    switch: SwitchDaemon, short_folder: Path, guest_image: GuestImage
) -> None:
    hugepages.reserve(128)
    hugepages.reserve(1, page_size=hugepages.GIB_1)
    with ExitStack() as stack:
        guests = []
        for number, page_size, memory_mib in ((1, hugepages.MIB_2, 256), (2, hugepages.GIB_1, 1024)):
            mount = stack.enter_context(hugepages.mounted(page_size=page_size))
            socket = short_folder / f"v{number}"
            _add_port(switch, f"v{number}", socket)
            guest = Guest(
                guest_image,
                find_qemu("7.2"),
                [_nic(socket, number)],
                name=f"huge{number}",
                folder=short_folder,
                memory=mount,
                memory_mib=memory_mib,
            )
            guests.append(stack.enter_context(guest))
        for number, guest in enumerate(guests, start=1):
            bring_up(guest, number)
        assert ping(guests[0], address(2).ipv6, count=5).received == 5
        assert copy_file(guests[0], guests[1], address(1).ipv4, size_mib=8).intact


def test_A9_C1_private_memory_is_named_in_error(
    switch: SwitchDaemon, short_folder: Path, guest_image: GuestImage
) -> None:
    with ExitStack() as stack:
        guests = {}
        for number, version in enumerate(("7.2", "10.0"), start=1):
            port, socket = f"v{number}", short_folder / f"v{number}"
            _add_port(switch, port, socket)
            qemu, nics = find_qemu(version), [_nic(socket, number)]
            guest = Guest(guest_image, qemu, nics, name=f"private{number}", folder=short_folder, memory="private")
            guests[port] = stack.enter_context(guest)
        for port, guest in guests.items():
            guest.run("ip link set eth0 up", timeout_s=120)
            assert "share=on" in _error(switch, port)


def _error(switch: SwitchDaemon, port: str) -> str:
    """What is wrong with a port, once something is."""
    return wait_for(
        lambda: switch.column(port, "error").replace("[]", ""),
        timeout_s=30,
        what=f"error of {port} to name the private memory",
        interval_s=0.2,
    )
