"""Command line options as ``getopt_long(3)`` of the GNU C library takes them.

The standard library's modules take other abbreviations and say other things when they refuse, and scripts written
for ``ovs-vsctl`` and ``ovs-appctl`` rely on both. Options end at the first word that is none, or behind ``--``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Argument(Enum):
    """Whether an option takes an argument."""

    NONE = "no"
    REQUIRED = "required"
    OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: its long name, without the dashes.
        argument: whether it takes an argument.
        short: its one-letter form, empty if it has none.
        kind: options of one kind may share an ambiguous prefix, of which the first is then meant.
    """

    name: str
    argument: Argument = Argument.NONE
    short: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """An option as it was given.

    Attributes:
        name: the long name of the option, whichever form was typed.
        value: its argument, None without one.
    """

    name: str
    value: str | None


def parse(words: Sequence[str], options: Sequence[Option]) -> tuple[list[Given], list[str]]:
    """Splits a command line into its options and the words that follow them.

    Raises:
        ConfigError: an option is unknown or ambiguous, or its argument is missing or not wanted.
    """
    given: list[Given] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            given.append(_long(word[2:], rest, options))
        else:
            given += _short(word[1:], rest, options)
    return given, rest


def _long(word: str, rest: list[str], options: Sequence[Option]) -> Given:
    name, equals, value = word.partition("=")
    option = _named(name, word, options)
    if equals and option.argument is Argument.NONE:
        raise ConfigError(f"option '--{option.name}' doesn't allow an argument")
    if option.argument is Argument.REQUIRED and not equals:
        if not rest:
            raise ConfigError(f"option '--{option.name}' requires an argument")
        return Given(option.name, rest.pop(0))
    return Given(option.name, value if equals else None)


def _named(name: str, word: str, options: Sequence[Option]) -> Option:
    exact = [option for option in options if option.name == name]
    found = exact or [option for option in options if option.name.startswith(name)]
    if not found:
        raise ConfigError(f"unrecognized option '--{word}'")
    if len({(option.argument, option.kind or option.name) for option in found}) > 1:
        possibilities = " ".join(f"'--{option.name}'" for option in found)
        raise ConfigError(f"option '--{word}' is ambiguous; possibilities: {possibilities}")
    return found[0]


def _short(letters: str, rest: list[str], options: Sequence[Option]) -> list[Given]:
    given: list[Given] = []
    while letters:
        letter, letters = letters[0], letters[1:]
        option = next((each for each in options if each.short == letter), None)
        if option is None:
            raise ConfigError(f"invalid option -- '{letter}'")
        if option.argument is Argument.NONE:
            given.append(Given(option.name, None))
            continue
        if option.argument is Argument.REQUIRED and not letters:
            if not rest:
                raise ConfigError(f"option requires an argument -- '{letter}'")
            letters = rest.pop(0)
        given.append(Given(option.name, letters or None))
        break
    return given
