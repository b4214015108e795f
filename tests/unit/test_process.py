"""One daemon per run directory, and a pid file that stock ovs-appctl believes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ovsvhost.daemon.process import Pidfile, StopSignals, notify, sole_user_of
from ovsvhost.errors import ConfigError
from ovsvhost.poll import Poller

if TYPE_CHECKING:
    from pathlib import Path


def hold(path: Path, what: str) -> subprocess.Popen[str]:
    """Another process that holds ``what`` on ``path`` until its stdin ends."""
    program = (
        "import sys; from pathlib import Path; from ovsvhost.daemon.process import Pidfile, sole_user_of\n"
        f"with {what}:\n print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


def test_a_second_daemon_on_the_run_directory_is_refused_by_pid(tmp_path: Path) -> None:
    pidfile = tmp_path / "ovs-vswitchd.pid"
    other = hold(tmp_path, "sole_user_of(Path(sys.argv[1]), Path(sys.argv[1]) / 'ovs-vswitchd.pid')")
    pidfile.write_text(f"{other.pid}\n")
    with pytest.raises(ConfigError, match=rf"in use by another daemon \(pid {other.pid}\): stop it or choose"):  # noqa: SIM117
        with sole_user_of(tmp_path, pidfile):
            pass
    let_go(other)
    with sole_user_of(tmp_path, pidfile):
        pass


def test_a_run_directory_is_free_after_its_daemon_was_killed(tmp_path: Path) -> None:
    other = hold(tmp_path, "sole_user_of(Path(sys.argv[1]), Path('/none'))")
    other.kill()
    let_go(other)
    with sole_user_of(tmp_path, tmp_path / "x"):
        pass


def test_a_living_foreign_pid_file_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "ovs-vswitchd.pid"
    other = hold(path, "Pidfile(Path(sys.argv[1]))")
    with pytest.raises(ConfigError, match=f"belongs to running process {other.pid}"), Pidfile(path):
        pass
    assert path.read_text() == f"{other.pid}\n"
    let_go(other)
    assert not path.exists()


def test_a_stale_pid_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ovs-vswitchd.pid"
    path.write_text("1\n")
    with Pidfile(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.parametrize("folder", ["missing", "/sys"])
def test_a_pid_file_that_cannot_be_written_is_named_with_the_cure(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "pid"  # nobody may create a file in sysfs, root neither
    said = rf"pid file '{path}' cannot be written \([\w -]+\): let uid {os.geteuid()} write there, or choose another"
    with pytest.raises(ConfigError, match=said), Pidfile(path):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_wakes_the_loop_and_asks_it_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        poller = Poller()
        stop.wait(poller)
        assert not stop.stopped
        signal.raise_signal(number)
        poller.timer_wait(10_000)
        assert poller.block(), "the poller slept through the signal"
        assert stop.stopped
    assert signal.getsignal(number) == before


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
