"""The network devices of this machine, followed over rtnetlink: one socket, no thread.

The socket hears of changes before every device is asked for once, so nothing between the two is missed. Should the
kernel have more to tell than the socket holds, all are asked for again.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from ovsvhost.errors import KernelError
from ovsvhost.nic.rtnetlink import GROUP_LINK, Done, Gone, Link, dump_request, messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost.poll import Poller

_DATAGRAM_MAX = 1 << 17
"""More than the kernel puts into one answer; a longer one would be cut."""
_DUMP_TRIES = 8
"""A dump during which devices changed is asked for again; what changed is told besides, so the last one will do."""


class LinkWatch:
    """Knows every network device of the namespace that it was made in.

    Raises:
        KernelError: there is no rtnetlink for this process.
    """

    def __init__(self) -> None:
        self._by_index: dict[int, Link] = {}
        self._by_name: dict[str, Link] | None = None
        try:
            self._socket = _open(GROUP_LINK)
        except OSError as error:
            raise _refused(error) from error
        try:
            self._socket.setblocking(False)
            self._ask_all()
        except BaseException:
            self._socket.close()
            raise

    @property
    def links(self) -> Mapping[str, Link]:
        """Every device by name, as of the last `run`; a mapping given out stays as it is."""
        if self._by_name is None:
            self._by_name = {link.name: link for link in self._by_index.values()}
        return self._by_name

    def fileno(self) -> int:
        """Readable while `run` has something to do."""
        return self._socket.fileno()

    def run(self) -> frozenset[str]:
        """Takes in what the kernel has told; returns the names of devices that changed, came or went. Never waits."""
        before = self.links
        while True:
            try:
                data = self._socket.recv(_DATAGRAM_MAX)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some of it is lost
                self._ask_all()
                continue
            for message in messages(data):
                if isinstance(message, Link):
                    self._by_index[message.ifindex] = message
                elif isinstance(message, Gone):
                    self._by_index.pop(message.ifindex, None)
        self._by_name = None
        now = self.links
        return frozenset(name for name in {*before, *now} if before.get(name) != now.get(name))

    def wait(self, poller: Poller) -> None:
        """Wakes ``poller`` when `run` has something to do."""
        poller.fd_wait(self._socket, select.POLLIN)

    def close(self) -> None:
        """Ends it. May be called again."""
        self._socket.close()

    def _ask_all(self) -> None:
        try:
            self._by_index = _dump()
        except OSError as error:
            raise _refused(error) from error
        self._by_name = None


def _dump() -> dict[int, Link]:
    found: dict[int, Link] = {}
    with _open(0) as asking:
        for sequence in range(1, _DUMP_TRIES + 1):
            found = {}
            asking.send(dump_request(sequence))
            if not _answer(asking, found):
                break
    return found


def _answer(asking: socket.socket, found: dict[int, Link]) -> bool:
    """Reads one dump; returns whether devices changed meanwhile."""
    torn = False
    while True:
        for message in messages(asking.recv(_DATAGRAM_MAX)):
            match message:
                case Link():
                    found[message.ifindex] = message
                case Done(errno=0):
                    return torn or message.torn
                case Done():
                    raise OSError(message.errno, "the dump of all devices failed")


def _open(groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        made.bind((0, groups))
    except BaseException:
        made.close()
        raise
    return made


def _refused(error: OSError) -> KernelError:
    text = f"network devices cannot be followed over rtnetlink ({error.strerror}): allow AF_NETLINK sockets"
    return KernelError(error.errno, text)
