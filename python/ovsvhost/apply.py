"""Carries a plan out. The only module that changes the datapath.

An action that the datapath refuses does not stop the others: it comes back as a ``Failure`` with the identity of the
bridge or port it was about, so that the reason lands at that row and nobody else's traffic notices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from ovsvhost import vhost_features
from ovsvhost._core import Datapath, __version__
from ovsvhost.errors import OvsvhostError
from ovsvhost.model import MTU_DEFAULT, RESTART_HOLD_MS, Bridge, NicPort, Port
from ovsvhost.nic import device
from ovsvhost.plan import (
    AddBond,
    AddBridge,
    AddPort,
    DelBond,
    DelBridge,
    DelPort,
    LimitFeatures,
    SetAffinity,
    SetBond,
    SetBridge,
    SetNic,
    SetPmds,
    SetPort,
    SetSharing,
    SetSleep,
    SetUp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovsvhost._core import Event, LacpArguments
    from ovsvhost.model import AnyPort, Bond, BondMode, Lacp, NicSettings, XdpMode
    from ovsvhost.observed import Ledger
    from ovsvhost.plan import Action


VERSION = __version__
"""The product's one version, as the core was built with it."""


class _NicArguments(TypedDict):
    """Settings under the core's names."""

    n_rxq: int
    n_rxq_desc: int
    n_txq_desc: int
    xdp_mode: XdpMode
    use_need_wakeup: bool
    start_queue: int
    busy_budget: int
    zc_queues: int
    zc_min: int


class _BondArguments(TypedDict):
    """Likewise, of a bond."""

    mode: BondMode
    updelay_ms: int
    downdelay_ms: int
    primary: str | None
    rebalance_ms: int
    lacp: LacpArguments | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that was refused.

    Attributes:
        key: identity of the bridge or port, or the option that it was about.
        error: what the core raised; its text names the object and the cure.
    """

    key: str
    error: OvsvhostError


def open_datapath(rundir: Path | None = None, restart_hold_ms: int = RESTART_HOLD_MS) -> Datapath:
    """Starts a datapath with one poll thread, on the first core allowed; KernelError when it cannot start.

    With ``rundir``, where each ring stands outlives this process: the next one on the same directory goes on from
    there. If this one finds that the one before died, no guest is polled for ``restart_hold_ms`` while a port that was
    up is not back.
    """
    return Datapath(rundir=rundir, restart_hold_ms=restart_hold_ms)


def offer_postcopy(datapath: Datapath) -> None:
    """Client ports added from now on offer post-copy migration.

    Raises:
        ConfigError: this process's memory is locked.
        KernelError: it may not use userfaultfd; the text says what to set.
    """
    datapath.offer_postcopy()


def offer_iommu(datapath: Datapath) -> None:
    """Client ports added from now on serve guests that have an IOMMU before the device."""
    datapath.offer_iommu()


def apply(datapath: Datapath, ledger: Ledger, actions: Iterable[Action]) -> list[Failure]:
    """Carries out ``actions`` in order and records in ``ledger`` what was accepted.

    Deleting a port waits until its guest has its buffers back (at most a second); all else returns at once.
    """
    failures = []
    for action in actions:
        try:
            _carry_out(datapath, ledger, action)
        except OvsvhostError as error:
            failures.append(Failure(_key(action), error))
    return failures


def take_events(datapath: Datapath) -> list[Event]:
    """Takes what happened since the last call, oldest first, and clears the event descriptor."""
    return datapath.events()


def refresh_nic(datapath: Datapath, name: str) -> None:
    """Has a NIC port look at its device, about which something changed; returns at once."""
    datapath.refresh_nic(name)


def activate_link(datapath: Datapath, bond: str, link: str) -> bool:
    """Makes an enabled link of a bond its active one; True if that is new, ConfigError if it cannot be."""
    return datapath.activate_link(bond, link)


def hold_link(datapath: Datapath, bond: str, link: str, *, enabled: bool) -> None:
    """Enables or disables a link of a bond until its carrier changes; ConfigError if there is none."""
    datapath.hold_link(bond, link, enabled)


def give_share(datapath: Datapath, bond: str, share: int, link: str) -> None:
    """Gives a share of a bond's frames to an enabled link; ConfigError if that cannot be."""
    datapath.give_share(bond, share, link)


