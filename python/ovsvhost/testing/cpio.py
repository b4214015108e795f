"""A cpio archive ("newc", what the kernel unpacks as initramfs) written from memory, so without root.

Device nodes and owners are just header fields here; nothing is created on the machine that writes the archive.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_MAGIC = "070701"


class CpioWriter:
    """Writes entries one after the other; ``close`` adds the trailer. The stream stays the caller's."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._folders: set[str] = set()

    def file(self, path: str, content: bytes, *, mode: int = 0o755) -> None:
        """Adds a regular file and the folders above it. ``path`` is relative to the guest's root."""
        self._entry(path, stat.S_IFREG | mode, content)

    def folder(self, path: str) -> None:
        """Adds a folder, and those above it."""
        if path and path not in self._folders:
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link, and the folders above it."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path: str, major: int, minor: int) -> None:
        """Adds a character device."""
        self._entry(path, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def close(self) -> None:
        """Ends the archive."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self.folder(path.rpartition("/")[0])
        self._inode += 1
        name = path.encode() + b"\0"
        fields = [self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0]
        self._padded((_MAGIC + "".join(f"{field:08x}" for field in fields)).encode() + name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._stream.write(data + bytes(-len(data) % 4))
