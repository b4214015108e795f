"""A guest runs at its new host before its memory is there: its port asks for pages, and every transfer survives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.qemu import Nic
from ovsvhost.testing.guest import Guest
from ovsvhost.testing.migration import Migration
from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import Fetches, PingStream, address
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

_FILE_MIB = 2
_BALLAST_MIB = 32
_TIMEOUT_S = 60


def _start_with_postcopy(pair: Pair) -> None:
    pair.start_switch()
    pair.switch.vsctl("set", "Open_vSwitch", ".", "other_config:vhost-postcopy-support=true")
    pair.switch.stop()
    pair.switch.start()
    for port in (*pair.ports, "v3"):
        pair.add_port(port)
    pair.start_guests()
    pair.join()


def _destination(pair: Pair, image: GuestImage) -> Guest:
    """Where the second guest goes: a QEMU on the third port."""
    nic = Nic(socket=str(pair.socket("v3")), type=pair.setting.type, mac=pair.second.nics[0].mac)
    return Guest(image, pair.setting.qemu, [nic], name="moved", folder=pair.folder / "to", incoming="defer")


def _load(pair: Pair) -> str:
    """Fills memory of the second guest that nobody touches while it moves; what it hashes to."""
    pair.second.run(f"dd if=/dev/urandom of=/tmp/ballast bs=1M count={_BALLAST_MIB} 2>/dev/null")
    return pair.second.run("sha256sum </tmp/ballast").split()[0]


def _faults_served(pair: Pair) -> int:
    shown = pair.switch.vsctl("--if-exists", "get", "Interface", "v3", "status:postcopy-faults-served")
    return int(shown.strip().strip('"') or 0)


@pytest.mark.rows("A15")
@pytest.mark.parametrize("version", [pytest.param("7.2", marks=pytest.mark.soak), "10.0"])
def test_A15_guest_runs_before_its_memory_is_there_and_keeps_its_transfers(
    guest_image: GuestImage, version: str
) -> None:
    setting = Setting(qemu=find_qemu(version))
    with tempfile.TemporaryDirectory(prefix="ov-") as folder, Pair(setting, Path(folder), guest_image) as pair:
        _start_with_postcopy(pair)
        with _destination(pair, guest_image) as moved:
            fetches = Fetches(pair.first, pair.second, address(1).ipv4, size_mib=_FILE_MIB)
            held = _load(pair)
            pings = PingStream(pair.first, pair.target.ipv4)
            pings.wait_answers(5)
            move = Migration(pair.second, moved)
            move.start_postcopy()
            wait_for(lambda: _faults_served(pair) > 0, timeout_s=_TIMEOUT_S, what="the port to have asked for a page")
            pair.switch.wait_column("v3", "status:postcopy", "on")
            move.hurry()
            move.wait()
            pair.switch.wait_column("v3", "status:postcopy", "over")
            pings.wait_answers(20)
            pings.stop()
            fetches.follow(moved)
            fetches.finish()
            assert moved.run("sha256sum </tmp/ballast").split()[0] == held


@pytest.mark.soak
@pytest.mark.rows("A13", "A15")
def test_A15_guest_outlives_a_switch_that_is_killed_while_its_memory_is_on_its_way(guest_image: GuestImage) -> None:
    setting = Setting(qemu=find_qemu("10.0"))
    with tempfile.TemporaryDirectory(prefix="ov-") as folder, Pair(setting, Path(folder), guest_image) as pair:
        _start_with_postcopy(pair)
        with _destination(pair, guest_image) as moved:
            held = _load(pair)
            move = Migration(pair.second, moved)
            move.start_postcopy()
            wait_for(lambda: _faults_served(pair) > 0, timeout_s=_TIMEOUT_S, what="the port to have asked for a page")
            pair.switch.kill()
            pair.switch.start()
            pair.switch.wait_link("v1")
            waits = "the rest of the guest's memory: it was on its way here when the session before this one ended"
            pair.switch.wait_column("v3", "status:waiting-for", waits)
            # QEMU goes on bringing it, and says when all is there.
            move.hurry()
            move.wait()
            pair.switch.wait_link("v3")
            pair.wait_reachable()
            assert moved.run("sha256sum </tmp/ballast").split()[0] == held
