"""Asks a running daemon, as ``ovs-appctl`` does: one JSON-RPC request over its control socket.

The target is a socket's absolute path, or a daemon's name: then ``<rundir>/<name>.pid`` says which process it is,
and ``<rundir>/<name>.<pid>.ctl`` is its socket. The pid file of a daemon that lives is locked by it; one that is
not is a leftover, and is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import struct
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError, OvsvhostError, PeerError
from ovsvhost.vsctl.console import complain, warn
from ovsvhost.vsctl.getopt_long import Argument, Option, parse
from ovsvhost.vsctl.options import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "ovsvhost appctl"
DEFAULT_TARGET = "ovs-vswitchd"

_FAILED = 1
_REFUSED = 2
_TIMED_OUT = 142  # 128 + SIGALRM: what a shell says of ovs-appctl when --timeout is over
_RECEIVE_BYTES = 65536

_OPTIONS = (
    Option("target", Argument.REQUIRED, "t"),
    Option("execute", short="e"),
    Option("help", short="h"),
    Option("option", short="o"),
    Option("version", short="V"),
    Option("timeout", Argument.REQUIRED, "T"),
    Option("verbose", Argument.OPTIONAL, "v"),
    Option("log-file", Argument.OPTIONAL),
    Option("syslog-method", Argument.REQUIRED),
    Option("syslog-target", Argument.REQUIRED),
)
_HELP = """\
ovsvhost appctl: asks the running switch, with the grammar of ovs-appctl(8)
usage: ovsvhost appctl [TARGET] COMMAND [ARG...]
Targets:
  -t, --target=TARGET  socket to contact, or name of a daemon (default: ovs-vswitchd)
Common commands:
  list-commands        list the commands that the target has
  version              print the target's version
Other options:
  -T, --timeout=SECS   wait at most SECS seconds for the answer
  -h, --help           print this
  -V, --version        print the version
