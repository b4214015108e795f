"""Database files go back and forth between ovsvhost's server and Open vSwitch's own programs."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.errors import ConfigError
from ovsvhost.store.server import EmbeddedServer
from ovsvhost.store.server.database import Database
from ovsvhost.store.server.schema import DatabaseSchema, vswitch_schema
from ovsvhost.testing.ovsdb import OvsdbClient, OvsdbServer
from ovsvhost.testing.ovsdb_twins import SCHEMA, change, comparable, drop, mutate, put, ref, refs, root

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer

HISTORY = [
    [root(1, small=4, options=["map", [["a", "1"], ["b", "2"]]], live=["map", [["rx", 1]]]), root(2, share=0.1)],
    [put(11, "Leaf", tag=1), put(12, "Leaf", next=ref(11)), root(3, leaves=ref(12), name='"\\ä\n𝄞')],
    [mutate(1, ["options", "insert", ["map", [["c", "3"]]]], ["options", "delete", ["set", ["a"]]])],
    [change(1, options=["map", [["b", "other"]]], small=["set", []], some=["set", ["x", "y"]])],
    [change(1, some=["set", ["y", "z"]]), change(2, numbers=["set", [1, 2]], word="abc")],
    [change(2, numbers=["set", [2, 3]], flag=True), root(4, weak=refs(11, 12))],
    [change(3, leaves=ref(11)), {"op": "comment", "comment": "what for"}],
    [drop(2)],
]


def tool(*arguments: Any) -> str:
    run = subprocess.run(["ovsdb-tool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows(socket: Path) -> Any:
    persistent = {
        name: ["_uuid", *(column for column, about in table["columns"].items() if not about.get("ephemeral"))]
        for name, table in SCHEMA["tables"].items()
    }
    selects = [{"op": "select", "table": name, "where": [], "columns": names} for name, names in persistent.items()]
    with OvsdbClient(socket) as client:
        results = comparable(client.transact("Twin", *selects))
    return [sorted(json.dumps(row, sort_keys=True) for row in result["rows"]) for result in results]


def transact(socket: Path, history: list[Any]) -> None:
    with OvsdbClient(socket) as client:
        for operations in history:
            results = client.transact("Twin", *operations)
            assert not any(result and "error" in result for result in results), results


def our_server(directory: Path) -> EmbeddedServer:
    return EmbeddedServer(directory / "conf.db", directory / "db.sock", schema=DatabaseSchema(SCHEMA))


def test_the_real_server_opens_our_file_and_we_open_what_it_wrote(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    ours.start()
    transact(tmp_path / "db.sock", HISTORY[:4])
    before = rows(tmp_path / "db.sock")
    ours.stop()
    with OvsdbServer(tmp_path, tmp_path / "conf.db") as peer:
        assert rows(peer.socket) == before
        transact(peer.socket, HISTORY[4:])
        after = rows(peer.socket)
    again = our_server(tmp_path)
    again.start()
    assert rows(tmp_path / "db.sock") == after
    again.stop()


def test_our_file_grows_into_the_same_rows_that_the_server_holds(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    ours.start()
    transact(tmp_path / "db.sock", HISTORY)
    before = rows(tmp_path / "db.sock")
    ours.stop()
    again = our_server(tmp_path)
    again.start()
    assert rows(tmp_path / "db.sock") == before
    again.stop()


def test_ovsdb_tool_reads_and_compacts_our_file(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    ours.start()
    transact(tmp_path / "db.sock", HISTORY)
    before = rows(tmp_path / "db.sock")
    ours.stop()
    database = tmp_path / "conf.db"
    log = tool("-m", "show-log", database)
    assert log.count("record ") == 1 + len(HISTORY)
    assert "what for" in log
    assert tool("db-name", database).strip() == "Twin"
    assert tool("db-version", database).strip() == "1.0.0"
    size = database.stat().st_size
    tool("compact", database)
    assert database.stat().st_size < size
    again = our_server(tmp_path)
    again.start()
    assert rows(tmp_path / "db.sock") == before
    again.stop()


def test_a_file_that_we_compacted_is_a_file_for_the_real_server(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    ours.start()
    transact(tmp_path / "db.sock", HISTORY)
    before = rows(tmp_path / "db.sock")
    ours.stop()
    database = Database.open(tmp_path / "conf.db", DatabaseSchema(SCHEMA))
    database.compact("for the test")
    database.close()
    assert tool("show-log", tmp_path / "conf.db").count("record ") == 2
    with OvsdbServer(tmp_path, tmp_path / "conf.db") as peer:
        assert rows(peer.socket) == before


def test_a_torn_file_reads_as_the_real_server_reads_it(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    ours.start()
    transact(tmp_path / "db.sock", HISTORY)
    ours.stop()
    whole = (tmp_path / "conf.db").read_bytes()
    for cut in (1, 40, 200, 400):
        (tmp_path / "conf.db").write_bytes(whole[:-cut])
        (tmp_path / "peer.db").write_bytes(whole[:-cut])
        again = our_server(tmp_path)
        again.start()
        with OvsdbServer(tmp_path, tmp_path / "peer.db") as peer:
            assert rows(tmp_path / "db.sock") == rows(peer.socket)
        transact(tmp_path / "db.sock", [[root(20)]])
        after = rows(tmp_path / "db.sock")
        again.stop()
        with OvsdbServer(tmp_path, tmp_path / "conf.db") as peer:
            assert rows(peer.socket) == after


def test_a_database_that_the_real_server_has_open_is_refused(tmp_path: Path) -> None:
    tool("create", tmp_path / "conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
    with (
        OvsdbServer(tmp_path, tmp_path / "conf.db"),
        pytest.raises(ConfigError, match=r"conf\.db is in use by another daemon or tool .*--state-dir"),
    ):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")


def test_the_real_server_cannot_open_what_we_have_open(tmp_path: Path) -> None:
    ours = our_server(tmp_path)
    refused = subprocess.run(
        ["ovsdb-tool", "compact", tmp_path / "conf.db"], capture_output=True, text=True, check=False, timeout=20
    )
    ours.stop()
    assert refused.returncode != 0
    assert "lock" in refused.stderr


def test_an_older_schema_is_brought_up_and_a_newer_one_left_alone(tmp_path: Path) -> None:
    older = vswitch_schema().to_json() | {"version": "7.0.0"}
    interface = older["tables"]["Interface"]["columns"]
    del interface["error"]
    interface["forgotten"] = {"type": "string"}
    (tmp_path / "old.ovsschema").write_text(json.dumps(older))
    tool("create", tmp_path / "conf.db", tmp_path / "old.ovsschema")
    insert = [
        "Open_vSwitch",
        {"op": "insert", "table": "Interface", "row": {"name": "p0", "forgotten": "x"}, "uuid-name": "i"},
        {"op": "insert", "table": "Port", "row": {"name": "p0", "interfaces": ["named-uuid", "i"]}, "uuid-name": "p"},
        {"op": "insert", "table": "Bridge", "row": {"name": "br0", "ports": ["named-uuid", "p"]}, "uuid-name": "b"},
        {"op": "insert", "table": "Open_vSwitch", "row": {"bridges": ["named-uuid", "b"]}},
    ]
    tool("transact", tmp_path / "conf.db", json.dumps(insert))
    database = Database.open(tmp_path / "conf.db", vswitch_schema())
    (row,) = database.tables["Interface"].rows.values()
    assert database.schema.version == vswitch_schema().version
    assert row.fields["name"] == {"p0": None}
    assert row.fields["error"] == {}
    database.close()
    assert tool("db-version", tmp_path / "conf.db").strip() == vswitch_schema().version

    newer = vswitch_schema().to_json() | {"version": "99.0.0"}
    (tmp_path / "new.ovsschema").write_text(json.dumps(newer))
    tool("create", tmp_path / "new.db", tmp_path / "new.ovsschema")
    database = Database.open(tmp_path / "new.db", vswitch_schema())
    assert database.schema.version == "99.0.0"
    database.close()


def test_a_database_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twin.ovsschema").write_text(json.dumps(SCHEMA))
    tool("create", tmp_path / "conf.db", tmp_path / "twin.ovsschema")
    with pytest.raises(ConfigError, match=r"holds the database Twin, not Open_vSwitch; .*--state-dir"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")


def test_the_schema_that_is_shipped_is_the_one_of_open_vswitch(tmp_path: Path) -> None:
    tool("create", tmp_path / "peer.db", "/usr/share/openvswitch/vswitch.ovsschema")
    first_record = (tmp_path / "peer.db").read_bytes().split(b"\n", 2)[1]
    assert vswitch_schema().to_json() == json.loads(first_record)
