"""A guest moves to another QEMU while it receives: nothing of what it was sent is lost on the way."""

from __future__ import annotations

import re
import tempfile
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

_FILE_MIB = 6
# QEMU's own downtime, and emulated CPUs that have to catch up, under a ping every 20 ms.
_GAP_S = 3.0


def _wait_logging(pair: Pair, wanted: bool) -> None:
    wait_for(
        lambda: ("migration=logging" in pair.switch.column("v2", "status")) == wanted,
        timeout_s=30,
        what=f"the source's port to {'begin' if wanted else 'end'} logging",
    )


@pytest.mark.rows("C7")
@pytest.mark.parametrize(
    ("version", "announce", "packed"),
    [("7.2", "on", "off"), ("10.0", "off", "on")],
    ids=["qemu-7.2-announced-by-the-guest", "qemu-10.0-announced-by-rarp-packed-rings"],
)
def test_C7_guest_moves_under_traffic_and_keeps_its_transfers(
    guest_image: GuestImage, version: str, announce: str, packed: str
) -> None:
    setting = Setting(qemu=find_qemu(version), nic_options={"guest_announce": announce, "packed": packed})
    with tempfile.TemporaryDirectory(prefix="ov-") as folder, Pair(setting, Path(folder), guest_image) as pair:
        pair.start()
        pair.add_port("v3")
        mac = pair.second.nics[0].mac
        nic = Nic(socket=str(pair.socket("v3")), type=setting.type, mac=mac, options=setting.nic_options)
        (there := Path(folder) / "to").mkdir()
        with Guest(guest_image, setting.qemu, [nic], name="moved", folder=there, incoming="defer") as moved:
            fetches = Fetches(pair.first, pair.second, address(1).ipv4, size_mib=_FILE_MIB)
            pings = PingStream(pair.first, pair.target.ipv4)
            pings.wait_answers(5)
            migration = Migration(pair.second, moved)
            migration.begin_in_vain()
            _wait_logging(pair, wanted=True)
            migration.give_up()
            _wait_logging(pair, wanted=False)
            migration.start()
            _wait_logging(pair, wanted=True)
            migration.wait()
            pings.wait_answers(20)
            assert longest_gap_s(pings.stop()) < _GAP_S
            learned = pair.switch.appctl("fdb/show", "br0")
            number = pair.switch.column("v3", "ofport")
            assert re.search(rf"^\s*{number}\s.*{mac}", learned, re.MULTILINE), learned
            fetches.follow(moved)
            fetches.finish()
