"""A network namespace of a test's own, and veth pairs into it.

The namespace has no name: it is held by a process that dies with this one, so nothing of it outlives a test, however
the test ends, and veth pairs go with the end that was inside. Needs root (``CAP_NET_ADMIN``, ``CAP_SYS_ADMIN``).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from ovsvhost.testing.errors import MissingError, RigError
from ovsvhost.testing.lasting import Lasting
from ovsvhost.testing.process import Program
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_CLONE_NEWNET = 0x4000_0000
_COMMAND_TIMEOUT_S = 20
_numbers = itertools.count()


def device_name(stem: str) -> str:
    """A name for a network device outside of any test's namespace, of which there is no other on the machine."""
    return f"{stem}{os.getpid() % 0x10_0000:x}n{next(_numbers)}"


class Namespace(Lasting):
    """One network namespace, with its loopback up.

    Args:
        folder: where its holder's log goes.
        name: what messages call it.
    """

    def __init__(self, folder: Path, name: str = "namespace") -> None:
        self.name = name
        self._folder = folder
        self._holder: Program | None = None

    @property
    def pid(self) -> int:
        """A process inside, as ``ip link set DEVICE netns PID`` takes it."""
        if self._holder is None:
            raise RigError(f"{self.name} is not started: use it in a with statement")
        return self._holder.pid

    def start(self) -> Self:
        """Makes it.

        Raises:
            MissingError: this user may not, or iproute2 is not installed.
        """
        if os.geteuid() != 0:
            raise MissingError("network namespaces need root: run this test as root")
        _need("ip")
        self._folder.mkdir(parents=True, exist_ok=True)
        command = ["unshare", "--net", "--", "sleep", "infinity"]
        self._holder = Program(command, log=self._folder / f"{self.name}.log", name=self.name)
        outside = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 - one call beside its twin below
        wait_for(lambda: self._inode() != outside, timeout_s=_COMMAND_TIMEOUT_S, what=f"{self.name} to be made")
        self.inside(_settle)
        self.ip("link", "set", "lo", "up")
        return self

    def stop(self) -> None:
        """Ends it; devices inside go, and with them the other ends of veth pairs. Idempotent."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.stop()

    def ip(self, *words: str) -> str:
        """``ip`` inside; RigError when it fails."""
        return self.run("ip", *words)

    def run(self, *command: str) -> str:
        """A program inside, and its output; RigError when it fails."""
        return ip_command(*command, prefix=("nsenter", f"--net=/proc/{self.pid}/ns/net", "--"))

    def inside(self, function: Callable[[], T]) -> T:
        """Calls ``function`` inside; a socket that it makes stays there, whoever uses it then."""
        future: Future[T] = Future()

        def body() -> None:
            try:
                self._enter()
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)

        # a namespace is a thread's: this one's ends with it
        threading.Thread(target=body, name=f"in-{self.name}", daemon=True).start()
        return future.result()

    def _enter(self) -> None:
        handle = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise RigError(f"{self.name} cannot be entered: {os.strerror(number)}")
        finally:
            os.close(handle)

    def _inode(self) -> int:
        if self._holder is not None:
            self._holder.check()
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino


def ip_command(*command: str, prefix: tuple[str, ...] = ()) -> str:
    """Runs a program and gives its output; RigError with its words when it fails."""
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise MissingError(f"no program '{program}' on this machine: run scripts/setup test")


def _settle() -> None:
    """Addresses are used at once, nobody else is asked about them, and any user may ping."""
    for setting, value in {
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_ra": "0",
        "ipv4/ping_group_range": "0 2147483647",
    }.items():
        Path("/proc/sys/net", setting).write_text(value)
