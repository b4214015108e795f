"""``ovsvhost appctl`` against a real ovs-vswitchd, and against sockets that answer badly; stock is the oracle."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from ovsvhost.appctl.client import PROGRAM, main
from ovsvhost.testing.ovsdb import OvsdbServer
from ovsvhost.testing.process import Program
from ovsvhost.testing.vsctl_twins import create_database, environment
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer

_LOG_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\|\d{5}\|", re.MULTILINE)


@pytest.fixture(scope="module")
def rundir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("r")
    with OvsdbServer(folder, create_database(folder)) as server:
        command = ["ovs-vswitchd", "--enable-dummy=override", "--disable-system", "--pidfile", server.remote]
        with Program(command, log=folder / "ovs-vswitchd.log", environment=environment(folder)) as daemon:
            wait_for((folder / f"ovs-vswitchd.{daemon.pid}.ctl").exists, timeout_s=30, what="ovs-vswitchd's socket")
            subprocess.run(["ovs-vsctl", "--timeout=30", f"--db={server.remote}", "add-br", "br0"], check=True)
            yield folder


def stock(rundir: Path, words: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(
        ["ovs-appctl", *words], env=environment(rundir), capture_output=True, text=True, timeout=30, check=False
    )
    status = 128 - done.returncode if done.returncode < 0 else done.returncode
    return status, done.stdout, _LOG_STAMP.sub("", done.stderr)


def ours(rundir: Path, words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words, rundir=rundir)
    return status, out.getvalue(), _LOG_STAMP.sub("", err.getvalue().replace(PROGRAM, "ovs-appctl"))


@pytest.mark.parametrize(
    "line",
    [
        "list-commands",
        "version",
        "fdb/show br0",
        "fdb/show nosuch",
        "fdb/show",
        "nosuch",
        "nosuch with arguments",
        "dpif/show",
        "vlog/list",
        "-t ovs-vswitchd version",
        "--target=ovs-vswitchd version",
        "-t nosuch version",
        "-t /nonexistent version",
        "-t ovs-vswitchd -t ovs-vswitchd version",
        "-e version",
        "-e -e version",
        "-T5 version",
        "--timeout=5 version",
        "-T0 version",
        "-T x version",
        "-T",
        "",
        "--nosuch",
        "--t x",
        "-x",
        "-voff version",
        "version --nosuch",
        "fdb/show ü",
    ],
)
def test_both_ask_and_end_alike(rundir: Path, line: str) -> None:
    words = line.split()
    assert ours(rundir, words) == stock(rundir, words)


def test_socket_is_taken_as_a_target(rundir: Path) -> None:
    words = ["-t", str(next(rundir.glob("ovs-vswitchd.*.ctl"))), "fdb/show", "nosuch"]
    assert ours(rundir, words) == stock(rundir, words)


@pytest.mark.parametrize("text", ["", "word\n", "1\n"])
def test_pidfile_that_nobody_locks_is_a_leftover(tmp_path: Path, text: str) -> None:
    (tmp_path / "ovs-vswitchd.pid").write_text(text)
    assert ours(tmp_path, ["version"]) == stock(tmp_path, ["version"])


def answer_with(path: Path, reply: bytes | None, clients: int, done: threading.Event) -> threading.Thread:
    """A socket that gives each client the reply and hangs up; None hangs nothing up until ``done``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(listener)
            for _ in range(clients):
                client = stack.enter_context(listener.accept()[0])
                client.recv(4096)
                if reply is not None:
                    client.sendall(reply)
                    client.close()
            done.wait(30)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b'{"id":0,"result":"half',
        b'{"id":0,"result":"whole\\n","error":null}',
        b'{"id":0,"result":null,"error":"no\\n"}',
        b'{"id":0,"result":5,"error":null}',
        b'{"id":0,"result":null,"error":5}',
        b'{"id":0,"result":"a}","error":null}',
    ],
)
def test_answers_of_any_kind_end_alike(tmp_path: Path, reply: bytes) -> None:
    done = threading.Event()
    thread = answer_with(tmp_path / "s", reply, 2, done)
    words = ["-t", str(tmp_path / "s"), "-T", "20", "version"]
    try:
        said_stock, said_ours = stock(tmp_path, words), ours(tmp_path, words)
    finally:
        done.set()
        thread.join()
    # Stock says in its log, too, what the connection's trouble was: the last line is what counts.
    assert (said_ours[0], said_ours[1]) == (said_stock[0], said_stock[1])
    assert said_ours[2].splitlines()[-1:] == said_stock[2].splitlines()[-1:]


def test_daemon_that_never_answers_is_left_when_the_time_is_over(tmp_path: Path) -> None:
    done = threading.Event()
    thread = answer_with(tmp_path / "s", None, 2, done)
    words = ["-t", str(tmp_path / "s"), "-T", "1", "version"]
    try:
        assert ours(tmp_path, words) == stock(tmp_path, words)
    finally:
        done.set()
        thread.join()
