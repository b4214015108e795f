"""Open vSwitch's own tools against ovsvhost's server: same output, same exit code, same rows as with the real one."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ovsvhost.store.server import EmbeddedServer
from ovsvhost.testing.ovsdb import OvsdbClient, OvsdbServer
from ovsvhost.testing.process import Program
from ovsvhost.testing.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
VHOST = "type=dpdkvhostuserclient options:vhost-server-path=/tmp/"

# What stands on one line runs one after the other on the same databases.
VSCTL = {
    "the quick example of the guide": [
        "add-br br0 -- set bridge br0 datapath_type=netdev",
        f"add-port br0 dpdkvhostclient0 -- set Interface dpdkvhostclient0 {VHOST}dpdkvhostclient0",
        f"add-port br0 dpdkvhostclient1 -- set Interface dpdkvhostclient1 {VHOST}dpdkvhostclient1",
        "show",
        "list-br",
        "list-ports br0",
        "list-ifaces br0",
        "port-to-br dpdkvhostclient1",
        "get Interface dpdkvhostclient0 options:vhost-server-path",
        "find Interface type=dpdkvhostuserclient",
        "--columns=name,type,options list Interface",
        "--format=json --columns=name,ofport list Interface dpdkvhostclient1",
        "--format=csv --columns=name,type find Interface name=dpdkvhostclient0",
        "del-port dpdkvhostclient0",
        "del-port br0 dpdkvhostclient1",
        "del-br br0",
        "show",
    ],
    "mistakes": [
        "add-port nobridge p0",
        "add-br br0",
        "add-br br0",
        "--may-exist add-br br0",
        "del-port br0 nothing",
        "--if-exists del-port br0 nothing",
        "del-br nothing",
        "set Interface nothing type=internal",
        "set Interface br0 nothing=1",
        "get Interface br0 options:nothing",
        "set Interface br0 ofport_request=70000",
        "set Interface br0 ofport_request=0",
        "set Port br0 tag=4096",
        "set Port br0 vlan_mode=nonsense",
        "set Bridge br0 fail_mode=open",
        "nonsense",
        "add-port br0 p0",
        "add-port br0 p0",
        "add-br br1 -- add-port br1 p0",
        "--may-exist add-port br1 p0",
        "list Nowhere",
        "destroy Bridge br0",
        "create Interface name=loose",
        "find Interface name=loose",
    ],
    "values": [
        "add-br br0 -- add-port br0 p0",
        "set Open_vSwitch . other_config:pmd-cpu-mask=0x2 other_config:vhost-iommu-support=true",
        "get Open_vSwitch . other_config",
        "remove Open_vSwitch . other_config pmd-cpu-mask",
        "remove Open_vSwitch . other_config vhost-iommu-support=false",
        "get Open_vSwitch . other_config",
        "set Port p0 trunks=1,2,3 tag=5 vlan_mode=access",
        "add Port p0 trunks 4 5",
        "remove Port p0 trunks 1 9",
        "get Port p0 trunks tag vlan_mode",
        "clear Port p0 trunks tag",
        "get Port p0 trunks tag",
        "set Interface p0 mtu_request=9000 external-ids:iface-id=vif external-ids:vm-id=vm",
        "br-set-external-id br0 key value",
        "br-get-external-id br0",
        "set Interface p0 options:a=1 -- set Interface p0 options:b=2 -- remove Interface p0 options a",
        "list Interface p0",
        "list Port p0",
        "list Bridge br0",
        "wait-until Interface p0 options:b=2",
        "--timeout=1 wait-until Interface p0 options:b=3",
        "find Interface options:b=2 mtu_request>=9000",
        "find Interface mtu_request!=9000",
    ],
    "rows by name": [
        "add-br br0 -- add-port br0 p0 -- add-port br0 p1 -- add-port br0 p2",
        (
            "-- --id=@m create Mirror name=m0 select-all=true output-port=@p -- --id=@p get Port p2 "
            "-- set Bridge br0 mirrors=@m"
        ),
        "--columns=name,select_all list Mirror",
        "del-port p2",
        "--columns=name,output_port list Mirror",
        "clear Bridge br0 mirrors",
        "list Mirror",
        (
            "-- set Port p0 qos=@q -- --id=@q create QoS type=linux-htb queues:0=@q0 "
            "-- --id=@q0 create Queue other_config:max-rate=5"
        ),
        "--columns=type list QoS",
        "--columns=other_config list Queue",
        "clear Port p0 qos",
        "--all destroy QoS -- --all destroy Queue",
        "list Queue",
        "add-bond br0 bond0 e0 e1 -- set Port bond0 bond_mode=active-backup",
        "list-ports br0",
        "list-ifaces br0",
        "iface-to-br e1",
        "add-br fake br0 7",
        "br-to-vlan fake",
        "br-to-parent fake",
        "list-br",
        "del-br br0 -- add-br br0",
        "set-controller br0 tcp:127.0.0.1:6653 -- set-fail-mode br0 secure",
        "get-controller br0",
        "emer-reset",
        "set-manager ptcp:6640:127.0.0.1",
        "get-manager",
        "del-manager",
    ],
}
CLIENT = [
    "list-dbs",
    "get-schema-version",
    "get-schema-cksum",
    "get-schema",
    "list-tables",
    "list-columns Open_vSwitch Interface",
    "dump Open_vSwitch Port name tag trunks",
    'query \'["Open_vSwitch",{"op":"select","table":"Port","where":[["name","==","p0"]],"columns":["name"]}]\'',
    'transact \'["Open_vSwitch",{"op":"mutate","table":"Bridge","where":[],"mutations":[["nothing","+=",1]]}]\'',
    "needs-conversion",
]


class Twins:
    """Both servers on the schema of Open vSwitch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = EmbeddedServer(directory / "conf.db", directory / "db.sock")
        self.server.start()
        subprocess.run(["ovsdb-tool", "create", directory / "peer.db", SCHEMA], check=True)
        self.peer = OvsdbServer(directory, directory / "peer.db")
        self.remotes = (self.server.remote, self.peer.remote)
        for remote in self.remotes:
            subprocess.run(["ovs-vsctl", f"--db={remote}", "--no-wait", "init"], check=True)

    def both(self, tool: str, arguments: str) -> tuple[Any, Any]:
        """What a tool says with each: exit code, output, complaints."""
        ours, peer = (self._run(tool, arguments, remote) for remote in self.remotes)
        return ours, peer

    def _run(self, tool: str, arguments: str, remote: str) -> tuple[int, list[str], str]:
        words = shlex.split(arguments)
        if tool == "ovs-vsctl":
            command = [tool, f"--db={remote}", "--no-wait", *words]
        else:
            command = [tool, "--timeout=5", words[0], remote, *words[1:]]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        # The order in which a set of rows is printed is that of their UUIDs.
        lines = sorted(UUID.sub("<uuid>", run.stdout).splitlines())
        return run.returncode, lines, without_accidents(run.stderr).replace(remote, "<remote>")

    def rows(self) -> tuple[Any, Any]:
        """All rows, with names in the place of UUIDs."""
        ours, peer = (named_rows(path) for path in (self.directory / "db.sock", self.peer.socket))
        return ours, peer

    def stop(self) -> None:
        self.peer.stop()
        self.server.stop()


SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


def without_accidents(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z\|\d+\|", "", UUID.sub("<uuid>", text))


def named_rows(socket: Path) -> Any:
    with OvsdbClient(socket) as client:
        tables = client.request("get_schema", "Open_vSwitch")["result"]["tables"]
        selects = [{"op": "select", "table": table, "where": []} for table in tables]
        results = dict(zip(tables, client.transact("Open_vSwitch", *selects), strict=True))
    names = {
        row["_uuid"][1]: f"{table}:{row.get('name', 'row')}"
        for table, result in results.items()
        for row in result["rows"]
    }

    def rename(value: Any) -> Any:
        if isinstance(value, list) and value[:1] == ["set"]:
            return sorted((rename(member) for member in value[1]), key=str)
        if isinstance(value, list):
            return [rename(member) for member in value]
        return names.get(value, value) if isinstance(value, str) else value

    return {
        table: sorted(
            json.dumps({c: rename(v) for c, v in row.items() if c != "_version"}, sort_keys=True)
            for row in result["rows"]
        )
        for table, result in results.items()
    }


def wait_until_said(log: Path, text: str) -> None:
    wait_for(lambda: text in log.read_text(), timeout_s=10, what=f"{text} in {log}")


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    both = Twins(tmp_path)
    yield both
    both.stop()


@pytest.mark.parametrize("name", VSCTL)
def test_stock_ovs_vsctl_works_as_with_the_real_server(twins: Twins, name: str) -> None:
    for arguments in VSCTL[name]:
        ours, peer = twins.both("ovs-vsctl", arguments)
        assert ours == peer, arguments
        our_rows, peer_rows = twins.rows()
        assert our_rows == peer_rows, arguments


def test_stock_ovsdb_client_works_as_with_the_real_server(twins: Twins) -> None:
    twins.both("ovs-vsctl", "add-br br0 -- add-port br0 p0 tag=5 -- set Port p0 trunks=1,2")
    for arguments in CLIENT:
        ours, peer = twins.both("ovsdb-client", arguments)
        if arguments.startswith("get-schema Open"):
            assert json.loads("".join(ours[1])) == json.loads("".join(peer[1]))
        assert ours == peer, arguments


def test_ovsdb_client_monitor_hears_what_it_hears_from_the_real_server(twins: Twins) -> None:
    twins.both("ovs-vsctl", "add-br br0")
    logs = []
    for number, remote in enumerate(twins.remotes):
        log = twins.directory / f"monitor{number}.log"
        command = ["ovsdb-client", "--format=json", "monitor", remote, "Open_vSwitch", "Port", "name,tag,trunks"]
        logs.append((log, Program(command, log=log)))
    for log, _ in logs:
        wait_until_said(log, '"br0"')
    for arguments in (
        "add-port br0 p0 tag=1",
        "set Port p0 tag=2 trunks=1,2",
        "del-port p0",
        "add-port br0 p9",
    ):
        twins.both("ovs-vsctl", arguments)
    heard = []
    for log, program in logs:
        wait_until_said(log, '"p9"')
        program.stop()
        lines = [line for line in UUID.sub("<uuid>", log.read_text()).splitlines() if line.startswith("{")]
        heard.append([{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines])
    assert heard[0] == heard[1]


def test_a_backup_of_ours_is_a_database_for_the_real_server(twins: Twins) -> None:
    twins.both("ovs-vsctl", "add-br br0 -- add-port br0 p0")
    backup = twins.directory / "backup.db"
    with backup.open("wb") as stream:
        subprocess.run(["ovsdb-client", "backup", twins.remotes[0]], stdout=stream, check=True)
    (twins.directory / "second").mkdir()
    with OvsdbServer(twins.directory / "second", backup) as restored:
        assert named_rows(restored.socket) == named_rows(twins.directory / "db.sock")