def flush_fdb(datapath: Datapath, bridge: str) -> None:
    """Forgets every learned address of a bridge; ConfigError if there is no such bridge."""
    datapath.flush_fdb(bridge)


def clear_pmd_stats(datapath: Datapath, cpu: int | None = None) -> None:
    """Starts the poll threads' counters at zero: the one's on ``cpu``, or all."""
    datapath.clear_pmd_stats(cpu)


def rebalance(datapath: Datapath) -> None:
    """Shares every queue out anew among the poll threads; returns when each is in its place."""
    datapath.rebalance()


def close(datapath: Datapath) -> None:
    """Stops the datapath; rings are drained first. May be called again."""
    datapath.close()


def _carry_out(datapath: Datapath, ledger: Ledger, action: Action) -> None:
    match action:
        case DelPort(name=name):
            datapath.del_port(name)
            ledger.ports.pop(name, None)
        case DelBridge(name=name):
            datapath.del_bridge(name)
            ledger.bridges.pop(name, None)
        case AddBridge(bridge=bridge):
            datapath.add_bridge(bridge.name)
            ledger.bridges[bridge.name] = Bridge(key=bridge.key, name=bridge.name)
            _set_bridge(datapath, ledger, bridge)
        case SetBridge(bridge=bridge):
            _set_bridge(datapath, ledger, bridge)
        case AddBond(bridge=on, bond=bond):
            datapath.add_bond(on, bond.name, last_active=bond.last_active, **_bond(bond))
            ledger.bonds[bond.name] = (on, bond)
        case SetBond(bond=bond):
            datapath.set_bond(bond.name, **_bond(bond))
            ledger.bonds[bond.name] = (ledger.bonds[bond.name][0], bond)
        case DelBond(name=name):
            datapath.del_bond(name)
            ledger.bonds.pop(name, None)
        case SetUp(port=nic):
            ledger.set_up.add(device.set_up(nic.device))
        case SetNic(port=nic):
            datapath.set_nic(nic.name, **_nic(nic.settings))
            there = ledger.ports[nic.name]
            ledger.ports[nic.name] = replace(nic, rxq_affinity=there.rxq_affinity, tx_retries_max=there.tx_retries_max)
        case AddPort(bridge=on, port=NicPort() as port):
            settings = _nic(port.settings)
            datapath.add_nic(
                on,
                port.name,
                ofport=port.ofport,
                netdev=port.device,
                driver=port.driver,
                mtu=port.mtu,
                tx_retries_max=port.tx_retries_max,
                bond=port.bond,
                **settings,
            )
            _keep(datapath, ledger, port)
        case AddPort(bridge=on, port=Port() as port):
            datapath.add_port(
                on,
                port.name,
                type=port.type,
                ofport=port.ofport,
                socket=port.socket,
                mtu=port.mtu or MTU_DEFAULT,
                tx_retries_max=port.tx_retries_max,
                backpressure_us=port.backpressure_us,
                tx_steering=port.tx_steering,
                socket_mode=port.socket_mode,
                socket_owner=port.socket_owner,
                socket_group=port.socket_group,
                allow_file_memory=port.allow_file_memory,
                dq_zero_copy=port.dq_zero_copy,
            )
            _keep(datapath, ledger, port)
        case SetPort(port=NicPort() as nic, changes=changes):
            datapath.set_port(nic.name, **changes)
            ledger.ports[nic.name] = replace(ledger.ports[nic.name], tx_retries_max=nic.tx_retries_max)
        case SetPort(port=port, changes=changes):
            datapath.set_port(port.name, **changes)
            ledger.ports[port.name] = replace(port, rxq_affinity=ledger.ports[port.name].rxq_affinity)
        case SetAffinity(port=port, cpus=cpus):
            _set_affinity(datapath, ledger, port.name, cpus)
        case SetPmds(cpus=cpus):
            datapath.set_pmds(sorted(cpus))
            ledger.pmds = replace(ledger.pmds, cpus=cpus)
        case SetSleep(pmds=pmds):
            datapath.set_sleep(pmds.max_sleep_us, dict(pmds.max_sleep_us_of))
            ledger.pmds = replace(ledger.pmds, max_sleep_us=pmds.max_sleep_us, max_sleep_us_of=pmds.max_sleep_us_of)
        case SetSharing(pmds=pmds):
            auto = pmds.auto_balance
            datapath.set_sharing(
                pmds.assign,
                isolate=pmds.isolate,
                auto_lb=None if auto is None else (auto.every_min, auto.load_pct, auto.improvement_pct),
            )
            ledger.pmds = replace(ledger.pmds, assign=pmds.assign, isolate=pmds.isolate, auto_balance=auto)
        case LimitFeatures(limit=limit):
            datapath.limit_features(limit)
            ledger.feature_limit = limit


