"""``vhost-features``: what guests are offered, so that they can move to hosts with another switch.

What Open vSwitch offers is asked of a real one, so that the table in the core cannot rot.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.frontend import Frontend, end
from ovsvhost.testing.offer import Offer, ask_offer
from ovsvhost.testing.ovs_dpdk import OvsDpdk
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = [pytest.mark.peer, pytest.mark.timeout(120)]

CTRL_RX = 1 << 18
"""QEMU answers a guest's receive-mode commands by itself and asks no back-end whether it may."""
MRG_RXBUF, VERSION_1, HOST_USO = 1 << 15, 1 << 32, 1 << 56
LOG_ALL, PROTOCOL_FEATURES = 1 << 26, 1 << 30
CONFIGURE_MEM_SLOTS = 1 << 15


def limit(switch: SwitchDaemon, text: str) -> None:
    switch.vsctl("set", "Open_vSwitch", ".", f"other_config:vhost-features={text}")


def add_port(switch: SwitchDaemon, path: Path) -> None:
    if "br0" not in switch.vsctl("list-br"):
        switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={path}"]
    switch.vsctl("add-port", "br0", path.name, "--", "set", "Interface", path.name, *words)


def offered(switch: SwitchDaemon, path: Path) -> Offer:
    """What a front-end that is new to the switch is offered."""
    add_port(switch, path)
    return ask_offer(path)


@pytest.mark.parametrize("tso", [False, True], ids=["plain", "userspace-tso"])
@pytest.mark.rows("C2")
def test_a_guest_is_offered_exactly_what_open_vswitch_offers_it(
    switch: SwitchDaemon, short_folder: Path, tso: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="ov-") as name, OvsDpdk(Path(name), offloads=tso) as ovs:
        ovs.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        words = ["type=dpdkvhostuserclient", f"options:vhost-server-path={name}/v0"]
        ovs.vsctl("add-port", "br0", "v0", "--", "set", "Interface", "v0", *words)
        theirs = ask_offer(Path(name, "v0"))
    switch.vsctl("set", "Open_vSwitch", ".", f"other_config:userspace-tso-enable={str(tso).lower()}")
    limit(switch, "ovs-3.1")
    ours = offered(switch, short_folder / "v0")
    assert f"{ours.virtio:#x}" == f"{theirs.virtio & ~CTRL_RX:#x}"
    assert not ours.protocol & CONFIGURE_MEM_SLOTS & ~theirs.protocol
    limit(switch, "all")
    assert f"{theirs.virtio & ~offered(switch, short_folder / 'v1').virtio:#x}" == f"{CTRL_RX:#x}"


@pytest.mark.rows("C2", "L5")
def test_a_mask_is_live_for_front_ends_that_come_and_a_bad_one_changes_nothing(
    switch: SwitchDaemon, short_folder: Path
) -> None:
    everything = offered(switch, short_folder / "v0").virtio
    limit(switch, hex(MRG_RXBUF | VERSION_1 | 1 << 63))
    want = MRG_RXBUF | VERSION_1 | LOG_ALL | PROTOCOL_FEATURES
    assert offered(switch, short_folder / "v1").virtio == want
    # The same process was offered more on this socket.
    assert ask_offer(short_folder / "v0").virtio == everything
    limit(switch, "ovs-9.9")
    assert offered(switch, short_folder / "v2").virtio == want
    said = switch.log.read_text()
    assert "guests that start from now on are not offered CSUM" in said
    assert "other_config:vhost-features='ovs-9.9' is refused (0x8000000100008000 stays in force)" in said


@pytest.mark.rows("B1", "C2")
def test_what_would_stop_a_move_to_open_vswitch_is_named(switch: SwitchDaemon, short_folder: Path) -> None:
    for name in ("a", "b"):
        add_port(switch, short_folder / name)
    ends = [end(short_folder / "a", require=["csum", "host_uso"]), end(short_folder / "b")]
    with Frontend(ends, folder=short_folder, options=["--rate=100"]) as frontend:
        frontend.event("ready")
        switch.wait_link("a")
        switch.wait_link("b")
        shown = switch.call("show", f"--rundir={switch.rundir}", "--json").stdout
        ports = {port["name"]: port["status"] for port in json.loads(shown)["bridges"][0]["ports"]}
        assert ports["a"]["stops-move-to-ovs-3.1"] == "HOST_USO; CSUM without userspace-tso-enable=true there"
        assert "stops-move-to-ovs-3.1" not in ports["b"]


@pytest.mark.rows("C2")
def test_a_guest_that_runs_outlives_a_limit_and_a_crash(switch: SwitchDaemon, short_folder: Path) -> None:
    """The limit holds for the next guest on that socket; the one that is there keeps what its driver accepted."""
    for name in ("a", "b"):
        add_port(switch, short_folder / name)
    ends = [end(short_folder / name, require=["host_uso", "csum"]) for name in ("a", "b")]
    with Frontend(ends, folder=short_folder, options=["--rate=1000"]) as frontend:
        frontend.event("ready")
        limit(switch, "ovs-3.1")
        frontend.tell("hang-up a")
        wait_for(lambda: _sessions(frontend, "a") == 2, timeout_s=20, what="the end to be back")
        switch.kill()
        switch.start()
        wait_for(lambda: _sessions(frontend, "a") == 3, timeout_s=20, what="the end to be back after a crash")
        (exact,) = frontend.finish()["exact"]
        assert exact["duplicated"] == exact["reordered"] == 0
    assert not ask_offer(short_folder / "a").virtio & HOST_USO


def _sessions(frontend: Frontend, end: str) -> int:
    return len([link for link in frontend.events("link") if (link["end"], link["state"]) == (end, "up")])
