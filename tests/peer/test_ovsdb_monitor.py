"""Monitors, locks, waits and mistakes in the protocol: ovsvhost's server and the real one say the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.testing.errors import RigError
from ovsvhost.testing.ovsdb_twins import Twins, change, comparable, drop, mutate, put, ref, refs, root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovsvhost.testing.ovsdb import OvsdbClient

pytestmark = pytest.mark.peer

NEVER = "00000000-0000-0000-0000-000000000000"
BEFORE = [root(1, small=4, options=["map", [["a", "1"], ["b", "2"]]]), root(2, numbers=["set", [1, 2]])]
STEPS = [
    [root(3, leaves=ref(11), live=["map", [["rx", 1]]]), put(11, "Leaf", tag=1)],
    [change(1, name="new", small=["set", []])],
    [mutate(1, ["options", "insert", ["map", [["c", "3"]]]], ["options", "delete", ["set", ["a"]]])],
    [change(1, options=["map", [["b", "other"]]]), change(2, numbers=["set", [2, 3]], word="abc")],
    [change(1, name="newer")],
    [change(2, number=2)],
    [change(3, live=["map", [["rx", 2], ["tx", 1]]])],
    [root(4), change(4, flag=True), change(1, number=30)],
    [root(5), drop(5)],
    [change(3, leaves=["set", []])],
    [drop(2), change(1, small=7)],
    [root(6), {"op": "abort"}],
    [{"op": "delete", "table": "Root", "where": []}],
]
ROOT_COLUMNS = ["name", "number", "small", "options", "numbers", "live"]
NO_MODIFY = {"initial": False, "modify": False}

# Name → the requests of a monitor of version 1, 2 or 3.
REQUESTS: dict[str, Any] = {
    "two tables": {"Root": {"columns": ROOT_COLUMNS}, "Leaf": [{"columns": ["tag"]}]},
    "all columns": {"Root": {}},
    "nothing": {},
    "one column": {"Root": [{"columns": ["name"]}]},
    "no columns": {"Root": [{"columns": []}]},
    "no modifications, no initial rows": {"Root": [{"columns": ["name"], "select": NO_MODIFY}]},
    "inserts only": {"Root": {"columns": ["name"], "select": {"initial": False, "modify": False, "delete": False}}},
    "columns with different wishes": {
        "Root": [
            {"columns": ["name"], "select": {"delete": False}},
            {"columns": ["number", "small"], "select": {"insert": False, "initial": False}},
        ]
    },
}
CONDITIONS: dict[str, Any] = {
    "a condition": {"Root": [{"columns": ["name", "number"], "where": [["number", "<", 3]]}]},
    "one of two": {"Root": [{"columns": ["name"], "where": [["number", "==", 1], ["name", "==", "r4"]]}]},
    "on a column not shown": {"Root": [{"columns": ["name"], "where": [["small", "==", 4], ["small", "==", 7]]}]},
    "never": {"Root": [{"columns": ["name"], "where": [False]}]},
    "always": {"Root": [{"columns": ["name"], "where": [True]}]},
}
MISTAKES: dict[str, Any] = {
    "unknown table": {"Nowhere": {}},
    "unknown column": {"Root": {"columns": ["nothing"]}},
    "column twice": {"Root": {"columns": ["name", "name"]}},
    "column that is no name": {"Root": {"columns": [5]}},
    "unknown member": {"Root": {"colums": []}},
    "unknown wish": {"Root": {"columns": [], "select": {"update": True}}},
    "wish that is no boolean": {"Root": {"select": {"insert": 1}}},
    "request that is no object": {"Root": 5},
    "requests that are no object": [],
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    both = Twins(tmp_path_factory.mktemp("twins"))
    yield both
    both.close()


@pytest.fixture
def twins(servers: Twins) -> Twins:
    servers.empty()
    return servers


def monitor(clients: tuple[OvsdbClient, OvsdbClient], version: int, requests: Any) -> tuple[Any, Any]:
    method = ["monitor", "monitor_cond", "monitor_cond_since"][version - 1]
    more = [NEVER] if version == 3 else []
    ours, peer = (comparable(client.request(method, "Twin", ["id", 1], requests, *more)) for client in clients)
    return ours, peer


def told(client: OvsdbClient) -> Any:
    """What a client was told until now."""
    client.request("echo")
    notifications, client.notifications = client.notifications, []
    return [comparable(notification) for notification in notifications]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", [*REQUESTS, *CONDITIONS])
def test_monitors_tell_the_same(twins: Twins, name: str, version: int) -> None:
    if name in CONDITIONS and version == 1:
        version = 2
    clients = twins.connect()
    twins.both("transact", "Twin", *BEFORE)
    ours, peer = monitor(clients, version, (REQUESTS | CONDITIONS)[name])
    assert ours == peer
    for step in STEPS:
        ours, peer = twins.both("transact", "Twin", *step)
        assert ours == peer
        ours, peer = (told(client) for client in clients)
        if "on a column not shown" in name:
            # The real server mentions a row whose condition column changed, without saying anything about it.
            peer = without_empty_changes(peer)
        assert ours == peer, step
    for client in clients:
        client.close()


def without_empty_changes(notifications: list[Any]) -> list[Any]:
    kept = []
    for notification in notifications:
        rows = {u: r for u, r in notification["params"][-1].get("Root", {}).items() if r != {"modify": {}}}
        if rows:
            kept.append(notification | {"params": [*notification["params"][:-1], {"Root": rows}]})
    return kept


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_a_monitor_are_refused_alike(twins: Twins, name: str, version: int) -> None:
    clients = twins.connect()
    ours, peer = monitor(clients, version, MISTAKES[name])
    assert ours == peer
    assert ours["error"]
    for client in clients:
        client.close()


def test_a_monitor_whose_condition_changes_tells_what_comes_and_goes(twins: Twins) -> None:
    clients = twins.connect()
    twins.both("transact", "Twin", *BEFORE, root(3), root(4))
    for version in (2, 3):
        requests = {"Root": [{"columns": ["name", "number"], "where": [["number", "<", 3]]}]}
        ours, peer = monitor(clients, version, requests)
        assert ours == peer
        for new_id, where in ((["id", 1], [["number", ">", 1]]), (["id", 2], []), (["id", 1], [False])):
            old_id = ["id", 2] if where == [False] else ["id", 1]
            changes = {"Root": [{"where": where}]}
            ours, peer = (comparable(c.request("monitor_cond_change", old_id, new_id, changes)) for c in clients)
            assert ours == peer
            ours, peer = (told(client) for client in clients)
            assert ours == peer
        ours, peer = (comparable(client.request("monitor_cancel", ["id", 1])) for client in clients)
        assert ours == peer
    for client in clients:
        client.close()


def test_mistakes_in_condition_changes_are_refused_alike(twins: Twins) -> None:
    clients = twins.connect()
    monitor(clients, 2, {"Root": [{"columns": ["name"]}]})
    for params in (
        [],
        [["id", 9], ["id", 1], {}],
        [["id", 1], ["id", 1], []],
        [["id", 1], ["id", 1], {"Nowhere": []}],
        [["id", 1], ["id", 1], {"Leaf": []}],
        [["id", 1], ["id", 1], {"Root": {}}],
        [["id", 1], ["id", 1], {"Root": [{"where": [["nothing", "==", 1]]}]}],
        [["id", 1], ["id", 1], {"Root": [{"where": [], "columns": ["name"]}]}],
    ):
        ours, peer = (comparable(client.request("monitor_cond_change", *params)) for client in clients)
        assert ours == peer
    for client in clients:
        client.close()


def test_monitors_are_cancelled_and_named_once(twins: Twins) -> None:
    clients = twins.connect()
    for _ in range(2):
        ours, peer = monitor(clients, 1, {"Root": {"columns": ["name"]}})
        assert ours == peer
    for params in ([["id", 1]], [["id", 1]], []):
        ours, peer = (comparable(client.request("monitor_cancel", *params)) for client in clients)
        assert ours == peer
    twins.both("transact", "Twin", root(1))
    assert [told(client) for client in clients] == [[], []]
    for client in clients:
        client.close()


def test_locks_go_around_alike(twins: Twins) -> None:
    first, second, third = twins.connect(), twins.connect(), twins.connect()
    everyone = (first, second, third)
    for who, method, params in (
        (first, "lock", ["a"]),
        (second, "lock", ["a"]),
        (first, "lock", ["a"]),
        (third, "steal", ["a"]),
        (third, "transact", ["Twin", {"op": "assert", "lock": "a"}]),
        (first, "transact", ["Twin", {"op": "assert", "lock": "a"}]),
        (third, "unlock", ["a"]),
        (first, "transact", ["Twin", {"op": "assert", "lock": "a"}]),
        (second, "steal", ["a"]),
        (third, "steal", ["a"]),
        (third, "steal", ["a"]),
        (third, "unlock", ["a"]),
        (first, "unlock", ["a"]),
        (third, "steal", ["a"]),
        (first, "steal", ["a"]),
        (first, "unlock", ["a"]),
        (third, "unlock", ["a"]),
        (second, "unlock", ["a"]),
        (second, "unlock", ["a"]),
        (first, "unlock", ["b"]),
        (first, "lock", []),
        (first, "lock", ["1"]),
        (first, "unlock", [1]),
        (first, "steal", ["b"]),
        (second, "lock", ["b"]),
    ):
        ours, peer = (comparable(client.request(method, *params)) for client in who)
        assert ours == peer, (method, params)
        for clients in everyone:
            ours, peer = (told(client) for client in clients)
            assert ours == peer, (method, params)
    for client in first:
        client.close()
    for client in second:
        assert client.receive()["method"] == "locked"
    for client in (*second, *third):
        client.close()


def test_a_wait_is_answered_when_it_holds(twins: Twins) -> None:
    clients = twins.connect()
    wait = {"op": "wait", "table": "Root", "where": [], "columns": ["name"], "until": "==", "rows": [{"name": "r1"}]}
    for client in clients:
        client.send("transact", ["Twin", wait, root(2)], "waiting")
    twins.both("transact", "Twin", root(7), drop(7))
    twins.both("transact", "Twin", root(1))
    ours, peer = (comparable(client.answer("waiting")) for client in clients)
    assert ours == peer
    ours, peer = twins.dumps()
    assert ours == peer
    for client in clients:
        client.close()


def test_a_wait_times_out(twins: Twins) -> None:
    wait = {"op": "wait", "table": "Root", "where": [], "columns": ["name"], "until": "!=", "rows": []}
    ours, peer = twins.both("transact", "Twin", wait | {"timeout": 50}, root(1))
    assert ours == peer
    assert ours["result"][0]["error"] == "timed out"
    ours, peer = twins.dumps()
    assert ours == peer


def test_a_wait_can_be_cancelled(twins: Twins) -> None:
    wait = {"op": "wait", "table": "Root", "where": [], "columns": ["name"], "until": "!=", "rows": []}
    clients = twins.connect()
    for client in clients:
        # The real server answers a cancelled transaction only if its client has said this.
        assert client.request("set_db_change_aware", True)["error"] is None
        client.send("transact", ["Twin", wait, root(1)], "waiting")
        client.send("cancel", ["waiting"], None)
    ours, peer = (comparable(client.answer("waiting")) for client in clients)
    assert ours == peer
    assert ours["error"] == "canceled"
    ours, peer = twins.dumps()
    assert ours == peer
    for client in clients:
        client.close()


def test_requests_outside_of_transactions_are_answered_alike(twins: Twins) -> None:
    for method, params in (
        ("echo", [1, {"a": []}]),
        ("echo", []),
        ("get_schema", ["Twin"]),
        ("get_schema", ["_Server"]),
        ("get_schema", ["Nowhere"]),
        ("get_schema", []),
        ("get_schema", [5]),
        ("set_db_change_aware", [True]),
        ("set_db_change_aware", [1]),
        ("nonsense", []),
        ("transact", []),
        ("transact", ["Nowhere"]),
        ("transact", ["_Server", {"op": "delete", "table": "Database", "where": []}]),
        ("transact", ["_Server", {"op": "insert", "table": "Database", "row": {}}]),
    ):
        ours, peer = twins.both(method, *params)
        assert ours == peer, (method, params)
    ours, peer = twins.both("list_dbs")
    assert sorted(ours["result"]) == sorted(peer["result"])
    assert len(twins.ours.request("get_server_id")["result"]) == 36


def test_the_server_database_describes_what_is_served(twins: Twins) -> None:
    ours, peer = twins.both("transact", "_Server", {"op": "select", "table": "Database", "where": []})
    for answer in (ours, peer):
        for row in answer["result"][0]["rows"]:
            row["schema"] = json.loads(row["schema"])
        answer["result"][0]["rows"].sort(key=lambda row: row["name"])
    assert ours == peer


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello ",
        b"[]",
        b"{}",
        b'{"method":"echo","params":[],"id":1,"more":1}',
        b'{"method":"echo","params":{},"id":1}',
        b'{"method":5,"params":[],"id":1}',
        b'{"method":"echo","id":1}',
        b'{"id":1,"result":[],"error":null}',
        b'{"method":"echo","params":[},"id":1}',
        b'{"method":"echo","params":[NaN],"id":1}',
        b'{"method":"echo","params":["\\ud800"],"id":1}',
        b'{"method":"echo","params":["\\u0000"],"id":1}',
        b"}",
        b'{"method":"echo","params":[' + b"[" * 2000 + b"]" * 2000 + b'],"id":1}',
    ],
)
def test_what_is_no_json_rpc_ends_the_connection(twins: Twins, garbage: bytes) -> None:
    for client in twins.connect():
        client.socket.sendall(garbage)
        with pytest.raises((RigError, ConnectionResetError)):
            client.receive()
        client.close()
    ours, peer = twins.both("echo", "still there")
    assert ours == peer


def test_a_message_may_come_in_pieces_and_many_at_once(twins: Twins) -> None:
    message = json.dumps({"method": "echo", "params": ['{["\\"\\\\', "äö𝄞"], "id": 7}, ensure_ascii=False).encode()
    for client in twins.connect():
        for position in range(len(message)):
            client.socket.sendall(message[position : position + 1])
        client.socket.sendall(message * 2 + b" \n" + message)
        answers = [client.receive() for _ in range(4)]
        assert answers == [{"id": 7, "result": ['{["\\"\\\\', "äö𝄞"], "error": None}] * 4
        client.close()


def test_references_in_updates_are_alike(twins: Twins) -> None:
    clients = twins.connect()
    monitor(clients, 3, {"Root": [{"columns": ["leaves"]}], "Leaf": [{}]})
    for step in (
        [root(1, leaves=refs(11, 12)), put(11, "Leaf"), put(12, "Leaf", next=ref(11))],
        [root(2, leaves=ref(11)), mutate(1, ["leaves", "delete", ref(11)])],
        [drop(1)],
    ):
        twins.both("transact", "Twin", *step)
        ours, peer = (told(client) for client in clients)
        assert ours == peer
    for client in clients:
        client.close()
