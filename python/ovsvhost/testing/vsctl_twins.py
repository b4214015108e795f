"""Stock ovs-vsctl and ``ovsvhost vsctl`` side by side: the same command lines, each to a database of its own.

What legitimately differs is taken out before anything is compared: the program's name, uuids, times, and the order of
rows, which stock takes from a hash of their uuids.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from ovsvhost.store.server import EmbeddedServer
from ovsvhost.testing.ovsdb import OvsdbClient, OvsdbServer
from ovsvhost.vsctl import PROGRAM, main

if TYPE_CHECKING:
    from collections.abc import Sequence

_DATABASE = "Open_vSwitch"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOG_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\|\d{5}\|", re.MULTILINE)
_ROUNDS = 4  # Open_vSwitch → Bridge → Port → Interface: how deep rows are known by what they refer to


@dataclass(frozen=True)
class Said:
    """What a program said and how it ended, comparable.

    Attributes:
        status: the exit status as a shell has it; 142 for SIGALRM.
        out: its standard output.
        err: its standard error.
    """

    status: int
    out: str
    err: str


@cache
def schema_text() -> str:
    """The schema that both databases have."""
    return Path(__file__).parent.with_name("store").joinpath("vswitch.ovsschema").read_text(encoding="utf-8")


def create_database(directory: Path) -> Path:
    """Makes an empty ``Open_vSwitch`` database in a directory; gives its path."""
    schema, database = directory / "vswitch.ovsschema", directory / "conf.db"
    schema.write_text(schema_text(), encoding="utf-8")
    subprocess.run(["ovsdb-tool", "create", str(database), str(schema)], check=True)
    return database


def stock(remote: str, words: Sequence[str], *, timeout_s: float = 30) -> Said:
    """Runs stock ``ovs-vsctl``."""
    done = subprocess.run(
        ["ovs-vsctl", f"--db={remote}", *words], capture_output=True, timeout=timeout_s, check=False, errors="replace"
    )
    return _said(128 - done.returncode if done.returncode < 0 else done.returncode, done.stdout, done.stderr, remote)


def ours(remote: str, words: Sequence[str]) -> Said:
    """Runs ``ovsvhost vsctl`` within this process: the interpreter's start would be most of the time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([f"--db={remote}", *words], rundir=Path("/nonexistent"))
    return _said(status, out.getvalue(), err.getvalue().replace(PROGRAM, "ovs-vsctl"), remote)


def _said(status: int, out: str, err: str, remote: str) -> Said:
    return Said(status, out, _LOG_STAMP.sub("", err).replace(remote, "REMOTE"))


def anonymous(said: Said) -> Said:
    """What was said without uuids and without the order of rows."""
    return Said(said.status, _sorted_rows(_UUID.sub("<uuid>", said.out)), _UUID.sub("<uuid>", said.err))


def _sorted_rows(out: str) -> str:
    if out.startswith('{"data":'):
        tables = [json.loads(line) for line in out.splitlines()]
        return "\n".join(json.dumps({**table, "data": sorted(table["data"], key=json.dumps)}) for table in tables)
    separator = "\n\n" if "\n\n" in out else "\n"
    return separator.join(sorted(out.removesuffix("\n").split(separator)))


class VsctlTwins:
    """A database for stock ``ovs-vsctl`` and one for ours, both empty but for the row that ``init`` makes.

    Args:
        directory: where they keep their files.
        embedded: whether ours is served by ovsvhost's own server instead of the real one.
    """

    def __init__(self, directory: Path, *, embedded: bool) -> None:
        self._stop = contextlib.ExitStack()
        self.stock_remote = self._serve(directory / "stock")
        if embedded:
            # Its events go to the log: by default they are printed, in the midst of what is compared.
            structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
            place = directory / "ours"
            place.mkdir()
            server = EmbeddedServer(place / "conf.db", place / "db.sock")
            server.start()
            self._stop.callback(server.stop)
            self.our_remote = f"unix:{place / 'db.sock'}"
        else:
            self.our_remote = self._serve(directory / "ours")
        self._clients = [self._connect(remote) for remote in (self.stock_remote, self.our_remote)]

    def _serve(self, place: Path) -> str:
        place.mkdir()
        return self._stop.enter_context(OvsdbServer(place, create_database(place))).remote

    def _connect(self, remote: str) -> OvsdbClient:
        client = OvsdbClient(Path(remote.removeprefix("unix:")))
        self._stop.callback(client.close)
        return client

    def close(self) -> None:
        """Ends both servers."""
        self._stop.close()

    def empty(self) -> None:
        """Deletes all rows on both sides and makes the one that ``init`` makes."""
        roots = [name for name, table in json.loads(schema_text())["tables"].items() if table.get("isRoot")]
        operations = [{"op": "delete", "table": table, "where": []} for table in roots]
        for client in self._clients:
            client.transact(_DATABASE, *operations, {"op": "insert", "table": _DATABASE, "row": {}})

    def both(self, words: Sequence[str]) -> tuple[Said, Said]:
        """What stock says to a command line, and what ours says."""
        return stock(self.stock_remote, words), ours(self.our_remote, words)

    def transcripts(self, lines: Sequence[str]) -> tuple[Any, Any]:
        """Gives both the same command lines, on empty databases.

        Returns:
            What stock said to each line and which rows it left behind, and the same of ours; comparable.
        """
        self.empty()
        said = [self.both(["--no-wait", *shlex.split(line)]) for line in lines]
        stock_rows, our_rows = self.dumps()
        said_stock = [(line, anonymous(each)) for line, (each, _) in zip(lines, said, strict=True)]
        said_ours = [(line, anonymous(each)) for line, (_, each) in zip(lines, said, strict=True)]
        return (said_stock, stock_rows), (said_ours, our_rows)

    def dumps(self) -> tuple[Any, Any]:
        """All rows of stock's database and of ours, comparable."""
        first, second = (_rows(client) for client in self._clients)
        return first, second


def _rows(client: OvsdbClient) -> dict[str, list[str]]:
    """Every table's rows as sorted texts, in which a row that is referred to stands for its uuid."""
    tables = json.loads(schema_text())["tables"]
    operations = [
        {"op": "select", "table": name, "where": [], "columns": ["_uuid", *table["columns"]]}
        for name, table in tables.items()
    ]
    answers = client.transact(_DATABASE, *operations)
    rows = {
        row["_uuid"][1]: (table, {column: value for column, value in row.items() if column != "_uuid"})
        for table, answer in zip(tables, answers, strict=True)
        for row in answer["rows"]
    }
    names = dict.fromkeys(rows, "")
    for _ in range(_ROUNDS):
        texts = {uuid: json.dumps(_renamed(row, names), sort_keys=True) for uuid, (_, row) in rows.items()}
        names = {uuid: hashlib.sha256(text.encode()).hexdigest() for uuid, text in texts.items()}
    return {table: sorted(texts[uuid] for uuid, (owner, _) in rows.items() if owner == table) for table in tables}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each, names) for key, each in value.items()}
    if isinstance(value, list) and len(value) == 2:
        if value[0] == "uuid":
            return names.get(value[1], "<dangling>")
        if value[0] in {"set", "map"} and isinstance(value[1], list):
            return [value[0], sorted((_renamed(each, names) for each in value[1]), key=json.dumps)]
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value


def environment(rundir: Path) -> dict[str, str]:
    """What tells Open vSwitch's programs where their files are."""
    return {**os.environ, "OVS_RUNDIR": str(rundir), "OVS_LOGDIR": str(rundir), "OVS_DBDIR": str(rundir)}
