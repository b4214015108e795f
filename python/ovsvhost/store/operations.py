"""Operations on rows as a client writes them (RFC 7047 §5.2); ``row`` is one of a replica's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovsvhost.store.idl import Operation


def insert(table: str, name: str, row: dict[str, Any]) -> Operation:
    """Inserts a row that others of the transaction may call ``["named-uuid", name]``."""
    return {"op": "insert", "table": table, "uuid-name": name, "row": row}


def change(table: str, row: Any, column: str, how: str, value: list[str]) -> Operation:
    """Inserts one value into a set of a row, or deletes it: ``how`` says which."""
    where = [["_uuid", "==", ["uuid", str(row.uuid)]]]
    return {"op": "mutate", "table": table, "where": where, "mutations": [[column, how, ["set", [value]]]]}


def set_keys(table: str, row: Any, old: Sequence[str], new: Mapping[str, str]) -> Operation:
    """Takes keys out of ``other_config`` and puts others in."""
    where = [["_uuid", "==", ["uuid", str(row.uuid)]]]
    mutations: list[list[Any]] = [["other_config", "delete", ["set", list(old)]]]
    if new:
        mutations.append(["other_config", "insert", ["map", sorted(map(list, new.items()))]])
    return {"op": "mutate", "table": table, "where": where, "mutations": mutations}
