"""What ``ovs-appctl`` is told: which state a command asks for, and what it changes on the way.

How an answer is laid out is the business of ``commands``, ``bond_commands``, ``nic_commands`` and ``pmd_commands``. A
command that cannot be carried out raises ConfigError, with Open vSwitch's words where it has such a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost import apply, observed
from ovsvhost.daemon import bond_commands, commands, nic_commands, pmd_commands
from ovsvhost.errors import ConfigError
from ovsvhost.model import NicPort
from ovsvhost.numeral import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovsvhost._core import BondState, Datapath, PmdState
    from ovsvhost.model import Bridge

HASH_DIGITS = 3
"""Of the number of a bond's share, 0..255."""


class Answers:
    """The commands about one datapath, each a method of its arguments.

    Args:
        datapath: the switch.
        ledger: what it was given.
        macs: the addresses of network devices by the names of their ports.
    """

    def __init__(self, datapath: Datapath, ledger: observed.Ledger, macs: Callable[[], Mapping[str, str]]) -> None:
        self._datapath = datapath
        self._ledger = ledger
        self._macs = macs

    def fdb_show(self, arguments: list[str]) -> str:
        """``fdb/show BRIDGE``."""
        return commands.fdb_show(observed.fdb(self._datapath, self._bridge(arguments[0]).name))

    def fdb_flush(self, arguments: list[str]) -> str:
        """``fdb/flush [BRIDGE]``."""
        names = [self._bridge(arguments[0]).name] if arguments else list(self._ledger.bridges)
        for name in names:
            apply.flush_fdb(self._datapath, name)
        return "table successfully flushed"

    def fdb_stats_show(self, arguments: list[str]) -> str:
        """``fdb/stats-show BRIDGE``."""
        bridge = self._bridge(arguments[0])
        learned = observed.fdb(self._datapath, bridge.name)
        return commands.fdb_stats_show(bridge, len(learned), observed.fdb_stats(self._datapath, bridge.name))

    def bond_list(self, _arguments: list[str]) -> str:
        """``bond/list``."""
        return bond_commands.bond_list(observed.bonds(self._datapath))

    def bond_show(self, arguments: list[str]) -> str:
        """``bond/show [PORT]``."""
        bonds = [self._bond(arguments[0])] if arguments else observed.bonds(self._datapath)
        return bond_commands.bond_show(bonds, self._macs())

    def lacp_show(self, arguments: list[str]) -> str:
        """``lacp/show [PORT]``."""
        bonds = [self._bond(arguments[0])] if arguments else observed.bonds(self._datapath)
        spoken = [bond for bond in bonds if bond.lacp is not None]
        if arguments and not spoken:
            raise ConfigError("no such lacp object")
        return bond_commands.lacp_show(spoken)

    def bond_set_active_member(self, arguments: list[str]) -> str:
        """``bond/set-active-member PORT MEMBER``."""
        bond, member = self._bond_member(*arguments)
        return "done" if apply.activate_link(self._datapath, bond, member) else "no change"

    def bond_enable_member(self, arguments: list[str]) -> str:
        """``bond/enable-member PORT MEMBER``."""
        apply.hold_link(self._datapath, *self._bond_member(*arguments), enabled=True)
        return "enabled"

    def bond_disable_member(self, arguments: list[str]) -> str:
        """``bond/disable-member PORT MEMBER``."""
        apply.hold_link(self._datapath, *self._bond_member(*arguments), enabled=False)
        return "disabled"

    def bond_migrate(self, arguments: list[str]) -> str:
        """``bond/migrate PORT HASH MEMBER``."""
        name, text, member = arguments
        if self._bond(name).mode != "balance-slb":
            raise ConfigError("not an SLB bond")
        if not is_whole(text) or len(text) > HASH_DIGITS:
            raise ConfigError("bad hash")
        apply.give_share(self._datapath, name, int(text), self._bond_member(name, member)[1])
        return "migrated"

    def nic_show(self, arguments: list[str]) -> str:
        """``ovsvhost/nic-show [-hist] [PORT]``."""
        asked = nic_commands.asked(arguments)
        wanted = [name for name, port in self._ledger.ports.items() if isinstance(port, NicPort)]
        if asked.port is not None:
            if asked.port not in wanted:
                there = f"ask for {' or '.join(sorted(wanted))}" if wanted else "add one with type=afxdp"
                raise ConfigError(f"there is no port {asked.port!r} that is a network device: {there}")
            wanted = [asked.port]
        states = observed.port_states(self._datapath)
        shown = {name: (states[name], observed.nic_queues(self._datapath, name)) for name in wanted if name in states}
        return nic_commands.nic_show(shown, histograms=asked.histograms)

    def pmd_rxq_show(self, arguments: list[str]) -> str:
        """``dpif-netdev/pmd-rxq-show [-pmd CORE] [-secs SECONDS]``."""
        asked = pmd_commands.asked(arguments)
        return pmd_commands.rxq_show(self._pmds(asked), asked.seconds)

    def pmd_stats_show(self, arguments: list[str]) -> str:
        """``dpif-netdev/pmd-stats-show [-pmd CORE]``."""
        return pmd_commands.stats_show(self._pmds(pmd_commands.asked(arguments)))

    def pmd_perf_show(self, arguments: list[str]) -> str:
        """``dpif-netdev/pmd-perf-show [-hist] [-pmd CORE]``."""
        asked = pmd_commands.asked(arguments)
        return pmd_commands.perf_show(self._pmds(asked), histograms=asked.histograms)

    def pmd_sleep_show(self, arguments: list[str]) -> str:
        """``dpif-netdev/pmd-sleep-show [-pmd CORE]``."""
        return pmd_commands.sleep_show(self._pmds(pmd_commands.asked(arguments)), self._ledger.pmds.max_sleep_us)

    def pmd_stats_clear(self, arguments: list[str]) -> str:
        """``dpif-netdev/pmd-stats-clear [-pmd CORE]``."""
        apply.clear_pmd_stats(self._datapath, pmd_commands.asked(arguments).core)
        return ""

    def pmd_rxq_rebalance(self, _arguments: list[str]) -> str:
        """``dpif-netdev/pmd-rxq-rebalance``; it is done when this returns."""
        apply.rebalance(self._datapath)
        return "pmd rxq rebalance requested.\n"

    def _bridge(self, name: str) -> Bridge:
        """A bridge in force; ConfigError (OVS's words) if there is none."""
        bridge = self._ledger.bridges.get(name)
        if bridge is None:
            raise ConfigError("no such bridge")
        return bridge

    def _bond(self, name: str) -> BondState:
        """A bond; ConfigError (OVS's words) if there is none."""
        for bond in observed.bonds(self._datapath):
            if bond.name == name:
                return bond
        raise ConfigError("no such bond")

    def _bond_member(self, name: str, member: str) -> tuple[str, str]:
        """The same for a link of it."""
        if all(link.name != member for link in self._bond(name).links):
            raise ConfigError("no such member")
        return name, member

    def _pmds(self, asked: pmd_commands.Asked) -> list[PmdState]:
        pmds = observed.pmds(self._datapath, asked.seconds)
        return [pmd for pmd in pmds if asked.core is None or pmd.cpu == asked.core]
