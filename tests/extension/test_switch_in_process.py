"""The switch inside this process: bridges, ports, refusals, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ovsvhost import ConfigError, KernelError, Switch
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ovsvhost.switch import Bridge


@pytest.fixture
def switch(short_folder: Path) -> Iterator[Switch]:
    with Switch(short_folder) as switch:
        yield switch


@pytest.fixture
def bridge(switch: Switch) -> Bridge:
    return switch.add_bridge("br0")


def client(bridge: Bridge, folder: Path, name: str, **more: int) -> None:
    bridge.add_port(name, options={"vhost-server-path": str(folder / f"{name}.sock")}, **more)  # type: ignore[arg-type]


def poll_threads() -> dict[str, str]:
    """Those of this process, by their ids."""
    return {task: name for task in os.listdir("/proc/self/task") if (name := comm(task)).startswith("pmd-c")}  # noqa: PTH208


def comm(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm") as file:  # noqa: PTH123 - a thread may be gone
            return file.read().strip()
    except OSError:
        return ""


def test_a_new_port_is_there_and_waits_for_its_guest(bridge: Bridge, short_folder: Path) -> None:
    port = bridge.add_port("v0", options={"vhost-server-path": f"{short_folder}/v0.sock"})
    assert (port.ofport, port.mtu, port.link_up, port.error) == (1, 1500, False, None)
    assert port.status["mode"] == "client"
    assert port.statistics["rx_packets"] == 0
    assert [repr(port) for port in bridge.ports] == ["Port('v0')"]


def test_a_server_port_makes_its_socket_and_takes_it_away(bridge: Bridge, short_folder: Path) -> None:
    bridge.add_port("vu0", type="dpdkvhostuser", options={"socket-mode": "0660"})
    assert (short_folder / "vu0").stat().st_mode & 0o777 == 0o660
    bridge.del_port("vu0")
    assert not (short_folder / "vu0").exists()


def test_waiting_for_a_link_in_vain_says_what_it_waits_for(bridge: Bridge, short_folder: Path) -> None:
    port = bridge.add_port("v0", options={"vhost-server-path": f"{short_folder}/v0.sock"})
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"port 'v0' is not up after 0.2 s: .*v0\.sock"):
        port.wait_link(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_link_that_is_down_is_waited_for_at_once(bridge: Bridge, short_folder: Path) -> None:
    bridge.add_port("v0", options={"vhost-server-path": f"{short_folder}/v0.sock"}).wait_link(timeout_s=0, up=False)


def test_the_mtu_changes_live(bridge: Bridge, short_folder: Path) -> None:
    port = bridge.add_port("v0", options={"vhost-server-path": f"{short_folder}/v0.sock"}, mtu=9000)
    port.mtu = 1400
    assert port.mtu == 1400
    with pytest.raises(ConfigError, match=r"v0: unsupported MTU 9703: give 68\.\.9702"):
        port.mtu = 9703
    assert port.mtu == 1400


def test_numbers_are_given_from_the_lowest_and_given_again(bridge: Bridge, short_folder: Path) -> None:
    for name in ("v0", "v1", "v2"):
        client(bridge, short_folder, name)
    bridge.del_port("v1")
    client(bridge, short_folder, "v3")
    client(bridge, short_folder, "v4", ofport=100)
    assert {port.name: port.ofport for port in bridge.ports} == {"v0": 1, "v2": 3, "v3": 2, "v4": 100}


def test_what_is_refused_changes_nothing(switch: Switch, bridge: Bridge, short_folder: Path) -> None:
    client(bridge, short_folder, "v0")
    path = {"vhost-server-path": f"{short_folder}/v1.sock"}
    refusals: dict[str, Callable[[], object]] = {
        "port 'v0' is already there": lambda: client(bridge, short_folder, "v0"),
        "port 'v1' has no path": lambda: bridge.add_port("v1"),
        "is relative": lambda: bridge.add_port("v1", options={"vhost-server-path": "v1.sock"}),
        "v0.sock' is already there": lambda: bridge.add_port(
            "v1", options={"vhost-server-path": f"{short_folder}/v0.sock"}
        ),
        "'br0', 1 is already there": lambda: bridge.add_port("v1", options=path, ofport=1),
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
        "there is no port 'v9' on bridge 'br0': its ports are v0": lambda: bridge.del_port("v9"),
        "bridge 'br0' is already there": lambda: switch.add_bridge("br0"),
        "mac_aging_time_s=14 is out of range": lambda: switch.add_bridge("br1", mac_aging_time_s=14),
        "there is no bridge 'br9'": lambda: switch.del_bridge("br9"),
    }
    for why, refused in refusals.items():
        with pytest.raises(ConfigError) as caught:
            refused()
        assert why in str(caught.value)
    assert [port.name for port in bridge.ports] == ["v0"]
    assert [bridge.name for bridge in switch.bridges] == ["br0"]


def test_a_port_that_was_deleted_says_how_to_have_it_again(bridge: Bridge, short_folder: Path) -> None:
    client(bridge, short_folder, "v0")
    (port,) = bridge.ports
    bridge.del_port("v0")
    with pytest.raises(ConfigError, match="there is no port 'v0': add it with add_port"):
        _ = port.state
    with pytest.raises(ConfigError, match="there is no port 'v0' on bridge 'br0': it has none"):
        bridge.del_port("v0")


def test_a_socket_that_cannot_be_made_is_refused_and_the_name_is_free_again(bridge: Bridge, short_folder: Path) -> None:
    (short_folder / "vu0").mkdir()
    with pytest.raises((ConfigError, KernelError), match="vu0"):
        bridge.add_port("vu0", type="dpdkvhostuser")
    assert bridge.ports == ()
    (short_folder / "vu0").rmdir()
    bridge.add_port("vu0", type="dpdkvhostuser")


def test_deleting_a_bridge_takes_its_ports_along(switch: Switch, bridge: Bridge, short_folder: Path) -> None:
    client(bridge, short_folder, "v0")
    bridge.add_port("vu0", type="dpdkvhostuser")
    switch.del_bridge("br0")
    assert switch.bridges == ()
    assert list(short_folder.iterdir()) == []
    with pytest.raises(ConfigError, match="there is no bridge 'br0'"):
        client(bridge, short_folder, "v1")


def test_a_closed_switch_leaves_no_thread_and_no_socket_and_says_what_it_is(short_folder: Path) -> None:
    # A thread that was joined stands in /proc a moment longer, one of the test before too.
    before = poll_threads()
    switch = Switch(short_folder)
    own = poll_threads().keys() - before.keys()
    assert len(own) == 1
    bridge = switch.add_bridge("br0")
    bridge.add_port("vu0", type="dpdkvhostuser")
    switch.close()
    switch.close()
    assert switch.closed
    wait_for(lambda: not own & poll_threads().keys(), timeout_s=5, what="the poll thread to be gone")
    assert list(short_folder.iterdir()) == []
    with pytest.raises(ConfigError, match="the switch is closed: make another Switch"):
        switch.add_bridge("br1")


def test_the_poll_thread_runs_on_the_core_it_was_given(short_folder: Path) -> None:
    core = max(os.sched_getaffinity(0))
    with Switch(short_folder, pmd_cpus={core}):
        assert f"pmd-c{core}" in poll_threads().values()


def test_a_core_that_may_not_be_used_is_refused(short_folder: Path) -> None:
    with pytest.raises(ConfigError, match="4000"):
        Switch(short_folder, pmd_cpus={4000})


def test_two_switches_live_side_by_side(switch: Switch, bridge: Bridge, short_folder: Path) -> None:
    with Switch(short_folder / "other") as other:
        client(other.add_bridge("br0"), short_folder, "v0")
        client(bridge, short_folder, "v1")
        assert [port.name for port in other.bridges[0].ports] == ["v0"]
    assert [port.name for port in switch.bridges[0].ports] == ["v1"]


def test_ports_may_be_added_from_many_threads(bridge: Bridge, short_folder: Path) -> None:
    threads = [threading.Thread(target=client, args=(bridge, short_folder, f"v{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(port.ofport for port in bridge.ports) == list(range(1, 9))


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_after_a_fork_the_child_has_a_closed_switch_and_the_parents_goes_on(short_folder: Path, leave: str) -> None:
    program = f"""
import os, sys
from ovsvhost import Switch
switch = Switch(sys.argv[1])
bridge = switch.add_bridge("br0")
if os.fork() == 0:
    print(switch.closed, flush=True)
    {leave}
status = os.wait()[1]
bridge.add_port("vu0", type="dpdkvhostuser")
print(status, bridge.ports)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(short_folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "True\n0 (Port('vu0'),)\n"
    assert list(short_folder.iterdir()) == []
