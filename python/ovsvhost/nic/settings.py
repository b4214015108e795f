"""A NIC port's ``options``, as scripts write them, turned into settings.

Where something impossible is asked, the port works on with what it has: the setting is listed in ``keeps``, and a
complaint stands in the row's ``error``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import ConfigError
from ovsvhost.model import (
    BOOLEANS,
    BUSY_BUDGET_MAX,
    NIC_DESCRIPTORS_RANGE,
    NIC_QUEUES_MAX,
    TX_RETRIES_DEFAULT,
    XDP_MODES,
    ZERO_COPY_MIN_RANGE,
    NicSettings,
)
from ovsvhost.numeral import is_whole
from ovsvhost.options import tx_retries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovsvhost.model import NicDriver, NicType

_NOT_OF_A_NIC = {
    "vhost-server-path": "it belongs to ports of guests",
    "dq-zero-copy": "it belongs to the guest's port",
    "n_txq": "each receive queue has its transmit queue",
    "dpdk-lsc-interrupt": "links are followed through the kernel, always",
    "rx-flow-ctrl": "set it on the device: ethtool -A",
    "tx-flow-ctrl": "set it on the device: ethtool -A",
    "flow-ctrl-autoneg": "set it on the device: ethtool -A",
    "rx-steering": "set it on the device: ethtool -X",
    "dpdk-vf-mac": "set it on the device: ip link set",
}


@dataclass(frozen=True, slots=True)
class NicOptions:
    """What the options of one port mean.

    Attributes:
        settings: what is asked for, defaults elsewhere.
        keeps: names of settings that could not be read.
        complaints: one sentence per option that is not in force.
        tx_retries_max: as in `ovsvhost.model.NicPort`.
    """

    settings: NicSettings
    keeps: frozenset[str]
    complaints: tuple[str, ...]
    tx_retries_max: int = TX_RETRIES_DEFAULT


def parse(nic_type: NicType, driver: NicDriver, options: Mapping[str, str]) -> NicOptions:
    """Reads the options of a NIC port.

    Args:
        nic_type: the row's type.
        driver: the way to its device.
        options: the row's ``options`` column.
    """
    left = dict(options)
    if nic_type == "dpdk":
        left.pop("dpdk-devargs", None)
    values: dict[str, Any] = {}
    keeps: set[str] = set()
    complaints: list[str] = []
    for option, (setting, read, cure) in _READ.items():
        text = left.pop(option, None)
        if text is None:
            continue
        if driver == "packet" and setting not in _OF_PACKET:
            complaints.append(f"options:{option} is not in force, remove it: it belongs to ports over AF_XDP")
            continue
        value = read(text)
        if value is None:
            keeps.add(setting)
            complaints.append(f"options:{option}={text!r} is not in force, what the port has stays: give {cure}")
        else:
            values[setting] = value
    retries = TX_RETRIES_DEFAULT
    if (text := left.pop("tx-retries-max", None)) is not None:
        try:
            retries = tx_retries(text)
        except ConfigError as error:
            complaints.append(f"options:tx-retries-max={text!r} is not in force{error}")
    for option in sorted(left):
        if option == "dpdk-devargs":
            why = f"a port of type={nic_type} is called like its device, set type=dpdk for another"
        elif option in _NOT_OF_A_NIC:
            why = _NOT_OF_A_NIC[option]
        else:
            complaints.append(f"options:{option} is unknown: remove it or correct its name")
            continue
        complaints.append(f"options:{option} is not in force, remove it: {why}")
    return NicOptions(replace(NicSettings(), **values), frozenset(keeps), tuple(complaints), retries)


def _whole(least: int, most: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return int(text) if is_whole(text) and least <= int(text) <= most else None

    return read


def _power_of_two(text: str) -> int | None:
    value = _whole(*NIC_DESCRIPTORS_RANGE)(text)
    return value if value is not None and value.bit_count() == 1 else None


def _mode(text: str) -> str | None:
    return text if text in XDP_MODES else None


_DESCRIPTORS = f"a power of two in {NIC_DESCRIPTORS_RANGE[0]}..{NIC_DESCRIPTORS_RANGE[1]}"
_READ: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    "n_rxq": ("n_rxq", _whole(1, NIC_QUEUES_MAX), f"a number 1..{NIC_QUEUES_MAX}"),
    "n_rxq_desc": ("n_rxq_desc", _power_of_two, _DESCRIPTORS),
    "n_txq_desc": ("n_txq_desc", _power_of_two, _DESCRIPTORS),
    "xdp-mode": ("xdp_mode", _mode, ", ".join(XDP_MODES)),
    "use-need-wakeup": ("use_need_wakeup", BOOLEANS.get, "true or false"),
    "xdp-start-queue": ("xdp_start_queue", _whole(0, NIC_QUEUES_MAX - 1), f"a number 0..{NIC_QUEUES_MAX - 1}"),
    "xdp-busy-budget": ("xdp_busy_budget", _whole(0, BUSY_BUDGET_MAX), f"a number 0..{BUSY_BUDGET_MAX}"),
    "xdp-zc-queues": ("xdp_zc_queues", _whole(0, NIC_QUEUES_MAX), f"a number 0..{NIC_QUEUES_MAX}"),
    "xdp-zc-min": (
        "xdp_zc_min",
        _whole(*ZERO_COPY_MIN_RANGE),
        f"a number of bytes in {ZERO_COPY_MIN_RANGE[0]}..{ZERO_COPY_MIN_RANGE[1]}",
    ),
}
"""By option: the setting, how its text is read (None: it cannot be), and what can be."""
_OF_PACKET = frozenset({"n_rxq_desc", "n_txq_desc"})
"""Settings that a port over AF_PACKET has."""
