"""``other_config``: which keys of which rows are served, and what an interface's mean.

A key that nobody reads is a *complaint*: what it asks for is not in force, and somebody thinks it is. It stops nothing:
the row works without it. Three sorts are passed by in silence:

- what asks for what is so anyway (``hw-offload=false``),
- what other programs keep in the column for themselves (``ovn-*``, Neutron's notes about a port's network),
- ``dpdk-*``, of which `ovsvhost.daemon.settings` has its own word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ovsvhost import vhost_features
from ovsvhost.errors import ConfigError
from ovsvhost.options import tx_steering
from ovsvhost.pmd_settings import LIVE, rxq_affinity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost.model import TxSteering

Kind: TypeAlias = Literal["Open_vSwitch", "Bridge", "Port", "guest", "device", "local"]
"""The table of a row; of ``Interface`` whose it is: a guest's, a network device's, or the bridge's own."""

READ_AT_START = (
    "restart-hold-ms",
    "vhost-iommu-support",
    "vhost-postcopy-support",
    "vhost-sock-dir",
)
"""Keys of ``Open_vSwitch`` that count when the switch starts, and then no more."""

SERVED: Mapping[Kind, frozenset[str]] = {
    "Open_vSwitch": frozenset(
        {*READ_AT_START, *LIVE, vhost_features.KEY, "stats-update-interval", "userspace-tso-enable"}
    ),
    "Bridge": frozenset({"forward-bpdu", "hwaddr", "mac-aging-time", "mac-table-size"}),
    "Port": frozenset(
        {"all-members-active", "bond-detect-mode", "bond-primary", "bond-rebalance-interval"}
        | {"lacp-fallback-ab", "lacp-system-id", "lacp-system-priority", "lacp-time"}
    ),
    "guest": frozenset({"pmd-rxq-affinity", "tx-steering"}),
    "device": frozenset({"lacp-aggregation-key", "lacp-port-id", "lacp-port-priority", "pmd-rxq-affinity"}),
    "local": frozenset(),
}
"""Keys that are read; a value that cannot be is complained of by whoever reads it."""

_SO_ANYWAY: Mapping[Kind, Mapping[str, str]] = {
    "Open_vSwitch": {
        "enable-statistics": "false",
        "flow-restore-wait": "false",
        "hw-offload": "false",
        "offload-rebalance": "false",
        "per-port-memory": "false",
        "pmd-perf-metrics": "true",
        "smc-enable": "false",
    },
    "Bridge": {"disable-in-band": "true"},
    "Port": {"lb-output-action": "false", "rstp-enable": "false", "stp-enable": "false"},
    "guest": {"emc-enable": "false"},
    "device": {"emc-enable": "false"},
}
"""Values of keys of Open vSwitch's (``ovs-vswitchd.conf.db(5)``) that describe this switch as it is."""

_OTHERS: Mapping[Kind, frozenset[str]] = {
    "Port": frozenset({"net_uuid", "network_type", "physical_network", "segmentation_id", "tag", "transient"}),
}
"""What Neutron's agent notes at a port, and what ``ovs-ctl`` looks for."""
_OTHERS_PREFIXES = ("ovn-", "neutron-")


@dataclass(frozen=True, slots=True)
class InterfaceSettings:
    """What the column of one row of ``Interface`` means.

    Attributes:
        tx_steering: as in `ovsvhost.model.Port`.
        rxq_affinity: likewise; None, which leaves what the port has, where it cannot be read.
        complaints: a sentence for each key that is not in force.
    """

    tx_steering: TxSteering = "hash"
    rxq_affinity: tuple[tuple[int, int], ...] | None = ()
    complaints: tuple[str, ...] = ()

    def checked(self) -> InterfaceSettings:
        """Itself; ConfigError, with every sentence, if there is one to say."""
        if self.complaints:
            raise ConfigError("; ".join(self.complaints))
        return self


def unserved(kind: Kind, other_config: Mapping[str, str]) -> tuple[str, ...]:
    """The keys that ask for something and that nobody reads, sorted."""
    anyway = _SO_ANYWAY.get(kind, {})
    passed = SERVED[kind] | _OTHERS.get(kind, frozenset())
    prefixes = (*_OTHERS_PREFIXES, "dpdk-") if kind == "Open_vSwitch" else _OTHERS_PREFIXES
    return tuple(
        key
        for key, value in sorted(other_config.items())
        if key not in passed and anyway.get(key) != value and not key.startswith(prefixes)
    )


def not_in_force(key: str, row: str) -> str:
    """The sentence about one such key of ``row``, as ``bridge 'br0'``."""
    return f"other_config:{key} of {row} is not in force: it is unknown or not served, clear it"


def complaints(kind: Kind, row: str, other_config: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each of a row's keys that nobody reads; ``row`` as ``bridge 'br0'``."""
    return tuple(not_in_force(key, row) for key in unserved(kind, other_config))


def interface_settings(
    kind: Literal["guest", "device"], name: str, other_config: Mapping[str, str]
) -> InterfaceSettings:
    """Reads the column of interface ``name``."""
    said = list(complaints(kind, f"interface {name!r}", other_config))
    steering: TxSteering = "hash"
    if kind == "guest":
        steering, about_steering = tx_steering(name, other_config)
        said += about_steering
    text = other_config.get("pmd-rxq-affinity", "")
    affinity: tuple[tuple[int, int], ...] | None = None
    try:
        affinity = rxq_affinity(text)
    except ConfigError as error:
        said.append(f"other_config:pmd-rxq-affinity={text!r} of interface {name!r} is refused: {error}")
    return InterfaceSettings(steering, affinity, tuple(said))
