"""From what is to what shall be: a pure function.

``plan(desired, observed)`` lists the actions, in an order in which each is possible: the poll threads and what guests
are offered first, then what goes (it frees names, sockets and numbers), then bridges, then ports. Carrying them out and
planning again gives nothing; so a restart of the control side over an unchanged database is the empty plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    from ovsvhost.model import Bridge, Desired, FeatureLimit, PollThreads, Port, TxSteering
    from ovsvhost.observed import Observed


@dataclass(frozen=True, slots=True)
class DelPort:
    """Delete a port; its guest gets every buffer back."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class DelBridge:
    """Delete a bridge whose ports are gone."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class AddBridge:
    """Add a bridge, without its ports."""

    bridge: Bridge


@dataclass(frozen=True, slots=True)
class SetBridge:
    """Change a bridge's settings live."""

    bridge: Bridge


@dataclass(frozen=True, slots=True)
class AddPort:
    """Add a port to a bridge."""

    bridge: str
    port: Port


class PortChanges(TypedDict, total=False):
    """What can change with the guest attached; what is not there stays."""

    mtu: int
    tx_retries_max: int
    backpressure_us: int
    tx_steering: TxSteering


@dataclass(frozen=True, slots=True)
class SetPort:
    """Change a port live."""

    port: Port
    changes: PortChanges


@dataclass(frozen=True, slots=True)
class SetAffinity:
    """Pin a port's queues to cores; those not named are shared out."""

    port: Port
    cpus: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SetPmds:
    """Change which cores have poll threads; queues move without losing a frame."""

    cpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class SetSleep:
    """Change how long idle poll threads may sleep."""

    pmds: PollThreads


@dataclass(frozen=True, slots=True)
class SetSharing:
    """Change how queues are shared out among the poll threads."""

    pmds: PollThreads


@dataclass(frozen=True, slots=True)
class LimitFeatures:
    """Change what guests that start from now on are offered at most."""

    limit: FeatureLimit


Action: TypeAlias = (
    DelPort
    | DelBridge
    | AddBridge
    | SetBridge
    | AddPort
    | SetPort
    | SetAffinity
    | SetPmds
    | SetSleep
    | SetSharing
    | LimitFeatures
)


def plan(desired: Desired, observed: Observed) -> tuple[Action, ...]:
    """The actions that make ``observed`` into ``desired``, in order; empty when nothing is to do."""
    wanted_bridges = {bridge.name: bridge for bridge in desired.bridges}
    wanted_ports = {port.name: (bridge.name, port) for bridge in desired.bridges for port in bridge.ports}

    kept_bridges = {
        name
        for name, bridge in observed.bridges.items()
        if name in wanted_bridges and wanted_bridges[name].key == bridge.key
    }
    kept_ports = {
        name
        for name, (bridge, port) in observed.ports.items()
        if bridge in kept_bridges and name in wanted_ports and _same(wanted_ports[name], (bridge, port))
    }

    actions = _poll_threads(desired.pmds, observed.pmds)
    if desired.feature_limit != observed.feature_limit:
        actions.append(LimitFeatures(desired.feature_limit))
    actions += [DelPort(port.key, name) for name, (_, port) in observed.ports.items() if name not in kept_ports]
    actions += [DelBridge(bridge.key, name) for name, bridge in observed.bridges.items() if name not in kept_bridges]
    for bridge in desired.bridges:
        bare = replace(bridge, ports=())
        if bridge.name not in kept_bridges:
            actions.append(AddBridge(bare))
        elif observed.bridges[bridge.name] != bare:
            actions.append(SetBridge(bare))
    for name, (bridge_name, port) in wanted_ports.items():
        if name not in kept_ports:
            actions.append(AddPort(bridge_name, port))
            continue
        _, now = observed.ports[name]
        if changes := _changes(port, now):
            actions.append(SetPort(port, changes))
        if port.rxq_affinity is not None and port.rxq_affinity != now.rxq_affinity:
            actions.append(SetAffinity(port, port.rxq_affinity))
    return tuple(actions)


def _poll_threads(wanted: PollThreads, now: PollThreads) -> list[Action]:
    actions: list[Action] = []
    if (wanted.max_sleep_us, wanted.max_sleep_us_of) != (now.max_sleep_us, now.max_sleep_us_of):
        actions.append(SetSleep(wanted))
    if (wanted.assign, wanted.isolate, wanted.auto_balance) != (now.assign, now.isolate, now.auto_balance):
        actions.append(SetSharing(wanted))
    if wanted.cpus != now.cpus:
        actions.append(SetPmds(wanted.cpus))
    return actions


def _same(wanted: tuple[str, Port], now: tuple[str, Port]) -> bool:
    """Whether one can become the other with its guest attached."""
    _, port = wanted
    live_set_aside = replace(
        now[1],
        mtu=port.mtu,
        tx_retries_max=port.tx_retries_max,
        backpressure_us=port.backpressure_us,
        tx_steering=port.tx_steering,
        rxq_affinity=port.rxq_affinity,
    )
    return wanted == (now[0], live_set_aside)


def _changes(wanted: Port, now: Port) -> PortChanges:
    changes: PortChanges = {}
    if wanted.mtu is not None and wanted.mtu != now.mtu:
        changes["mtu"] = wanted.mtu
    if wanted.tx_retries_max != now.tx_retries_max:
        changes["tx_retries_max"] = wanted.tx_retries_max
    if wanted.backpressure_us != now.backpressure_us:
        changes["backpressure_us"] = wanted.backpressure_us
    if wanted.tx_steering != now.tx_steering:
        changes["tx_steering"] = wanted.tx_steering
    return changes
