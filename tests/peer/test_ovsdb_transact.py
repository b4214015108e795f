"""The same transactions to ovsvhost's server and to the real ovsdb-server: same answers, same rows afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.testing.ovsdb_twins import SCHEMA, UUIDS, Twins, change, drop, mutate, put, ref, refs, root, where_is

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer


def select(*where: Any, columns: Any = ("name", "number"), **more: Any) -> dict[str, Any]:
    return {"op": "select", "table": "Root", "where": list(where), "columns": list(columns), **more}


def wait(rows: list[Any], until: str = "==", **more: Any) -> dict[str, Any]:
    body = {"op": "wait", "table": "Root", "where": [], "columns": ["name"], "until": until, "rows": rows, "timeout": 0}
    return body | more


BASE = [root(1), root(2, share=1.5, flag=True), root(3, small=4, word="abc", numbers=["set", [1, 5]])]
FULL = root(
    4,
    options=["map", [["a", "1"], ["b", "2"]]],
    counts=["map", [["x", 1], ["y", 2]]],
    pair=["set", [1, 2]],
    numbers=["set", [1, 2, 3]],
    reals=["set", [0.5, 1.5]],
    some=["set", ["p", "q"]],
    tokens=["set", [ref(7), ref(8)]],
)
# The weak references stand in a row of their own: ovsdb-server 3.1 overlooks them in a row that the same transaction
# changes, and leaves them pointing at nothing.
TREE = [
    put(11, "Leaf", tag=1),
    put(12, "Leaf", tag=2, next=ref(11)),
    put(13, "Leaf", tag=3),
    root(1, leaves=refs(12), by_name=["map", [["thirteen", ref(13)]]]),
    root(9, weak=refs(11, 13)),
]

# Name → transactions, one after the other; each starts on empty tables.
CASES: dict[str, list[Any]] = {
    "defaults are filled in": [[root(1)], [select(columns=sorted(SCHEMA["tables"]["Root"]["columns"]))]],
    "several rows": [BASE, [select()]],
    "unknown table": [[put(1, "Nowhere")]],
    "unknown column": [[root(1, nothing=1)]],
    "unknown operation": [[{"op": "fetch"}]],
    "operation without op": [[{"table": "Root"}]],
    "operation that is no object": [[5], ["insert"], [None]],
    "no operations": [[]],
    "member of another type": [
        [{"op": "insert", "table": "Root", "row": []}],
        [{"op": "insert", "table": 5, "row": {}}],
    ],
    "member missing": [[{"op": "insert", "table": "Root"}], [{"op": "delete", "table": "Root"}]],
    "one member too many": [[select(colums=[])], [root(1) | {"rows": []}]],
    "members too many": [[select(a=1, b=2)], [select(a=1, b=2, c=3)]],
    "error stops what follows": [[root(1), root(2, flag="yes"), root(3)], [select()]],
    "strings where numbers belong": [[root(1, number="1")], [root(1, share="1")], [root(1, name=1)], [root(1, flag=1)]],
    "whole reals are integers": [
        [root(1, number=3.0, numbers=["set", [1e3, 2]])],
        [select(columns=["numbers", "number"])],
    ],
    "fractions are no integers": [[root(1, number=1.5)]],
    "integers beyond 64 bits": [
        [root(1, number=1e30)],
        [root(2, number=2**63 - 1), root(3, number=-(2**63))],
        [select()],
    ],
    "integers as reals": [[root(1, share=3, reals=["set", [1, 2.5]])], [select(columns=["share", "reals"])]],
    "range": [[root(1, small=9)], [root(2, small=10)], [root(3, small=-1)], [root(4, least=-4)], [root(4, least=-3)]],
    "range of reals": [[root(1, most=2.5, ratio=1)], [root(2, most=2.75)], [root(3, ratio=0.25)], [root(3, ratio=9)]],
    "length": [[root(1, word="ab")], [root(2, word="a")], [root(3, word="abcde")], [root(4, word="äöüß")]],
    "enum": [[root(1, mode="trunk")], [root(2, mode="bad")], [root(3, mode="two words")], [root(3, mode="true")]],
    "set for a scalar": [
        [root(1, number=["set", [5]])],
        [root(2, number=["set", []])],
        [root(3, number=["set", [5, 6]])],
        [select()],
    ],
    "optional": [[root(1, small=["set", []])], [root(2, small=["set", [1, 2]])], [root(3, small=["set", [3]])]],
    "set too small or too large": [[root(1, some=["set", []])], [root(2, some=["set", ["a", "b", "c", "d"]])]],
    "set with a duplicate": [[root(1, numbers=["set", [1, 1]])], [root(1, numbers=["set", [1, 1.0]])]],
    "map with a duplicate": [[root(1, options=["map", [["a", "1"], ["a", "2"]]])]],
    "map that is none": [[root(1, options={})], [root(1, options=["map", [["a"]]])], [root(1, options=["set", []])]],
    "set that is none": [[root(1, numbers=["set"])], [root(1, numbers=["map", []])], [root(1, numbers=["set", 1])]],
    "map too large": [[root(1, few=["map", [["a", 1], ["b", 2], ["c", 3]]])]],
    "bad uuids": [
        [root(1, tokens=["uuid", "x"])],
        [root(1, tokens=["uuid"])],
        [root(1, tokens="x")],
        [root(1, tokens=["named-uuid", "1x"])],
    ],
    "uuids in capitals": [[root(1, tokens=["uuid", UUIDS[11].upper()])], [select(columns=["tokens"])]],
    "insert with a bad or used uuid": [
        [root(1)],
        [root(1, name="again")],
        [root(2) | {"uuid": "nonsense"}],
        [drop(1), root(1)],
        [root(5), root(5, name="twice")],
    ],
    "named uuid": [
        [
            put(11, "Leaf", tag=1) | {"uuid-name": "leaf"},
            root(1, leaves=["named-uuid", "leaf"]),
            root(2, leaves=["set", [["named-uuid", "leaf"]]]),
        ],
        [select(columns=["leaves"])],
    ],
    "named uuid before its insert": [
        [
            put(11, "Leaf", next=["named-uuid", "two"]),
            {"op": "insert", "table": "Leaf", "row": {"tag": 2}, "uuid-name": "two"},
            root(1, leaves=ref(11)),
        ],
        [{"op": "select", "table": "Leaf", "where": [["tag", "==", 2]], "columns": ["tag"]}, drop(1)],
    ],
    "named uuid twice": [[root(1) | {"uuid-name": "x"}, root(2) | {"uuid-name": "x"}]],
    "uuid-name that is no id": [[root(1) | {"uuid-name": "1x"}]],
    "select by each function": [
        [*BASE, FULL],
        [select(["number", "<", 3])],
        [select(["number", "<=", 3])],
        [select(["number", "==", 3])],
        [select(["number", "!=", 3])],
        [select(["number", ">=", 3])],
        [select(["number", ">", 3])],
        [select(["number", "includes", 3])],
        [select(["number", "excludes", 3])],
        [select(["small", "<", 5])],
        [select(["small", ">=", 0])],
        [select(["small", "==", ["set", []]])],
        [select(["small", "!=", ["set", []]])],
        [select(["small", "includes", ["set", []]])],
        [select(["small", "excludes", 4])],
        [select(["share", ">", 1])],
        [select(["flag", "==", True])],
        [select(["numbers", "includes", 1])],
        [select(["numbers", "includes", ["set", [1, 5]]])],
        [select(["numbers", "excludes", ["set", [5, 9]]])],
        [select(["numbers", "==", ["set", [5, 1]]])],
        [select(["options", "includes", ["map", [["a", "1"]]]])],
        [select(["options", "includes", ["map", [["a", "2"]]]])],
        [select(["options", "excludes", ["map", [["a", "1"]]]])],
        [select(["options", "==", ["map", [["b", "2"], ["a", "1"]]]])],
        [select(["options", "!=", ["map", []]])],
        [select(["name", "==", "r1"], ["number", "==", 2])],
        [select(["_uuid", "==", ref(2)], ["number", "==", 2])],
        [select(["_uuid", "!=", ref(2)])],
        [select(["_uuid", "==", ref(30)])],
        [select(True)],
        [select(False)],
    ],
    "bad conditions": [
        [select(["number", "=", 3])],
        [select(["nothing", "==", 3])],
        [select(["number", "=="])],
        [select(5)],
        [select(["name", "<", "x"])],
        [select(["numbers", "<", 3])],
        [select(["options", ">", ["map", []]])],
        [select(["small", "<", ["set", []]])],
        [select(["mode", "==", "bad"])],
        [select(["pair", "includes", ["set", [1, 2, 3]]])],
        [select(["pair", "excludes", ["set", [1, 2, 3]]])],
    ],
    "select with sort": [BASE, [select(sort=["number"])], [select(sort=["share", "name"])], [select(sort=["nothing"])]],
    "select distinct rows": [
        [root(1, name="a", flag=True), root(2, name="b"), root(3, name="c", flag=True)],
        [select(columns=["flag"])],
        [select(columns=[])],
        [select(columns=["_uuid", "flag"])],
    ],
    "select bad columns": [[select(columns=["nothing"])], [select(columns=["name", "name"])], [select(columns=[1])]],
    "select all columns": [[root(1)], [{"op": "select", "table": "Root", "where": []}]],
    "update": [BASE, [change(1, name="new", numbers=["set", [7]])], [change(30, name="x")], [select()]],
    "update all": [
        BASE,
        [{"op": "update", "table": "Root", "where": [], "row": {"flag": True}}],
        [select(columns=["flag"])],
    ],
    "update of what may not change": [
        [root(1, fixed="f")],
        [change(1, fixed="g")],
        [change(1, _uuid=ref(2))],
        [change(1, _version=ref(2))],
        [mutate(1, ["fixed", "+=", 1])],
    ],
    "update that breaks a constraint": [
        [root(1)],
        [change(1, small=77)],
        [change(1, nothing=1)],
        [change(1) | {"row": []}],
    ],
    "update that changes nothing": [[root(1)], [change(1, name="r1")]],
    "arithmetic": [
        [root(1, number=7, share=2.5, numbers=["set", [1, 2]])],
        [mutate(1, ["number", "+=", 5], ["number", "*=", 2], ["number", "-=", 1])],
        [mutate(1, ["number", "/=", -2])],
        [mutate(1, ["number", "%=", 4])],
        [mutate(1, ["share", "/=", 2], ["share", "+=", 1])],
        [mutate(1, ["numbers", "*=", 10])],
        [select(columns=["number", "share", "numbers"])],
    ],
    "arithmetic that fails": [
        [root(1, number=2**63 - 1, small=8, numbers=["set", [2, 3]])],
        [mutate(1, ["number", "+=", 1])],
        [mutate(1, ["number", "*=", 2])],
        [mutate(1, ["number", "/=", 0])],
        [mutate(1, ["number", "%=", 0])],
        [mutate(1, ["share", "/=", 0])],
        [mutate(1, ["share", "%=", 2])],
        [mutate(1, ["small", "+=", 5])],
        [mutate(1, ["numbers", "*=", 0])],
        [mutate(1, ["name", "+=", 1])],
        [mutate(1, ["counts", "+=", 1])],
        [mutate(1, ["number", "+=", ["set", []]])],
        [mutate(1, ["number", "**", 2])],
        [mutate(1, ["number", "insert", 2])],
        [mutate(1, ["nothing", "+=", 2])],
        [mutate(1, ["number", "+="])],
        [mutate(1, "number")],
    ],
    "division of the smallest integer": [
        [root(1, number=-(2**63))],
        [mutate(1, ["number", "/=", -1])],
        [mutate(1, ["number", "%=", -1])],
        [mutate(1, ["number", "-=", 1])],
    ],
    "set mutations": [
        [FULL],
        [mutate(4, ["numbers", "insert", ["set", [3, 4]]])],
        [mutate(4, ["numbers", "delete", ["set", [1, 9]]])],
        [mutate(4, ["pair", "insert", 3])],
        [mutate(4, ["pair", "delete", ["set", [1, 2, 3]]])],
        [mutate(4, ["pair", "insert", ["set", [4, 5, 6]]])],
        [mutate(4, ["some", "delete", ["set", ["p", "q"]]])],
        [mutate(4, ["small", "insert", 3])],
        [mutate(4, ["small", "insert", 4])],
        [mutate(4, ["numbers", "insert", ["set", []]])],
        [select(columns=["numbers", "pair", "some", "small"])],
    ],
    "map mutations": [
        [FULL],
        [mutate(4, ["options", "insert", ["map", [["a", "other"], ["c", "3"]]]])],
        [mutate(4, ["options", "delete", ["map", [["a", "1"], ["b", "9"]]]])],
        [mutate(4, ["options", "delete", ["set", ["c", "z"]]])],
        [mutate(4, ["options", "delete", "b"])],
        [mutate(4, ["counts", "delete", ["set", [1]]])],
        [mutate(4, ["few", "insert", ["map", [["a", 1], ["b", 2]]]])],
        [mutate(4, ["few", "insert", ["map", [["c", 1]]]])],
        [select(columns=["options", "counts", "few"])],
    ],
    "mutate without mutations": [
        BASE,
        [{"op": "mutate", "table": "Root", "where": [["flag", "==", False]], "mutations": []}],
    ],
    "delete": [
        BASE,
        [drop(1), drop(30)],
        [{"op": "delete", "table": "Root", "where": [["number", ">", 2]]}],
        [select()],
    ],
    "insert and delete in one": [[root(1), drop(1), select()], [select()]],
    "later operations see earlier ones": [[root(1), change(1, name="x"), select(), drop(1), select()]],
    "references hold": [TREE, [drop(11, "Leaf")], [drop(12, "Leaf")]],
    "references to nothing": [[root(1, leaves=ref(20))], [root(1, by_name=["map", [["x", ref(20)]]])]],
    "references within one transaction": [[root(1, leaves=ref(11)), put(11, "Leaf")], [drop(1)]],
    "garbage goes at once": [[put(11, "Leaf")], [put(12, "Leaf"), root(1)]],
    "garbage goes down the chain": [TREE, [change(1, leaves=["set", []])]],
    "garbage with its root": [TREE, [drop(1)]],
    "moved references keep rows": [TREE, [root(2, leaves=refs(11, 12, 13)), drop(1)]],
    "reference and row go together": [TREE, [change(1, leaves=["set", []]), drop(12, "Leaf")]],
    "leaf that refers to itself": [
        [put(11, "Leaf", next=ref(11)), root(1, leaves=ref(11))],
        [change(1, leaves=["set", []])],
    ],
    "leaves that refer to each other": [
        [put(11, "Leaf", next=ref(12)), put(12, "Leaf", next=ref(11)), root(1, leaves=ref(11))],
        [change(1, leaves=["set", []])],
    ],
    "weak references vanish": [
        [*TREE, root(2, weak_map=["map", [["me", ref(2)], ["one", ref(1)], ["none", ref(25)]]])],
        [change(11, "Leaf", up=ref(2))],
        [drop(2)],
        [change(1, by_name=["map", []])],
    ],
    "weak references to what never was": [[root(1, weak=refs(20, 21))], [change(1, weak=refs(22))]],
    "weak reference that must be": [
        [root(1), put(20, "Anchor", at=ref(1))],
        [drop(1)],
        [put(21, "Anchor")],
        [put(22, "Anchor", at=ref(29))],
        [change(20, "Anchor", at=ref(29))],
        [drop(1), drop(20, "Anchor")],
    ],
    "row that goes and its weak reference": [[root(1), root(2, weak_map=["map", [["x", ref(1)]]])], [drop(1), drop(2)]],
    "max rows": [
        [put(1, "Single"), put(2, "Single")],
        [put(1, "Single")],
        [put(2, "Single")],
        [drop(1, "Single"), put(2, "Single")],
    ],
    "index": [
        [root(1)],
        [root(2, name="r1")],
        [root(2, number=1)],
        [root(2, number=1, share=2)],
        [change(2, share=0)],
        [change(1, name="other"), root(3, name="r1")],
    ],
    "index values change places": [[root(1), root(2)], [change(1, name="r2"), change(2, name="r1")], [select()]],
    "index value of a deleted row": [[root(1)], [drop(1), root(2, name="r1")]],
    "index within one transaction": [[root(1), root(2, name="r1")]],
    "abort": [[root(1), {"op": "abort"}, root(2)], [select()]],
    "comment": [
        [root(1), {"op": "comment", "comment": "why"}, {"op": "comment", "comment": "more"}],
        [{"op": "comment"}],
    ],
    "commit": [
        [root(1), {"op": "commit", "durable": True}],
        [root(2), {"op": "commit", "durable": False}],
        [{"op": "commit"}],
    ],
    "assert without the lock": [[root(1), {"op": "assert", "lock": "mine"}], [{"op": "assert", "lock": "1"}]],
    "wait that holds": [BASE, [wait([{"name": "r1"}, {"name": "r2"}, {"name": "r3"}])], [wait([{"name": "r1"}], "!=")]],
    "wait that does not": [
        BASE,
        [wait([])],
        [wait([{"name": "r1"}], "==", where=where_is(2))],
        [wait([], "!=", where=[["number", ">", 9]])],
    ],
    "wait with duplicates": [BASE, [wait([{"flag": True}, {"flag": False}, {"flag": False}], columns=["flag"])]],
    "wait that is wrong": [
        [wait([], "=")],
        [wait([], timeout=-1)],
        [wait([{"nothing": 1}])],
        [wait([], columns=["nothing"])],
        [wait([5])],
        [wait([]) | {"rows": {}}],
    ],
    "ephemeral column": [
        [root(1, live=["map", [["rx", 1]]])],
        [change(1, live=["map", [["rx", 2], ["tx", 3]]])],
        [select(columns=["live"])],
    ],
    "strings of all kinds": [
        [root(1, name='"\\/\b\f\n\r\t äöü 𝄞 {}[],:')],
        [select(["name", "==", '"\\/\b\f\n\r\t äöü 𝄞 {}[],:'])],
    ],
    "many at once": [
        [root(n) for n in range(1, 30)],
        [{"op": "delete", "table": "Root", "where": [["number", ">", 5]]}],
    ],
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    both = Twins(tmp_path_factory.mktemp("twins"))
    yield both
    both.close()


@pytest.mark.parametrize("name", CASES)
def test_both_servers_answer_the_same(twins: Twins, name: str) -> None:
    twins.empty()
    for number, operations in enumerate(CASES[name]):
        ours, peer = twins.both("transact", "Twin", *operations)
        assert ours == peer, f"transaction {number}: {operations}"
    ours, peer = twins.dumps()
    assert ours == peer
