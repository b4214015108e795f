"""Guests come and go: what the database shows of it, and how soon. The guests are the project's own front-end."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.testing.frontend import Frontend
from ovsvhost.testing.ovsdb import OvsdbClient
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = pytest.mark.peer

LINK_UP_S = 0.5
"""From the guest's first enabled queue pair to ``link_state=up`` at a database client. The switch needs a few ms; a
machine that runs a test suite beside may need a hundred times that, and OVS a second at the best."""


@pytest.fixture
def pair(switch: SwitchDaemon, short_folder: Path) -> tuple[Path, Path]:
    """A bridge with client ports ``a`` and ``b``; their sockets' paths."""
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    paths = (short_folder / "a.sock", short_folder / "b.sock")
    for path in paths:
        add_client(switch, path)
    return paths


def add_client(switch: SwitchDaemon, path: Path) -> None:
    option = f"options:vhost-server-path={path}"
    ovs_vsctl(
        switch, "add-port", "br0", path.stem, "--", "set", "Interface", path.stem, "type=dpdkvhostuserclient", option
    )


def ends(*paths: Path, side: str = "listen") -> list[str]:
    return [f"socket={path},side={side}" for path in paths]


class LinkMonitor:
    """A database client that sees ``link_state`` change."""

    def __init__(self, switch: SwitchDaemon) -> None:
        self._client = OvsdbClient(switch.rundir / "db.sock", timeout_s=20)
        columns = {"Interface": {"columns": ["name", "link_state"]}}
        self._client.request("monitor", "Open_vSwitch", "links", columns)

    def wait(self, name: str, state: str) -> float:
        """The moment at which the port was seen in that state."""
        while True:
            update = self._client.receive()
            if update.get("method") == "echo":
                self._client.socket.sendall(json.dumps({"id": update["id"], "result": [], "error": None}).encode())
                continue
            rows: list[dict[str, Any]] = list(update["params"][1].get("Interface", {}).values())
            if any(change["new"]["name"] == name and change["new"]["link_state"] == state for change in rows):
                return time.monotonic()

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def monitor(switch: SwitchDaemon) -> Iterator[LinkMonitor]:
    monitor = LinkMonitor(switch)
    yield monitor
    monitor.close()


def test_A2_the_link_is_up_at_once_when_the_guest_enables_its_queues(
    switch: SwitchDaemon, pair: tuple[Path, Path], monitor: LinkMonitor, short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder) as frontend:
        frontend.event("link", end="b", state="up")
        enabled = time.monotonic()
        assert monitor.wait("b", "up") - enabled < LINK_UP_S
        frontend.event("ready")
        for name in ("a", "b"):
            assert row(switch, "Interface", name)["link_state"] == "up"


def test_status_says_who_is_there_and_what_was_negotiated(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder) as frontend:
        frontend.event("ready")
        switch.wait_link("a")
        status = row(switch, "Interface", "a")["status"]
        assert status["mode"] == "client"
        assert status["status"] == "connected"
        assert status["socket"] == str(pair[0])
        assert int(status["features"], 16) & 1 << 32, "VERSION_1"
        assert (status["num_of_vrings"], status["n_rxq"], status["n_txq"]) == ("2", "1", "1")
        assert status["vring_0_size"] == status["vring_1_size"]
        assert (status["peer-pid"], status["peer-uid"]) == (str(frontend.pid), str(os.geteuid()))
        assert status["peer-program"] == "vhost-frontend"


