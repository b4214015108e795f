"""Somebody dies, or is out of reach, while a guest runs at its new host and its memory is still on its way.

What survives and what cannot, with the word of QEMU for it, is the table in ``docs/migration.md``. A move in which
nobody dies is in ``test_migration``.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.qemu import Nic
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.guest import Guest
from ovsvhost.testing.migration import Migration
from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import bring_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.soak, pytest.mark.timeout(600)]

_BALLAST_MIB = 16


def _start_with_postcopy(pair: Pair) -> None:
    pair.start_switch()
    pair.switch.offer_postcopy()
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


@dataclass
class Move:
    """The second guest of a pair runs on the third port, its memory still where it was."""

    pair: Pair
    moved: Guest
    migration: Migration
    held: str

    def finish(self) -> None:
        """Brings the rest of its memory, and finds all of it there."""
        self.migration.hurry()
        self.migration.wait()
        self.assert_whole()

    def assert_whole(self) -> None:
        assert self.moved.run("sha256sum </tmp/ballast").split()[0] == self.held


@contextmanager
def _moved(image: GuestImage, version: str) -> Iterator[Move]:
    """A move by post-copy whose port has asked for a page."""
    setting = Setting(qemu=find_qemu(version))
    with tempfile.TemporaryDirectory(prefix="ov-") as folder, Pair(setting, Path(folder), image) as pair:
        _start_with_postcopy(pair)
        with _destination(pair, image) as moved:
            move = Move(pair, moved, Migration(pair.second, moved), _load(pair))
            move.migration.start_postcopy()
            pair.switch.wait_faults("v3")
            yield move


@pytest.mark.rows("A13", "A15")
@pytest.mark.parametrize("version", ["10.0"])
def test_A15_guest_outlives_a_switch_that_is_killed_while_its_memory_is_on_its_way(
    guest_image: GuestImage, version: str
) -> None:
    with _moved(guest_image, version) as move:
        pair, switch = move.pair, move.pair.switch
        switch.kill()
        switch.start()
        switch.wait_link("v1")
        waits = "the rest of the guest's memory: it was on its way here when the session before this one ended"
        switch.wait_column("v3", "status:waiting-for", waits)
        # QEMU goes on bringing it, and says when all is there.
        assert move.migration.status == "postcopy-active"
        move.migration.hurry()
        move.migration.wait()
        switch.wait_link("v3")
        pair.wait_reachable()
        move.assert_whole()


@pytest.mark.rows("A13", "A15")
@pytest.mark.parametrize("version", ["10.0"])
def test_A15_switch_that_is_back_after_the_memory_came_serves_the_guest_at_once(
    guest_image: GuestImage, version: str
) -> None:
    with _moved(guest_image, version) as move:
        switch = move.pair.switch
        switch.kill()
        move.finish()
        switch.start()
        switch.wait_link("v3")
        move.pair.wait_reachable()
        move.assert_whole()


@pytest.mark.rows("A15")
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_A15_guest_whose_source_is_out_of_reach_goes_on_once_it_is_back(guest_image: GuestImage, version: str) -> None:
    with _moved(guest_image, version) as move:
        move.migration.lose_network()
        move.migration.recover()
        move.finish()
        move.pair.switch.wait_column("v3", "status:postcopy", "over")
        move.pair.wait_reachable()


@pytest.mark.rows("A15")
@pytest.mark.parametrize("version", ["10.0"])
def test_A15_port_whose_guest_lost_its_source_waits_alone_and_takes_the_next_guest(
    guest_image: GuestImage, version: str
) -> None:
    with _moved(guest_image, version) as move:
        switch = move.pair.switch
        move.pair.second.kill()
        move.migration.wait_arriving_status("postcopy-paused")
        assert switch.column("v1", "link_state") == "up"
        move.moved.kill()
        _wait_next_guest(move, guest_image)


@pytest.mark.rows("A15")
@pytest.mark.parametrize("version", ["10.0"])
def test_A15_port_whose_guest_was_lost_with_its_qemu_takes_the_next_one(guest_image: GuestImage, version: str) -> None:
    with _moved(guest_image, version) as move:
        move.moved.kill()
        move.migration.wait_status("postcopy-paused")
        _wait_next_guest(move, guest_image)


def _wait_next_guest(move: Move, image: GuestImage) -> None:
    """Boots a guest on the third port, in the place of the one that was lost; it is reached."""
    with Guest(image, move.pair.setting.qemu, move.moved.nics, name="next", folder=move.pair.folder / "next") as guest:
        bring_up(guest, 2)
        move.pair.wait_reachable()


@pytest.mark.rows("A15")
@pytest.mark.parametrize("version", ["10.0"])
def test_A15_switch_that_the_guest_left_may_die_while_its_memory_follows(guest_image: GuestImage, version: str) -> None:
    setting = Setting(qemu=find_qemu(version))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        pair = stack.enter_context(Pair(setting, folder, guest_image)).start()
        there = stack.enter_context(SwitchDaemon(folder / "there"))
        there.vsctl(*pair.bridge_command())
        there.offer_postcopy()
        there.vsctl(*pair.port_command("v3"))
        moved = stack.enter_context(_destination(pair, guest_image))
        move = Move(pair, moved, Migration(pair.second, moved), _load(pair))
        move.migration.start_postcopy()
        there.wait_faults("v3")
        pair.switch.kill()
        assert move.migration.status == "postcopy-active"
        move.finish()
        there.wait_column("v3", "status:postcopy", "over")
