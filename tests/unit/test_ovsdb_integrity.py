"""What holds between rows, where the real server has a gap or where the outcome does not show from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.store.server.database import Database
from ovsvhost.store.server.execute import execute
from ovsvhost.store.server.schema import DatabaseSchema
from ovsvhost.testing.ovsdb_twins import SCHEMA, change, drop, mutate, put, ref, refs, root

if TYPE_CHECKING:
    from ovsvhost.store.server.table import Table


@pytest.fixture
def database() -> Database:
    return Database(DatabaseSchema(SCHEMA))


def run(database: Database, *operations: Any) -> Any:
    return execute(database, ["Twin", *operations], lambda _name: False)


def state(table: Table) -> Any:
    rows = {uuid: dict(row.fields) for uuid, row in table.rows.items()}
    return rows, dict(table.references), [dict(index) for index in table.indexes]


TREE = [
    put(11, "Leaf", tag=1),
    put(12, "Leaf", next=ref(11)),
    root(1, leaves=ref(12), weak=refs(11, 12), by_name=["map", [["x", ref(12)]]]),
]


def test_weak_references_go_with_rows_that_go_as_garbage(database: Database) -> None:
    run(database, *TREE)
    run(database, change(1, leaves=["set", []], by_name=["map", []]))
    assert not database.tables["Leaf"].rows
    (row,) = database.tables["Root"].rows.values()
    assert row.fields["weak"] == {}


@pytest.mark.parametrize(
    "operations",
    [
        [root(2), change(1, name="x"), {"op": "abort"}],
        [drop(1), root(3, name="r1"), put(13, "Leaf"), {"op": "abort"}],
        [change(1, leaves=["set", []]), drop(12, "Leaf"), drop(1), root(5, leaves=ref(31))],
        [drop(12, "Leaf")],
        [mutate(1, ["number", "+=", 1], ["number", "/=", 0])],
        [change(1, leaves=ref(11), by_name=["map", []]), root(2), root(3, name="r2")],
        [put(1, "Single"), put(2, "Single")],
    ],
)
def test_a_refused_transaction_leaves_everything_as_it_was(database: Database, operations: list[Any]) -> None:
    run(database, *TREE)
    before = {name: state(table) for name, table in database.tables.items()}
    results = run(database, *operations)
    assert any(result and "error" in result for result in results)
    assert {name: state(table) for name, table in database.tables.items()} == before


def test_counts_of_references_follow_what_is_stored(database: Database) -> None:
    run(database, *TREE)
    leaves = database.tables["Leaf"]
    assert leaves.references == {ref(11)[1]: 1, ref(12)[1]: 2}
    run(database, root(2, leaves=refs(11, 12)), change(1, leaves=["set", []]))
    assert leaves.references == {ref(11)[1]: 2, ref(12)[1]: 2}
    run(database, drop(2))
    assert leaves.references == {ref(11)[1]: 1, ref(12)[1]: 1}
    run(database, drop(1))
    assert not leaves.references
    assert not leaves.rows


def test_a_transaction_that_changes_nothing_tells_and_writes_nothing(database: Database) -> None:
    run(database, *TREE)
    heard: list[Any] = []
    database.listeners.append(heard.append)
    run(database, change(1, name="r1"), root(7), drop(7), mutate(1, ["number", "+=", 1], ["number", "-=", 1]))
    assert heard == []
    (row,) = database.tables["Root"].rows.values()
    version = row.fields["_version"]
    run(database, change(1, name="r1"))
    (row,) = database.tables["Root"].rows.values()
    assert row.fields["_version"] == version


def test_a_committed_row_is_never_touched_again(database: Database) -> None:
    run(database, *TREE)
    (row,) = database.tables["Root"].rows.values()
    fields = dict(row.fields)
    run(database, change(1, name="other"), mutate(1, ["numbers", "insert", ["set", [1, 2]]]))
    run(database, mutate(1, ["numbers", "delete", 1]))
    assert row.fields == fields
