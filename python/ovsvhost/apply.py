"""Carries a plan out. The only module that changes the datapath.

An action that the datapath refuses does not stop the others: it comes back as a ``Failure`` with the identity of the
bridge or port it was about, so that the reason lands at that row and nobody else's traffic notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost._core import Datapath, __version__
from ovsvhost.errors import OvsvhostError
from ovsvhost.model import MTU_DEFAULT, RESTART_HOLD_MS, Bridge
from ovsvhost.plan import AddBridge, AddPort, DelBridge, DelPort, SetBridge, SetPort

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ovsvhost._core import Event
    from ovsvhost.observed import Ledger
    from ovsvhost.plan import Action


VERSION = __version__
"""The product's one version, as the core was built with it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that was refused.

    Attributes:
        key: identity of the bridge or port.
        error: what the core raised; its text names the object and the cure.
    """

    key: str
    error: OvsvhostError


def open_datapath(
    pmd_cpus: Iterable[int] = (),
    max_sleep_us: int | None = None,
    rundir: Path | None = None,
    restart_hold_ms: int = RESTART_HOLD_MS,
) -> Datapath:
    """Starts the poll threads. ConfigError for a core this process may not use, KernelError when one cannot start.

    With ``rundir``, where each ring stands outlives this process: the next one on the same directory goes on from
    there. If this one finds that the one before died, no guest is polled for ``restart_hold_ms`` while a port that was
    up is not back.
    """
    return Datapath(
        pmd_cpus=sorted(pmd_cpus), max_sleep_us=max_sleep_us, rundir=rundir, restart_hold_ms=restart_hold_ms
    )


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


def flush_fdb(datapath: Datapath, bridge: str) -> None:
    """Forgets every learned address of a bridge; ConfigError if there is no such bridge."""
    datapath.flush_fdb(bridge)


def clear_pmd_stats(datapath: Datapath) -> None:
    """Starts the poll threads' counters at zero."""
    datapath.clear_pmd_stats()


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
        case AddPort(bridge=on, port=port):
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
            )
            ledger.ports[port.name] = port
        case SetPort(port=port, changes=changes):
            datapath.set_port(port.name, **changes)
            ledger.ports[port.name] = port


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
        case AddPort(port=port) | SetPort(port=port):
            return port.key
