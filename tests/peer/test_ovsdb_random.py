"""Transactions that nobody thought of, to both servers: same answers, same rows, and the files say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ovsvhost.testing.ovsdb_twins import UUIDS, Twins, ref

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer

ROOTS, LEAVES = st.integers(0, 4), st.integers(10, 14)
SMALL = st.integers(-4, 11)
WORDS = st.sampled_from(["", "a", "ab", "abcde", "access", "trunk", "äö", 'q"'])
REALS = st.sampled_from([0, 0.5, 1.5, 2, 2.5, 3, -1])
LEAF_REFS, ROOT_REFS = LEAVES.map(ref), ROOTS.map(ref)


def set_of(members: st.SearchStrategy[Any], size: int = 4) -> st.SearchStrategy[Any]:
    return st.lists(members, max_size=size).map(lambda items: ["set", items])


def map_of(keys: st.SearchStrategy[Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.tuples(keys, values).map(list), max_size=3).map(lambda items: ["map", items])


ROOT_COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "name": WORDS,
    "number": SMALL,
    "share": REALS,
    "flag": st.booleans(),
    "small": SMALL | set_of(SMALL, 2),
    "least": SMALL | set_of(SMALL, 1),
    "ratio": REALS | set_of(REALS, 1),
    "word": WORDS | set_of(WORDS, 1),
    "mode": WORDS | set_of(WORDS, 1),
    "numbers": set_of(SMALL),
    "reals": set_of(REALS),
    "pair": set_of(SMALL),
    "some": set_of(WORDS),
    "options": map_of(WORDS, WORDS),
    "counts": map_of(WORDS, SMALL),
    "few": map_of(WORDS, SMALL),
    "live": map_of(WORDS, SMALL),
    "leaves": set_of(LEAF_REFS),
    "by_name": map_of(WORDS, LEAF_REFS),
    "weak_map": map_of(WORDS, ROOT_REFS),
}
LEAF_COLUMNS: dict[str, st.SearchStrategy[Any]] = {"tag": SMALL, "next": LEAF_REFS | set_of(LEAF_REFS, 1)}
TABLES = {"Root": (ROOTS, ROOT_COLUMNS), "Leaf": (LEAVES, LEAF_COLUMNS)}
ARITHMETIC = st.sampled_from(["+=", "-=", "*=", "/=", "%="])
FUNCTIONS = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "includes", "excludes"])


@st.composite
def rows(draw: st.DrawFn, columns: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(columns)), max_size=4, unique=True))
    return {name: draw(columns[name]) for name in names}


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    table = draw(st.sampled_from(["Root", "Root", "Leaf"]))
    numbers, columns = TABLES[table]
    op = draw(st.sampled_from(["insert", "insert", "update", "update", "mutate", "mutate", "delete", "select"]))
    if op == "insert":
        number = draw(numbers)
        row = draw(rows(columns)) | ({"name": f"r{number}", "number": number} if table == "Root" else {})
        return {"op": op, "table": table, "uuid": UUIDS[number], "row": row}
    column = draw(st.sampled_from(sorted(columns)))
    where = draw(
        numbers.map(lambda n: [["_uuid", "==", ref(n)]])
        | st.tuples(st.just(column), FUNCTIONS, columns[column]).map(lambda clause: [list(clause)])
    )
    body: dict[str, Any] = {"op": op, "table": table, "where": where}
    if op == "update":
        body["row"] = draw(rows(columns))
    elif op == "mutate":
        column = draw(st.sampled_from(sorted(columns)))
        mutation = st.tuples(st.just(column), ARITHMETIC, SMALL | REALS) | st.tuples(
            st.just(column), st.sampled_from(["insert", "delete"]), columns[column] | set_of(WORDS)
        )
        body["mutations"] = [list(m) for m in draw(st.lists(mutation, max_size=2))]
    elif op == "select":
        body["columns"] = ["_uuid", *draw(st.lists(st.sampled_from(sorted(columns)), max_size=3, unique=True))]
    return body


def refusals_alike(message: Any) -> Any:
    """With several mistakes in one row, which is named depends on the order of a hash table."""
    results = message["result"]
    return message | {"result": ["refused" if result and "error" in result else result for result in results]}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    both = Twins(tmp_path_factory.mktemp("twins"))
    yield both
    both.close()


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(operations(), min_size=1, max_size=4), min_size=1, max_size=6))
def test_both_servers_answer_the_same_to_anything(twins: Twins, transactions: list[list[Any]]) -> None:
    twins.empty()
    for transaction in transactions:
        ours, peer = twins.both("transact", "Twin", *transaction)
        assert refusals_alike(ours) == refusals_alike(peer)
    ours, peer = twins.dumps()
    assert ours == peer


@settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(operations(), min_size=1, max_size=3), min_size=10, max_size=30))
def test_each_server_reads_the_other_ones_file(twins: Twins, transactions: list[list[Any]]) -> None:
    twins.empty()
    for transaction in transactions:
        twins.both("transact", "Twin", *transaction)
    before, _ = twins.dumps(persistent=True)
    twins.swap_files()
    ours, peer = twins.dumps(persistent=True)
    assert ours == peer == before
