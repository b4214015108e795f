"""A machine that takes shell commands through its agent, whoever runs it: QEMU (``guest``) or ``libvirt``.

What traffic needs of a guest, and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovsvhost.testing.agent import Agent
from ovsvhost.testing.errors import RigError
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from pathlib import Path

# Under TCG a boot takes 4 s on an idle core and a minute on a busy one.
BOOT_TIMEOUT_S = 180
_COMMAND_TIMEOUT_S = 60


class Machine:
    """A running guest's shell.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._agent: Agent | None = None
        self._booted = False
        self._jobs = 0

    def attach(self, agent: Path) -> None:
        """Connects to the agent's socket; before the guest boots, or its greeting is lost."""
        self._agent = Agent(agent)

    def detach(self) -> None:
        """Hangs up. Idempotent."""
        if self._agent:
            self._agent.close()
        self._agent = None
        self._booted = False

    def logs(self) -> str:
        """What tells why it does not boot."""
        return ""

    def wait_booted(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Waits until the guest takes commands.

        Raises:
            RigError: it does not; with the end of its console and of QEMU's log.
        """
        if self._agent is None:
            raise RigError(f"{self.name} is not started: call start()")
        if self._booted:
            return
        try:
            self._greet(self._agent, timeout_s)
        except (RigError, OSError) as error:
            raise RigError(f"{self.name} did not boot: {error}\n{self.logs()}") from error
        self._booted = True

    def run(self, command: str, *, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Runs a shell command in the guest and gives its output.

        Raises:
            RigError: it failed, with its output; or it took longer than ``timeout_s``.
        """
        code, output = self.call(command, timeout_s=timeout_s)
        if code != 0:
            raise RigError(f"in {self.name}: '{command}' ended with {code}: {output.strip()}")
        return output

    def call(self, command: str, *, timeout_s: float = _COMMAND_TIMEOUT_S) -> tuple[int, str]:
        """Like ``run``, but gives the exit code with the output and leaves the judgement to the caller."""
        self.wait_booted()
        if self._agent is None:
            raise RigError(f"{self.name} went away")
        return self._agent.call(command, timeout_s)

    def spawn(self, command: str) -> Job:
        """Starts a shell command in the guest's background."""
        self._jobs += 1
        return Job(self, f"/tmp/job{self._jobs}", command)  # noqa: S108 - a path inside the guest

    def _greet(self, agent: Agent, timeout_s: float) -> None:
        agent.wait_ready(timeout_s)


class Job:
    """A command that runs in a guest's background; made by ``Machine.spawn``."""

    def __init__(self, guest: Machine, path: str, command: str) -> None:
        self._guest = guest
        self._path = path
        self._command = command
        # The output is there before the command is, for who asks at once. The code is written under another name first:
        # a reader sees all of it or nothing.
        guest.run(
            f": >{path}.out; "
            f"(({command}) >{path}.out 2>&1; echo $? >{path}.new; mv {path}.new {path}.code) & echo $! >{path}.pid"
        )

    def follow(self, guest: Machine) -> None:
        """Asks there from now on: the guest that it runs in moved, and took it along."""
        self._guest = guest

    def output(self) -> str:
        """What it wrote so far."""
        return self._guest.run(f"cat {self._path}.out")

    def wait(self, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Waits for its end and gives its output; RigError when it fails or takes longer."""
        code = wait_for(
            lambda: self._guest.call(f"cat {self._path}.code")[1].strip() if self.ended else "",
            timeout_s=timeout_s,
            what=f"'{self._command}' in {self._guest.name}",
            interval_s=0.1,
        )
        output = self.output()
        if code != "0":
            raise RigError(f"in {self._guest.name}: '{self._command}' ended with {code}: {output.strip()}")
        return output

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._guest.call(f"test -e {self._path}.code")[0] == 0

    def interrupt(self, program: str) -> None:
        """SIGINT to every ``program`` in the guest, so that this job prints its summary and ends."""
        self._guest.run(f"killall -INT {program}")
