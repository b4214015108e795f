"""With a daemon behind the database: waiting for it, what it could not bring up, and clients that race."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.ovsdb import OvsdbServer
from ovsvhost.testing.process import Program
from ovsvhost.testing.vsctl_twins import Said, anonymous, create_database, environment, ours, stock
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ovsvhost.testing.daemon import SwitchDaemon

pytestmark = pytest.mark.peer


class DummySwitch:
    """A real ovs-vswitchd that forwards nothing, on a database of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._stop = ExitStack()
        server = self._stop.enter_context(OvsdbServer(directory, create_database(directory)))
        self.remote = server.remote
        self.daemon = Program(
            ["ovs-vswitchd", "--enable-dummy=override", "--disable-system", "--disable-system-route", server.remote],
            log=directory / "ovs-vswitchd.log",
            environment=environment(directory),
        )
        self._stop.callback(self.daemon.stop)

    def stop(self) -> None:
        self._stop.close()


@pytest.fixture
def switches(tmp_path: Path) -> Iterator[tuple[DummySwitch, DummySwitch]]:
    with ExitStack() as stop:
        pair = []
        for name in ("stock", "ours"):
            pair.append(DummySwitch(tmp_path / name))
            stop.callback(pair[-1].stop)
        yield pair[0], pair[1]


def both(switches: tuple[DummySwitch, DummySwitch], line: str) -> tuple[Said, Said]:
    words = shlex.split(line)
    return anonymous(stock(switches[0].remote, words)), anonymous(ours(switches[1].remote, words))


def test_both_wait_for_the_daemon_and_name_what_it_could_not_bring_up(
    switches: tuple[DummySwitch, DummySwitch],
) -> None:
    for line in (
        "add-br br0",
        "get Open_vSwitch . cur_cfg next_cfg",
        "add-port br0 p1 -- set Interface p1 type=dummy",
        "get Interface p1 ofport",
        "add-port br0 bad -- set Interface bad type=nosuch",
        "add-port br0 bad2 -- set Interface bad2 type=nosuch -- add-port br0 bad3 -- set Interface bad3 type=nosuch",
        "add-br br1 -- add-bond br1 b0 i0 i1 -- set Interface i0 type=dummy -- set Interface i1 type=nosuch",
        "set Interface bad type=dummy",
        "get Interface bad ofport error",
        "set Interface p1 type=dummy",
        "get Open_vSwitch . cur_cfg next_cfg",
        "set Bridge br0 other_config:a=b",
        "set Bridge br0 other_config:a=b",
        "add Bridge br0 other_config a=b",
        "add Bridge br0 flood_vlans 1",
        "add Bridge br0 flood_vlans 1",
        "get Open_vSwitch . cur_cfg next_cfg",
        "--no-wait add-port br0 p4",
        "get Open_vSwitch . next_cfg",
        "del-port bad -- add-port br0 bad -- set Interface bad type=nosuch",
        "--dry-run --timeout=5 add-br br9",
        "del-br br0 -- del-br br1",
        "get Open_vSwitch . cur_cfg next_cfg",
    ):
        said_stock, said_ours = both(switches, line)
        assert said_ours == said_stock, line


def test_without_a_daemon_a_change_waits_until_the_time_is_over(switches: tuple[DummySwitch, DummySwitch]) -> None:
    for switch in switches:
        switch.daemon.stop()
    for line in ("--timeout=1 add-br br0", "--timeout=5 list-br", "--timeout=5 set Bridge br0 name=br0"):
        said_stock, said_ours = both(switches, line)
        assert said_ours == said_stock, line


def test_time_limit_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVS_CTL_TIMEOUT", "1")
    with OvsdbServer(tmp_path, create_database(tmp_path)) as server:
        for line in ("wait-until Bridge br0", "--timeout=2 wait-until Bridge br0"):
            assert ours(server.remote, shlex.split(line)) == stock(server.remote, shlex.split(line))


