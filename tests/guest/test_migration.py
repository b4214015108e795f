"""A guest moves to another QEMU by pre-copy, and back by post-copy, pinged all the while and fetching a file.

Both ways in one test, for the boots are the dear part. What becomes of moves in which somebody dies is in
``test_between_hosts`` (pre-copy) and ``test_postcopy``.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.qemu import Nic
from ovsvhost.testing.guest import Guest
from ovsvhost.testing.migration import Migration
from ovsvhost.testing.pair import Pair, Setting
from ovsvhost.testing.qemu import find_qemu
from ovsvhost.testing.traffic import Fetches, PingStream, address, longest_gap_s
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

_FILE_MIB = 2
_BALLAST_MIB = 16
# QEMU's own downtime, and emulated CPUs that have to catch up, under a ping every 20 ms.
_GAP_S = 3.0


def _wait_logging(pair: Pair, wanted: bool) -> None:
    wait_for(
        lambda: ("migration=logging" in pair.switch.column("v2", "status")) == wanted,
        timeout_s=30,
        what=f"the source's port to {'begin' if wanted else 'end'} logging",
    )


def _empty(pair: Pair, port: str, name: str, image: GuestImage) -> Guest:
    """A QEMU that waits on a port for the second guest."""
    mac = pair.second.nics[0].mac
    nic = Nic(socket=str(pair.socket(port)), type=pair.setting.type, mac=mac, options=pair.setting.nic_options)
    return Guest(image, pair.setting.qemu, [nic], name=name, folder=pair.folder / name, incoming="defer")


def _assert_known_at(pair: Pair, port: str) -> None:
    learned = pair.switch.appctl("fdb/show", "br0")
    number, mac = pair.switch.column(port, "ofport"), pair.second.nics[0].mac
    assert re.search(rf"^\s*{number}\s.*{mac}", learned, re.MULTILINE), learned


@pytest.mark.rows("C7", "A15")
@pytest.mark.parametrize(
    ("version", "announce", "packed"),
    [pytest.param("7.2", "on", "off", marks=pytest.mark.soak), ("10.0", "off", "on")],
    ids=["qemu-7.2-announced-by-the-guest", "qemu-10.0-announced-by-rarp-packed-rings"],
)
def test_C7_A15_guest_moves_by_pre_copy_and_back_by_post_copy_and_keeps_its_transfers(
    guest_image: GuestImage, version: str, announce: str, packed: str
) -> None:
    setting = Setting(qemu=find_qemu(version), nic_options={"guest_announce": announce, "packed": packed})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ov-")))
        pair = stack.enter_context(Pair(setting, folder, guest_image))
        pair.start_switch()
        pair.switch.offer_postcopy()
        for port in (*pair.ports, "v3"):
            pair.add_port(port)
        pair.start_guests()
        pair.join()
        # Memory that nobody touches while it moves.
        pair.second.run(f"dd if=/dev/urandom of=/tmp/ballast bs=1M count={_BALLAST_MIB} 2>/dev/null")
        held = pair.second.run("sha256sum </tmp/ballast")
        fetches = Fetches(pair.first, pair.second, address(1).ipv4, size_mib=_FILE_MIB)
        pings = PingStream(pair.first, pair.target.ipv4)
        pings.wait_answers(5)

        there = stack.enter_context(_empty(pair, "v3", "there", guest_image))
        migration = Migration(pair.second, there)
        migration.begin_in_vain()
        _wait_logging(pair, wanted=True)
        migration.give_up()
        _wait_logging(pair, wanted=False)
        migration.start()
        _wait_logging(pair, wanted=True)
        migration.wait()
        pings.wait_answers(20)
        assert longest_gap_s(pings.stop()) < _GAP_S
        _assert_known_at(pair, "v3")
        fetches.follow(there)
        # Its port is free for whoever comes back to it.
        pair.second.stop()

        pings = PingStream(pair.first, pair.target.ipv4)
        back = stack.enter_context(_empty(pair, "v2", "back", guest_image))
        migration = Migration(there, back)
        migration.start_postcopy()
        pair.switch.wait_faults("v2")
        pair.switch.wait_column("v2", "status:postcopy", "on")
        migration.hurry()
        migration.wait()
        pair.switch.wait_column("v2", "status:postcopy", "over")
        pings.wait_answers(20)
        pings.stop()
        _assert_known_at(pair, "v2")
        fetches.follow(back)
        fetches.finish()
        assert back.run("sha256sum </tmp/ballast") == held
