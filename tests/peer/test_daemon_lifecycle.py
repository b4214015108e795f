"""The daemon as a process: its directories, its databases, its neighbours, its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.daemon import SwitchDaemon
from ovsvhost.testing.errors import MissingError
from ovsvhost.testing.ovsdb import OvsdbServer
from ovsvhost.testing.stock import ovs_appctl, ovs_vsctl, row, run
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer

NOBODY = 65534


def daemon(*arguments: str, rundir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "ovsvhost", "daemon", f"--rundir={rundir}", f"--state-dir={rundir}-state", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def add_port(remote: str, path: Path, *more: str) -> None:
    """The quick example with a database client of its own: ovs-vsctl without a run directory."""
    subprocess.run(
        [
            "ovs-vsctl", "--timeout=20", f"--db={remote}", "--may-exist", "add-br", "br0", "--", "set", "bridge", "br0",
            "datapath_type=netdev", "--", "add-port", "br0", path.stem, "--", "set", "Interface", path.stem,
            "type=dpdkvhostuserclient", f"options:vhost-server-path={path}", *more,
        ],
        check=True, timeout=30, capture_output=True,
    )  # fmt: skip


def interface(remote: str, name: str, column: str) -> str:
    """One column as ovs-vsctl prints it."""
    done = subprocess.run(
        ["ovs-vsctl", "--timeout=20", f"--db={remote}", "get", "Interface", name, column],
        check=True, timeout=30, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip().strip('"')


def said(switch: SwitchDaemon, text: str, *, timeout_s: float = 20) -> None:
    wait_for(lambda: text in switch.log.read_text(), timeout_s=timeout_s, what=f"{text!r} in the log", interval_s=0.05)


@pytest.fixture
def external(short_folder: Path) -> Iterator[OvsdbServer]:
    """The real ovsdb-server with Open vSwitch's schema."""
    if shutil.which("ovsdb-tool") is None:
        raise MissingError("no program 'ovsdb-tool' on this machine: run scripts/setup test")
    folder = short_folder / "db"
    folder.mkdir()
    database = folder / "conf.db"
    subprocess.run(["ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema"], check=True)
    with OvsdbServer(folder, database) as server:
        yield server


@pytest.fixture
def client(external: OvsdbServer, short_folder: Path) -> Iterator[SwitchDaemon]:
    """A daemon on the external database."""
    switch = SwitchDaemon(short_folder / "sw", [f"--db={external.remote}"]).start(wait=False)
    said(switch, "ready")
    yield switch
    switch.stop()


def test_a_second_daemon_on_the_run_directory_is_refused_by_name(switch: SwitchDaemon) -> None:
    done = daemon(rundir=switch.rundir)
    assert done.returncode == 1
    assert done.stderr == (
        f"ovsvhost: run directory '{switch.rundir}' is in use by another daemon (pid {switch.pid}): "
        "stop it or choose another --rundir\n"
    )
    assert row(switch, "Open_vSwitch", ".")["system_type"] == "ovsvhost", "the first one is as it was"


def test_a_database_that_someone_else_serves_is_named_and_kept(short_folder: Path) -> None:
    rundir = short_folder / "run"
    rundir.mkdir()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(rundir / "db.sock"))
        foreign.listen()
        inode = (rundir / "db.sock").stat().st_ino
        done = daemon(rundir=rundir)
    assert done.returncode == 1
    assert f"--db unix:{rundir}/db.sock" in done.stderr.splitlines()[-1]
    assert (rundir / "db.sock").stat().st_ino == inode
    assert [path.name for path in rundir.iterdir()] == ["db.sock"], "nothing else is left behind"


def test_a_run_directory_too_long_for_sockets_is_refused_by_length(short_folder: Path) -> None:
    done = daemon(rundir=short_folder / ("x" * 100))
    assert done.returncode == 1
    assert "--rundir" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--bogus"], ["--log-level=loud"], ["surplus"]])
def test_wrong_usage_ends_with_2(short_folder: Path, arguments: list[str]) -> None:
    assert daemon(*arguments, rundir=short_folder / "run").returncode == 2


def test_the_daemon_serves_an_external_database(
    client: SwitchDaemon, external: OvsdbServer, short_folder: Path
) -> None:
    add_port(external.remote, short_folder / "v0")
    assert interface(external.remote, "v0", "ofport") == "1"
    assert not (client.rundir / "db.sock").exists(), "no embedded server beside an external one"
    assert not (client.folder / "state").exists()


def test_ports_go_on_when_the_database_goes_and_follow_when_it_is_back(
    client: SwitchDaemon, external: OvsdbServer, short_folder: Path
) -> None:
    add_port(external.remote, short_folder / "v0")
    external.stop()
    said(client, f"database {external.remote} does not answer; the switch goes on as configured")
    assert "port: v0" not in ovs_appctl(client, "dpif-netdev/pmd-rxq-show")
    assert ovs_appctl(client, "fdb/show", "br0"), "the bridge is there"
    with OvsdbServer(short_folder / "db", short_folder / "db" / "conf.db"):
        said(client, f"database {external.remote} is back")
        add_port(external.remote, short_folder / "v1")
        assert interface(external.remote, "v1", "ofport") == "2"
        assert interface(external.remote, "v0", "link_state") == "down", "written again: it lives in memory only"


