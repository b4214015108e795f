"""The embedded server as a program: its socket, its thread, its clients, and what a crash or a full disk does to it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.errors import ConfigError, InternalError, KernelError
from ovsvhost.store.log import compose_record
from ovsvhost.store.server import EmbeddedServer
from ovsvhost.store.server.database import Database
from ovsvhost.store.server.schema import vswitch_schema
from ovsvhost.testing.errors import RigError
from ovsvhost.testing.ovsdb import OvsdbClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DB = "Open_vSwitch"


@contextmanager
def serving(directory: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(directory / "conf.db", directory / "db.sock")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a process that may be killed."""
    script = (
        "import signal, sys; from pathlib import Path; from ovsvhost.store.server import EmbeddedServer\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        f"server = EmbeddedServer(Path({str(directory / 'conf.db')!r}), Path({str(directory / 'db.sock')!r}))\n"
        "server.start(); print('ready', flush=True); signal.sigwait([signal.SIGTERM]); server.stop()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            yield child
        finally:
            child.kill()


def mark(key: str, value: str) -> dict[str, Any]:
    """An operation that leaves a trace in the one row of Open_vSwitch."""
    return {
        "op": "mutate",
        "table": DB,
        "where": [],
        "mutations": [["external_ids", "delete", key], ["external_ids", "insert", ["map", [[key, value]]]]],
    }


def marks(client: OvsdbClient) -> dict[str, str]:
    (result,) = client.transact(DB, {"op": "select", "table": DB, "where": [], "columns": ["external_ids"]})
    return dict(result["rows"][0]["external_ids"][1])


ROW = {"op": "insert", "table": DB, "row": {}}


def test_an_empty_database_gets_no_rows_by_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as server, OvsdbClient(tmp_path / "db.sock") as client:
        assert server.remote == f"unix:{tmp_path}/db.sock"
        schema = client.request("get_schema", DB)["result"]
        for table in schema["tables"]:
            assert client.transact(DB, {"op": "select", "table": table, "where": []}) == [{"rows": []}]


def test_socket_and_database_are_for_their_user_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with serving(tmp_path / "state"):
            for name in ("db.sock", "conf.db", ".conf.db.~lock~"):
                assert (tmp_path / "state" / name).stat().st_mode & 0o777 == 0o600
            assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(umask)


def test_stopping_takes_socket_and_thread_away_and_keeps_the_rows(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with OvsdbClient(tmp_path / "db.sock") as client:
            client.transact(DB, ROW, mark("a", "1"))
        waiting = OvsdbClient(tmp_path / "db.sock")
        server.stop()
        with pytest.raises(RigError, match="hung up"):
            waiting.receive()
        waiting.close()
        assert not (tmp_path / "db.sock").exists()
        assert not [thread for thread in threading.enumerate() if thread.name == "ovsdb-server"]
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as client:
        assert marks(client) == {"a": "1"}


def test_a_server_that_was_never_started_leaves_nothing_behind(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")
    server.stop()
    server.stop()
    assert not (tmp_path / "db.sock").exists()
    with pytest.raises(InternalError, match="started before"):
        server.start()
    with serving(tmp_path):
        pass


def test_a_socket_that_somebody_serves_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "db.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        inode = path.stat().st_ino
        with pytest.raises(ConfigError, match=r"another database server answers on .*db\.sock; .*--db .*--rundir"):
            EmbeddedServer(tmp_path / "conf.db", path)
        assert path.stat().st_ino == inode
    with serving(tmp_path):
        pass


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "db.sock"))
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as client:
        assert client.request("echo", 1)["result"] == [1]


def test_a_socket_that_is_not_ours_any_more_stays(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (tmp_path / "db.sock").unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "db.sock"))
            server.stop()
            assert (tmp_path / "db.sock").exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "db.sock"
    path.mkdir() if kind == "directory" else path.write_text("precious")
    with pytest.raises(ConfigError, match=r"db\.sock is there and is no socket; .*--rundir"):
        EmbeddedServer(tmp_path / "conf.db", path)
    assert path.is_dir() if kind == "directory" else path.read_text() == "precious"