def test_our_daemon_answers_both_tools_alike(switch: SwitchDaemon) -> None:
    for number, tool in enumerate((stock, ours)):
        name = f"br{number}"
        bad = ["--timeout=60", *shlex.split(f"add-port {name} bad{number} -- set Interface bad{number} type=nosuch")]
        bridge = ["--timeout=60", *shlex.split(f"add-br {name} -- set Bridge {name} datapath_type=netdev")]
        assert tool(switch.remote, bridge) == Said(0, "", "")
        said = tool(switch.remote, bad)
        assert said.status == 0
        assert said.err.startswith(f"ovs-vsctl: Error detected while setting up 'bad{number}': ")
    for line in ("show", "list-br", "list Interface bad0", "get Open_vSwitch . cur_cfg next_cfg"):
        assert ours(switch.remote, shlex.split(line)) == stock(switch.remote, shlex.split(line))


def test_the_command_line_takes_the_same_words(switch: SwitchDaemon) -> None:
    """Through ``ovsvhost`` itself, with nothing but ``OVS_RUNDIR`` to say where the switch is."""
    line = (
        "--timeout=60 -- add-br br0 -- set bridge br0 datapath_type=netdev -- --columns=name,datapath_type list Bridge"
    )
    done = switch.call("vsctl", *shlex.split(line))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "name                : br0\ndatapath_type       : netdev\n"
    refused = switch.call("vsctl", "--timeout=60", "add-br", "br0")
    assert refused.returncode == 1
    assert refused.stderr == (
        "ovsvhost vsctl: cannot create a bridge named br0 because a bridge named br0 already exists\n"
    )
    assert switch.call("vsctl", "br-exists", "br1").returncode == 2
    assert "fdb/show" in switch.appctl("list-commands")
    assert switch.call("appctl", "fdb/show", "br1").returncode == 2


def vsctl_command(remote: str, line: str) -> list[str]:
    script = "import sys; from pathlib import Path; from ovsvhost.vsctl import main; "
    script += "sys.exit(main(sys.argv[1:], rundir=Path('/nonexistent')))"
    return [sys.executable, "-c", script, f"--db={remote}", *shlex.split(line)]


def test_clients_that_race_all_get_their_port(tmp_path: Path) -> None:
    with OvsdbServer(tmp_path, create_database(tmp_path)) as server:
        assert ours(server.remote, ["--no-wait", "add-br", "br0"]).status == 0
        names = [f"p{number}" for number in range(12)]
        racers = [
            subprocess.Popen(vsctl_command(server.remote, f"--no-wait --timeout=60 add-port br0 {name}"))
            for name in names
        ]
        assert [racer.wait(90) for racer in racers] == [0] * len(names)
        assert sorted(ours(server.remote, ["list-ports", "br0"]).out.split()) == sorted(names)


def test_condition_that_comes_true_later_ends_the_wait(tmp_path: Path) -> None:
    with OvsdbServer(tmp_path, create_database(tmp_path)) as server:
        line = "--timeout=60 wait-until Bridge br0 datapath_type=netdev -- get Bridge br0 name"
        with subprocess.Popen(vsctl_command(server.remote, line), stdout=subprocess.PIPE, text=True) as waiter:
            assert waiter.stdout is not None
            for change in ("add-br br0", "set Bridge br0 other_config:a=b", "set Bridge br0 datapath_type=netdev"):
                assert waiter.poll() is None
                assert ours(server.remote, ["--no-wait", *shlex.split(change)]).status == 0
            assert waiter.stdout.read() == "br0\n"
        assert waiter.returncode == 0


def test_server_that_goes_away_ends_the_program_with_its_name(tmp_path: Path) -> None:
    server = OvsdbServer(tmp_path, create_database(tmp_path))
    line = "--timeout=60 wait-until Bridge br0"
    with subprocess.Popen(vsctl_command(server.remote, line), stderr=subprocess.PIPE, text=True) as waiter:
        sessions = ["ovs-appctl", "-t", str(tmp_path / "peer.ctl"), "memory/show"]
        wait_for(
            lambda: "monitors:2" in subprocess.run(sessions, capture_output=True, text=True, check=False).stdout,
            timeout_s=30,
            what="the waiting client to watch the database",
        )
        server.stop()
        assert waiter.stderr is not None
        assert waiter.stderr.read().startswith(f"ovsvhost vsctl: {server.remote}: database connection failed (")
    assert waiter.returncode == 1


def test_output_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    with OvsdbServer(tmp_path, create_database(tmp_path)) as server:
        ours(server.remote, ["--no-wait", "add-br", "br0"])
        command = vsctl_command(server.remote, "list Bridge")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            program.stdout.close()
            assert program.stderr is not None
            assert program.stderr.read() == ""
        assert program.returncode == 1
