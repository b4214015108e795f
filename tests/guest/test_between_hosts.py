"""A guest moves between hosts with a switch each, and keeps its transfers. Both hosts are this machine.

::

    first guest ── eth0 ── one switch ──── the guest that moves, here and back
          bridge
                └─ eth1 ── the other ───── and there in between
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from ovsvhost.qemu import Nic
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest
from ovsvhost.testing.image import Extra, guest_image
from ovsvhost.testing.migration import Migration
from ovsvhost.testing.ovs_dpdk import OvsDpdk
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import Fetches, PingStream, address, bring_up, longest_gap_s, ping
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

Switch: TypeAlias = SwitchDaemon | OvsDpdk

# As in the moves between ports of one switch: QEMU's own downtime, and emulated CPUs that have to catch up.
_GAP_S = 3.0
_MEMORY_MIB = 128
_FILE_MIB = 4
_SLOW_BYTES_PER_S = 4 << 20


class Hosts:
    """Two switches, a guest on both, and one that moves between them while it is pinged and fetches a file."""

    def __init__(self, folder: Path, stack: ExitStack, here: Switch, there: Switch) -> None:
        self._folder = folder
        self._stack = stack
        self._qemu = find_qemu("10.0")
        self._image = guest_image(extra=Extra(modules=("llc", "stp", "bridge")))
        for switch in (here, there):
            switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
            for port in ("first", "second"):
                words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={_socket(switch, port)}"]
                switch.vsctl("add-port", "br0", port, "--", "set", "Interface", port, *words)
        both = [_nic(here, "first", "52:54:00:00:01:01"), _nic(there, "first", "52:54:00:00:01:02")]
        self.first = self._guest("peer", both)
        self.moves = self._guest("home", [_nic(here, "second", "52:54:00:00:00:02")])
        self.first.run("brctl addbr br0; for nic in eth0 eth1; do ip link set $nic up; brctl addif br0 $nic; done")
        bring_up(self.first, 1, "br0")
        bring_up(self.moves, 2)
        target = address(2).ipv4
        wait_for(lambda: ping(self.first, target, count=1).received, timeout_s=60, what="the guest to answer")
        self.pings = PingStream(self.first, target)
        self.fetches = Fetches(self.first, self.moves, address(1).ipv4, size_mib=_FILE_MIB)

    @contextmanager
    def move(self, switch: Switch, place: str) -> Iterator[Migration]:
        """The guest is on its way inside of this, and there at its end."""
        nic = _nic(switch, "second", "52:54:00:00:00:02")
        there = self._guest(place, [nic], moves_in=True)
        migration = Migration(self.moves, there)
        # So slow that it is on its way for as long as the caller likes.
        migration.start(bytes_per_s=_SLOW_BYTES_PER_S)
        yield migration
        migration.hurry()
        migration.wait()
        self.pings.wait_answers(20)
        # Its port is free for whoever comes back to it.
        self.moves.stop()
        self.fetches.follow(there)
        self.moves = there
        self.fetches.wait_more()

    def _guest(self, name: str, nics: list[Nic], *, moves_in: bool = False) -> Guest:
        folder = self._folder / name
        guest = Guest(
            self._image,
            self._qemu,
            nics,
            name=name,
            folder=folder,
            memory_mib=_MEMORY_MIB,
            incoming="defer" if moves_in else None,
        )
        return self._stack.enter_context(guest)


def _socket(switch: Switch, port: str) -> Path:
    return switch.folder / f"{port}.sock"


def _nic(switch: Switch, port: str, mac: str) -> Nic:
    return Nic(socket=str(_socket(switch, port)), type="dpdkvhostuserclient", mac=mac)


@pytest.mark.rows("C2")
def test_C2_guest_moves_to_open_vswitch_and_back() -> None:
    with tempfile.TemporaryDirectory(prefix="ov-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "b").mkdir()
        ours = stack.enter_context(SwitchDaemon(folder / "a"))
        theirs = stack.enter_context(OvsDpdk(folder / "b"))
        ours.vsctl("set", "Open_vSwitch", ".", "other_config:vhost-features=ovs-3.1")
        hosts = Hosts(folder, stack, ours, theirs)
        assert "stops-move" not in ours.column("second", "status")
        ways: tuple[tuple[Switch, str], ...] = ((theirs, "there"), (ours, "back"))
        for switch, place in ways:
            with hosts.move(switch, place):
                hosts.pings.wait_answers(20)
        assert longest_gap_s(hosts.pings.stop()) < _GAP_S
        hosts.fetches.finish()


@pytest.mark.soak
@pytest.mark.rows("C7", "A13")
def test_C7_switch_is_killed_while_a_guest_leaves_it_and_while_one_comes() -> None:
    """QEMU goes on copying, the switch that is started again goes on marking, and nothing that arrived is lost."""
    with tempfile.TemporaryDirectory(prefix="ov-") as name, ExitStack() as stack:
        folder = Path(name)
        source, destination = (stack.enter_context(SwitchDaemon(folder / side)) for side in "ab")
        hosts = Hosts(folder, stack, source, destination)
        with hosts.move(destination, "there") as migration:
            source.wait_column("second", "status:migration", "logging")
            source.kill()
            assert migration.status == "active"
            source.start()
            source.wait_column("second", "status:migration", "logging")
        source, destination = destination, source
        with hosts.move(destination, "back") as migration:
            source.wait_column("second", "status:migration", "logging")
            destination.kill()
            assert migration.status == "active"
            destination.start()
        hosts.pings.stop()
        hosts.fetches.finish()
