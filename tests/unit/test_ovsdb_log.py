"""The database file: what a crash, damage and strangers leave of it, and what is made of that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError, KernelError
from ovsvhost.store.log import DatabaseFile, compose_record

if TYPE_CHECKING:
    from pathlib import Path

RECORDS: list[dict[str, Any]] = [{"name": "schema"}, {"row": 'a "quoted" line\nand an OVSDB JSON one'}, {"row": "ä𝄞"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    DatabaseFile(tmp_path / "conf.db", RECORDS).close()
    return tmp_path / "conf.db"


def bodies(path: Path) -> list[dict[str, Any]]:
    file = DatabaseFile(path)
    try:
        return [body for _, body in file.read()]
    finally:
        file.close()


def test_what_was_written_is_read_again(path: Path) -> None:
    file = DatabaseFile(path)
    file.read()
    file.append({"more": 1}, durable=False)
    file.append({"more": 2}, durable=True)
    file.close()
    assert bodies(path) == [*RECORDS, {"more": 1}, {"more": 2}]


def test_a_file_that_is_there_is_not_made_anew(path: Path) -> None:
    DatabaseFile(path, [{"other": 1}]).close()
    assert bodies(path) == RECORDS


def test_a_file_is_made_for_its_user_only(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_torn_tail_is_cut_off_and_written_over(path: Path) -> None:
    whole = path.read_bytes()
    last = len(whole) - len(compose_record(RECORDS[-1]))
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        file = DatabaseFile(path)
        assert [body for _, body in file.read()] == RECORDS[:-1]
        assert path.stat().st_size == last
        file.append({"after": "the crash"}, durable=False)
        file.close()
        assert bodies(path) == [*RECORDS[:-1], {"after": "the crash"}]


def test_a_tail_of_zeros_is_a_torn_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with path.open("ab") as stream:
        stream.write(bytes(4096))
    assert bodies(path) == RECORDS
    assert f"cut a torn record off the end of {path}" in caplog.text


def test_a_tail_of_garbage_is_a_torn_one(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\xff\xfe garbage \n without a header")
    assert bodies(path) == RECORDS


def test_damage_before_good_records_is_refused_and_named(path: Path) -> None:
    whole = path.read_bytes()
    offset = len(compose_record(RECORDS[0]))
    for position in (offset, offset + 20, whole.index(b"quoted")):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        cure = re.escape(f"truncate -s {offset} {path}")
        with pytest.raises(ConfigError, match=f"conf.db: the record at offset {offset} is damaged .*{cure}"):
            bodies(path)
        assert path.read_bytes() == damaged


def test_the_cure_that_the_message_names_works(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"quoted", b"broken"))
    with pytest.raises(ConfigError) as refusal:
        bodies(path)
    subprocess.run(str(refusal.value).rpartition(": ")[2].split(), check=True)
    assert bodies(path) == RECORDS[:1]


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\x7fELF", b"OVSDB CLUSTER 5 0123456789012345678901234567890123456789\n"]
)
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "conf.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"conf\.db is not an OVSDB database .*--state-dir"):
        bodies(path)
    assert path.read_bytes() == content


def test_a_second_user_in_this_process_is_refused(path: Path) -> None:
    first = DatabaseFile(path)
    with pytest.raises(ConfigError, match=r"in use by another daemon or tool .*--state-dir"):
        DatabaseFile(path)
    first.close()
    assert bodies(path) == RECORDS


def test_a_second_process_is_refused(path: Path) -> None:
    first = DatabaseFile(path)
    script = f"from pathlib import Path; from ovsvhost.store.log import DatabaseFile; DatabaseFile(Path({str(path)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    second = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=30
    )
    first.close()
    assert "in use by another daemon or tool" in second.stderr


def test_a_link_is_followed_to_one_lock_and_one_file(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    first = DatabaseFile(path)
    with pytest.raises(ConfigError, match="in use"):
        DatabaseFile(link)
    first.close()
    file = DatabaseFile(link)
    file.replace([{"only": 1}])
    file.close()
    assert link.is_symlink()
    assert bodies(path) == [{"only": 1}]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot open the database .*conf\.db: No such file"):
        DatabaseFile(tmp_path / "conf.db")
    assert not list(tmp_path.glob("*.db"))


def test_replacing_goes_on_with_the_new_file(path: Path) -> None:
    file = DatabaseFile(path)
    file.read()
    file.replace([{"new": 1}])
    file.append({"more": 2}, durable=True)
    file.close()
    assert bodies(path) == [{"new": 1}, {"more": 2}]
    assert not path.with_name("conf.db.tmp").exists()


def test_a_durable_record_is_on_the_disk_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    flush = os.fdatasync

    def watched(fd: int) -> None:
        sizes.append(os.fstat(fd).st_size)
        flush(fd)

    file = DatabaseFile(path)
    file.read()
    monkeypatch.setattr(os, "fdatasync", watched)
    file.append({"a": 1}, durable=False)
    assert sizes == []
    file.append({"a": 2}, durable=True)
    assert sizes == [file.size]
    file.close()


@settings(max_examples=40, deadline=None)
@given(cut=st.data())
def test_any_cut_of_a_file_keeps_the_records_before_it(
    tmp_path_factory: pytest.TempPathFactory, cut: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "conf.db"
    DatabaseFile(path, RECORDS).close()
    whole = path.read_bytes()
    first = len(compose_record(RECORDS[0]))
    size = cut.draw(st.integers(first, len(whole)))
    path.write_bytes(whole[:size])
    kept = bodies(path)
    assert kept == RECORDS[: len(kept)]
    assert path.read_bytes() == b"".join(map(compose_record, kept))
