"""What a network device's driver tells and takes (``SIOCETHTOOL``, ``linux/ethtool.h``), for the caller's namespace.

Every call raises OSError as the kernel gives it: ENODEV without such a device, EOPNOTSUPP where its driver lacks it.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET_SETTINGS, _SET_TX_CHECKSUM = 0x4C, 0x17
_IFREQ = struct.Struct("=16sQ16x")
_SETTINGS = struct.Struct("=IIBBBBBBBbBBBB28x")
_LINK_MODE_MASKS = 3
"""Supported, advertised and the partner's: each as many words as the driver says."""
SPEED_UNKNOWN = 0xFFFF_FFFF
_DUPLEX = {0: "half", 1: "full"}


def speed_and_duplex(device: str) -> tuple[int | None, str | None]:
    """Bits per second, and ``half`` or ``full``; None is what the driver does not know."""
    words = -_settings(device, 0, 0)[9]  # asked with none, the kernel says how many words it wants to fill
    settings = _settings(device, max(words, 0), _LINK_MODE_MASKS * max(words, 0) * 4)
    speed, duplex = settings[1], settings[2]
    return (None if speed in {0, SPEED_UNKNOWN} else speed * 1_000_000), _DUPLEX.get(duplex)


def set_tx_checksum(device: str, *, on: bool) -> None:
    """Leaves checksums of what the kernel sends to the device, or has the kernel compute them."""
    _command(device, struct.pack("=II", _SET_TX_CHECKSUM, int(on)))


def _settings(device: str, words: int, space: int) -> tuple[int, ...]:
    head = _SETTINGS.pack(_GET_SETTINGS, 0, 0, 0, 0, 0, 0, 0, 0, words, 0, 0, 0, 0)
    return _SETTINGS.unpack_from(_command(device, head + bytes(space)))


def _command(device: str, data: bytes) -> bytes:
    buffer = array.array("B", data)
    address, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, _IFREQ.pack(device.encode(), address))
    return buffer.tobytes()
