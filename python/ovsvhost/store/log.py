r"""The file format of a standalone OVSDB database, as ovsdb(5) describes it under *Database Format*.

::

    OVSDB JSON <length> <sha1 of the body>\n
    <body: one JSON object, a line feed at its end>
    OVSDB JSON ...

The first record is the schema, each further one a transaction. A record is appended by one write and is either
there whole or not at all:

- A *torn tail*, what a crash or a power cut leaves of the last record, is cut off when the file is opened; the
  transaction in it was never acknowledged as durable.
- A bad record with good ones behind it is damage, not a crash: opening is refused and the file stays as it is. (The
  real ovsdb-server goes on with what stands before the damage and then overwrites the rest.)
- A write that fails, for want of space for example, is taken back to the record before.

The lock beside the file, ``.<name>.~lock~``, is the one that ovsdb-server and ovsdb-tool take: nobody else writes
while we do. It must not know what the records mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from ovsvhost.errors import ConfigError, KernelError

_HEADER = re.compile(rb"OVSDB JSON ([1-9][0-9]*) ([0-9a-f]{40})\n")
_LATER_HEADER = re.compile(rb"^OVSDB JSON [1-9][0-9]* [0-9a-f]{40}$", re.MULTILINE)
# POSIX locks do not keep two users within one process apart.
_locked_here: set[str] = set()

_log = logging.getLogger(__name__)


def compose_record(body: dict[str, Any]) -> bytes:
    """One record, header and body."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    return b"OVSDB JSON %d %s\n" % (len(text), digest.encode()) + text


class DatabaseFile:
    """An open, locked database file, to be appended to.

    Args:
        path: the file.
        initial: records to make it of, and its directory too, if it is not there.

    Errors: `ConfigError` if another process has it locked, `KernelError` if it cannot be opened or made; a file that
    could not be made whole is not made.
    """

    def __init__(self, path: Path, initial: list[dict[str, Any]] | None = None) -> None:
        # As ovsdb-server does: the lock and a compacted file belong beside the file, not beside a link to it.
        self.path = Path(os.path.realpath(path))
        if initial is not None:
            _make_directory(self.path.parent)
        # The lock comes first: of two that make the file at the same time, one would work on a file without a name.
        self._lock_fd = _lock(self.path)
        try:
            if initial is not None and not self.path.exists():
                _write_whole(self.path, initial)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            _unlock(self.path, self._lock_fd)
            if isinstance(error, KernelError):
                raise
            raise _kernel_error(error, f"cannot open the database {path}") from error
        self.size = 0
        self.base_size = 0

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """All records with their offsets; afterwards the file ends with the last good one.

        Errors: `ConfigError` for a record that is bad and not the last.
        """
        with open(self._fd, "rb", closefd=False) as stream:
            data = stream.read()
        records: list[tuple[int, dict[str, Any]]] = []
        offset = 0
        while offset < len(data):
            try:
                body, end = self._parse(data, offset)
            except ValueError as error:
                self._judge_bad_record(data, offset, str(error), is_first=not records)
                break
            records.append((offset, body))
            offset = end
        self.size = self.base_size = offset
        return records

    def _parse(self, data: bytes, offset: int) -> tuple[dict[str, Any], int]:
        header = _HEADER.match(data, offset)
        if header is None:
            raise ValueError("it does not begin with a record header")
        end = header.end() + int(header[1])
        text = data[header.end() : end]
        if len(text) < int(header[1]):
            raise ValueError(f"it ends after {len(text)} of {int(header[1])} bytes")
        if hashlib.sha1(text, usedforsecurity=False).hexdigest().encode() != header[2]:
            raise ValueError("its SHA-1 does not match its text")
        body = json.loads(text)
        if type(body) is not dict:
            raise ValueError("it is not a JSON object")
        return body, end

    def _judge_bad_record(self, data: bytes, offset: int, reason: str, *, is_first: bool) -> None:
        newline = data.find(b"\n", offset)
        if is_first:
            raise ConfigError(
                f"{self.path} is not an OVSDB database ({reason} at offset {offset}); "
                "move it away to start with an empty one, or name another with --state-dir"
            )
        if newline >= 0 and _LATER_HEADER.search(data, newline):
            raise ConfigError(
                f"{self.path}: the record at offset {offset} is damaged ({reason}) and good ones follow it; "
                "nothing was changed. Restore a backup, or keep what stands before it: "
                f"truncate -s {offset} {self.path}"
            )
        _log.warning(
            "cut a torn record off the end of %s: %s",
            self.path,
            reason,
            extra={"offset": offset, "size": len(data) - offset},
        )
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            raise _kernel_error(error, f"cannot cut the torn end off {self.path}") from error

    def append(self, body: dict[str, Any], *, durable: bool) -> None:
        """Write one record; with ``durable`` it is on the disk when this returns.

        Errors: `KernelError` if the file system refuses; the file is then as it was.
        """
        record = compose_record(body)
        try:
            _write_all(self._fd, record, self.size)
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            # What could not be cut off now is overwritten by the next record, or is a torn tail.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise _kernel_error(error, f"cannot write to the database {self.path}") from error
        self.size += len(record)

    @property
    def has_grown(self) -> bool:
        """Whether compaction is worth it: ovsdb-server's rule, over 10 MiB and twice what it was."""
        return self.size > 10 * 1024 * 1024 and self.size > 2 * self.base_size

    def replace(self, records: list[dict[str, Any]]) -> None:
        """Put these records in the place of all there are, at once. Errors: `KernelError`; the old file stays."""
        size = _write_whole(self.path, records)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _kernel_error(error, f"cannot open the compacted database {self.path}") from error
        os.close(self._fd)
        self._fd = fd
        self.size = self.base_size = size

    def close(self) -> None:
        """Bring everything to the disk and let go of file and lock."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            _log.warning("cannot flush the database %s: %s", self.path, error.strerror)
        os.close(self._fd)
        _unlock(self.path, self._lock_fd)


_CURES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "raise the quota or free some space there",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EROFS: "its file system is read-only, name another directory with --state-dir",
    errno.EIO: "the disk fails, name a directory on another one with --state-dir",
}
_OTHER_CURE = "check the directory and who may write there, or name another with --state-dir"


def _kernel_error(error: OSError, text: str) -> KernelError:
    cure = _CURES.get(error.errno or 0, _OTHER_CURE)
    return KernelError(error.errno, f"{text}: {error.strerror or error}; {cure}")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _kernel_error(error, f"cannot create the directory {directory}") from error


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.~lock~")


def _lock(path: Path) -> int:
    lock = _lock_path(path)
    in_use = ConfigError(
        f"the database {path} is in use by another daemon or tool (it holds {lock}); "
        "stop that one, or name another directory with --state-dir"
    )
    if str(path) in _locked_here:
        raise in_use
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _kernel_error(error, f"cannot create the lock file {lock}") from error
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise in_use from error
        raise _kernel_error(error, f"cannot lock {lock}") from error
    _locked_here.add(str(path))
    return fd


def _unlock(path: Path, fd: int) -> None:
    os.close(fd)
    _locked_here.discard(str(path))


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _write_whole(path: Path, records: list[dict[str, Any]]) -> int:
    temporary = path.with_name(path.name + ".tmp")
    data = b"".join(map(compose_record, records))
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _kernel_error(error, f"cannot write the database {path}") from error
    return len(data)
