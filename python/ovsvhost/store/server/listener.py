"""The server's socket in the file system: made so that it is never half there, never open to others, never stolen.

It is bound under a temporary name, mode 0600 from the first moment, and renamed into place. A socket that answers
belongs to somebody and stays; one that refuses connections is what a crash left, and is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError, KernelError

if TYPE_CHECKING:
    from pathlib import Path

MAX_PATH_SIZE = 107
"""Bytes in a socket's path, its NUL not counted: ``sun_path`` of unix(7)."""

_BACKLOG = 64


class ListeningSocket:
    """A unix socket that listens.

    Args:
        path: where clients find it. Its directory has to exist.

    Errors: `ConfigError` if the path is too long, taken by somebody alive, or no socket; `KernelError` if the system
    refuses.
    """

    def __init__(self, path: Path) -> None:
        size = len(os.fsencode(path))
        if size > MAX_PATH_SIZE:
            raise ConfigError(
                f"the socket path {path} has {size} bytes and unix sockets take {MAX_PATH_SIZE}; "
                "name a shorter directory with --rundir"
            )
        _refuse_if_taken(path)
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._identity = _bind(self.socket, path)
        except OSError as error:
            self.socket.close()
            raise KernelError(
                error.errno,
                f"cannot create the socket {path}: {error.strerror}; check the directory, or name another "
                "with --rundir",
            ) from error
        self.socket.setblocking(False)

    def remove(self) -> None:
        """Take the socket's name away, if it is still this socket's."""
        with contextlib.suppress(FileNotFoundError):
            if _identity_of(self.path) == self._identity:
                self.path.unlink()


def _identity_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _refuse_if_taken(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError(error.errno, f"cannot look at {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and is no socket; move it away, or name another directory with --rundir")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fsencode(path))
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return
    if result in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise ConfigError(
            f"another database server answers on {path}; use it with --db unix:{path}, "
            "or name another directory with --rundir"
        )
    raise ConfigError(
        f"cannot tell who owns the socket {path} ({os.strerror(result)}); name another directory with --rundir"
    )


def _bind(sock: socket.socket, path: Path) -> tuple[int, int]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temporary.unlink(missing_ok=True)
        # On Linux the socket's own mode is the mode of the file that bind makes, less the umask.
        os.fchmod(sock.fileno(), 0o600)
        name = os.fsencode(temporary)
        if len(name) > MAX_PATH_SIZE:
            # The descriptor makes a way to the directory that is always short enough.
            name = os.fsencode(f"/proc/self/fd/{directory}/{temporary.name}")
        sock.bind(name)
        sock.listen(_BACKLOG)
        temporary.rename(path)
    finally:
        os.close(directory)
    return _identity_of(path)
