"""The shell that every other test with a guest stands on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.guest import Guest
from ovsvhost.testing.qemu import find_qemu

if TYPE_CHECKING:
    from ovsvhost.testing.image import GuestImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

_CALLS = 40


def test_agent_answers_every_command_while_background_jobs_end(guest_image: GuestImage) -> None:
    with tempfile.TemporaryDirectory(prefix="ov-") as folder:
        guest = Guest(guest_image, find_qemu("7.2"), [], name="guest", folder=Path(folder))
        guest.start()
        try:
            ending = guest.spawn("while test ! -e /tmp/enough; do (sleep 0.1 &); sleep 0.01; done")
            answers = [guest.run(f"echo {number} {'.' * 300}", timeout_s=30).split()[0] for number in range(_CALLS)]
            assert answers == [str(number) for number in range(_CALLS)]
            guest.run("touch /tmp/enough")
            ending.wait()
        finally:
            guest.kill()
