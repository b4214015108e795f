"""The control socket, with stock `ovs.unixctl`'s client on the other side."""

from __future__ import annotations

import json
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.daemon.unixctl import Command, UnixctlServer
from ovsvhost.errors import ConfigError
from ovsvhost.poll import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def no_such_bridge(arguments: list[str]) -> str:
    raise ConfigError(f"no such bridge {arguments[0]}")


COMMANDS = {
    "echo": Command(" ".join, "[word]...", 0, 3),
    "fdb/show": Command(no_such_bridge, "bridge", 1, 1),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UnixctlServer]:
    server = UnixctlServer(tmp_path / "switch.ctl", COMMANDS)
    over, wake = socket.socketpair()

    def turn() -> None:
        poller = Poller()
        while True:
            server.run()
            server.wait(poller)
            poller.fd_wait(over, 1)
            if over.fileno() in poller.block():
                return

    thread = threading.Thread(target=turn)
    thread.start()
    yield server
    wake.send(b"x")
    thread.join(10)
    assert not thread.is_alive()
    server.close()
    over.close()
    wake.close()


def ask(server: UnixctlServer, *requests: dict[str, Any] | bytes) -> list[dict[str, Any]]:
    replies: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(server.path))
        for request in requests:
            client.sendall(request if isinstance(request, bytes) else json.dumps(request).encode())
            text = b""
            while True:
                piece = client.recv(65536)
                if not piece:
                    return replies
                text += piece
                try:
                    replies.append(json.loads(text))
                except ValueError:
                    continue
                break
    return replies


def test_a_command_is_answered_with_its_text_on_lines(server: UnixctlServer) -> None:
    (reply,) = ask(server, {"id": 0, "method": "echo", "params": ["a", "b"]})
    assert reply == {"id": 0, "result": "a b\n", "error": None}


def test_one_connection_may_ask_again(server: UnixctlServer) -> None:
    replies = ask(server, *({"id": n, "method": "echo", "params": []} for n in range(3)))
    assert [reply["id"] for reply in replies] == [0, 1, 2]
    assert [reply["result"] for reply in replies] == ["", "", ""]


def test_a_refusal_comes_as_an_error(server: UnixctlServer) -> None:
    (reply,) = ask(server, {"id": 1, "method": "fdb/show", "params": ["br9"]})
    assert reply == {"id": 1, "result": None, "error": "no such bridge br9\n"}


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("nonsense", [], '"nonsense" is not a valid command\n'),
        ("fdb/show", [], '"fdb/show" command requires at least 1 arguments\n'),
        ("fdb/show", ["a", "b"], '"fdb/show" command takes at most 1 arguments\n'),
        ("echo", [1], '"echo" command has non-string argument\n'),
    ],
)
def test_a_wrong_call_is_refused_in_ovs_words(
    server: UnixctlServer, method: str, params: list[Any], error: str
) -> None:
    (reply,) = ask(server, {"id": 1, "method": method, "params": params})
    assert reply["error"] == error


def test_the_commands_are_listed_with_their_usage(server: UnixctlServer) -> None:
    (reply,) = ask(server, {"id": 1, "method": "list-commands", "params": []})
    assert reply["result"].splitlines()[0] == "The available commands are:"
    assert "  fdb/show                bridge" in reply["result"].splitlines()


def test_garbage_ends_its_own_connection_and_no_other(server: UnixctlServer) -> None:
    assert ask(server, b"GET / HTTP/1.0\r\n\r\n") == []
    assert ask(server, b'{"id": 1}') == []
    (reply,) = ask(server, {"id": 1, "method": "echo", "params": ["still", "here"]})
    assert reply["result"] == "still here\n"


def test_a_client_that_stops_in_the_middle_holds_nobody_up(server: UnixctlServer) -> None:
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(str(server.path))
        stalled.sendall(b'{"id": 1, "method": "ec')
        (reply,) = ask(server, {"id": 1, "method": "echo", "params": ["x"]})
        assert reply["result"] == "x\n"


def test_only_the_owner_may_talk_to_it(server: UnixctlServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_it_leaves_no_socket_behind(tmp_path: Path) -> None:
    server = UnixctlServer(tmp_path / "s.ctl", {})
    assert server.path.is_socket()
    server.close()
    assert not server.path.exists()


def test_a_path_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control socket"):
        UnixctlServer(tmp_path / "missing" / "s.ctl", {})