def test_C11_statistics_count_every_frame_and_go_on_over_a_reconnect(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    ovs_vsctl(switch, "set", "Open_vSwitch", ".", "other_config:stats-update-interval=100")
    sent = 0
    for _ in range(2):
        with Frontend(ends(*pair), folder=short_folder, options=["--frames=1000", "--rate=2000"]) as frontend:
            frontend.event("ready")
            report = frontend.finish()
        _, transmitq = report["stopped_at"][0]
        sent += transmitq
    counters = wait_for(
        lambda: (now := row(switch, "Interface", "a")["statistics"])["rx_packets"] == sent and now,
        timeout_s=10,
        what=f"{sent} packets in the statistics of a",
        interval_s=0.1,
    )
    assert counters["rx_packets"] == sum(
        count for name, count in counters.items() if name.startswith("rx_q") and name.endswith("_good_packets")
    )


def test_L2_a_guest_that_was_there_first_is_found(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    for path in pair:
        ovs_vsctl(switch, "del-port", path.stem)
    with Frontend(ends(*pair), folder=short_folder) as frontend:
        wait_for(lambda: all(path.exists() for path in pair), timeout_s=10, what="the front-end's sockets")
        for path in pair:
            add_client(switch, path)
        frontend.event("ready")
        switch.wait_link("a")


def test_L3_a_guest_that_goes_takes_its_link_down_and_its_return_is_counted(
    switch: SwitchDaemon, pair: tuple[Path, Path], monitor: LinkMonitor, short_folder: Path
) -> None:
    for resets in (2, 4):
        with Frontend(ends(*pair), folder=short_folder) as frontend:
            frontend.event("ready")
            monitor.wait("a", "up")
            frontend.kill()
            monitor.wait("a", "down")
        interface = row(switch, "Interface", "a")
        assert interface["link_resets"] == resets
        assert interface["ofport"] == 1
        for path in pair:
            path.unlink()  # as QEMU does before it listens again


def test_L6_a_port_is_deleted_under_its_guest_and_the_neighbour_stays_up(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder, options=["--rate=5000"]) as frontend:
        frontend.event("ready")
        ovs_vsctl(switch, "del-port", "a")
        frontend.event("link", end="a", state="down")
        assert row(switch, "Interface", "b")["link_state"] == "up"
        assert pair[0].exists(), "the socket is the guest's"
        add_client(switch, pair[0])
        switch.wait_link("a")


def test_A13_after_a_kill_and_a_new_start_the_guests_are_back_by_themselves(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder, options=["--rate=5000"]) as frontend:
        frontend.event("ready")
        switch.kill()
        switch.start()
        for name in ("a", "b"):
            switch.wait_link(name)
            assert row(switch, "Interface", name)["error"] is None
        frontend.finish()


@pytest.mark.rows("A13", "C3", "C4")
@pytest.mark.parametrize("features", ["RING_PACKED", "RING_PACKED+IN_ORDER"])
def test_A13_C3_no_frame_that_a_guest_got_back_is_lost_when_the_switch_is_killed(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path, features: str
) -> None:
    deaths = 2
    settings = [f"{end},with={features},require={features}" for end in ends(*pair)]
    with Frontend(settings, folder=short_folder, options=["--rate=20000", "--in-flight=64"]) as frontend:
        frontend.event("ready")
        for _ in range(deaths):
            switch.kill()
            switch.start()
            for name in ("a", "b"):
                switch.wait_link(name)
        assert row(switch, "Interface", "a")["error"] is None
        report = frontend.finish()
    (exact,) = report["exact"]
    assert (exact["lost"], exact["reordered"]) == (0, 0)
    # What was delivered and not yet given back comes again: a burst at most.
    assert exact["duplicated"] <= deaths * 64
    for end in report["ends"]:
        assert end["sessions"] == deaths + 1
        assert not any(end["corrupt"].values()), end["corrupt"]
        assert end["violations"] == {}


def test_A4_a_server_port_serves_a_guest(switch: SwitchDaemon, short_folder: Path) -> None:
    ovs_vsctl(switch, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    paths = [switch.rundir / name for name in ("s0", "s1")]
    for path in paths:
        ovs_vsctl(switch, "add-port", "br0", path.name, "--", "set", "Interface", path.name, "type=dpdkvhostuser")
    with Frontend(ends(*paths, side="connect"), folder=short_folder) as frontend:
        frontend.event("ready")
        switch.wait_link("s0")
        assert row(switch, "Interface", "s0")["status"]["mode"] == "server"


def test_the_bridge_learns_where_the_guests_are_and_forgets_when_told(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder, options=["--rate=1000"]) as frontend:
        frontend.event("ready")
        wait_for(
            lambda: ovs_appctl(switch, "fdb/show", "br0").count("\n") == 3,
            timeout_s=10,
            what="two learned addresses",
            interval_s=0.1,
        )
        shown = ovs_appctl(switch, "fdb/show", "br0")
        assert {(line.split()[0], line.split()[2]) for line in shown.splitlines()[1:]} == {
            ("1", "02:00:00:00:00:01"),
            ("2", "02:00:00:00:00:02"),
        }
        assert "port: a " in ovs_appctl(switch, "dpif-netdev/pmd-rxq-show")
        frontend.finish()
    assert "Total number of learned MAC entries     : 2\n" in ovs_appctl(switch, "fdb/stats-show", "br0")
    ovs_appctl(switch, "fdb/flush", "br0")
    assert ovs_appctl(switch, "fdb/show", "br0").count("\n") == 1
    shown = ovs_appctl(switch, "dpif-netdev/pmd-perf-show")
    assert "cycles/pkt" in shown
    assert "Rx packets:                  0 " not in shown


def test_a_stopped_switch_leaves_no_link_up_in_an_external_database(
    switch: SwitchDaemon, pair: tuple[Path, Path], short_folder: Path
) -> None:
    with Frontend(ends(*pair), folder=short_folder) as frontend:
        frontend.event("ready")
        switch.wait_link("a")
        assert switch.stop() == 0
        frontend.event("link", end="a", state="down")
    switch.start()
    assert row(switch, "Interface", "a")["link_state"] == "down"
