"""The program's own options, before the first command: where the database is, how to wait, how to print."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl.getopt_long import Argument, Given, Option, parse
from ovsvhost.vsctl.table import DATA_FORMATS, FORMATS, Style

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ovsvhost.vsctl.grammar import Verb

_REQUIRED, _OPTIONAL = Argument.REQUIRED, Argument.OPTIONAL

OPTIONS = (
    Option("db", _REQUIRED),
    Option("no-syslog"),
    Option("no-wait"),
    Option("dry-run"),
    Option("oneline"),
    Option("timeout", _REQUIRED, "t"),
    Option("retry"),
    Option("help", short="h"),
    Option("commands"),
    Option("options"),
    Option("leader-only"),
    Option("no-leader-only"),
    Option("shuffle-remotes"),
    Option("no-shuffle-remotes"),
    Option("version", short="V"),
    Option("verbose", _OPTIONAL, "v"),
    Option("log-file", _OPTIONAL),
    Option("syslog-method", _REQUIRED),
    Option("syslog-target", _REQUIRED),
    Option("format", _REQUIRED, "f"),
    Option("data", _REQUIRED, "d"),
    Option("no-headings"),
    Option("pretty"),
    Option("bare"),
    Option("max-column-width", _REQUIRED),
    Option("private-key", _REQUIRED, "p"),
    Option("certificate", _REQUIRED, "c"),
    Option("ca-cert", _REQUIRED, "C"),
    Option("ssl-protocols", _REQUIRED),
    Option("ssl-ciphers", _REQUIRED),
    Option("bootstrap-ca-cert", _REQUIRED),
    Option("peer-ca-cert", _REQUIRED),
)

ANSWERS = ("help", "commands", "options", "version")
"""Options that are all there is to do: they print something and end the program."""

_UNSERVED = frozenset({"ssl-protocols", "ssl-ciphers", "bootstrap-ca-cert", "peer-ca-cert"})
_KEY_FILES = frozenset({"private-key", "certificate", "ca-cert"})
_NUMBER = re.compile(r"\s*\+?(\d+)", re.ASCII)
_UINT_MAX = 2**32 - 1


@dataclass(slots=True)
class Options:
    """The options, taken apart.

    Attributes:
        db: the server's address, ``unix:/run/openvswitch/db.sock`` for instance.
        answer: one of :data:`ANSWERS` if it was given, else empty.
        wait: whether to wait until the daemon took the change in.
        dry_run: whether to undo everything in the end.
        oneline: whether to print one line per command.
        timeout_s: the longest time to run, in seconds; None for ever.
        retry: whether to go on trying while the server does not answer.
        leader_only: whether to talk to a cluster's leader only.
        keys: the files of ``--private-key``, ``--certificate`` and ``--ca-cert``, by option.
        style: how tables are printed.
        local: options that belong to the first command.
    """

    db: str
    answer: str = ""
    wait: bool = True
    dry_run: bool = False
    oneline: bool = False
    timeout_s: int | None = None
    retry: bool = False
    leader_only: bool = True
    keys: dict[str, str] = field(default_factory=dict)
    style: Style = field(default_factory=Style)
    local: dict[str, str | None] = field(default_factory=dict)


def read(argv: Sequence[str], verbs: Iterable[Verb], default_db: str) -> tuple[Options, list[str]]:
    """Splits a command line into the program's own options and its commands.

    The first command's options may stand among the program's own.

    Args:
        argv: the command line, without the program's name.
        verbs: the verbs whose options there may be.
        default_db: the server's address without ``--db``.

    Raises:
        ConfigError: an option is unknown or malformed.
    """
    local = {name: option for verb in verbs for name, option in _local_options(verb)}
    given, rest = parse(argv, (*OPTIONS, *local.values()))
    options = Options(default_db, timeout_s=_environment_timeout_s())
    for each in given:
        if each.name in local:
            options.local[f"--{each.name}"] = each.value
        else:
            _take(options, each)
        if options.answer:
            break
    return options, rest


def _local_options(verb: Verb) -> Iterable[tuple[str, Option]]:
    for text in verb.options:
        name = text.removeprefix("--").removesuffix("=")
        yield name, Option(name, _REQUIRED if text.endswith("=") else Argument.NONE, kind="of a command")


def seconds(text: str) -> int | None:
    """A number of seconds as OVS's tools take it; None if the text is no such number."""
    match = _NUMBER.fullmatch(text)
    return int(match[1]) if match and int(match[1]) <= _UINT_MAX else None


def _environment_timeout_s() -> int | None:
    return seconds(os.environ.get("OVS_CTL_TIMEOUT", "")) or None


def _take(options: Options, given: Given) -> None:
    name, value, style = given.name, given.value or "", options.style
    match name:
        case "help" | "commands" | "options" | "version":
            options.answer = name
        case "db":
            options.db = value
        case "no-wait":
            options.wait = False
        case "dry-run":
            options.dry_run = True
        case "oneline":
            options.oneline = True
        case "timeout":
            options.timeout_s = seconds(value)
            if not options.timeout_s:
                raise ConfigError(f"value {value} on -t or --timeout is invalid")
        case "retry":
            options.retry = True
        case "leader-only" | "no-leader-only":
            options.leader_only = name == "leader-only"
        case "format":
            if value not in FORMATS:
                raise ConfigError(f'unknown output format "{value}"')
            style.format = value
        case "data":
            if value not in DATA_FORMATS:
                raise ConfigError(f'unknown data format "{value}"')
            style.data = value
        case "no-headings":
            style.headings = False
        case "pretty":
            style.pretty = True
        case "bare":
            style.format, style.data, style.headings = "list", "bare", False
        case "max-column-width":
            style.max_column_width = seconds(value) or 0
        case _:
            _take_rest(options, name, value)


def _take_rest(options: Options, name: str, value: str) -> None:
    """Keys are kept; what only concerns OVS's own logging is taken and ignored."""
    if name in _KEY_FILES:
        options.keys[name] = value
    elif name in _UNSERVED:
        raise ConfigError(f"option '--{name}' is not supported; use --private-key, --certificate and --ca-cert")
