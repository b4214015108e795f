"""A file system without room, a real one: what does not fit is refused by name, and what was there stays."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ovsvhost.errors import KernelError
from ovsvhost.store.server import EmbeddedServer
from ovsvhost.store.server.database import Database
from ovsvhost.store.server.schema import vswitch_schema
from ovsvhost.testing.ovsdb import OvsdbClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer

DB = "Open_vSwitch"
UUID = "00000001-0000-4000-8000-000000000001"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Half a megabyte of tmpfs."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "ovsdb-test", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs CAP_SYS_ADMIN in this mount namespace")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Take the room on a disk, all but ``leave`` bytes."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - leave))
    return ballast


def set_name(name: str) -> dict[str, object]:
    return {"op": "update", "table": DB, "where": [], "row": {"external_ids": ["map", [["name", name]]]}}


def test_a_transaction_that_finds_the_disk_full_is_refused_and_the_next_one_works(
    small_disk: Path, tmp_path: Path
) -> None:
    server = EmbeddedServer(small_disk / "conf.db", tmp_path / "db.sock")
    server.start()
    with OvsdbClient(tmp_path / "db.sock") as client:
        client.transact(DB, {"op": "insert", "table": DB, "row": {}}, set_name("before"))
        content = (small_disk / "conf.db").read_bytes()
        ballast = fill(small_disk, leave=4096)
        results = client.transact(DB, set_name("x" * 30_000))
        assert results[-1]["error"] == "I/O error"
        assert (
            "conf.db: No space left on device; free some space there; the transaction was not" in results[-1]["details"]
        )
        assert (small_disk / "conf.db").read_bytes() == content
        select = {"op": "select", "table": DB, "where": [], "columns": ["external_ids"]}
        assert client.transact(DB, select) == [{"rows": [{"external_ids": ["map", [["name", "before"]]]}]}]
        ballast.unlink()
        assert client.transact(DB, set_name("after")) == [{"count": 1}]
    server.stop()
    again = EmbeddedServer(small_disk / "conf.db", tmp_path / "db.sock")
    again.start()
    with OvsdbClient(tmp_path / "db.sock") as client:
        assert client.transact(DB, select) == [{"rows": [{"external_ids": ["map", [["name", "after"]]]}]}]
    again.stop()


def test_a_database_that_cannot_be_made_is_named_and_nothing_is_left(small_disk: Path, tmp_path: Path) -> None:
    fill(small_disk, leave=0)
    with pytest.raises(
        KernelError, match=r"cannot write the database .*conf\.db: No space left .*; free some space there"
    ):
        EmbeddedServer(small_disk / "conf.db", tmp_path / "db.sock")
    assert {path.name for path in small_disk.iterdir()} <= {"ballast", ".conf.db.~lock~"}


def test_a_compaction_that_finds_no_room_leaves_the_old_file_in_use(small_disk: Path) -> None:
    database = Database.open(small_disk / "conf.db", vswitch_schema())
    table = database.tables[DB]
    transaction = database.begin()
    transaction.insert(table, table.new_row(UUID))
    database.commit(transaction)
    ballast = fill(small_disk, leave=4096)
    with pytest.raises(KernelError, match="No space left on device"):
        database.compact("for the test")
    ballast.unlink()
    transaction = database.begin()
    transaction.modify(table, table.rows[UUID]).fields["external_ids"] = {"after": "it"}
    database.commit(transaction)
    database.close()
    database = Database.open(small_disk / "conf.db", vswitch_schema())
    assert database.tables[DB].rows[UUID].fields["external_ids"] == {"after": "it"}
    database.close()
    assert sorted(path.name for path in small_disk.iterdir()) == [".conf.db.~lock~", "conf.db"]


def test_ovs_vsctl_says_what_is_wrong(small_disk: Path, tmp_path: Path) -> None:
    server = EmbeddedServer(small_disk / "conf.db", tmp_path / "db.sock")
    server.start()
    vsctl = ["ovs-vsctl", f"--db={server.remote}", "--no-wait"]
    subprocess.run([*vsctl, "init"], check=True)
    fill(small_disk, leave=4096)
    command = [*vsctl, "add-br", "br0", "--", "set", "Bridge", "br0", "external_ids:big=" + "x" * 30_000]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "No space left on device; free some space there" in refused.stderr
    assert subprocess.run([*vsctl, "list-br"], check=True, capture_output=True, text=True).stdout == ""
    server.stop()
