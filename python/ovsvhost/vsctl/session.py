"""One run of a command line: connect, transact until it holds, print, wait for the daemon.

A transaction that lost a race against another client, or waits for a condition (``wait-until``), is composed and
committed anew each time the database changes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ovs.timeval
from ovs.stream import Stream

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.console import complain, warn
from ovsvhost.vsctl.context import Context, Shared, TryAgain
from ovsvhost.vsctl.datum import Datum
from ovsvhost.vsctl.grammar import Command, escaped
from ovsvhost.vsctl.names import Needs
from ovsvhost.vsctl.replica import Replica, Transaction
from ovsvhost.vsctl.table import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovsvhost.vsctl.options import Options
    from ovsvhost.vsctl.values import Symbols

_MS_PER_S = 1000
_ROOT = "Open_vSwitch"


@dataclass(frozen=True, slots=True)
class _Committed:
    """What is left of a transaction that the server took.

    Attributes:
        awaited_cfg: the ``next_cfg`` that the daemon is to reach, None if nothing changed.
        new_interfaces: the uuids of the Interface rows that the daemon is to bring up.
    """

    awaited_cfg: int | None
    new_interfaces: tuple[Any, ...]


def run(program: str, argv: Sequence[str], options: Options, commands: Sequence[Command]) -> None:
    """Runs the commands in one transaction and prints what they say.

    Args:
        program: the program's name, for messages.
        argv: the command line, for the database's log.
        options: the program's own options.
        commands: what to do, in this order.

    Raises:
        ConfigError: a command was refused; nothing changed.
        PeerError: the server is not there, or went away.
        DeadlinePassed: ``--timeout`` is over.
        Exit: a command ends the program with a status of its own.
    """
    needs = _needs(options, commands)
    deadline_ms = None
    if options.timeout_s is not None:
        deadline_ms = ovs.timeval.msec() + options.timeout_s * _MS_PER_S
    _use_keys(options)
    db = Replica(
        options.db,
        needs,
        deadline_ms=deadline_ms,
        retry=options.retry,
        leader_only=options.leader_only,
    )
    try:
        committed = _transact_until_done(db, f"{program}{_caller()}: {escaped([program, *argv])}", options, commands)
        _print(commands, options)
        if committed.awaited_cfg is not None:
            sys.stdout.flush()
            _await_daemon(db, committed, program)
    finally:
        db.close()


def _needs(options: Options, commands: Sequence[Command]) -> Needs:
    needs = Needs()
    needs.add(_ROOT)
    if options.wait:
        needs.add(_ROOT, "cur_cfg", "next_cfg")
    for command in commands:
        if command.verb.needs is not None:
            command.verb.needs(needs, command)
    return needs


def _use_keys(options: Options) -> None:
    if options.keys:
        Stream.ssl_set_private_key_file(options.keys.get("private-key"))
        Stream.ssl_set_certificate_file(options.keys.get("certificate"))
        Stream.ssl_set_ca_cert_file(options.keys.get("ca-cert"))


def _caller() -> str:
    """Who called the program, as the database's log has it."""
    parent = os.getppid()
    try:
        line = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\n")[0]
    except OSError:
        return ""
    return f" (invoked by {line.replace(bytes(1), b' ').decode(errors='replace').strip()} (pid {parent}))"


def _transact_until_done(db: Replica, comment: str, options: Options, commands: Sequence[Command]) -> _Committed:
    seqno = db.change_seqno
    while True:
        db.step()
        if seqno == db.change_seqno:
            db.block()
            continue
        seqno = db.change_seqno
        committed = _transact(db, comment, options, commands)
        if committed is not None:
            return committed


def _transact(db: Replica, comment: str, options: Options, commands: Sequence[Command]) -> _Committed | None:
    """One attempt.

    Returns:
        None if it must be repeated once the database has changed.
    """
    transaction = db.begin()
    transaction.dry_run = options.dry_run
    # Bytes that are not UTF-8 cannot be sent; in a comment they do not matter.
    transaction.add_comment(comment.encode(errors="surrogateescape").decode(errors="replace"))
    try:
        roots = db.rows(_ROOT)
        root = roots[0] if roots else db.insert(_ROOT)
        if options.wait:
            root.increment("next_cfg")
        shared = Shared(db, transaction, root)
        _run_commands(shared, commands)
        _check_symbols(shared.symbols)
        status = db.commit()
    except TryAgain:
        return None
    finally:
        transaction.abort()
    if status == Transaction.TRY_AGAIN:
        return None
    if status not in (Transaction.SUCCESS, Transaction.UNCHANGED):
        text = f"transaction error: {transaction.get_error()}"
        warn("ovsdb_idl", text)
        raise ConfigError(text)
    for command in commands:
        if command.verb.finish is not None:
            command.verb.finish(Context(shared, command, is_last=True))
    uuids = (shared.committed_uuid(provisional) for provisional in shared.new_interfaces)
    waits = options.wait and status == Transaction.SUCCESS
    awaited_cfg = transaction.get_increment_new_value() if waits else None
    return _Committed(awaited_cfg, tuple(uuid for uuid in uuids if uuid is not None))


def _run_commands(shared: Shared, commands: Sequence[Command]) -> None:
    for at, command in enumerate(commands, start=1):
        command.output.clear()
        command.table = None
        command.verb.run(Context(shared, command, is_last=at == len(commands)))


def _check_symbols(symbols: Symbols) -> None:
    for name, symbol in symbols.items():
        if not symbol.created:
            raise ConfigError(
                f'row id "{name}" is referenced but never created (e.g. with "-- --id={name} create ...")',
            )
        if not symbol.strong:
            only = "only a weak" if symbol.weak else "no"
            warn(
                "vsctl",
                f'row id "{name}" was created but {only} reference to it was inserted, '
                "so it will not actually appear in the database",
            )


def _print(commands: Sequence[Command], options: Options) -> None:
    tables = 0
    for command in commands:
        if command.table is not None:
            sys.stdout.write(render(command.table, options.style, first=not tables))
            tables += 1
            continue
        text = "".join(command.output)
        if options.oneline:
            text = text.removesuffix("\n").replace("\\", "\\\\").replace("\n", "\\n") + "\n"
        sys.stdout.write(text)


def _await_daemon(db: Replica, committed: _Committed, program: str) -> None:
    """Waits until the daemon took the change in, and tells of interfaces that it could not bring up."""
    db.keep_reconnecting()
    while True:
        db.step()
        current = [db.read(row, "cur_cfg") for row in db.rows(_ROOT)]
        if any(value.order() >= Datum.of_keys([committed.awaited_cfg or 0]).order() for value in current):
            break
        db.block()
    failed = False
    for uuid in committed.new_interfaces:
        row = db.row("Interface", uuid)
        if row is not None and db.text(row, "ofport") in {"", "-1"}:
            failed = True
            reason = db.text(row, "error")
            text = f"Error detected while setting up '{db.text(row, 'name')}'{f': {reason}' if reason else ''}."
            complain(program, f"{text}  See ovs-vswitchd log for details.")
    if failed:
        logs = os.environ.get("OVS_LOGDIR", "/var/log/openvswitch")
        complain(program, f'The default log directory is "{logs}".')
