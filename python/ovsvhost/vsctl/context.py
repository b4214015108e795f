"""What a verb works with while it runs, and what all verbs of one transaction share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ovsvhost.vsctl.values import Symbols

if TYPE_CHECKING:
    from uuid import UUID

    from ovsvhost.vsctl.grammar import Command
    from ovsvhost.vsctl.replica import Replica
    from ovsvhost.vsctl.table import Table
    from ovsvhost.vsctl.topology import Topology


class TryAgain(Exception):  # noqa: N818 - not an error: a condition that does not hold yet
    """The command must run again once the database has changed."""


class Exit(Exception):  # noqa: N818 - not an error: a verb's answer
    """Ends the program without a message, the transaction undone.

    Attributes:
        status: the exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Shared:
    """What the commands of one transaction share.

    Attributes:
        db: the replica with its open transaction.
        transaction: the transaction itself.
        root: the one row of table ``Open_vSwitch``.
        symbols: the ``@name``s.
        new_interfaces: the provisional uuids of Interface rows that the daemon is expected to bring up.
        topology: bridges, ports and interfaces by name, None when a change made it stale.
    """

    db: Replica
    transaction: Any
    root: Any
    symbols: Symbols = field(default_factory=Symbols)
    new_interfaces: list[UUID] = field(default_factory=list)
    topology: Topology | None = None

    def committed_uuid(self, provisional: UUID) -> UUID | None:
        """The uuid that the server gave to an inserted row, once the transaction is committed.

        Args:
            provisional: the row's uuid within the transaction.

        Returns:
            The uuid, None if the row never came to be.
        """
        found: UUID | None = self.transaction.get_insert_uuid(provisional)
        return found


@dataclass(slots=True)
class Context:
    """One command within its transaction.

    Attributes:
        shared: what it shares with the other commands.
        command: the command.
        is_last: whether no command follows it, so that its changes need not be seen by any.
    """

    shared: Shared
    command: Command
    is_last: bool

    @property
    def db(self) -> Replica:
        """The replica with its open transaction."""
        return self.shared.db

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words behind the verb."""
        return self.command.words[1:]

    def has(self, option: str) -> bool:
        """Whether an option such as ``--may-exist`` was given."""
        return option in self.command.options

    def option(self, name: str) -> str | None:
        """The argument of an option such as ``--id``, None if it was not given."""
        return self.command.options.get(name)

    def put(self, text: str) -> None:
        """Prints, once the transaction is committed."""
        self.command.output.append(text)

    def put_table(self, table: Table) -> None:
        """Prints a table instead of text, in the style that the user chose."""
        self.command.table = table

    def forget_topology(self) -> None:
        """Says that the bridges, ports and interfaces may have changed."""
        self.shared.topology = None
