"""The control socket that ``ovs-appctl`` talks to: JSON-RPC with text replies, one command at a time.

It runs inside the control loop; commands answer at once. The socket is 0600 and lies at
``<rundir>/ovs-vswitchd.<pid>.ctl``, where stock ``ovs-appctl`` looks for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ovs.jsonrpc
import ovs.stream

from ovsvhost.errors import ConfigError, OvsvhostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovsvhost.poll import Poller

_log = logging.getLogger("ovsvhost.unixctl")


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        answer: gets the arguments, gives the text of the reply; an `OvsvhostError` becomes an error reply.
        usage: shown by ``list-commands``.
        least: fewest arguments.
        most: most arguments.
    """

    answer: Callable[[list[str]], str]
    usage: str = ""
    least: int = 0
    most: int = 0


class UnixctlServer:
    """Listens at ``path`` from the start; ConfigError if it cannot."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self.path = path
        self._commands = {**commands, "list-commands": Command(self._list), "help": Command(self._list)}
        self._connections: list[Any] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)  # the name holds our pid: whoever left it is gone
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise ConfigError(
                f"control socket {str(path)!r} cannot be created ({error}): choose another --rundir"
            ) from error
        finally:
            os.umask(mask)

    def run(self) -> None:
        """Answers what has arrived; never waits."""
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:  # out of descriptors: the caller waits in the backlog, the switch goes on
                _log.warning("control socket: a connection was not accepted: %s", error.strerror)
                break
            accepted.setblocking(False)
            self._connections.append(ovs.jsonrpc.Connection(ovs.stream.Stream(accepted, "unixctl", 0)))
        for connection in list(self._connections):
            if not self._serve(connection):
                connection.close()
                self._connections.remove(connection)

    def wait(self, poller: Poller) -> None:
        """Wakes ``poller`` when `run` has something to do."""
        poller.fd_wait(self._listener, select.POLLIN)
        for connection in self._connections:
            connection.wait(poller)
            if not connection.get_backlog():
                connection.recv_wait(poller)

    def close(self) -> None:
        """Ends every connection and removes the socket."""
        for connection in self._connections:
            connection.run()
            connection.close()
        self._connections.clear()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _serve(self, connection: Any) -> bool:
        """One turn of one connection; False when it is over."""
        connection.run()
        while not connection.get_status() and not connection.get_backlog():
            error, message = connection.recv()
            if error == errno.EAGAIN:
                return True
            if message is None or message.type != ovs.jsonrpc.Message.T_REQUEST:
                return False
            text, fine = self._answer(message.method, message.params)
            make = ovs.jsonrpc.Message.create_reply if fine else ovs.jsonrpc.Message.create_error
            # scripts count on a text that ends its line, as ovs-vswitchd's do
            connection.send(make(text + "\n" if text and not text.endswith("\n") else text, message.id))
        return not connection.get_status()

    def _answer(self, method: str, params: list[Any]) -> tuple[str, bool]:
        command = self._commands.get(method)
        if command is None:
            return f'"{method}" is not a valid command', False
        if len(params) < command.least:
            return f'"{method}" command requires at least {command.least} arguments', False
        if len(params) > command.most:
            return f'"{method}" command takes at most {command.most} arguments', False
        if not all(isinstance(param, str) for param in params):
            return f'"{method}" command has non-string argument', False
        try:
            return command.answer(params), True
        except OvsvhostError as error:
            return str(error), False

    def _list(self, _arguments: list[str]) -> str:
        lines = (f"  {name:<23} {command.usage}".rstrip() for name, command in sorted(self._commands.items()))
        return "The available commands are:\n" + "\n".join(lines) + "\n"