def test_a_path_that_is_too_long_is_refused_by_its_length(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * (107 - len(str(tmp_path)) - len("//db.sock")))
    directory.mkdir()
    assert len(str(directory / "db.sock")) == 107
    with serving(directory):
        pass
    longer = directory.with_name(directory.name + "x")
    longer.mkdir()
    with pytest.raises(ConfigError, match=r"has 108 bytes and unix sockets take 107; .*--rundir"):
        EmbeddedServer(longer / "conf.db", longer / "db.sock")


def test_a_missing_run_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot create the socket .*nowhere/db\.sock: No such file"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "nowhere" / "db.sock")
    with serving(tmp_path):
        pass


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(KernelError, match=r"cannot create the directory .*file/state: Not a directory; .*--state-dir"):
        EmbeddedServer(tmp_path / "file" / "state" / "conf.db", tmp_path / "db.sock")


def test_a_second_server_on_the_database_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path), pytest.raises(ConfigError, match=r"conf\.db is in use by another daemon"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "second.sock")


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    with process(tmp_path) as child, OvsdbClient(tmp_path / "db.sock") as client:
        client.transact(DB, ROW)
        for number in range(20):
            client.transact(DB, mark(str(number), "there"))
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (tmp_path / "db.sock").exists()
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as client:
        assert marks(client) == {str(number): "there" for number in range(20)}


def test_a_full_disk_fails_one_transaction_and_loses_nothing(tmp_path: Path) -> None:
    with (
        process(tmp_path) as child,
        OvsdbClient(tmp_path / "db.sock") as client,
        OvsdbClient(tmp_path / "db.sock") as other,
    ):
        client.transact(DB, ROW, mark("before", "1"))
        content = (tmp_path / "conf.db").read_bytes()
        other.request("monitor", DB, "m", {DB: {"columns": ["external_ids"]}})
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (len(content) + 100, resource.RLIM_INFINITY))
        for _ in range(2):
            *_, refusal = client.transact(DB, mark("big", "x" * 1000), {"op": "commit", "durable": True})
            assert refusal["error"] == "I/O error"
            assert "conf.db: File too large; raise the limit" in refusal["details"]
            assert refusal["details"].endswith("the transaction was not applied")
            assert "File too large" in refusal["io-error"]
            assert (tmp_path / "conf.db").read_bytes() == content
            assert marks(client) == {"before": "1"}
        # What does not go to the disk still works.
        statistics = {"op": "update", "table": DB, "where": [], "row": {"statistics": ["map", [["load", "1"]]]}}
        assert client.transact(DB, statistics) == [{"count": 1}]
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert client.transact(DB, mark("after", "2")) == [{"count": 1}]
        other.request("echo")
        told = [update["params"][1][DB] for update in other.notifications]
        assert len(told) == 1
        assert "big" not in json.dumps(told)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as client:
        assert marks(client) == {"before": "1", "after": "2"}


