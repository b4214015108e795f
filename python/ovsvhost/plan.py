"""From what is to what shall be: a pure function.

``plan(desired, observed)`` lists the actions, in an order in which each is possible: the poll threads and what guests
are offered first, then what goes (it frees names, sockets and numbers), then bridges, then ports. Carrying them out and
planning again gives nothing; so a restart of the control side over an unchanged database is the empty plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from ovsvhost.model import NicPort, Port

if TYPE_CHECKING:
    from ovsvhost.model import AnyPort, Bond, Bridge, Desired, FeatureLimit, PollThreads, TxSteering
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
class AddBond:
    """Add a bond to a bridge, without its links: those are added as ports."""

    bridge: str
    bond: Bond


@dataclass(frozen=True, slots=True)
class SetBond:
    """Change a bond live."""

    bond: Bond


@dataclass(frozen=True, slots=True)
class DelBond:
    """Delete a bond whose links are gone."""

    key: str
    name: str


@dataclass(frozen=True, slots=True)
class AddPort:
    """Add a port to a bridge."""

    bridge: str
    port: AnyPort


@dataclass(frozen=True, slots=True)
class SetUp:
    """Set a NIC port's device up, once: whoever sets it down later has a reason."""

    port: NicPort


@dataclass(frozen=True, slots=True)
class SetNic:
    """Attach a NIC port's device anew, with other settings; its counters go on."""

    port: NicPort


class PortChanges(TypedDict, total=False):
    """What can change with the guest attached; what is not there stays."""

    mtu: int
    tx_retries_max: int
    backpressure_us: int
    tx_steering: TxSteering
    dq_zero_copy: bool


@dataclass(frozen=True, slots=True)
class SetPort:
    """Change a port live."""

    port: AnyPort
    changes: PortChanges


@dataclass(frozen=True, slots=True)
class SetAffinity:
    """Pin a port's queues to cores; those not named are shared out."""

    port: AnyPort
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
    | AddBond
    | SetBond
    | DelBond
    | SetUp
    | SetNic
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
    wanted_ports = {
        port.name: (bridge.name, _settled(port, observed)) for bridge in desired.bridges for port in bridge.ports
    }

    kept_bridges = {
        name
        for name, bridge in observed.bridges.items()
        if name in wanted_bridges and wanted_bridges[name].key == bridge.key
    }
    wanted_bonds = {bond.name: (bridge.name, bond) for bridge in desired.bridges for bond in bridge.bonds}
    kept_bonds = {
        name
        for name, (bridge, bond) in observed.bonds.items()
        if bridge in kept_bridges and name in wanted_bonds and _identity(*wanted_bonds[name]) == _identity(bridge, bond)
    }
    kept_ports = {
        name
        for name, (bridge, port) in observed.ports.items()
        if bridge in kept_bridges and name in wanted_ports and _same(wanted_ports[name], (bridge, port))
        if isinstance(port, Port) or port.bond is None or port.bond in kept_bonds
    }

    actions = _poll_threads(desired.pmds, observed.pmds)
    if desired.feature_limit != observed.feature_limit:
        actions.append(LimitFeatures(desired.feature_limit))
    actions += [DelPort(port.key, name) for name, (_, port) in observed.ports.items() if name not in kept_ports]
    actions += [DelBond(bond.key, name) for name, (_, bond) in observed.bonds.items() if name not in kept_bonds]
    actions += [DelBridge(bridge.key, name) for name, bridge in observed.bridges.items() if name not in kept_bridges]
    for bridge in desired.bridges:
        bare = replace(bridge, ports=(), bonds=())
        if bridge.name not in kept_bridges:
            actions.append(AddBridge(bare))
        elif observed.bridges[bridge.name] != bare:
            actions.append(SetBridge(bare))
    for name, (on, bond) in wanted_bonds.items():
        if name not in kept_bonds:
            actions.append(AddBond(on, bond))
        elif observed.bonds[name][1] != bond:
            actions.append(SetBond(bond))
    actions += [SetUp(port) for _, port in wanted_ports.values() if isinstance(port, NicPort) and _lies(port, observed)]
    # Devices first: after a crash what guests sent waits for those that are known.
    for name, (bridge_name, port) in sorted(wanted_ports.items(), key=lambda item: isinstance(item[1][1], Port)):
        if name not in kept_ports:
            actions.append(AddPort(bridge_name, port))
            continue
        _, now = observed.ports[name]
        if isinstance(port, NicPort) and isinstance(now, NicPort) and port.settings != now.settings:
            actions.append(SetNic(port))
        if changes := _changes(port, now):
            actions.append(SetPort(port, changes))
        if port.rxq_affinity is not None and port.rxq_affinity != now.rxq_affinity:
            actions.append(SetAffinity(port, port.rxq_affinity))
    return tuple(actions)


