"""`Switch`, `Bridge` and `Port` are the same over a datapath in this process and over a running daemon."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost import ConfigError, OvsvhostError, PeerError, Switch, connect
from ovsvhost.inprocess import InProcess
from ovsvhost.remote import OverDatabase
from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.frontend import Frontend
from ovsvhost.testing.stock import ovs_vsctl
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ovsvhost.switch import Port

pytestmark = pytest.mark.peer

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(params=["in process", "over the database"])
def switch(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Switch]:
    if request.param == "in process":
        with Switch(short_folder / "run") as switch:
            yield switch
        return
    with SwitchDaemon(short_folder) as daemon, connect(rundir=daemon.rundir) as switch:
        yield switch
        assert daemon.running


def client(switch: Switch, folder: Path, name: str, ofport: int | None = None, mtu: int = 1500) -> Port:
    options = {"vhost-server-path": str(folder / f"{name}.sock")}
    return switch.bridges[0].add_port(name, options=options, ofport=ofport, mtu=mtu)


def test_bridges_and_ports_are_added_shown_and_deleted(switch: Switch, short_folder: Path) -> None:
    bridge = switch.add_bridge("br0", mac_aging_time_s=60, mac_table_size=100)
    client(switch, short_folder, "v0")
    server = bridge.add_port("vu0", type="dpdkvhostuser", ofport=7, mtu=9000)
    assert [repr(bridge) for bridge in switch.bridges] == ["Bridge('br0')"]
    assert [repr(port) for port in bridge.ports] == ["Port('v0')", "Port('vu0')"]
    assert (server.ofport, server.mtu, server.link_up, server.error) == (7, 9000, False, None)
    assert server.status["mode"] == "server"
    assert (short_folder / "run" / "vu0").is_socket()
    bridge.del_port("vu0")
    assert not (short_folder / "run" / "vu0").exists()
    switch.del_bridge("br0")
    assert switch.bridges == ()


def test_what_is_refused_changes_nothing(switch: Switch, short_folder: Path) -> None:
    bridge = switch.add_bridge("br0")
    client(switch, short_folder, "v0")
    path = {"vhost-server-path": f"{short_folder}/v1.sock"}
    refusals: dict[str, Callable[[], object]] = {
        "port 'v0' is already there": lambda: client(switch, short_folder, "v0"),
        "port 'v1' has no path": lambda: bridge.add_port("v1"),
        "is relative": lambda: bridge.add_port("v1", options={"vhost-server-path": "v1.sock"}),
        "v0.sock' (is already there|belongs to port 'v0' already)": lambda: bridge.add_port(
            "v1", options={"vhost-server-path": f"{short_folder}/v0.sock"}
        ),
        "'br0', 1 is already there|=1 cannot be had, port 'v0' has it": lambda: bridge.add_port(
            "v1", options=path, ofport=1
        ),
        "ofport=65280 is out of range": lambda: bridge.add_port("v1", options=path, ofport=65280),
        "options:foo is unknown": lambda: bridge.add_port("v1", options=path | {"foo": "1"}),
        "other_config:foo of interface 'v1' is not in force": lambda: bridge.add_port(
            "v1", options=path, other_config={"foo": "1"}
        ),
        "other_config:tx-steering of interface 'eth1' is not in force": lambda: bridge.add_port(
            "eth1", type="afxdp", other_config={"tx-steering": "hash"}
        ),
        "other_config:pmd-rxq-affinity='0' of interface 'v1' is refused": lambda: bridge.add_port(
            "v1", options=path, other_config={"pmd-rxq-affinity": "0"}
        ),
        "type='gre' is not served": lambda: bridge.add_port("v1", type="gre", options=path),  # type: ignore[arg-type]
        "v1: unsupported MTU 67": lambda: bridge.add_port("v1", options=path, mtu=67),
        "there is no port 'v9' on bridge 'br0': its ports are v0": lambda: bridge.del_port("v9"),
        "bridge 'br0' is already there": lambda: switch.add_bridge("br0"),
        "mac_aging_time_s=14 is out of range": lambda: switch.add_bridge("br1", mac_aging_time_s=14),
        "mac_table_size=9 is out of range": lambda: switch.add_bridge("br1", mac_table_size=9),
        "there is no bridge 'br9'": lambda: switch.del_bridge("br9"),
    }
    for why, refused in refusals.items():
        with pytest.raises(ConfigError) as caught:
            refused()
        assert re.search(why, str(caught.value)), why
    assert [port.name for port in bridge.ports] == ["v0"]
    assert [bridge.name for bridge in switch.bridges] == ["br0"]


def test_a_socket_that_cannot_be_made_is_refused_and_the_name_is_free_again(switch: Switch, short_folder: Path) -> None:
    bridge = switch.add_bridge("br0")
    obstacle = short_folder / "run" / "vu0"
    obstacle.mkdir(parents=True)
    with pytest.raises(OvsvhostError, match="vu0"):
        bridge.add_port("vu0", type="dpdkvhostuser")
    assert bridge.ports == ()
    obstacle.rmdir()
    bridge.add_port("vu0", type="dpdkvhostuser")


def test_the_mtu_changes_live(switch: Switch, short_folder: Path) -> None:
    switch.add_bridge("br0")
    port = client(switch, short_folder, "v0")
    port.mtu = 9702
    assert port.mtu == 9702
    with pytest.raises(ConfigError, match="unsupported MTU 9703"):
        port.mtu = 9703
    assert port.mtu == 9702


def test_waiting_for_a_link_in_vain_says_what_it_waits_for(switch: Switch, short_folder: Path) -> None:
    switch.add_bridge("br0")
    port = client(switch, short_folder, "v0")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"port 'v0' is not up after 0.2 s: .*v0\.sock"):
        port.wait_link(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_guest_is_waited_for_counted_and_learned(switch: Switch, short_folder: Path) -> None:
    bridge = switch.add_bridge("br0")
    ports = [client(switch, short_folder, name) for name in ("v0", "v1")]
    ends = [f"socket={short_folder}/{port.name}.sock,side=listen" for port in ports]
    with Frontend(ends, folder=short_folder, options=["--rate=1000"]) as frontend:
        for port in ports:
            port.wait_link(timeout_s=20)
        frontend.event("ready")
        wait_for(lambda: len(bridge.fdb()) == 2, timeout_s=10, what="two learned addresses")
        assert {(entry.ofport, entry.mac, entry.vlan) for entry in bridge.fdb()} == {
            (1, "02:00:00:00:00:01", 0),
            (2, "02:00:00:00:00:02", 0),
        }
        frontend.finish()
    for port in ports:
        port.wait_link(timeout_s=20, up=False)
    wait_for(lambda: ports[0].statistics["rx_packets"] > 0, timeout_s=20, what="packets of v0 in the statistics")
    bridge.flush_fdb()
    assert bridge.fdb() == []


def poll_threads() -> dict[int, str]:
    """Threads that poll, of this process and its children: their names by number."""
    mine = Path("/proc/self/task")
    children = [pid for task in mine.iterdir() for pid in (task / "children").read_text().split()]
    names = {}
    for task in (task for pid in ("self", *children) for task in Path(f"/proc/{pid}/task").iterdir()):
        # A thread that was joined stands there a moment longer.
        with suppress(OSError):
            names[int(task.name)] = (task / "comm").read_text().strip()
    return {tid: name for tid, name in names.items() if name.startswith("pmd-c")}


@pytest.fixture
def others() -> set[int]:
    """Poll threads of switches that are not the test's: guests' tests keep one until the last test is over."""
    return set(poll_threads())


@pytest.mark.rows("B5", "L5")
@pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
def test_poll_threads_are_set_up_anew_while_guests_talk(others: set[int], switch: Switch, short_folder: Path) -> None:
    def wait_threads(names: set[str]) -> None:
        wait_for(
            lambda: {name for tid, name in poll_threads().items() if tid not in others} == names,
            timeout_s=5,
            what=f"the poll threads to be {', '.join(sorted(names))}",
        )

    one, two = CORES[:2]
    both = {f"pmd-c{one}", f"pmd-c{two}"}
    switch.add_bridge("br0")
    ports = [client(switch, short_folder, name) for name in ("v0", "v1")]
    ends = [f"socket={short_folder}/{port.name}.sock,side=listen" for port in ports]
    with Frontend(ends, folder=short_folder, options=["--rate=1000"]) as frontend:
        frontend.event("ready")
        switch.set_pmds({"pmd-cpu-mask": hex(1 << one | 1 << two), "pmd-rxq-assign": "roundrobin"})
        wait_threads(both)
        ports[0].set_rxq_affinity(f"0:{two}")
        switch.rebalance()
        refusals: dict[str, Callable[[], object]] = {
            "pmd-cpu-mask='x' is refused": lambda: switch.set_pmds({"pmd-cpu-mask": "x"}),
            "pmd-foo is no setting of poll threads": lambda: switch.set_pmds({"pmd-foo": "1"}),
            "pmd-cpu-mask": lambda: switch.set_pmds({"pmd-cpu-mask": hex(1 << (max(CORES) + 500))}),
            "give queue:core pairs": lambda: ports[0].set_rxq_affinity("0"),
        }
        for why, refused in refusals.items():
            with pytest.raises(ConfigError) as caught:
                refused()
            assert why in str(caught.value)
            wait_threads(both)
        ports[0].set_rxq_affinity("")
        switch.set_pmds({"pmd-cpu-mask": hex(1 << two)})
        wait_threads({f"pmd-c{two}"})
        report = frontend.finish()
    (exact,) = report["exact"]
    assert (exact["lost"], exact["duplicated"], exact["reordered"]) == (0, 0, 0)


@pytest.mark.rows("B5", "L5")
@pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
def test_a_port_is_added_with_its_queues_pinned(switch: Switch, short_folder: Path) -> None:
    one, two = CORES[:2]
    switch.set_pmds({"pmd-cpu-mask": hex(1 << one | 1 << two)})
    bridge = switch.add_bridge("br0")
    for name in ("v0", "v1"):
        options = {"vhost-server-path": f"{short_folder}/{name}.sock"}
        bridge.add_port(name, options=options, other_config={"pmd-rxq-affinity": f"0:{two}", "tx-steering": "thread"})
    ends = [f"socket={short_folder}/{port.name}.sock,side=listen" for port in bridge.ports]
    with Frontend(ends, folder=short_folder, options=["--rate=1000"]) as frontend:
        frontend.event("ready")
        # Left to themselves each would have a core of its own.
        wait_for(lambda: polled(switch) == {"v0": two, "v1": two}, timeout_s=5, what=f"both queues on core {two}")
        frontend.finish()


def polled(switch: Switch) -> dict[str, int]:
    """Which core polls which port."""
    backend = switch._backend
    if isinstance(backend, InProcess):
        return {rxq.port: pmd.cpu for pmd in backend.pmds() for rxq in pmd.rxqs}
    assert isinstance(backend, OverDatabase)
    found: dict[str, int] = {}
    core = -1
    for line in backend._ask("dpif-netdev/pmd-rxq-show").splitlines():
        if head := re.search(r"core_id (\d+):", line):
            core = int(head[1])
        elif port := re.search(r"port: (\S+)", line):
            found[port[1]] = core
    return found


def test_a_closed_switch_says_so(switch: Switch) -> None:
    switch.close()
    switch.close()
    assert switch.closed
    with pytest.raises(ConfigError, match="is closed"):
        switch.add_bridge("br0")


def test_a_forked_child_has_a_closed_switch(switch: Switch) -> None:
    switch.add_bridge("br0")
    child = os.fork()
    if child == 0:
        os._exit(0 if switch.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not switch.closed
    switch.add_bridge("br1")


def test_objects_over_the_database_see_what_ovs_vsctl_did(short_folder: Path) -> None:
    with SwitchDaemon(short_folder) as daemon, connect(f"unix:{daemon.rundir}/db.sock") as switch:
        ovs_vsctl(daemon, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        assert [bridge.name for bridge in switch.bridges] == ["br0"]
        assert switch.bridges[0].ports == (), "the bridge's own port is none of the user's"
        switch.bridges[0].flush_fdb()


@pytest.mark.rows("A22", "L5")
def test_bonds_are_seen_over_the_database_and_left_to_ovs_vsctl(short_folder: Path) -> None:
    links = [word for name in ("no-eth1", "no-eth2") for word in ("--", "set", "Interface", name, "type=afxdp")]
    with SwitchDaemon(short_folder) as daemon, connect(rundir=daemon.rundir) as switch:
        ovs_vsctl(daemon, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        ovs_vsctl(daemon, "add-bond", "br0", "bond0", "no-eth1", "no-eth2", *links)
        (bridge,) = switch.bridges
        assert [port.name for port in bridge.ports] == ["no-eth1", "no-eth2"]
        assert all("there is no network device" in (port.error or "") for port in bridge.ports)
        with pytest.raises(ConfigError, match="'no-eth1' is a link of bond 'bond0': ovs-vsctl del-port bond0"):
            bridge.del_port("no-eth1")
        with pytest.raises(ConfigError, match="'bond0' on bridge 'br0': its ports are no-eth1, no-eth2"):
            bridge.del_port("bond0")
        for taken in ("bond0", "no-eth1"):
            with pytest.raises(ConfigError, match=f"port '{taken}' is already there"):
                bridge.add_port(taken, type="afxdp")
        shown = daemon.call("show", f"--db={daemon.remote}").stdout.splitlines()
        at = shown.index("    bond bond0  active-backup  active -")
        assert shown[at + 1].startswith("      interface no-eth1  ")


def test_a_database_without_a_switch_times_out_with_the_reason(short_folder: Path) -> None:
    with SwitchDaemon(short_folder) as daemon:
        with connect(rundir=daemon.rundir, timeout_s=0.5) as switch:
            daemon.stop()
            with pytest.raises((PeerError, ConfigError), match="database"):
                switch.add_bridge("br0")
        with pytest.raises(ConfigError, match="does not answer"):
            connect(rundir=daemon.rundir, timeout_s=0.2)
