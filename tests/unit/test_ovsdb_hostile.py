"""Requests that are almost right: whatever a client writes, it gets an answer, and nothing but an answer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovsvhost.store.server import EmbeddedServer
from ovsvhost.store.server.schema import DatabaseSchema
from ovsvhost.testing.ovsdb import OvsdbClient
from ovsvhost.testing.ovsdb_twins import SCHEMA, change, drop, mutate, put, ref, refs, root

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = {"op": "wait", "table": "Root", "where": [], "columns": ["name"], "until": "==", "rows": [{"name": "r1"}]}
NEVER = "00000000-0000-0000-0000-000000000000"
# Requests that are right.
REQUESTS: list[tuple[str, list[Any]]] = [
    ("transact", ["Twin", root(1, leaves=refs(11), weak=ref(11)), put(11, "Leaf"), {"op": "commit", "durable": False}]),
    ("transact", ["Twin", root(2, options=["map", [["a", "b"]]], numbers=["set", [1, 2]]) | {"uuid-name": "x"}]),
    ("transact", ["Twin", change(1, name="x", small=["set", []], by_name=["map", [["x", ["named-uuid", "y"]]]])]),
    (
        "transact",
        ["Twin", mutate(1, ["number", "+=", 1], ["numbers", "insert", 3], ["options", "delete", ["set", ["a"]]])],
    ),
    ("transact", ["Twin", drop(1), {"op": "comment", "comment": "x"}, {"op": "assert", "lock": "x"}]),
    ("transact", ["Twin", {"op": "select", "table": "Root", "where": [["number", "<", 3]], "sort": ["name"]}]),
    ("transact", ["Twin", WAIT | {"timeout": 0}, {"op": "abort"}]),
    ("monitor", ["Twin", "m", {"Root": {"columns": ["name"], "select": {"initial": True}}}]),
    (
        "monitor_cond",
        ["Twin", ["m"], {"Root": [{"columns": ["name"], "where": [["number", ">", 1], True]}], "Leaf": []}],
    ),
    ("monitor_cond_since", ["Twin", {"m": 1}, {"Root": [{"where": [["_uuid", "==", ref(1)]]}]}, NEVER]),
    ("monitor_cond_change", [["m"], ["m"], {"Root": [{"where": [["name", "includes", "x"]]}]}]),
    ("monitor_cancel", ["m"]),
    ("lock", ["x"]),
    ("steal", ["x"]),
    ("unlock", ["x"]),
    ("get_schema", ["Twin"]),
    ("set_db_change_aware", [True]),
]
SCALARS = st.sampled_from(
    [None, True, False, 0, -1, 1.5, 2**63, 1e300, "", "set", "map", "uuid", "_uuid", "name", "x" * 50]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "name", "where", "z"]), inner),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything inside of a JSON value."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield (*path, key)
        yield from places(member, (*path, key))


@st.composite
def spoiled_requests(draw: st.DrawFn) -> tuple[str, list[Any]]:
    method, original = draw(st.sampled_from(REQUESTS))
    params = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        ways = list(places(params))
        if not ways:
            break
        *path, last = draw(st.sampled_from(ways))
        place: Any = params
        for key in path:
            place = place[key]
        if draw(st.booleans()):
            place[last] = draw(JSON)
        elif isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), draw(JSON))
        else:
            del place[last]
    return method, params


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OvsdbClient]:
    directory = tmp_path_factory.mktemp("hostile")
    server = EmbeddedServer(directory / "conf.db", directory / "db.sock", schema=DatabaseSchema(SCHEMA))
    server.start()
    with OvsdbClient(directory / "db.sock") as connection:
        yield connection
    server.stop()


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled_requests())
def test_every_spoiled_request_is_answered_and_meets_no_bug(
    client: OvsdbClient, request: tuple[str, list[Any]]
) -> None:
    method, params = request
    client.send(method, params, "spoiled")
    # A wait without a time-out may wait for ever; it is let go.
    client.send("cancel", ["spoiled"], None)
    answer = client.answer("spoiled")
    assert "internal error" not in str(answer)
    client.notifications.clear()