def _identity(bridge: str, bond: Bond) -> tuple[str, str]:
    """What makes a bond another one."""
    return bridge, bond.key


def _poll_threads(wanted: PollThreads, now: PollThreads) -> list[Action]:
    actions: list[Action] = []
    if (wanted.max_sleep_us, wanted.max_sleep_us_of) != (now.max_sleep_us, now.max_sleep_us_of):
        actions.append(SetSleep(wanted))
    if (wanted.assign, wanted.isolate, wanted.auto_balance) != (now.assign, now.isolate, now.auto_balance):
        actions.append(SetSharing(wanted))
    if wanted.cpus != now.cpus:
        actions.append(SetPmds(wanted.cpus))
    return actions


def _settled(port: AnyPort, observed: Observed) -> AnyPort:
    """A NIC port's settings for which something impossible is asked stay as they are, or have their defaults."""
    if isinstance(port, Port) or not port.keeps:
        return port
    _, now = observed.ports.get(port.name, (None, None))
    kept = {}
    if isinstance(now, NicPort) and now.key == port.key:
        kept = {name: getattr(now.settings, name) for name in port.keeps}
    return replace(port, settings=replace(port.settings, **kept), keeps=frozenset())


def _lies(port: NicPort, observed: Observed) -> bool:
    """Whether the port's device is down and was not set up here before."""
    link = observed.links.get(port.device)
    return port.brings_up and link is not None and not link.admin_up and link.ifindex not in observed.set_up


def _same(wanted: tuple[str, AnyPort], now: tuple[str, AnyPort]) -> bool:
    """Whether one can become the other with its guest attached."""
    (bridge, port), (was_on, there) = wanted, now
    if bridge != was_on:
        return False
    match port, there:
        case Port(), Port():
            return port == replace(
                there,
                mtu=port.mtu,
                tx_retries_max=port.tx_retries_max,
                backpressure_us=port.backpressure_us,
                tx_steering=port.tx_steering,
                dq_zero_copy=port.dq_zero_copy,
                rxq_affinity=port.rxq_affinity,
            )
        case NicPort(), NicPort():
            return port == replace(
                there,
                mtu=port.mtu,
                tx_retries_max=port.tx_retries_max,
                brings_up=port.brings_up,
                settings=port.settings,
                rxq_affinity=port.rxq_affinity,
            )
    return False


def _changes(wanted: AnyPort, now: AnyPort) -> PortChanges:
    changes: PortChanges = {}
    if wanted.mtu is not None and wanted.mtu != now.mtu:
        changes["mtu"] = wanted.mtu
    if wanted.tx_retries_max != now.tx_retries_max:
        changes["tx_retries_max"] = wanted.tx_retries_max
    if isinstance(wanted, Port) and isinstance(now, Port):
        if wanted.backpressure_us != now.backpressure_us:
            changes["backpressure_us"] = wanted.backpressure_us
        if wanted.tx_steering != now.tx_steering:
            changes["tx_steering"] = wanted.tx_steering
        if wanted.dq_zero_copy != now.dq_zero_copy:
            changes["dq_zero_copy"] = wanted.dq_zero_copy
    return changes
