"""One network device: what a port's row shows of it, and setting it up.

A device is set up only for ``type=dpdk``, which means that it is the switch's own; others are their users'.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass

from ovsvhost.errors import KernelError
from ovsvhost.nic import ethtool

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFREQ_FLAGS = struct.Struct("=16sH22x")
_IFF_UP = 0x1


@dataclass(frozen=True, slots=True)
class Facts:
    """What a device's driver tells of its link; None is what it does not know.

    Attributes:
        speed: bits per second.
        duplex: ``half`` or ``full``.
    """

    speed: int | None = None
    duplex: str | None = None


def facts(device: str) -> Facts:
    """Reads them now; a device that is gone has none."""
    try:
        return Facts(*ethtool.speed_and_duplex(device))
    except OSError:
        return Facts()


def set_up(device: str) -> int:
    """As ``ip link set DEVICE up``; returns the device's number. KernelError with the cure if it cannot be."""
    request = _IFREQ_FLAGS.pack(device.encode(), 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            name, flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name, flags | _IFF_UP))
        return socket.if_nametoindex(device)
    except OSError as error:
        cure = "run the switch with CAP_NET_ADMIN" if error.errno == errno.EPERM else "see the kernel's log"
        text = f"{device} is down and cannot be set up ({error.strerror}): {cure}"
        raise KernelError(error.errno, text) from error
