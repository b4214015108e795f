"""The guest: Debian's cloud kernel and a 12 MB initramfs of busybox, ethtool, iperf3 and an agent.

Written from unpacked packages without root. A guest boots it directly (``-kernel``, ``-initrd``), so there is no disk,
no boot loader and nothing to clean up. What a guest does after boot stands in ``guest-init.sh``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ovsvhost.testing.cpio import CpioWriter
from ovsvhost.testing.debian import Packages, cache_dir
from ovsvhost.testing.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

_KERNEL_META = "linux-image-cloud-amd64"
_KERNEL_NAME = r"linux-image-[0-9][^ ,]*-cloud-amd64"
# In the order in which they load: nothing in the guest resolves dependencies.
_MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
_PROGRAMS = {
    "busybox-static": {"bin/busybox": "bin/busybox"},
    "ethtool": {"sbin/ethtool": "sbin/ethtool"},
    "iperf3": {"usr/bin/iperf3": "usr/bin/iperf3"},
}
_LIBRARIES = {
    "libc6": ("libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"),
    "libiperf0": ("libiperf.so.0",),
    "libmnl0": ("libmnl.so.0",),
    "libsctp1": ("libsctp.so.1",),
    "libssl3": ("libcrypto.so.3",),
}
_LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Extra:
    """What an image has besides.

    Attributes:
        files: path in the guest, relative to its root -> file on this machine.
        links: path in the guest -> what a symbolic link there points to.
        modules: names of kernel modules, loaded in this order after the others.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def digest(self) -> bytes:
        """Changes when the image would."""
        states = [(target, path.stat()) for target, path in sorted(self.files.items())]
        files = [(target, state.st_size, state.st_mtime_ns) for target, state in states]
        return repr((files, sorted(self.links.items()), self.modules)).encode()


_NOTHING = Extra()


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def guest_image(cache: Path | None = None, *, extra: Extra = _NOTHING) -> GuestImage:
    """The image, written anew when its recipe changed.

    Args:
        cache: where images and their packages are kept; None as `cache_dir` says.
        extra: what it shall have besides.

    Raises:
        MissingError: its packages were never fetched; ``fetch_image`` gets them.
    """
    cache = cache or cache_dir()
    packages = Packages(cache)
    kernels = sorted((cache / "debian").glob("bookworm/linux-image-*-cloud-amd64"))
    if not kernels:
        raise MissingError(f"no guest kernel in {cache}: run scripts/setup, or python -m ovsvhost.testing.image")
    kernel = kernels[-1]
    recipe = _guest_init() + Path(__file__).read_bytes() + kernel.name.encode() + extra.digest()
    initramfs = cache / f"initramfs-{hashlib.sha256(recipe).hexdigest()[:16]}.cpio"
    if not initramfs.is_file():
        _write(initramfs, kernel, packages, extra)
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    return GuestImage(kernel=vmlinuz, initramfs=initramfs)


def fetch_image(cache: Path | None = None) -> GuestImage:
    """Like ``guest_image``, after fetching the packages that are missing. Blocks on the network (about 25 MB)."""
    cache = cache or cache_dir()
    packages = Packages(cache)
    wanted = [*_PROGRAMS, *_LIBRARIES]
    if not list((cache / "debian").glob("bookworm/linux-image-*-cloud-amd64")):
        wanted.append(packages.dependency(_KERNEL_META, _KERNEL_NAME))
    packages.fetch(wanted)
    return guest_image(cache)


def _guest_init() -> bytes:
    return resources.files("ovsvhost.testing").joinpath("guest-init.sh").read_bytes()


def _write(path: Path, kernel: Path, packages: Packages, extra: Extra) -> None:
    handle, name = tempfile.mkstemp(prefix="initramfs-", dir=path.parent)
    with os.fdopen(handle, "wb") as stream:
        archive = CpioWriter(stream)
        # The kernel opens it for the first process, before that process could mount devtmpfs.
        archive.node("dev/console", 5, 1)
        archive.file("init", _guest_init())
        archive.link("bin/sh", "busybox")
        for package, files in _PROGRAMS.items():
            for source, target in files.items():
                archive.file(target, (packages.tree(package) / source).read_bytes())
        for package, names in _LIBRARIES.items():
            for library in names:
                folder = "lib64" if library == _LOADER else "lib/x86_64-linux-gnu"
                archive.file(f"{folder}/{library}", _find(packages.tree(package), library).read_bytes())
        for target, file in extra.files.items():
            archive.file(target, file.read_bytes())
        for target, pointed in extra.links.items():
            archive.link(target, pointed)
        modules = (*_MODULES, *extra.modules)
        for module in modules:
            archive.file(f"modules/{module}.ko", _find(kernel, f"{module}.ko").read_bytes(), mode=0o644)
        archive.file("modules/order", "".join(f"{module}\n" for module in modules).encode(), mode=0o644)
        archive.close()
    Path(name).rename(path)


def _find(tree: Path, name: str) -> Path:
    for path in sorted(tree.rglob(name)):
        if path.is_file():
            return path
    raise MissingError(f"no {name} in {tree}: delete that folder and run scripts/setup")


if __name__ == "__main__":
    sys.stdout.write(f"{fetch_image().initramfs}\n")
