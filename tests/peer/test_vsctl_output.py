"""What is printed: both tools read one database, and must print the same bytes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.vsctl_twins import Said, VsctlTwins, anonymous, ours, stock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peer

FILLED = [
    *shlex.split("add-br br0 -- set Bridge br0 datapath_type=netdev fail_mode=secure"),
    *("other_config:a=b", 'other_config:c="d e"'),
    *shlex.split("-- add-port br0 p1 tag=9 trunks=3,1,2 -- set Interface p1 type=dpdkvhostuserclient"),
    *("options:vhost-server-path=/tmp/p1", "external_ids:a=\"<b> & 'c',\"", "external_ids:u=ü"),
    *('external_ids:n="a\\nb"', 'mac="aa:bb:cc:dd:ee:ff"'),
    *shlex.split("-- add-bond br0 b0 i0 i1 lacp=active -- add-br fake br0 9 -- set-controller br0 tcp:1.2.3.4"),
    *shlex.split("-- set-manager ptcp:6640 -- set Open_vSwitch . ovs_version=3.1.0"),
]

# Each prints one record, or several in an order that the command itself gives.
LINES = (
    "show",
    "list Bridge br0",
    "list Port p1",
    "list Interface p1 br0 i0",
    "list Open_vSwitch",
    "list Controller",
    "list Port p1 -- list Interface p1",
    "list Mirror",
    "list Mirror -- list QoS",
    "list-br -- list Port p1 -- list-ports br0",
    "get Port p1 tag trunks interfaces name -- get Bridge br0 ports other_config",
    "get Interface p1 external_ids external_ids:a mac options",
    "--columns=name,tag list Port p1",
    "--columns=_uuid,name,trunks list Port p1 br0",
    "--columns=tag,tag list Port p1",
    "find Port name=p1",
    "list Port p9",
    "--if-exists list Port p9",
    "--if-exists list Port p9 p1",
    "list Port p1 p9",
    "list Nosuch",
    "--columns=nosuch list Port",
    "list Port p1 --columns=name",
)
FORMATS = (
    "",
    "--format=list",
    "--format=table",
    "-f table",
    "-fcsv",
    "--format=html",
    "--format=json",
    "--format=json --pretty",
    "--data=bare",
    "--data=json",
    "-d json -f table",
    "--data=bare --format=csv",
    "--no-headings",
    "--no-headings --format=table",
    "--no-headings --format=csv",
    "--no-headings --format=html",
    "--no-headings --format=json",
    "--bare",
    "--oneline",
    "--oneline --format=json",
    "--max-column-width=7 --format=table",
)
REFUSED = (
    "",
    "--",
    "nosuch",
    "nosuch -- list-br",
    "list-br -- nosuch",
    "--nosuch list-br",
    "--nosuch=3 list-br",
    "-x list-br",
    "--db",
    "-t",
    "--oneline=3 list-br",
    "--form list-br",
    "--format=nosuch list-br",
    "--data=nosuch list-br",
    "--d=bare list-br",
    "--no list-br",
    "list-br extra",
    "list-br --real",
    "add-br",
    "add-br a b c d",
    "add-port br0",
    "--if-exists list-br",
    "-- --if-exists list-br",
    "-- --nosuch list-br",
    "--if-exists --if-exists del-br x",
    "-- --if-exists --if-exists del-br x",
    "-- --if-exists=3 del-br x",
    "--if-exists=3 del-br x",
    "--id create QoS type=x",
    "-- --id create QoS type=x",
    "-- --if del-br x",
    "--if del-br x",
    "--if-exists",
    "--if-exists -- del-br x",
    "--if-exists -- -- del-br x",
    "--real --fake list-br",
    "-v --verbose=dbg -vconsole:off list-br",
    "-voff list-br",
    "--log-file=/dev/null list-br",
    "--no-syslog --retry --leader-only --no-shuffle-remotes list-br",
    "-t5 -fjson --dat=bare list-br",
    "-t5x list-br",
    "list-br -- list-br -- -- list-br",
)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VsctlTwins]:
    both = VsctlTwins(tmp_path_factory.mktemp("v"), embedded=False)
    said = stock(both.stock_remote, ["--no-wait", *FILLED])
    assert said == Said(0, "", "")
    yield both
    both.close()


@pytest.mark.parametrize("options", FORMATS)
def test_records_are_printed_byte_for_byte_alike(twins: VsctlTwins, options: str) -> None:
    for line in LINES:
        words = shlex.split(f"--no-wait {options} {line}")
        assert ours(twins.stock_remote, words) == stock(twins.stock_remote, words), line


@pytest.mark.parametrize("table", ["Interface", "Port", "Bridge"])
@pytest.mark.parametrize("options", FORMATS)
def test_all_records_are_printed_alike_but_for_their_order(twins: VsctlTwins, options: str, table: str) -> None:
    words = shlex.split(f"--no-wait {options} list {table}")
    said_ours, said_stock = ours(twins.stock_remote, words), stock(twins.stock_remote, words)
    if "--format=json" in words and "--pretty" not in words:
        assert anonymous(said_ours) == anonymous(said_stock)
    else:
        assert _without_order(said_ours) == _without_order(said_stock)


def _without_order(said: Said) -> tuple[int, list[str], str]:
    # Pretty JSON has a bracket and a comma more on all rows but the last.
    return said.status, sorted(line.rstrip("],}") for line in said.out.splitlines()), said.err


@pytest.mark.parametrize("line", REFUSED)
def test_command_lines_are_taken_and_refused_alike(twins: VsctlTwins, line: str) -> None:
    words = shlex.split(line)
    # The database comes last, so that what stands before it is what is judged.
    assert ours(twins.stock_remote, words) == stock(twins.stock_remote, words)


@pytest.mark.parametrize("option", ["--version", "-V", "--help", "-h", "--commands", "--options"])
def test_questions_about_the_program_end_well(twins: VsctlTwins, option: str) -> None:
    said_ours, said_stock = ours(twins.stock_remote, [option]), stock(twins.stock_remote, [option])
    assert (said_ours.status, said_ours.err) == (said_stock.status, said_stock.err)
    assert said_ours.out


def test_every_verb_and_option_of_stock_is_there(twins: VsctlTwins) -> None:
    def verbs(text: str) -> set[tuple[str, frozenset[str]]]:
        lines = [line.split(",") for line in text.splitlines()]
        return {(line[1], frozenset(line[0].split())) for line in lines}

    assert verbs(ours(twins.stock_remote, ["--commands"]).out) == verbs(stock(twins.stock_remote, ["--commands"]).out)
    have = set(ours(twins.stock_remote, ["--options"]).out.split())
    assert set(stock(twins.stock_remote, ["--options"]).out.split()) == have


@pytest.mark.parametrize("remote", ["unix:/nonexistent/db.sock", "tcp:127.0.0.1:1", "nosuch:1", "unix:/tmp"])
def test_server_that_is_not_there_is_named_alike(remote: str) -> None:
    assert ours(remote, ["list-br"]) == stock(remote, ["list-br"])
