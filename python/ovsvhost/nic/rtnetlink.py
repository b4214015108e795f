"""Messages of the kernel about network devices (``rtnetlink(7)``): bytes to values, and nothing else.

::

    nlmsghdr { length u32 · type u16 · flags u16 · sequence u32 · port u32 }
    ifinfomsg { family u8 · pad u8 · device type u16 · ifindex s32 · flags u32 · changed u32 }
    rtattr { length u16 · type u16 · value }…          each part begins at a multiple of four

Numbers are in the machine's byte order. What is cut short ends the reading; it is never guessed.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_LINK = 1
"""RTMGRP_LINK: the multicast group that tells of every change of a device."""

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_U32 = struct.Struct("=I")

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x10, 0x300
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_TYPE_MASK = 0x3FFF
"""Of an attribute's type; the two bits above say how its value is made."""
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


@dataclass(frozen=True, slots=True)
class Link:
    """A network device.

    Attributes:
        ifindex: its number, never given again while the machine runs.
        name: what it is called now.
        mac: ``aa:bb:cc:dd:ee:ff``; empty if it has no address of six bytes.
        mtu: bytes.
        admin_up: somebody set it up.
        carrier: there is a signal, or the other end is up, and the kernel has drawn its conclusions (``IFF_RUNNING``).
    """

    ifindex: int
    name: str
    mac: str = ""
    mtu: int = 0
    admin_up: bool = False
    carrier: bool = False

    @property
    def is_up(self) -> bool:
        """Whether frames can pass."""
        return self.admin_up and self.carrier


@dataclass(frozen=True, slots=True)
class Gone:
    """A device was deleted, or left for another namespace."""

    ifindex: int


@dataclass(frozen=True, slots=True)
class Done:
    """A dump is complete; ``errno`` if it failed, ``torn`` if devices changed meanwhile."""

    errno: int = 0
    torn: bool = False


Message: TypeAlias = Link | Gone | Done


def dump_request(sequence: int) -> bytes:
    """Asks for every device."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0) + body


def messages(data: bytes) -> Iterator[Message]:
    """What one datagram says, in order; messages about other things are passed over."""
    torn = False
    while len(data) >= _HEADER.size:
        length, kind, flags, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        body = data[_HEADER.size : length]
        torn = torn or bool(flags & _NLM_F_DUMP_INTR)
        if kind == _NLMSG_DONE:
            yield Done(torn=torn)
        elif kind == _NLMSG_ERROR and len(body) >= _ERROR.size:
            yield Done(errno=-_ERROR.unpack_from(body)[0])
        elif kind in {_RTM_NEWLINK, _RTM_DELLINK}:
            message = _link(body, is_gone=kind == _RTM_DELLINK)
            if message is not None:
                yield message
        data = data[_aligned(length) :]


def _link(body: bytes, *, is_gone: bool) -> Link | Gone | None:
    if len(body) < _IFINFO.size:
        return None
    family, _, ifindex, flags, _ = _IFINFO.unpack_from(body)
    if family != socket.AF_UNSPEC:
        return None  # a bridge tells of its ports by the same messages: leaving it is no end of a device
    if is_gone:
        return Gone(ifindex)
    values = dict(_attributes(body[_IFINFO.size :]))
    name = values.get(_IFLA_IFNAME, b"").split(b"\0")[0].decode(errors="surrogateescape")
    if not name:
        return None
    mac, mtu = values.get(_IFLA_ADDRESS, b""), values.get(_IFLA_MTU, b"")
    return Link(
        ifindex,
        name,
        mac.hex(":") if len(mac) == 6 else "",
        _U32.unpack(mtu)[0] if len(mtu) == _U32.size else 0,
        admin_up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_RUNNING),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
