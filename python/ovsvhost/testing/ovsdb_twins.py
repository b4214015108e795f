"""ovsvhost's database server and the real one side by side, to be given the same requests.

The schema has one of everything that a schema can ask for. Rows are inserted with UUIDs of the tests' choosing, so that
both servers hold the very same rows.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server import EmbeddedServer
from ovsvhost.store.server.schema import DatabaseSchema
from ovsvhost.testing.ovsdb import OvsdbClient, OvsdbServer

if TYPE_CHECKING:
    from pathlib import Path

_ANY = {"min": 0, "max": "unlimited"}
SCHEMA: dict[str, Any] = {
    "name": "Twin",
    "version": "1.0.0",
    "tables": {
        "Root": {
            "isRoot": True,
            "columns": {
                "name": {"type": "string"},
                "fixed": {"type": "string", "mutable": False},
                "number": {"type": "integer"},
                "share": {"type": "real"},
                "flag": {"type": "boolean"},
                "small": {"type": {"key": {"type": "integer", "minInteger": 0, "maxInteger": 9}, "min": 0, "max": 1}},
                "least": {"type": {"key": {"type": "integer", "minInteger": -3}, "min": 0, "max": 1}},
                "most": {"type": {"key": {"type": "real", "maxReal": 2.5}, "min": 0, "max": 1}},
                "ratio": {"type": {"key": {"type": "real", "minReal": 0.5, "maxReal": 2.5}, "min": 0, "max": 1}},
                "word": {"type": {"key": {"type": "string", "minLength": 2, "maxLength": 4}, "min": 0, "max": 1}},
                "mode": {"type": {"key": {"type": "string", "enum": ["set", ["access", "trunk"]]}, "min": 0, "max": 1}},
                "numbers": {"type": {"key": "integer", **_ANY}},
                "reals": {"type": {"key": "real", **_ANY}},
                "pair": {"type": {"key": "integer", "min": 0, "max": 2}},
                "some": {"type": {"key": "string", "min": 1, "max": 3}},
                "tokens": {"type": {"key": "uuid", **_ANY}},
                "options": {"type": {"key": "string", "value": "string", **_ANY}},
                "counts": {"type": {"key": "string", "value": "integer", **_ANY}},
                "few": {"type": {"key": "string", "value": "integer", "min": 0, "max": 2}},
                "live": {"type": {"key": "string", "value": "integer", **_ANY}, "ephemeral": True},
                "leaves": {"type": {"key": {"type": "uuid", "refTable": "Leaf"}, **_ANY}},
                "by_name": {"type": {"key": "string", "value": {"type": "uuid", "refTable": "Leaf"}, **_ANY}},
                "weak": {"type": {"key": {"type": "uuid", "refTable": "Leaf", "refType": "weak"}, **_ANY}},
                "weak_map": {
                    "type": {"key": "string", "value": {"type": "uuid", "refTable": "Root", "refType": "weak"}, **_ANY}
                },
            },
            "indexes": [["name"], ["number", "share"]],
        },
        "Leaf": {
            "columns": {
                "tag": {"type": "integer"},
                "next": {"type": {"key": {"type": "uuid", "refTable": "Leaf"}, "min": 0, "max": 1}},
                "up": {"type": {"key": {"type": "uuid", "refTable": "Root", "refType": "weak"}, "min": 0, "max": 1}},
            }
        },
        "Anchor": {
            "isRoot": True,
            "columns": {"at": {"type": {"key": {"type": "uuid", "refTable": "Root", "refType": "weak"}}}},
        },
        "Single": {"isRoot": True, "maxRows": 1, "columns": {"value": {"type": "integer"}}},
    },
}

UUIDS = [f"{n:08x}-0000-4000-8000-{n:012x}" for n in range(32)]
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def ref(n: int) -> list[str]:
    """The wire form of the UUID of row ``n``."""
    return ["uuid", UUIDS[n]]


def refs(*ns: int) -> list[Any]:
    """A set of references."""
    return ["set", [ref(n) for n in ns]]


def put(n: int, table: str = "Root", **row: Any) -> dict[str, Any]:
    """Insert row ``n``."""
    return {"op": "insert", "table": table, "uuid": UUIDS[n], "row": row}


def root(n: int, **row: Any) -> dict[str, Any]:
    """Insert row ``n`` of Root, its indexed columns filled in."""
    return put(n, "Root", **({"name": f"r{n}", "number": n} | row))


def where_is(n: int) -> list[Any]:
    """The condition that row ``n`` alone satisfies."""
    return [["_uuid", "==", ref(n)]]


def change(n: int, table: str = "Root", **row: Any) -> dict[str, Any]:
    """Update columns of row ``n``."""
    return {"op": "update", "table": table, "where": where_is(n), "row": row}


def mutate(n: int, *mutations: Any, table: str = "Root") -> dict[str, Any]:
    """Mutate row ``n``."""
    return {"op": "mutate", "table": table, "where": where_is(n), "mutations": list(mutations)}


def drop(n: int, table: str = "Root") -> dict[str, Any]:
    """Delete row ``n``."""
    return {"op": "delete", "table": table, "where": where_is(n)}


class Twins:
    """Both servers, on databases of `SCHEMA` without rows, and a client for each.

    Args:
        directory: where they keep their files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "twin.ovsschema").write_text(json.dumps(SCHEMA))
        create = ["ovsdb-tool", "create", str(directory / "peer.db"), str(directory / "twin.ovsschema")]
        subprocess.run(create, check=True)
        self._files = ("conf.db", "peer.db")
        self._start()

    def _start(self) -> None:
        our_file, peer_file = self._files
        schema = DatabaseSchema(SCHEMA)
        self._server = EmbeddedServer(self.directory / our_file, self.directory / "db.sock", schema=schema)
        self._server.start()
        self._peer_server = OvsdbServer(self.directory, self.directory / peer_file)
        self.ours, self.peer = self.connect()

    def swap_files(self) -> None:
        """Let each server start anew, on the file that the other one wrote."""
        self.close()
        self._files = (self._files[1], self._files[0])
        self._start()

    def connect(self) -> tuple[OvsdbClient, OvsdbClient]:
        """A further client for each."""
        return OvsdbClient(self.directory / "db.sock"), OvsdbClient(self._peer_server.socket)

    def close(self) -> None:
        """End both servers."""
        self.ours.close()
        self.peer.close()
        self._peer_server.stop()
        self._server.stop()

    def both(self, method: str, *params: Any) -> tuple[Any, Any]:
        """The two answers, comparable."""
        return comparable(self.ours.request(method, *params)), comparable(self.peer.request(method, *params))

    def empty(self) -> None:
        """No rows on either side."""
        operations = [{"op": "delete", "table": table, "where": []} for table in SCHEMA["tables"]]
        for client in (self.ours, self.peer):
            client.transact("Twin", *operations)

    def dumps(self, *, persistent: bool = False) -> tuple[Any, Any]:
        """All rows of both; with ``persistent`` only what is in their files."""
        operations = []
        for name, table in SCHEMA["tables"].items():
            columns = [c for c, about in table["columns"].items() if not (persistent and about.get("ephemeral"))]
            operations.append({"op": "select", "table": name, "where": [], "columns": ["_uuid", *columns]})
        return self.both("transact", "Twin", *operations)


def comparable(value: Any, name: str = "") -> Any:
    """A message without what legitimately differs: ids, versions, the order of rows and of hash tables, durations."""
    if isinstance(value, dict):
        if "id" in value and "error" in value:
            # The real server leaves out the null that RFC 7047 asks for beside an error.
            value = {"result": None} | value
        return {k: "any" if k in ("_version", "id") else comparable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        items = [comparable(item) for item in value]
        return sorted(items, key=lambda row: json.dumps(row, sort_keys=True)) if name == "rows" else items
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _UUID.fullmatch(value) and value not in UUIDS:
        return "fresh uuid"
    if name == "syntax":
        return comparable(json.loads(value))
    if name == "details":
        # Which of two rows comes first depends on a hash; so does the member that is named of several.
        value = _UUID.sub(lambda found: found[0] if found[0] in UUIDS else "fresh uuid", value)
        value = re.sub(r"First row, with UUID .*", "…", value)
        value = re.sub(r"Member '\w+' and", "Member and", value)
        return re.sub(r"timed out after \d+ ms", "timed out", value)
    return value