def _keep(datapath: Datapath, ledger: Ledger, port: AnyPort) -> None:
    """Writes a new port down, and pins its queues."""
    ledger.ports[port.name] = replace(port, rxq_affinity=())
    if port.rxq_affinity:
        _set_affinity(datapath, ledger, port.name, port.rxq_affinity)


def _nic(settings: NicSettings) -> _NicArguments:
    return {
        "n_rxq": settings.n_rxq,
        "n_rxq_desc": settings.n_rxq_desc,
        "n_txq_desc": settings.n_txq_desc,
        "xdp_mode": settings.xdp_mode,
        "use_need_wakeup": settings.use_need_wakeup,
        "start_queue": settings.xdp_start_queue,
        "busy_budget": settings.xdp_busy_budget,
        "zc_queues": settings.xdp_zc_queues,
        "zc_min": settings.xdp_zc_min,
    }


def _bond(bond: Bond) -> _BondArguments:
    return {
        "mode": bond.mode,
        "updelay_ms": bond.updelay_ms,
        "downdelay_ms": bond.downdelay_ms,
        "primary": bond.primary,
        "rebalance_ms": bond.rebalance_ms,
        "lacp": _lacp(bond.lacp) if bond.lacp is not None else None,
    }


def _lacp(lacp: Lacp) -> LacpArguments:
    return {
        "active": lacp.active,
        "fast": lacp.fast,
        "system": lacp.system,
        "system_priority": lacp.system_priority,
        "key": lacp.key,
        "fallback_ab": lacp.fallback_ab,
        "ports": {port.name: (port.port_id, port.priority, port.key) for port in lacp.ports},
    }


def _set_affinity(datapath: Datapath, ledger: Ledger, name: str, cpus: tuple[tuple[int, int], ...]) -> None:
    datapath.set_affinity(name, dict(cpus))
    ledger.ports[name] = replace(ledger.ports[name], rxq_affinity=cpus)


def _set_bridge(datapath: Datapath, ledger: Ledger, bridge: Bridge) -> None:
    datapath.set_bridge(
        bridge.name,
        mac_aging_time_s=bridge.mac_aging_time_s,
        mac_table_size=bridge.mac_table_size,
        forward_bpdu=bridge.forward_bpdu,
    )
    ledger.bridges[bridge.name] = bridge


def _key(action: Action) -> str:
    match action:
        case DelPort(key=key) | DelBridge(key=key):
            return key
        case AddBridge(bridge=bridge) | SetBridge(bridge=bridge):
            return bridge.key
        case DelBond(key=key):
            return key
        case AddBond(bond=bond) | SetBond(bond=bond):
            return bond.key
        case AddPort(port=port) | SetPort(port=port) | SetAffinity(port=port):
            return port.key
        case SetUp(port=nic) | SetNic(port=nic):
            return nic.key
        case SetPmds():
            return "pmd-cpu-mask"
        case SetSleep():
            return "pmd-sleep-max"
        case SetSharing():
            return "pmd-rxq-assign"
        case LimitFeatures():
            return vhost_features.KEY