def test_a_second_switch_on_one_database_waits_and_takes_over(
    client: SwitchDaemon, external: OvsdbServer, short_folder: Path
) -> None:
    add_port(external.remote, short_folder / "v0")
    second = SwitchDaemon(short_folder / "second", [f"--db={external.remote}"]).start(wait=False)
    said(second, f"database {external.remote} is served by another switch")
    assert "ready" not in second.log.read_text()
    client.stop()
    said(second, "ready")
    add_port(external.remote, short_folder / "v1")
    assert interface(external.remote, "v1", "ofport") == "2"
    second.stop()


def test_a_daemon_started_before_its_database_waits_and_can_be_stopped(short_folder: Path) -> None:
    switch = SwitchDaemon(short_folder / "sw", [f"--db=unix:{short_folder}/none.sock"]).start(wait=False)
    said(switch, f"database unix:{short_folder}/none.sock")
    wait_for((switch.rundir / "ovs-vswitchd.pid").exists, timeout_s=20, what="its pid file")
    wait_for(lambda: list(switch.rundir.glob("*.ctl")), timeout_s=20, what="its control socket")
    done = run("ovs-appctl", switch, "fdb/show", "br0")
    assert "its database has not been read yet" in done.stderr
    assert switch.stop() == 0


def test_the_service_manager_hears_of_start_and_end(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(short_folder / "notify"))
        manager.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "ovsvhost", "daemon", f"--rundir={short_folder}/r", f"--state-dir={short_folder}/s"],
            env={**os.environ, "NOTIFY_SOCKET": str(short_folder / "notify")},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert (short_folder / "r" / "db.sock").is_socket()
            process.send_signal(signal.SIGINT)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_a_pid_file_is_written_where_it_was_asked_for(short_folder: Path) -> None:
    with SwitchDaemon(short_folder / "sw", [f"--pidfile={short_folder}/my.pid"]) as switch:
        assert (short_folder / "my.pid").read_text() == f"{switch.pid}\n"
        assert (switch.rundir / "ovs-vswitchd.pid").read_text() == f"{switch.pid}\n"
    assert not (short_folder / "my.pid").exists()


def test_the_log_is_one_json_object_a_line_where_it_was_asked_for(short_folder: Path) -> None:
    log = short_folder / "log.json"
    with SwitchDaemon(short_folder / "sw", ["--log-format=json", f"--log-file={log}"]) as switch:
        ovs_vsctl(
            switch,
            "add-br",
            "br0\nforged",
            "--",
            "set",
            "bridge",
            "br0\nforged",
            "datapath_type=netdev",
            "protocols=[]",
        )
        ovs_vsctl(switch, "add-br", "br1")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"event", "level", "logger", "time"} <= set(lines[0])
    (refused,) = [line for line in lines if "br1" in line["event"]]
    assert (refused["level"], refused["port"]) == ("warning", "br1")


def test_a_name_with_a_line_break_forges_no_log_line(switch: SwitchDaemon) -> None:
    name = "br0\n2026-01-01T00:00:00Z [info] all is well"
    ovs_vsctl(switch, "add-br", name)
    said(switch, "br0\\n2026-01-01T00:00:00Z [info] all is well")
    assert not any(line.startswith("2026-01-01T00:00:00Z [info]") for line in switch.log.read_text().splitlines())


def test_sockets_and_state_belong_to_the_daemons_user_alone(switch: SwitchDaemon) -> None:
    for path in (switch.rundir, switch.folder / "state"):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (switch.rundir / "db.sock", switch.rundir / f"ovs-vswitchd.{switch.pid}.ctl"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_C1_a_socket_that_the_switch_may_not_open_is_named_with_its_rights(short_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a socket to another user")
    path = short_folder / "v0.sock"
    home = short_folder / "sw"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as guest, (home / "log").open("w") as log:
        guest.bind(str(path))
        guest.listen()
        path.chmod(0o600)
        os.chown(path, NOBODY, NOBODY)
        # root without the right to pass over rights: an ordinary user, as far as the socket is concerned
        ordinary = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        process = subprocess.Popen(
            [*ordinary, sys.executable, "-m", "ovsvhost", "daemon", f"--rundir={home}/r", f"--state-dir={home}/s"],
            stderr=log,
        )
        try:
            remote = f"unix:{home}/r/db.sock"
            wait_for(lambda: "ready" in (home / "log").read_text(), timeout_s=60, what="the daemon")
            add_port(remote, path)
            wait_for(lambda: "ermission" in interface(remote, "v0", "error"), timeout_s=10, what="an error of v0")
            error = interface(remote, "v0", "error")
            assert str(path) in error
            assert "uid 0" in error, "who was refused"
        finally:
            process.terminate()
            process.wait(30)


def test_an_idle_switch_costs_next_to_nothing(switch: SwitchDaemon, short_folder: Path) -> None:
    add_port(switch.remote, short_folder / "v0")

    def cpu_s() -> float:
        fields = Path(f"/proc/{switch.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_s()
    with pytest.raises(subprocess.TimeoutExpired):  # nothing happens for five seconds, on purpose
        subprocess.run(
            ["ovs-vsctl", f"--db={switch.remote}", "--timeout=30", "wait-until", "Interface", "v0", "ofport=9"],
            timeout=5,
            check=False,
        )
    assert cpu_s() - before < 0.25
