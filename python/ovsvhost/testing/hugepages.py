"""Hugepages for guests and peers: asked of the kernel when needed, never taken away from others.

``nr_hugepages`` is only ever raised: a page that another program counts on is not ours to give back. The pages are used
through a hugetlbfs mount of our own, so that files left by others cannot be met.
"""

from __future__ import annotations

import fcntl
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.testing.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB_2 = 2 << 20
GIB_1 = 1 << 30


def reserve(count: int, *, page_size: int = MIB_2) -> None:
    """Makes sure that ``count`` pages are free now.

    Raises:
        MissingError: no right to ask, no such page size, or memory too fragmented; says what to do.
    """
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{page_size // 1024}kB")
    if not pool.is_dir():
        raise MissingError(f"this machine has no hugepages of {page_size >> 20} MiB")
    with Path(tempfile.gettempdir(), "ovsvhost-hugepages.lock").open("w") as lock:
        # Two test runs that read, add and write would take each other's pages.
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = _number(pool / "nr_hugepages") + count - _free(pool)
        if _free(pool) >= count:
            return
        try:
            (pool / "nr_hugepages").write_text(str(wanted))
        except PermissionError:
            raise MissingError(
                f"{count} hugepages of {page_size >> 20} MiB: {_free(pool)} free and no right to raise "
                f"{pool}/nr_hugepages; as root: echo {wanted} > {pool}/nr_hugepages"
            ) from None
        if _free(pool) < count:
            raise MissingError(
                f"{count} hugepages of {page_size >> 20} MiB: the kernel has {_free(pool)} free and found no more in "
                "one piece; reserve them at boot with hugepagesz= and hugepages="
            )


@contextmanager
def mounted(*, page_size: int = MIB_2) -> Iterator[Path]:
    """A hugetlbfs of one page size at a folder of its own, unmounted at the end.

    Raises:
        MissingError: no right to mount.
    """
    with tempfile.TemporaryDirectory(prefix="hugetlbfs-") as name:
        options = f"pagesize={page_size >> 20}M,mode=0700"
        done = subprocess.run(
            ["mount", "-t", "hugetlbfs", "-o", options, "none", name], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MissingError(f"hugetlbfs could not be mounted: {done.stderr.strip()}; it takes root")
        try:
            yield Path(name)
        finally:
            # Lazily: a guest that is just ending may still hold a file.
            subprocess.run(["umount", "--lazy", name], check=True)


def _free(pool: Path) -> int:
    # Reserved pages are promised to a mapping that has not touched them yet.
    return _number(pool / "free_hugepages") - _number(pool / "resv_hugepages")


def _number(path: Path) -> int:
    return int(path.read_text())
