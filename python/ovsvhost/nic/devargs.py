"""``options:dpdk-devargs`` of a ``type=dpdk`` port: which network device of the kernel it means.

There is no DPDK here, and scripts say ``type=dpdk`` where they mean "that physical NIC". So what DPDK would open is
looked up and the kernel's device of it is used::

    0000:3b:00.0                         the PCI device's own network device
    class=eth,mac=00:11:22:33:44:55      the device with that address
    net_af_xdp0,iface=eth0               eth0, over AF_XDP
    net_af_packet0,iface=eth0            eth0, over AF_PACKET

Functions of the text and of a sysfs tree; nothing is opened or changed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovsvhost.model import NicDriver

FORMS = (
    "give a PCI address (0000:3b:00.0), class=eth,mac=00:11:22:33:44:55, net_af_xdp0,iface=eth0 or "
    "net_af_packet0,iface=eth0"
)

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_VDEV = re.compile(r"(?:net|eth)_(af_xdp|af_packet|tap|[a-z_]*?[a-z])_?\d*")
_OUT_OF_KERNEL = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
"""Drivers that hand a PCI device to a program: it is no network device then."""
_SETTINGS = {
    "af_xdp": {
        "start_queue": "xdp-start-queue",
        "queue_count": "n_rxq",
        "busy_budget": "xdp-busy-budget",
    },
    "af_packet": {},
}
"""Arguments of DPDK's virtual devices that are options here."""


@dataclass(frozen=True, slots=True)
class Named:
    """What the text names.

    Attributes:
        driver: the way to the device.
        device: the kernel's name of it.
        options: settings that the text holds, under their names as options of a port.
    """

    driver: NicDriver
    device: str
    options: Mapping[str, str] = field(default_factory=dict)


def resolve(devargs: str, sysfs: Path) -> Named:
    """Says which device ``devargs`` means.

    Args:
        devargs: the option's text.
        sysfs: where sysfs is mounted (``/sys``).

    Raises:
        ConfigError: it names none, or one that no kernel driver has; with the cure.
    """
    first, *rest = devargs.split(",")
    arguments = _arguments(devargs, rest)
    if pci := _PCI.fullmatch(first.removeprefix("pci:")):
        _none_left(devargs, arguments)
        domain = f"{int(pci[1], 16):04x}" if pci[1] else "0000"
        return Named("afxdp", _of_pci(f"{domain}:{pci[2].lower()}", sysfs))
    if first == "class=eth":
        mac = arguments.pop("mac", "")
        _none_left(devargs, arguments)
        return Named("afxdp", _of_mac(devargs, mac, sysfs))
    if vdev := _VDEV.fullmatch(first):
        return _of_vdev(devargs, vdev[1], arguments)
    raise ConfigError(f"options:dpdk-devargs={devargs!r} names no network device: {FORMS}")


def _arguments(devargs: str, words: list[str]) -> dict[str, str]:
    arguments = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or key in arguments:
            raise ConfigError(f"options:dpdk-devargs={devargs!r} cannot be read at {word!r}: {FORMS}")
        arguments[key] = value
    return arguments


def _none_left(devargs: str, arguments: Mapping[str, str]) -> None:
    if arguments:
        raise ConfigError(
            f"options:dpdk-devargs={devargs!r} has {', '.join(sorted(arguments))}, which is an argument of a DPDK "
            "driver: leave it out, the kernel's driver is used"
        )


def _of_pci(address: str, sysfs: Path) -> str:
    devices = sysfs / "bus/pci/devices"
    device = devices / address
    if not device.exists():
        raise ConfigError(f"there is no PCI device {address}: lspci -D lists those there are")
    driver = (device / "driver").resolve().name if (device / "driver").exists() else None
    if driver is None:
        raise ConfigError(
            f"PCI device {address} has no driver, so it is no network device: load its kernel driver, then "
            f"echo {address} > {sysfs}/bus/pci/drivers_probe"
        )
    if driver in _OUT_OF_KERNEL:
        raise ConfigError(
            f"PCI device {address} is bound to {driver}, which keeps it from the kernel, and this switch needs the "
            f"kernel's driver: echo > {device}/driver_override; echo {address} > {device}/driver/unbind; "
            f"echo {address} > {sysfs}/bus/pci/drivers_probe"
        )
    # virtio has a device of its own between the PCI device and its network device
    found = sorted(entry.name for part in (device, *device.glob("virtio*")) for entry in part.glob("net/*"))
    if not found:
        raise ConfigError(f"PCI device {address} (driver {driver}) has no network device: name one that has")
    if len(found) > 1:
        raise ConfigError(
            f"PCI device {address} has several network devices ({', '.join(found)}): choose one by "
            "class=eth,mac=… with its address"
        )
    return found[0]


def _of_mac(devargs: str, mac: str, sysfs: Path) -> str:
    if not _MAC.fullmatch(mac):
        raise ConfigError(
            f"options:dpdk-devargs={devargs!r} has no address: give class=eth,mac=00:11:22:33:44:55 with the device's"
        )
    found = [entry for entry in sorted((sysfs / "class/net").glob("*")) if _address(entry) == mac.lower()]
    # VLANs, bonds and bridges take over the address of the device below them, and have no hardware
    found = [entry for entry in found if (entry / "device").exists()] or found
    if not found:
        raise ConfigError(f"no network device has the address {mac}: ip -br link lists those there are")
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise ConfigError(f"several network devices have the address {mac} ({names}): name one by its PCI address")
    return found[0].name


def _address(entry: Path) -> str:
    try:
        return (entry / "address").read_text().strip().lower()
    except OSError:
        return ""


def _of_vdev(devargs: str, kind: str, arguments: dict[str, str]) -> Named:
    device = arguments.pop("iface", "")
    if kind == "tap":
        raise ConfigError(f"options:dpdk-devargs={devargs!r} asks for a tap device, which is not served yet: {FORMS}")
    if kind not in _SETTINGS:
        raise ConfigError(f"options:dpdk-devargs={devargs!r} names a DPDK driver, and there is no DPDK here: {FORMS}")
    check_device(device, f"options:dpdk-devargs={devargs!r}")
    names = _SETTINGS[kind]
    options = {names[key]: arguments.pop(key) for key in names if key in arguments}
    _none_left(devargs, arguments)
    return Named("afxdp" if kind == "af_xdp" else "packet", device, options)


def check_device(device: str, where: str) -> None:
    """ConfigError when no network device can be called so (``IFNAMSIZ``)."""
    if not 0 < len(os.fsencode(device)) < 16 or device in {".", ".."} or re.search(r"[/:\s\0]", device):
        raise ConfigError(
            f"{where} names {device!a}, and no network device can be called so: a name has 1..15 bytes without "
            "blank, '/' or ':'"
        )
