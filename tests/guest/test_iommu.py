"""Guests with an IOMMU before their NIC: strict mappings, lazy ones, and pass-through.

A strict kernel maps every buffer before the device gets it and takes it back after; a lazy one takes everything back at
once, now and then, rings included; one with pass-through gives physical addresses, which have to be asked for page by
page.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest, Nic
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import address, bring_up, copy_file, ping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.rows("A14", "C9")]

# What the kernel is told, and which QEMU runs it.
MODES = {"strict": ("iommu.strict=1", "10.0"), "lazy": ("iommu.strict=0", "7.2"), "pt": ("iommu=pt", "10.0")}
PINGS = 20
FILE_MIB = 2


@dataclass(frozen=True)
class Scene:
    """One guest of each mode on one bridge."""

    switch: SwitchDaemon
    guests: dict[str, Guest]

    def answered(self, source: str, target: str) -> int:
        """How many of the pings between two guests are answered."""
        there = address(list(self.guests).index(target) + 1)
        return ping(self.guests[source], there.ipv4, count=PINGS, interval_s=0.05).received


@pytest.fixture(scope="module")
def scene(guest_image: GuestImage) -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        switch = stack.enter_context(SwitchDaemon(folder / "sw"))
        # Read at start.
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:vhost-iommu-support=true")
        switch.stop()
        switch.start()
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        switch.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
        guests = {}
        for number, (mode, (words, version)) in enumerate(MODES.items(), start=1):
            socket = folder / mode
            switch.vsctl(
                "add-port",
                "br0",
                mode,
                "--",
                "set",
                "Interface",
                mode,
                "type=dpdkvhostuserclient",
                f"options:vhost-server-path={socket}",
            )
            options = {"disable-legacy": "on", "disable-modern": "off", "iommu_platform": "on", "ats": "on"}
            mac = f"52:54:00:00:00:{number:02x}"
            guests[mode] = stack.enter_context(
                Guest(
                    guest_image,
                    find_qemu(version),
                    [Nic(socket=str(socket), type="dpdkvhostuserclient", mac=mac, options=options)],
                    name=mode,
                    iommu=True,
                    kernel_line=f"intel_iommu=on {words}",
                    folder=folder,
                )
            )
        for number, guest in enumerate(guests.values(), start=1):
            bring_up(guest, number)
        yield Scene(switch, guests)


@pytest.mark.parametrize("mode", MODES)
def test_the_guests_addresses_are_those_of_its_iommu(scene: Scene, mode: str) -> None:
    scene.switch.wait_link(mode)
    assert scene.switch.column(mode, "status:iommu") == "on"
    assert "DMAR: IOMMU enabled" in scene.guests[mode].run("dmesg")


@pytest.mark.parametrize(("source", "target"), list(permutations(MODES, 2)))
def test_every_ping_is_answered(scene: Scene, source: str, target: str) -> None:
    # The first waits for an answer to ARP, which nobody has yet.
    assert scene.answered(source, target) == PINGS


@pytest.mark.parametrize(("source", "target"), [("strict", "lazy"), ("lazy", "pt"), ("pt", "strict")])
def test_a_file_arrives_whole(scene: Scene, source: str, target: str) -> None:
    host = address(list(MODES).index(source) + 1).ipv4
    assert copy_file(scene.guests[source], scene.guests[target], host, size_mib=FILE_MIB).intact


@pytest.mark.parametrize("mode", MODES)
def test_what_was_asked_for_is_counted(scene: Scene, mode: str) -> None:
    for side in ("rx", "tx"):
        scene.switch.wait_statistic(mode, f"{side}_q0_iotlb_hits")
    scene.switch.wait_statistic(mode, "rx_q0_iotlb_misses")
    assert scene.switch.column(mode, "error") == "[]"
