"""Command lines taken apart: options, commands, names of tables and columns, arguments."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.vsctl import grammar, names, options, records, values
from ovsvhost.vsctl.conditions import OPERATORS
from ovsvhost.vsctl.getopt_long import Argument, Given, Option, parse
from ovsvhost.vsctl.verbs import VERBS

OPTIONS = (
    Option("verbose", Argument.OPTIONAL, "v"),
    Option("format", Argument.REQUIRED, "f"),
    Option("format-all"),
    Option("quiet", short="q"),
    Option("if-exists", kind="of a command"),
    Option("if-empty", kind="of a command"),
)


@pytest.mark.parametrize(
    ("line", "given_options", "rest"),
    [
        ("", [], []),
        ("word -q", [], ["word", "-q"]),
        ("-q word", [("quiet", None)], ["word"]),
        ("-qv word", [("quiet", None), ("verbose", None)], ["word"]),
        ("-vq word", [("verbose", "q")], ["word"]),
        ("-f x -fy --format z --format=w", [("format", value) for value in "xyzw"], []),
        ("--verbose word", [("verbose", None)], ["word"]),
        ("--verbose=word", [("verbose", "word")], []),
        ("--q --format-a", [("quiet", None), ("format-all", None)], []),
        ("--if word", [("if-exists", None)], ["word"]),
        ("-q -- -q", [("quiet", None)], ["-q"]),
        ("- -q", [], ["-", "-q"]),
    ],
)
def test_options_end_at_the_first_word(line: str, given_options: list[tuple[str, str | None]], rest: list[str]) -> None:
    assert parse(line.split(), OPTIONS) == ([Given(*each) for each in given_options], rest)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--nosuch=1", "unrecognized option '--nosuch=1'"),
        ("--forma=x", "option '--forma=x' is ambiguous; possibilities: '--format' '--format-all'"),
        ("--quiet=1", "option '--quiet' doesn't allow an argument"),
        ("--format", "option '--format' requires an argument"),
        ("-f", "option requires an argument -- 'f'"),
        ("-x", "invalid option -- 'x'"),
    ],
)
def test_option_that_does_not_fit_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(line.split(), OPTIONS)
    assert str(refusal.value) == reason


def test_every_command_has_its_options_and_words() -> None:
    line = "-t5 --if-exists --oneline del-br a -- --may-exist add-br b -- list-br"
    chosen, words = options.read(shlex.split(line), VERBS.values(), "unix:x")
    commands = grammar.parse(words, chosen.local, VERBS)
    assert (chosen.timeout_s, chosen.oneline, chosen.db) == (5, True, "unix:x")
    assert [(each.verb.name, each.words[1:], dict(each.options)) for each in commands] == [
        ("del-br", ("a",), {"--if-exists": None}),
        ("add-br", ("b",), {"--may-exist": None}),
        ("list-br", (), {}),
    ]


@given(st.lists(st.sampled_from([*VERBS, "--", "--if-exists", "--id=@x", "--id", "br0", "a=b", ""]), max_size=8))
def test_words_that_are_not_refused_make_commands_within_their_limits(words: list[str]) -> None:
    try:
        commands = grammar.parse(words, {}, VERBS)
    except ConfigError:
        return
    for command in commands:
        assert command.verb.least <= len(command.words) - 1 <= command.verb.most
        assert all(name in command.verb.options or f"{name}=" in command.verb.options for name in command.options)


@given(st.lists(st.text(max_size=8), max_size=4))
def test_escaped_words_with_spaces_stand_in_quotes(words: list[str]) -> None:
    for word in words:
        text = grammar.escaped([word])
        quoted = any(char in " \t\r\n\v\\'\"" for char in word)
        assert text.startswith('"') == quoted
        if quoted:
            assert text[1:-1].replace('\\"', '"').replace("\\\\", "\\") == word


@pytest.mark.parametrize("table", sorted(names.vswitch_schema().tables))
def test_full_names_mean_themselves_in_either_case(table: str) -> None:
    found = names.table_named(table)
    assert found.name == table
    assert names.table_named(table.upper().replace("_", "-")) is found
    for column in found.columns:
        assert names.column_named(found, column).name == column


@given(st.sampled_from(sorted(names.vswitch_schema().tables)), st.data())
def test_prefix_means_the_one_column_that_it_fits(table_name: str, data: st.DataObject) -> None:
    table = names.table_named(table_name)
    column = data.draw(st.sampled_from(sorted(table.columns)))
    prefix = column[: data.draw(st.integers(1, len(column)))]
    fitting = [name for name in table.columns if name.startswith(prefix)]
    if prefix in table.columns or len(fitting) == 1:
        assert names.column_named(table, prefix).name in {prefix, fitting[0]}
    else:
        with pytest.raises(ConfigError, match="contains more than one column"):
            names.column_named(table, prefix)


def test_libvirt_may_write_trunk_for_trunks() -> None:
    assert names.column_named(names.table_named("Port"), "trunk").name == "trunks"


@pytest.mark.parametrize("operator", OPERATORS)
def test_longest_operator_is_meant(operator: str) -> None:
    port = names.table_named("Port")
    found = records.setting(f"other_config:a{operator}b", port, tuple(OPERATORS))
    assert (found.column.name, found.key, found.operator, found.value) == ("other_config", "a", operator, "b")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("tag", 'tag: argument does not end in "=" followed by a value.'),
        ("tag=", 'tag=: argument does not end in "=" followed by a value.'),
        ("=1", "=1: missing column name"),
        ("nosuch=1", 'Port does not contain a column whose name matches "nosuch"'),
        ("bond=1", "Port contains more than one column whose name matches"),
    ],
)
def test_argument_that_is_no_setting_is_refused(argument: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        records.setting(argument, names.table_named("Port"))
    assert str(refusal.value).startswith(reason)


def test_program_loads_nothing_that_it_does_not_need() -> None:
    """It runs for every port of every guest: what it imports is most of the time that it takes."""
    script = "import sys; from pathlib import Path; from ovsvhost.vsctl import main; "
    script += "main(['--commands'], rundir=Path('/nonexistent')); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "ovs.db.idl" in loaded
    assert not loaded & {"asyncio", "click", "hypothesis", "ovsvhost._core", "rich", "structlog"}


def test_bytes_that_are_not_utf8_are_refused_before_they_are_sent() -> None:
    with pytest.raises(ConfigError) as refusal:
        values.check_utf8(os.fsdecode(b"br\xff"))
    assert str(refusal.value) == "constraint violation: not a valid UTF-8 string: invalid UTF-8 sequence 0xff"
