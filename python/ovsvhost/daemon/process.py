"""The daemon as a process: one per run directory, known by its pid file, stopped by signals.

The run directory itself is locked (flock), so there is nothing to clean up after a kill. The pid file is locked as
Open vSwitch's daemons lock theirs (fcntl): stock ``ovs-appctl`` takes an unlocked one for stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
from typing import TYPE_CHECKING, Self

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType, TracebackType

    from ovsvhost.poll import Poller


@contextlib.contextmanager
def sole_user_of(rundir: Path, pidfile: Path) -> Iterator[None]:
    """Holds the run directory; it is free again when this process ends, however it ends.

    Raises:
        ConfigError: another daemon has it, or it cannot be opened.
    """
    try:
        directory = os.open(rundir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"run directory {str(rundir)!r} cannot be used ({error.strerror}): choose another") from error
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(_taken(rundir, pidfile)) from None
        yield
    finally:
        os.close(directory)


def _taken(rundir: Path, pidfile: Path) -> str:
    try:
        holder = f" (pid {int(pidfile.read_text())})"
    except (OSError, ValueError):
        holder = ""
    return f"run directory {str(rundir)!r} is in use by another daemon{holder}: stop it or choose another --rundir"


class Pidfile:
    """A locked pid file, removed on exit.

    Raises:
        ConfigError: a living process has it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Writes and locks it."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())
        except (BlockingIOError, PermissionError) as error:
            if self._file is None:
                raise self._unwritable(error) from error
            owner = self.path.read_text().strip()
            os.close(self._file)
            raise ConfigError(
                f"pid file {str(self.path)!r} belongs to running process {owner}: stop it or choose another --rundir"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"pid file {str(self.path)!r} cannot be written ({error.strerror}): let uid {os.geteuid()} write there, or "
            "choose another --rundir or --pidfile"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes it."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


class StopSignals:
    """SIGTERM and SIGINT end the loop instead of the process; SIGHUP is ignored (the log reopens by itself)."""

    def __init__(self) -> None:
        self.stopped = False
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def __enter__(self) -> Self:
        """Takes the signals; main thread only."""
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives them back."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._read.close()
        self._write.close()

    def wait(self, poller: Poller) -> None:
        """Wakes ``poller`` when a signal came."""
        poller.fd_wait(self._read, select.POLLIN)
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)
        if self.stopped:
            poller.immediate_wake()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True


def raise_descriptor_limit() -> None:
    """Lifts RLIMIT_NOFILE to its hard limit: a guest costs about ten descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify(state: str) -> None:
    """Tells the service manager, if there is one (``sd_notify(3)``): ``READY=1``, ``STOPPING=1``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
        contextlib.suppress(OSError),
    ):
        manager.sendto(state.encode(), address)
