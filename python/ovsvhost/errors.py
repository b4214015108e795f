"""Every exception of the product, in one tree.

::

    OvsvhostError
    ├── ConfigError  (ValueError)  refused; nothing changed
    ├── PeerError                  a front-end, guest or database peer broke its protocol
    ├── KernelError  (OSError)     the kernel said no: errno and the object
    └── InternalError              a bug of ours

A message is lower case, names the object and the cure. The Rust core imports these in one file
(``rust/py/errors.rs``) and raises them directly.
"""

from __future__ import annotations


class OvsvhostError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(OvsvhostError, ValueError):
    """A setting was refused; nothing changed. The message names the setting and the cure."""


class PeerError(OvsvhostError):
    """The other side of a socket broke its protocol; only that connection suffered."""


class KernelError(OvsvhostError, OSError):
    """A system call failed; ``errno`` and ``filename`` are set where the kernel gave them."""

    def __str__(self) -> str:
        """The sentence alone: it names errno's meaning and the object, as every other message here."""
        return self.strerror or super().__str__()


class InternalError(OvsvhostError):
    """A bug in ovsvhost itself."""