def test_a_record_that_does_not_fit_the_schema_is_refused_and_named(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    offset = (tmp_path / "conf.db").stat().st_size
    with (tmp_path / "conf.db").open("ab") as stream:
        stream.write(compose_record({"Nowhere": {}}))
        stream.write(compose_record({"_comment": "more"}))
    with pytest.raises(ConfigError, match=rf"record at offset {offset} does not fit its schema .*truncate -s {offset}"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")


def test_a_file_that_does_not_begin_with_a_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf.db").write_bytes(compose_record({"_comment": "no schema"}))
    with pytest.raises(ConfigError, match=r"conf\.db does not begin with a database schema .*--state-dir"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf.db").touch()
    with pytest.raises(ConfigError, match=r"conf\.db is empty, .*remove it"):
        EmbeddedServer(tmp_path / "conf.db", tmp_path / "db.sock")


def test_the_file_is_compacted_when_it_has_grown(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "conf.db", vswitch_schema())
    table = database.tables[DB]
    transaction = database.begin()
    transaction.insert(table, table.new_row("00000001-0000-4000-8000-000000000001"))
    database.commit(transaction)
    sizes = []
    for number in range(12):
        transaction = database.begin()
        (row,) = table.rows.values()
        transaction.modify(table, row).fields["external_ids"] = {"key": str(number) + "x" * 1_000_000}
        database.commit(transaction)
        sizes.append((tmp_path / "conf.db").stat().st_size)
    database.close()
    assert max(sizes) < 11 * 2**20
    assert sizes[-1] < sizes[-4]
    database = Database.open(tmp_path / "conf.db", vswitch_schema())
    (row,) = database.tables[DB].rows.values()
    assert row.fields["external_ids"] == {"key": "11" + "x" * 1_000_000}
    database.close()


def test_a_client_that_does_not_read_holds_up_nobody_and_hears_the_end(tmp_path: Path) -> None:
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as writer, OvsdbClient(tmp_path / "db.sock") as sleeper:
        writer.transact(DB, ROW)
        sleeper.request("monitor_cond", DB, "m", {DB: [{"columns": ["external_ids"]}]})
        for number in range(300):
            writer.transact(DB, mark("key", str(number) + "x" * 50_000))
        writer.transact(DB, mark("last", "one"))
        sleeper.send("echo", [], "end")
        sleeper.answer("end")
        # Sixteen megabytes of changes were made; socket buffers and the server's own hold a few of them.
        assert len(sleeper.notifications) < 200
        state: dict[str, str] = {}
        for notification in sleeper.notifications:
            (row,) = notification["params"][1][DB].values()
            state.update(row["modify"]["external_ids"][1])
        assert state == {"key": "299" + "x" * 50_000, "last": "one"}


def test_a_client_that_sends_garbage_hurts_only_itself(tmp_path: Path) -> None:
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as good:
        good.transact(DB, ROW)
        for garbage in (b"\xff", b"GET / HTTP/1.1\r\n\r\n", b"{" * 1000, b'{"method":"transact","params":["'):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(tmp_path / "db.sock"))
                bad.sendall(garbage)
        assert good.transact(DB, mark("still", "here")) == [{"count": 1}]


def test_a_lock_goes_on_when_its_owner_hangs_up(tmp_path: Path) -> None:
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock") as second:
        with OvsdbClient(tmp_path / "db.sock") as first:
            assert first.request("lock", "ovs_vswitchd")["result"] == {"locked": True}
            assert second.request("lock", "ovs_vswitchd")["result"] == {"locked": False}
        assert second.receive() == {"method": "locked", "params": ["ovs_vswitchd"], "id": None}


def test_statistics_of_a_thousand_ports_cost_little_time(tmp_path: Path) -> None:
    count = 1000
    pairs: list[tuple[str, int]] = [(f"rx_q{n}_good_packets", 123_456_789 * n) for n in range(40)]
    with serving(tmp_path), OvsdbClient(tmp_path / "db.sock", timeout_s=60) as client:
        operations: list[Any] = [ROW]
        for n in range(count):
            interface = {"op": "insert", "table": "Interface", "row": {"name": f"p{n}"}, "uuid-name": f"i{n}"}
            port_row = {"name": f"p{n}", "interfaces": ["named-uuid", f"i{n}"]}
            operations += [interface, {"op": "insert", "table": "Port", "row": port_row, "uuid-name": f"p{n}"}]
        ports = ["set", [["named-uuid", f"p{n}"] for n in range(count)]]
        operations.append({"op": "insert", "table": "Bridge", "row": {"name": "br0", "ports": ports}, "uuid-name": "b"})
        operations.append({"op": "update", "table": DB, "where": [], "row": {"bridges": ["named-uuid", "b"]}})
        uuids = [result["uuid"] for result in client.transact(DB, *operations)[1 : 2 * count : 2]]
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "ovsdb-server"]
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        spent = []
        for tick in range(3):
            row = {"statistics": ["map", [[key, value + tick] for key, value in pairs]]}
            updates = [
                {"op": "update", "table": "Interface", "where": [["_uuid", "==", uuid]], "row": row} for uuid in uuids
            ]
            before = time.clock_gettime(clock)
            assert client.transact(DB, *updates) == [{"count": 1}] * count
            spent.append(time.clock_gettime(clock) - before)
        # The aim is 0.3 s of CPU; a shared machine gets some grace.
        assert min(spent) < 0.6
        # Statistics are ephemeral: they stay off the disk.
        assert (tmp_path / "conf.db").stat().st_size < 2**20
