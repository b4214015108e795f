"""The daemon's life: claim the run directory, serve the database, start the datapath, turn until told to stop.

One thread turns everything here; the poll threads of the datapath and the embedded server have their own. What is
waited for: the database, the control socket, the datapath's event descriptor, signals, and two timers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsvhost import apply
from ovsvhost.daemon import commands, rows
from ovsvhost.daemon.answers import Answers
from ovsvhost.daemon.control import Control
from ovsvhost.daemon.process import (
    Pidfile,
    StopSignals,
    notify,
    raise_descriptor_limit,
    sole_user_of,
)
from ovsvhost.daemon.settings import Startup, startup
from ovsvhost.daemon.unixctl import Command, UnixctlServer
from ovsvhost.errors import ConfigError, OvsvhostError
from ovsvhost.options import socket_directory
from ovsvhost.poll import Poller
from ovsvhost.rundir import DATABASE_SOCKET, PIDFILE, make_private
from ovsvhost.store import idl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLUSH_S = 1.0
"""How long the last words may take to reach the database."""

_log = logging.getLogger("ovsvhost.daemon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says.

    Attributes:
        rundir: sockets and pid file; created 0700.
        state_dir: file of the embedded database.
        remote: an external database; None starts the embedded one.
        pidfile: one more pid file, beside the one in the run directory.
    """

    rundir: Path
    state_dir: Path
    remote: str | None = None
    pidfile: Path | None = None


@dataclass(slots=True)
class _Turn:
    """What is alive now; `control` is None until the database was read."""

    stop: StopSignals
    control: Control | None = None
    asked_to_exit: bool = False

    def wanted(self) -> Control:
        if self.control is None:
            raise ConfigError("the switch is starting: its database has not been read yet; try again")
        return self.control

    @property
    def over(self) -> bool:
        return self.stop.stopped or self.asked_to_exit


def run(settings: Settings) -> None:
    """Runs the daemon until SIGTERM, SIGINT or ``exit``. Main thread only.

    Raises:
        OvsvhostError: it could not start; the text says why and the cure.
    """
    raise_descriptor_limit()
    rundir = make_private(settings.rundir)
    idl.prepare()
    with contextlib.ExitStack() as stack:
        turn = _Turn(stack.enter_context(StopSignals()))
        stack.enter_context(sole_user_of(rundir, rundir / PIDFILE))
        stack.enter_context(Pidfile(rundir / PIDFILE))
        if settings.pidfile is not None and settings.pidfile != rundir / PIDFILE:
            stack.enter_context(Pidfile(settings.pidfile))
        unixctl = UnixctlServer(rundir / f"ovs-vswitchd.{os.getpid()}.ctl", _commands(turn))
        stack.callback(unixctl.close)
        remote = settings.remote or _embedded_database(settings, rundir, stack)
        _serve(turn, unixctl, remote, rundir)


def _embedded_database(settings: Settings, rundir: Path, stack: contextlib.ExitStack) -> str:
    from ovsvhost.store.server import EmbeddedServer  # noqa: PLC0415 - not needed with --db

    make_private(settings.state_dir)
    server = EmbeddedServer(database=settings.state_dir / "conf.db", socket=rundir / DATABASE_SOCKET)
    server.start()
    stack.callback(server.stop)
    return server.remote


def _serve(turn: _Turn, unixctl: UnixctlServer, remote: str, rundir: Path) -> None:
    def go_on(poller: Poller) -> bool:
        unixctl.run()
        unixctl.wait(poller)
        turn.stop.wait(poller)
        return not turn.over

    _log.info("asking database %s for its rows", remote)
    schema = idl.fetch_schema(remote, None, go_on)
    if schema is None:
        return
    replica = idl.Replica(remote, schema, rows.COLUMNS)
    replica.set_lock(idl.LOCK)
    poller = Poller()
    link = _DatabaseLink(remote)
    try:
        while not turn.over:
            replica.run()
            link.report(replica)
            if turn.control is None and replica.connected and replica.has_lock:
                turn.control = _start(replica, rundir)
                turn.control.run()
                notify("READY=1")
                _log.info("ready", extra={"rundir": str(rundir), "database": remote})
            elif turn.control is not None:
                turn.control.run()
            if not go_on(poller):
                break
            replica.wait(poller)
            if turn.control is not None:
                turn.control.wait(poller)
            poller.block()
        notify("STOPPING=1")
        if turn.control is not None:
            turn.control.stop()
            _flush(replica)
        _log.info("stopped")
    finally:
        if turn.control is not None:
            apply.close(turn.control.datapath)
        replica.close()


def _start(replica: idl.Replica, rundir: Path) -> Control:
    """Starts the datapath with the options that the database holds now."""
    root = rows.Reader().read(replica.tables)
    at_start = startup(root.other_config if root else {})
    for notice in at_start.notices:
        _log.warning("%s", notice)
    _socket_directory(at_start, rundir)
    datapath = apply.open_datapath(rundir, at_start.restart_hold_ms)
    if at_start.iommu:
        apply.offer_iommu(datapath)
        _log.info("IOMMU support for vhost-user-client enabled.")
    if at_start.postcopy:
        try:
            apply.offer_postcopy(datapath)
            _log.info("POSTCOPY support for vhost-user-client enabled.")
        except OvsvhostError as error:
            _log.error("other_config:vhost-postcopy-support=true is not in force: %s", error)
    return Control(datapath, replica, at_start, rundir, apply.VERSION)


