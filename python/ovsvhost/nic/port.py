"""From what a user asks of a NIC port to the port that is built.

The device is named by the port itself (``afxdp``, ``system``) or by ``options:dpdk-devargs`` (``dpdk``). A device that
is named and not there is no mistake: the datapath attaches it when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.model import MTU_MAX, MTU_MIN, NicPort
from ovsvhost.nic import devargs, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost.model import NicDriver, NicType

SYSFS = Path("/sys")
"""Where the kernel tells which device is which."""
TYPE_OF: Mapping[str, NicType] = {"": "system", "system": "system", "afxdp": "afxdp", "dpdk": "dpdk"}
"""NIC ports by the ``type`` of their rows; OVS takes a row without one for a ``system`` one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a user asks of a NIC port; as columns of ``Interface``."""

    key: str
    name: str
    type: NicType
    options: Mapping[str, str]
    ofport: int = 0
    mtu_request: int | None = None


def interpret(asked: Asked, sysfs: Path = SYSFS) -> tuple[NicPort, tuple[str, ...]]:
    """Says which port is meant, and what of it is not in force, a sentence each.

    Raises:
        ConfigError: it can be none; the text says why and the cure.
    """
    named = _named(asked, sysfs)
    options = settings.parse(asked.type, named.driver, {**named.options, **asked.options})
    complaints = list(options.complaints)
    mtu = asked.mtu_request
    if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
        complaints.append(f"{asked.name}: unsupported MTU {mtu}: set mtu_request to {MTU_MIN}..{MTU_MAX}")
        mtu = None
    port = NicPort(
        key=asked.key,
        name=asked.name,
        driver=named.driver,
        device=named.device,
        ofport=asked.ofport,
        mtu=mtu,
        tx_retries_max=options.tx_retries_max,
        brings_up=asked.type == "dpdk",
        settings=options.settings,
        keeps=options.keeps,
    )
    return port, tuple(complaints)


def _named(asked: Asked, sysfs: Path) -> devargs.Named:
    if asked.type == "dpdk":
        text = asked.options.get("dpdk-devargs")
        if not text:
            raise ConfigError(f"{asked.name} has no options:dpdk-devargs, so no device: {devargs.FORMS}")
        return devargs.resolve(text, sysfs)
    devargs.check_device(asked.name, f"port {asked.name!r} of type={asked.type}")
    return devargs.Named(_DRIVER_OF[asked.type], asked.name)


_DRIVER_OF: Mapping[NicType, NicDriver] = {"afxdp": "afxdp", "dpdk": "afxdp", "system": "packet"}
