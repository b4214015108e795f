"""Debian packages as plain files: fetched by name, unpacked into a cache, nothing installed, no root.

Guests need a kernel and a few programs, and QEMU's second version comes from backports. Both are taken from
wherever this machine's apt already takes Debian from (mirror, proxy, snapshot), through an apt state of our own::

    <cache>/debian/apt/                      private lists and archives
    <cache>/debian/<release>/<package>/      the package's tree, complete or absent

A tree appears by rename, so a killed download leaves nothing half there. Delete a folder to fetch it anew.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.testing.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_CODENAME = "bookworm"
_TIMEOUT_S = 300


def cache_dir() -> Path:
    """Where guests' kernels, images and second QEMU are kept: ``$OVSVHOST_CACHE``, else the user's cache folder."""
    if configured := os.environ.get("OVSVHOST_CACHE"):
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ovsvhost"


class Packages:
    """Unpacked Debian packages of one release, fetched when first asked for.

    Args:
        cache: the folder to keep them in.
        release: ``bookworm``, or ``bookworm-backports``.
    """

    def __init__(self, cache: Path, release: str = _CODENAME) -> None:
        self._root = cache / "debian" / release
        self._apt = cache / "debian" / "apt"
        self._release = release

    def tree(self, package: str) -> Path:
        """The folder a package is unpacked into, as if it were ``/``.

        Raises:
            MissingError: it is not here yet; ``fetch`` gets it.
        """
        tree = self._root / package
        if not tree.is_dir():
            raise MissingError(
                f"debian package '{package}' ({self._release}) is not in {self._root}: run scripts/setup test"
            )
        return tree

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """Fetches and unpacks what is missing; returns the trees in the order asked for. Blocks on the network.

        Raises:
            MissingError: apt could not be reached or knows no such package; the message carries apt's words.
        """
        with self._locked():
            missing = [package for package in packages if not (self._root / package).is_dir()]
            if missing:
                self._update()
                self._download(missing)
        return [self.tree(package) for package in packages]

    def dependency(self, package: str, pattern: str) -> str:
        """The first package that ``package`` depends on and whose name matches: how a meta package is followed.

        Asks the archive, so that the name it gives is one that can be fetched now.
        """
        with self._locked():
            self._update()
            depends = self._run("apt-cache", "show", f"{package}/{self._release}", what=f"look up {package}")
        for line in depends.splitlines():
            if line.startswith("Depends:") and (found := re.search(pattern, line)):
                return found.group(0)
        raise MissingError(f"debian package '{package}' depends on nothing like '{pattern}': update apt's sources")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._apt.mkdir(parents=True, exist_ok=True)
        with (self._apt / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _update(self) -> None:
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._apt / folder).mkdir(parents=True, exist_ok=True)
        source = f"deb [signed-by={_KEYRING}] {_archive_uri()}"
        (self._apt / "sources.list").write_text(f"{source} {_CODENAME} main\n{source} {_CODENAME}-backports main\n")
        self._run("apt-get", "-qq", "update", what="update the private package lists")

    def _download(self, packages: Sequence[str]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self._root) as name:
            folder = Path(name)
            wanted = [f"{package}/{self._release}" for package in packages]
            self._run("apt-get", "-qq", "download", *wanted, cwd=folder, what=f"download {' '.join(packages)}")
            for package in packages:
                (deb,) = folder.glob(f"{package}_*.deb")
                tree = folder / f"{package}.tree"
                _call(["dpkg-deb", "-x", str(deb), str(tree)], what=f"unpack {package}")
                tree.rename(self._root / package)

    def _run(self, program: str, *arguments: str, what: str, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::sourcelist": self._apt / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State": self._apt,
            "Dir::State::lists": self._apt / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": self._apt / "cache",
            "Acquire::Languages": "none",
            # apt would drop to a user of its own, who may not write into a checkout.
            "APT::Sandbox::User": "root",
        }
        flags = [f"--option={key}={value}" for key, value in options.items()]
        return _call([program, *flags, *arguments], what=what, cwd=cwd)


def _archive_uri() -> str:
    """The base of the Debian archive as this machine's own apt configuration names it."""
    listed = _call(["apt-get", "update", "--print-uris"], what="read the machine's apt sources")
    for uri in re.findall(r"'([^']+)'", listed):
        base, found, rest = uri.partition(f"/dists/{_CODENAME}/")
        if found and rest.endswith("InRelease"):
            return str(base)
    raise MissingError(f"apt's sources on this machine name no Debian '{_CODENAME}': guests' programs come from there")


def _call(command: Sequence[str], *, what: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise MissingError(f"cannot {what}: this machine has no {command[0]}; Debian has")
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise MissingError(f"cannot {what}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
