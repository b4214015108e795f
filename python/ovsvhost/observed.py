"""What the switch is: read from the datapath, never from what was asked for.

The datapath knows ports, numbers, MTU and links; it does not give back identities, socket permissions and retry
limits. Those are kept in a ``Ledger`` that ``apply`` writes at the moment the datapath accepted them, and count only
as long as the datapath still has the port. With ``apply`` this is the only module that touches the Rust core.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ovsvhost.model import PollThreads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ovsvhost._core import BondState, Datapath, FdbEntry, NicQueue, PmdState, PortState
    from ovsvhost.model import AnyPort, Bond, Bridge, FeatureLimit
    from ovsvhost.nic.rtnetlink import Link

_NO_LINKS: Mapping[str, Link] = {}


@dataclass(frozen=True, slots=True)
class Observed:
    """One reading of the switch.

    Attributes:
        bridges: by name; their ``ports`` are empty, see ``ports``.
        ports: by name: the bridge it is on and its settings as they are in force.
        pmds: the poll threads.
        feature_limit: what guests that start are offered at most.
        links: the network devices of this machine by name.
        set_up: numbers of those that the switch set up.
        bonds: by name: the bridge it is on and its settings.
    """

    bridges: Mapping[str, Bridge] = field(default_factory=dict)
    ports: Mapping[str, tuple[str, AnyPort]] = field(default_factory=dict)
    pmds: PollThreads = field(default_factory=PollThreads)
    feature_limit: FeatureLimit = "all"
    links: Mapping[str, Link] = field(default_factory=dict)
    set_up: frozenset[int] = frozenset()
    bonds: Mapping[str, tuple[str, Bond]] = field(default_factory=dict)


@dataclass(slots=True)
class Ledger:
    """What the datapath accepted and cannot tell back. Written by ``apply`` alone."""

    bridges: dict[str, Bridge] = field(default_factory=dict)
    ports: dict[str, AnyPort] = field(default_factory=dict)
    bonds: dict[str, tuple[str, Bond]] = field(default_factory=dict)
    pmds: PollThreads = field(default_factory=PollThreads)
    set_up: set[int] = field(default_factory=set)
    feature_limit: FeatureLimit = "all"


def read(datapath: Datapath, ledger: Ledger, links: Mapping[str, Link] = _NO_LINKS) -> Observed:
    """One reading; costs a lock and a copy per port, no packet waits for it.

    Args:
        datapath: the switch.
        ledger: what `apply` wrote down.
        links: the machine's network devices by name.
    """
    ports: dict[str, tuple[str, AnyPort]] = {}
    for state in datapath.ports():
        known = ledger.ports.get(state.name)
        if known is not None:
            ports[state.name] = (state.bridge, replace(known, ofport=state.ofport, mtu=state.mtu))
    return Observed(
        bridges=dict(ledger.bridges),
        ports=ports,
        pmds=ledger.pmds,
        feature_limit=ledger.feature_limit,
        links=links,
        set_up=frozenset(ledger.set_up),
        bonds=dict(ledger.bonds),
    )


def port_states(datapath: Datapath) -> dict[str, PortState]:
    """Every port's live state by name."""
    return {state.name: state for state in datapath.ports()}


def port_state(datapath: Datapath, name: str) -> PortState:
    """One port's live state; ConfigError if there is none of that name."""
    return datapath.port(name)


def bonds(datapath: Datapath) -> list[BondState]:
    """Every bond's live state, by name."""
    return datapath.bonds()


def nic_queues(datapath: Datapath, name: str) -> list[NicQueue]:
    """The queues of a NIC port; ConfigError if there is none of that name, or it is a guest's."""
    return datapath.nic_queues(name)


def fdb(datapath: Datapath, bridge: str) -> list[FdbEntry]:
    """The addresses a bridge has learned; ConfigError if there is no such bridge."""
    return datapath.fdb(bridge)


def fdb_stats(datapath: Datapath, bridge: str) -> dict[str, int]:
    """What became of the addresses a bridge has met; ConfigError if there is no such bridge."""
    return datapath.fdb_stats(bridge)


def pmds(datapath: Datapath, seconds: int = 60) -> list[PmdState]:
    """The poll threads and their counters since the last clear; queues' shares are of the last ``seconds``."""
    return datapath.pmds(seconds)
