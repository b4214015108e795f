"""A command line's commands: ``[OPTIONS] VERB ARG… [-- [OPTIONS] VERB ARG…]…``.

A :class:`Verb` says what a command takes and does; a :class:`Command` is a verb as it was typed. This module
checks the shape only: the words are known to the verbs themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ovsvhost.vsctl.context import Context
    from ovsvhost.vsctl.names import Needs
    from ovsvhost.vsctl.table import Table

UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Verb:
    """One command of the grammar.

    Attributes:
        name: what is typed.
        least: the fewest arguments it takes.
        most: the most arguments it takes.
        usage: the arguments, as ``--commands`` prints them.
        run: does it, within a transaction; may be called again if the transaction must be repeated.
        needs: says which columns it reads and writes; called once, before there is a connection.
        finish: rewrites its output once the transaction is committed.
        options: its options, ``--name`` or, with an argument, ``--name=``.
    """

    name: str
    least: int
    most: int
    usage: str
    run: Callable[[Context], None]
    needs: Callable[[Needs, Command], None] | None = None
    finish: Callable[[Context], None] | None = None
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Command:
    """A verb with its arguments and options.

    Attributes:
        verb: what to do.
        words: the verb's name and its arguments.
        options: the options by name, ``--id`` for instance; None for one without an argument.
        output: what it prints, in pieces.
        table: what it prints, if that is a table.
    """

    verb: Verb
    words: tuple[str, ...]
    options: Mapping[str, str | None]
    output: list[str] = field(default_factory=list)
    table: Table | None = None

    def line(self) -> str:
        """The command as it could be typed, for messages."""
        return escaped([*self.options, *self.words])


def parse(
    words: Sequence[str],
    leading_options: Mapping[str, str | None],
    verbs: Mapping[str, Verb],
) -> list[Command]:
    """Takes a command line, less the program's own options, apart.

    Args:
        words: the words, with ``--`` between commands.
        leading_options: options of the first command that stood among the program's own.
        verbs: what there is to choose from, by name.

    Raises:
        ConfigError: there is no command, or one is malformed.
    """
    commands: list[Command] = []
    pending = dict(leading_options)
    start = 0
    for at in range(len(words) + 1):
        if at < len(words) and words[at] != "--":
            continue
        if at > start:
            commands.append(_command(words[start:at], pending, verbs))
            pending = {}
        elif pending:
            raise ConfigError("missing command name (use --help for help)")
        start = at + 1
    if not commands:
        raise ConfigError("missing command name (use --help for help)")
    return commands


def escaped(words: Sequence[str]) -> str:
    """Words joined with spaces, those with spaces or quotes in them in quotes."""
    return " ".join(_escape(word) for word in words)


def _escape(word: str) -> str:
    if not any(char in " \t\r\n\v\\'\"" for char in word):
        return word
    backslashed = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{backslashed}"'


def _command(words: Sequence[str], pending: dict[str, str | None], verbs: Mapping[str, Verb]) -> Command:
    options = dict(pending)
    at = 0
    while at < len(words) and words[at].startswith("-"):
        name, equals, value = words[at].partition("=")
        if name in options:
            raise ConfigError(f"'{words[at]}' option specified multiple times")
        options[name] = value if equals else None
        at += 1
    if at == len(words):
        raise ConfigError("missing command name (use --help for help)")
    verb = verbs.get(words[at])
    if verb is None:
        raise ConfigError(f"unknown command '{words[at]}'; use --help for help")
    for name, option_value in options.items():
        _check_option(verb, name, option_value)
    arguments = words[at + 1 :]
    if len(arguments) < verb.least:
        raise ConfigError(f"'{verb.name}' command requires at least {verb.least} arguments")
    if len(arguments) > verb.most:
        hint = ' (note that options must precede command names and follow a "--" argument)'
        dashed = any(argument.startswith("-") for argument in arguments)
        raise ConfigError(f"'{verb.name}' command takes at most {verb.most} arguments{hint if dashed else ''}")
    return Command(verb, tuple(words[at:]), options)


def _check_option(verb: Verb, name: str, value: str | None) -> None:
    if f"{name}=" in verb.options:
        if value is None:
            raise ConfigError(f"missing argument to '{name}' option on '{verb.name}' command")
    elif name not in verb.options:
        raise ConfigError(f"'{verb.name}' command has no '{name}' option")
    elif value is not None:
        raise ConfigError(f"'{name}' option on '{verb.name}' does not accept an argument")
