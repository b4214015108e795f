"""Finding QEMU: the installed one, and a second release unpacked from backports.

Two releases are two front-ends: they order vhost-user messages differently and use different ones.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ovsvhost.testing.debian import Packages, cache_dir
from ovsvhost.testing.errors import MissingError

_PROGRAM = "qemu-system-x86_64"
_BACKPORTS = "bookworm-backports"
_PACKAGES = ("qemu-system-x86", "qemu-system-data", "qemu-system-common")
# Debian's firmware package serves both releases; QEMU looks for it beside its own data otherwise.
_FIRMWARE = Path("/usr/share/seabios")


@dataclass(frozen=True)
class Qemu:
    """One QEMU on this machine.

    Attributes:
        program: its binary.
        version: major and minor release.
        data: folders of firmware to name with ``-L``; empty for an installed one, which knows its own.
    """

    program: Path
    version: tuple[int, int]
    data: tuple[Path, ...] = ()

    @property
    def msix_is_safe(self) -> bool:
        """False for releases that crash on vhost-user with MSI-X under TCG (SIGSEGV at DRIVER_OK in 7.2)."""
        return self.version >= (8, 0)

    def arguments(self) -> list[str]:
        """The program and where its firmware lies."""
        return [str(self.program), *(part for folder in self.data for part in ("-L", str(folder)))]


def installed_qemu() -> Qemu:
    """The QEMU of this system.

    Raises:
        MissingError: there is none.
    """
    found = shutil.which(_PROGRAM)
    if found is None:
        raise MissingError(f"no {_PROGRAM} on this machine: run scripts/setup run, or install qemu-system-x86")
    return Qemu(Path(found), _version(Path(found)))


def find_qemu(version: str) -> Qemu:
    """A QEMU of one release, ``7.2`` or ``10.0``: installed, or unpacked in the cache.

    Raises:
        MissingError: neither.
    """
    wanted = tuple(int(part) for part in version.split("."))
    if shutil.which(_PROGRAM) and (system := installed_qemu()).version == wanted:
        return system
    program = cache_dir() / "debian" / _BACKPORTS / _PACKAGES[0] / "usr/bin" / _PROGRAM
    if program.is_file() and _version(program) == wanted:
        share = Packages(cache_dir(), _BACKPORTS).tree(_PACKAGES[1]) / "usr/share/qemu"
        return Qemu(program, _version(program), (share, _FIRMWARE))
    raise MissingError(f"no qemu {version}, neither installed nor in {cache_dir()}: run scripts/setup test")


def fetch_qemu() -> Path:
    """Unpacks backports' QEMU into the cache, unless it is there. Blocks on the network (about 13 MB)."""
    tree, *_ = Packages(cache_dir(), _BACKPORTS).fetch(_PACKAGES)
    return tree / "usr/bin" / _PROGRAM


def _version(program: Path) -> tuple[int, int]:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise MissingError(f"{program} does not run: {done.stderr.strip()}; install qemu-system-x86, its libraries")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.stdout.write(f"{fetch_qemu()}\n")
