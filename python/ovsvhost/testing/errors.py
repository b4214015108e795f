"""What can go wrong with the rig itself, as opposed to the product under test."""

from __future__ import annotations

from ovsvhost.errors import OvsvhostError


class RigError(OvsvhostError):
    """A guest, peer or program of the rig did not do what the test needs; the message names it and its log."""


class MissingError(RigError):
    """Something that the machine lacks; the message names the package or setting that cures it."""