def _socket_directory(at_start: Startup, rundir: Path) -> None:
    """Creates ``vhost-sock-dir`` and says which directory is in use; a refusal is said by every row it concerns."""
    try:
        directory = socket_directory(rundir, at_start.sock_dir)
        if directory != rundir:
            make_private(directory)
            _log.info("User-provided vhost-sock-dir in use: %s", directory)
    except OvsvhostError as error:
        _log.error("%s", error)


def _flush(replica: idl.Replica) -> None:
    """Lets the last writes reach the database, for a second at most."""
    poller = Poller()
    deadline = time.monotonic() + FLUSH_S
    while time.monotonic() < deadline:
        replica.run()
        if not (replica.connected and replica.unanswered):
            break
        replica.wait(poller)
        poller.timer_wait((deadline - time.monotonic()) * 1000)
        poller.block()


class _DatabaseLink:
    """Says once when the database goes, comes back, or is another switch's."""

    def __init__(self, remote: str) -> None:
        self._remote = remote
        self._state = "new"

    def report(self, replica: idl.Replica) -> None:
        if replica.is_lock_contended and not replica.has_lock:
            state = "contended"
        elif replica.connected:
            state = "served"
        else:
            state = "new" if self._state == "new" else "gone"
        match self._state, state:
            case before, now if before == now:
                return
            case _, "contended":
                _log.error(
                    "database %s is served by another switch, which holds its lock %s: "
                    "stop that one, or give another --db",
                    self._remote,
                    idl.LOCK,
                )
            case _, "gone":
                _log.warning("database %s does not answer; the switch goes on as configured", self._remote)
            case "gone", "served":
                _log.info("database %s is back", self._remote)
            case "contended", "served":
                _log.info("database %s is this switch's now", self._remote)
        self._state = state


def _commands(turn: _Turn) -> dict[str, Command]:
    def leave(_arguments: list[str]) -> str:
        turn.asked_to_exit = True
        return ""

    def ask(answer: Callable[[Answers, list[str]], str]) -> Callable[[list[str]], str]:
        return lambda arguments: answer(turn.wanted().answers, arguments)

    pmd = {
        "pmd-rxq-show": Command(ask(Answers.pmd_rxq_show), "[-pmd core] [-secs secs] [dp]", 0, 5),
        "pmd-stats-show": Command(ask(Answers.pmd_stats_show), "[-pmd core] [dp]", 0, 3),
        "pmd-stats-clear": Command(ask(Answers.pmd_stats_clear), "[-pmd core] [dp]", 0, 3),
        "pmd-perf-show": Command(ask(Answers.pmd_perf_show), "[-nh | -hist] [-pmd core] [dp]", 0, 4),
        "pmd-sleep-show": Command(ask(Answers.pmd_sleep_show), "[-pmd core] [dp]", 0, 3),
        "pmd-rxq-rebalance": Command(ask(Answers.pmd_rxq_rebalance), "[dp]", 0, 1),
    }
    members = {
        "set-active": Command(ask(Answers.bond_set_active_member), "port member", 2, 2),
        "enable": Command(ask(Answers.bond_enable_member), "port member", 2, 2),
        "disable": Command(ask(Answers.bond_disable_member), "port member", 2, 2),
    }
    return {
        "exit": Command(leave, "[--cleanup]", 0, 1),
        "version": Command(lambda _arguments: f"ovsvhost {apply.VERSION}"),
        "vlog/list": Command(lambda _arguments: commands.vlog_list(_levels())),
        "fdb/show": Command(ask(Answers.fdb_show), "bridge", 1, 1),
        "fdb/flush": Command(ask(Answers.fdb_flush), "[bridge]", 0, 1),
        "fdb/stats-show": Command(ask(Answers.fdb_stats_show), "bridge", 1, 1),
        "bond/list": Command(ask(Answers.bond_list)),
        "bond/show": Command(ask(Answers.bond_show), "[port]", 0, 1),
        "lacp/show": Command(ask(Answers.lacp_show), "[port]", 0, 1),
        "bond/migrate": Command(ask(Answers.bond_migrate), "port hash member", 3, 3),
        # what OVS called them before 2.17 too
        **{f"bond/{verb}-{what}": command for what in ("member", "slave") for verb, command in members.items()},
        "ovsvhost/nic-show": Command(ask(Answers.nic_show), "[-hist] [port]", 0, 2),
        **{f"{prefix}{name}": command for prefix in ("dpif-netdev/", "") for name, command in pmd.items()},
    }


def _levels() -> dict[str, str]:
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    return dict.fromkeys(("daemon", "datapath", "store", "unixctl"), level)