"""


def main(argv: Sequence[str], *, rundir: Path) -> int:
    """Runs one command line.

    Args:
        argv: the options and the daemon's command, without the program's name.
        rundir: the run directory, where daemons' pid files and sockets are.

    Returns:
        The exit status: 0 answered, 1 not reached (the reason is on stderr), 2 the daemon refused the command (its
        words are on stderr), 142 ``--timeout`` is over. Blocks until then.
    """
    try:
        return _run(argv, rundir)
    except OvsvhostError as error:
        complain(PROGRAM, str(error))
        return _FAILED
    except TimeoutError:
        warn("fatal_signal", "terminating with signal 14 (Alarm clock)")
        return _TIMED_OUT


def transact(path: Path, command: str, arguments: Sequence[str], *, timeout_s: float | None = None) -> tuple[bool, str]:
    """Sends one command to a control socket and waits for the answer.

    Args:
        path: the socket.
        command: ``fdb/show`` for instance.
        arguments: its arguments.
        timeout_s: the longest time that connecting and answering may take, in seconds; None for ever.

    Returns:
        Whether the daemon did it, and what it says.

    Raises:
        PeerError: nobody listens there, or the answer is none.
        TimeoutError: the time is over.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except TimeoutError:
            raise
        except OSError as error:
            # A path that is too long for a socket has no errno.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise PeerError(f'cannot connect to "{path}" ({reason})') from None
        request = {"id": 0, "method": command, "params": list(arguments)}
        try:
            connection.sendall(json.dumps(request).encode("utf-8", "replace"))
            reply = _receive(connection, deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise PeerError(f"transaction error ({os.strerror(error.errno or errno.EIO)})") from None
    problem, result = reply.get("error"), reply.get("result")
    answer = result if problem is None else problem
    if not isinstance(answer, str):
        raise PeerError(f"transaction error ({os.strerror(errno.EINVAL)})")
    return problem is None, answer


def control_socket(target: str, rundir: Path) -> Path:
    """The control socket of a target: an absolute path is one, else it is a daemon's name.

    Raises:
        ConfigError: no such daemon runs.
    """
    if target.startswith("/"):
        return Path(target)
    pidfile = rundir / f"{target}.pid"
    try:
        pid = _read_pidfile(pidfile)
    except OSError as error:
        raise ConfigError(f'cannot read pidfile "{pidfile}" ({os.strerror(error.errno or errno.EIO)})') from None
    return rundir / f"{target}.{pid}.ctl"


def _run(argv: Sequence[str], rundir: Path) -> int:
    given, words = parse(argv, _OPTIONS)
    target, timeout_s = None, seconds(os.environ.get("OVS_CTL_TIMEOUT", "")) or None
    executes = 0
    for option in given:
        match option.name:
            case "target":
                if target is not None:
                    raise ConfigError("-t or --target may be specified only once")
                target = option.value
            case "execute":
                # Taken and ignored, as ovs-appctl does for the scripts of its own past.
                executes += 1
                if executes > 1:
                    raise ConfigError("-e or --execute may be speciifed only once")
            case "timeout":
                timeout_s = seconds(option.value or "")
                if not timeout_s:
                    raise ConfigError(f"value {option.value} on -T or --timeout is invalid")
            case "help" | "option" | "version":
                sys.stdout.write(_answer(option.name))
                return 0
    if not words:
        raise ConfigError("at least one non-option argument is required (use --help for help)")
    target = target or DEFAULT_TARGET
    path = control_socket(target, rundir)
    try:
        done, text = transact(path, words[0], words[1:], timeout_s=timeout_s)
    except PeerError as error:
        if str(error).startswith("cannot connect"):
            warn("unixctl", f"failed to connect to {path}")
            raise
        raise PeerError(f"{target}: {error}") from None
    if done:
        sys.stdout.write(text)
        return 0
    sys.stderr.write(text)
    complain(PROGRAM, f"{target}: server returned an error")
    return _REFUSED


def _answer(name: str) -> str:
    if name == "help":
        return _HELP
    if name == "version":
        return f"{PROGRAM} {_version()}\n"
    lines = []
    for option in _OPTIONS:
        lines.append(f"--{option.name}{'=ARG' if option.argument is not Argument.NONE else ''}\n")
        if option.short:
            lines.append(f"-{option.short}{' ARG' if option.argument is not Argument.NONE else ''}\n")
    return "".join(lines)


def _receive(connection: socket.socket, deadline: float | None) -> dict[str, Any]:
    """The one JSON object that the daemon sends."""
    text = bytearray()
    while True:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = connection.recv(_RECEIVE_BYTES)
        if not piece:
            raise PeerError("transaction error (End of file)")
        text += piece
        # Only a piece that ends an object can end the reply: the rest need not be parsed again and again.
        if not piece.rstrip().endswith(b"}"):
            continue
        try:
            reply = json.loads(text)
        except ValueError:
            continue
        if isinstance(reply, dict):
            return reply
        raise PeerError(f"transaction error ({os.strerror(errno.EPROTO)})")


def _read_pidfile(path: Path) -> int:
    try:
        # Opened for writing, as the question for a lock that excludes writers wants it.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        warn("daemon_unix", f"{path}: open: {os.strerror(error.errno or errno.EIO)}")
        raise
    try:
        # struct flock on 64-bit Linux: type, whence, start, length, pid.
        question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, holder = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        if kind == fcntl.F_UNLCK:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        written = re.match(rb"\s*(\d+)", os.read(descriptor, 128))
    finally:
        os.close(descriptor)
    if written is None:
        warn("daemon_unix", f"{path}: read: unexpected end of file")
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    pid = int(written[1])
    if pid != holder:
        warn("daemon_unix", f"{path}: stale pidfile for pid {pid} being deleted by pid {holder}")
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    return pid


def _version() -> str:
    from ovsvhost import __version__  # noqa: PLC0415 - loads the Rust core, which knows it

    return __version__
