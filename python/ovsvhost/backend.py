"""What stands behind `ovsvhost.Switch`: the questions that its objects ask, and the shape of the answers.

Two answer them: `ovsvhost.inprocess` and `ovsvhost.remote`. What one refuses the other refuses, in the same words where
both can judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ovsvhost.model import NicType, PortType


def no_port(name: str, bridge: str | None = None, ports: Iterable[str] = ()) -> ConfigError:
    """What is raised for a port that is not there: on ``bridge``, which has ``ports``, or nowhere."""
    if bridge is None:
        return ConfigError(f"there is no port {name!r}: add it with add_port")
    there = ", ".join(sorted(ports))
    return ConfigError(
        f"there is no port {name!r} on bridge {bridge!r}: {f'its ports are {there}' if there else 'it has none'}"
    )


class PortView(Protocol):
    """What a port is, read at one moment; the datapath's own `PortState` is one."""

    @property
    def bridge(self) -> str:
        """The bridge it is on."""

    @property
    def ofport(self) -> int:
        """Its number on the bridge."""

    @property
    def link_up(self) -> bool:
        """Whether a guest is there and its first queue pair runs; of a network device, whether it has a carrier."""

    @property
    def link_resets(self) -> int:
        """How often the link changed."""

    @property
    def mtu(self) -> int:
        """Bytes of IP payload."""

    @property
    def error(self) -> str | None:
        """Why the link is down or degraded, with the cure."""

    @property
    def status(self) -> dict[str, str]:
        """As the ``status`` column of ``Interface``."""

    @property
    def statistics(self) -> dict[str, int]:
        """As the ``statistics`` column of ``Interface``."""


class FdbView(Protocol):
    """One learned address; the datapath's own `FdbEntry` is one."""

    @property
    def ofport(self) -> int:
        """Where it is."""

    @property
    def vlan(self) -> int:
        """0 when untagged."""

    @property
    def mac(self) -> str:
        """``aa:bb:cc:dd:ee:ff``."""

    @property
    def age_s(self) -> int:
        """Seconds since it was heard."""


class Backend(Protocol):
    """What carries a `Switch` out."""

    @property
    def closed(self) -> bool:
        """Whether there is nothing to ask any more."""

    def close(self) -> None:
        """Ends it."""

    def bridges(self) -> Sequence[str]:
        """Names."""

    def add_bridge(self, name: str, mac_aging_time_s: int, mac_table_size: int, forward_bpdu: bool) -> None:
        """Adds a bridge."""

    def del_bridge(self, name: str) -> None:
        """Deletes a bridge and its ports."""

    def fdb(self, bridge: str) -> Sequence[FdbView]:
        """The addresses a bridge has learned."""

    def flush_fdb(self, bridge: str) -> None:
        """Forgets them."""

    def ports(self, bridge: str) -> Sequence[str]:
        """Names of the ports of a bridge."""

    def add_port(
        self,
        bridge: str,
        name: str,
        *,
        type: PortType | NicType,  # noqa: A002 - the column's name
        options: Mapping[str, str],
        ofport: int | None,
        mtu: int | None,
        other_config: Mapping[str, str],
    ) -> None:
        """Adds a port to a bridge."""

    def del_port(self, bridge: str, name: str) -> None:
        """Deletes a port."""

    def set_mtu(self, name: str, mtu: int) -> None:
        """Changes a port's MTU live."""

    def port(self, name: str) -> PortView:
        """A port's state, read now."""

    def set_rxq_affinity(self, name: str, affinity: str) -> None:
        """Pins queues of a port to cores, live."""

    def set_pmds(self, settings: Mapping[str, str]) -> None:
        """Sets the poll threads up anew, live."""

    def rebalance(self) -> None:
        """Shares the queues out anew."""

    def wait_change(self, timeout_ms: float) -> None:
        """Waits until something may have changed."""
