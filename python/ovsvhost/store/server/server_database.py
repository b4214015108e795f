"""The database ``_Server``: one row for each database served (ovsdb-server(5)).

Clients read it to learn whether a database is there, connected and writable; here it always is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.database import Database
from ovsvhost.store.server.datum import new_uuid
from ovsvhost.store.server.schema import DatabaseSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODELS = ["set", ["clustered", "relay", "standalone"]]
_SCHEMA: dict[str, Any] = {
    "name": "_Server",
    "version": "1.2.0",
    "cksum": "3009684573 744",
    "tables": {
        "Database": {
            "columns": {
                "name": {"type": "string"},
                "model": {"type": {"key": {"type": "string", "enum": _MODELS}}},
                "connected": {"type": "boolean"},
                "leader": {"type": "boolean"},
                "schema": {"type": {"key": {"type": "string"}, "min": 0, "max": 1}},
                "cid": {"type": {"key": {"type": "uuid"}, "min": 0, "max": 1}},
                "sid": {"type": {"key": {"type": "uuid"}, "min": 0, "max": 1}},
                "index": {"type": {"key": {"type": "integer"}, "min": 0, "max": 1}},
            },
            "isRoot": True,
        }
    },
}


def server_database(served: Iterable[Database]) -> Database:
    """``_Server`` as it describes ``served`` and itself; it lives in memory only."""
    database = Database(DatabaseSchema(_SCHEMA))
    table = database.tables["Database"]
    transaction = database.begin()
    for described in (*served, database):
        row = table.new_row(new_uuid())
        text = json.dumps(described.schema.to_json(), separators=(",", ":"))
        for name, atom in (
            ("name", described.name),
            ("model", "standalone"),
            ("connected", True),
            ("leader", True),
            ("schema", text),
        ):
            row.fields[name] = {atom: None}
        transaction.insert(table, row)
    database.commit(transaction)
    return database
