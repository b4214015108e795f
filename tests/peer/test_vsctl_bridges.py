"""Bridges, ports, bonds, controllers: stock ovs-vsctl and ours say the same and leave the same rows behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ovsvhost.testing.vsctl_twins import VsctlTwins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer

# Name → command lines, one after the other; each list starts on databases without bridges.
CASES: dict[str, list[str]] = {
    "nothing is there": ["list-br", "show", "init", "emer-reset", "br-exists br0", "get-manager", "get-ssl"],
    "a bridge comes and goes": ["add-br br0", "list-br", "show", "br-exists br0", "del-br br0", "list-br"],
    "a bridge twice": ["add-br br0", "add-br br0", "--may-exist add-br br0", "list-br"],
    "a bridge without a name": ["add-br ''"],
    "a bridge that is not there": ["del-br br0", "--if-exists del-br br0", "list-ports br0", "br-to-vlan br0"],
    "a bridge replaced in one transaction": ["add-br br0", "del-br br0 -- add-br br0", "list-br", "show"],
    "two bridges in one transaction": ["add-br br1 -- add-br br0", "list-br", "list-ifaces br1"],
    "the quick example": [
        "add-br br0 -- set bridge br0 datapath_type=netdev",
        "add-port br0 v0 -- set Interface v0 type=dpdkvhostuserclient options:vhost-server-path=/tmp/v0",
        "add-port br0 v1 -- set Interface v1 type=dpdkvhostuser",
        "show",
        "list-ports br0",
        "list-ifaces br0",
        "port-to-br v1",
        "iface-to-br v0",
        "get Interface v0 type options",
    ],
    "a port with settings": [
        "add-br br0",
        "add-port br0 p1 tag=9 vlan_mode=access -- set Interface p1 ofport_request=7",
        "add-port br0 p2 trunks=1,2,5-7 other_config:a=b external-ids={x=y}",
        "show",
        "get Port p2 trunks other_config external_ids",
    ],
    "libvirt's own words": [
        "add-br br0",
        (
            "--timeout=5 --if-exists del-port vnet0 -- add-port br0 vnet0 tag=5 trunk=10,20 vlan_mode=native-tagged "
            "-- set Interface vnet0 'external-ids:attached-mac=\"52:54:00:ae:11:22\"' "
            '-- set Interface vnet0 external-ids:iface-id="0d8a-11" '
            "-- set Interface vnet0 external-ids:iface-status=active"
        ),
        "--timeout=5 get Interface vnet0 external_ids:iface-id",
        "--timeout=5 --if-exists get Interface vnet0 statistics:rx_packets",
        "--timeout=5 --if-exists del-port vnet0",
    ],
    "os-vif's own words": [
        "--oneline --format=json add-br br0 -- set Bridge br0 datapath_type=netdev",
        (
            "--oneline --format=json --if-exists del-port vhu1 -- add-port br0 vhu1 -- set Interface vhu1 "
            "type=dpdkvhostuserclient options:vhost-server-path=/run/vhu1 external-ids:iface-id=a mtu_request=1500"
        ),
        "--oneline --format=json --columns=ofport list Interface vhu1",
        "--oneline --format=json list-ports br0",
    ],
    "a port twice": [
        "add-br br0 -- add-br br1 -- add-port br0 p1",
        "add-port br0 p1",
        "add-port br1 p1",
        "--may-exist add-port br0 p1",
        "--may-exist add-port br1 p1",
        "add-port br1 br0",
        "add-br p1",
        "add-port br2 p2",
        "add-port br0 ''",
    ],
    "a port is deleted": [
        "add-br br0 -- add-br br1 -- add-port br0 p1 -- add-port br0 p2",
        "del-port p3",
        "--if-exists del-port p3",
        "del-port br1 p1",
        "del-port br9 p1",
        "del-port br0 p1",
        "del-port p2",
        "del-port br0",
        "--if-exists del-port br0",
        "list-ports br0",
    ],
    "a port is deleted by its interface": [
        "add-br br0 -- add-bond br0 b0 i0 i1",
        "del-port i0",
        "--with-iface del-port i2",
        "--if-exists --with-iface del-port i2",
        "--with-iface del-port i0",
        "list-ports br0",
    ],
    "a bond": [
        "add-br br0",
        "add-bond br0 b0 i0",
        "add-bond br0 b0 i0 i1 bond_mode=balance-slb lacp=active",
        "--fake-iface add-bond br0 b1 i2 i3",
        "--may-exist add-bond br0 b0 i1 i0",
        "--may-exist add-bond br0 b0 i0 i4",
        "add-bond br0 b2 i0 i5",
        "add-bond br0 b2 x=y",
        "add-bond br0 b2 '' i9",
        "show",
        "list-ports br0",
        "list-ifaces br0",
        "iface-to-br i1",
        "port-to-br i1",
    ],
    "interfaces of a bond": [
        "add-br br0 -- add-bond br0 b0 i0 i1 -- add-port br0 p0",
        "add-bond-iface b0 i2",
        "add-bond-iface b0 i2",
        "--may-exist add-bond-iface b0 i2",
        "--may-exist add-bond-iface b0 p0",
        "add-bond-iface b9 i3",
        "del-bond-iface b0 p0",
        "del-bond-iface b0 i2",
        "del-bond-iface i1",
        "del-bond-iface b0 i0",
        "del-bond-iface i7",
        "--if-exists del-bond-iface i7",
        "list-ifaces br0",
    ],
    "fake bridges": [
        "add-br br0 -- add-br vlan9 br0 9",
        "add-br vlan10 br0 10 -- add-port br0 p0 -- add-port vlan9 p1 -- add-port br0 p2 tag=10",
        "list-br",
        "list-br --fake",
        "-- --fake list-br",
        "--real list-br",
        "br-to-vlan vlan9",
        "br-to-parent vlan9",
        "br-to-vlan br0",
        "br-to-parent br0",
        "list-ports br0",
        "list-ports vlan9",
        "list-ports vlan10",
        "list-ifaces vlan9",
        "port-to-br p1",
        "port-to-br vlan9",
        "show",
        "del-port br0 p1",
        "del-port vlan9 p1",
        "del-br vlan10",
        "list-ports br0",
        "del-br br0",
        "list-br",
    ],
    "fake bridges that cannot be": [
        "add-br br0 -- add-br v9 br0 9",
        "add-br v9 br0",
        "add-br v8 br0 9",
        "add-br v8 br7 8",
        "add-br v8 v9 8",
        "add-br v8 br0 4096",
        "add-br v8 br0 -1",
        "add-br v8 br0 word",
        "--may-exist add-br v9",
        "--may-exist add-br v9 br0 9",
        "--may-exist add-br v9 br0 8",
        "--may-exist add-br v9 br1 9",
        "--may-exist add-br br0 br1 9",
        "set-controller v9 tcp:1.2.3.4",
        "del-fail-mode v9",
    ],
    "external ids of bridges": [
        "add-br br0 -- add-br v9 br0 9",
        "br-set-external-id br0 key0 value0",
        "br-set-external-id v9 key1 'value one'",
        "br-get-external-id br0 key0",
        "br-get-external-id br0 key9",
        "br-get-external-id br0",
        "br-get-external-id v9",
        "br-get-external-id v9 key1",
        "br-set-external-id br0 key0 other -- br-get-external-id br0",
        "br-set-external-id br0 key0",
        "br-set-external-id v9 key1",
        "br-get-external-id br0",
        "br-set-external-id br1 a b",
    ],
    "controllers": [
        "add-br br0 -- add-br v9 br0 9",
        "get-controller br0",
        "set-controller br0 tcp:4.5.6.7 ssl:1.2.3.4",
        "get-controller br0",
        "get-controller v9",
        "show",
        "--inactivity-probe=30000 set-controller br0 tcp:1.2.3.4",
        "list Controller",
        "get Controller br0 target",
        "set-controller br0 nonsense",
        "set-controller br0",
        "del-controller br0",
        "del-controller br0",
        "get-controller br1",
    ],
    "fail modes": [
        "add-br br0",
        "get-fail-mode br0",
        "set-fail-mode br0 secure",
        "get-fail-mode br0",
        "show",
        "set-fail-mode br0 xyz",
        "set-fail-mode br0 standalone -- get-fail-mode br0",
        "del-fail-mode br0",
        "get-fail-mode br0",
    ],
    "managers and keys": [
        "set-manager ptcp:6640 ssl:1.2.3.4:6640",
        "get-manager",
        "show",
        "--inactivity-probe=5000 set-manager tcp:1.2.3.4:6640",
        "get Manager tcp:1.2.3.4:6640 inactivity_probe",
        "del-manager",
        "get-manager",
        "set-ssl /a/key /a/cert /a/ca",
        "--bootstrap set-ssl /b/key /b/cert /b/ca",
        "get-ssl",
        "del-ssl",
        "del-ssl",
    ],
    "auto attach mappings": [
        "add-br br0",
        "add-aa-mapping br0 100 10",
        "add-aa-mapping br0 101 11",
        "get-aa-mapping br0",
        "add-aa-mapping br0 word 1",
        "del-aa-mapping br0 100 10",
        "del-aa-mapping br0 100 10",
        "get-aa-mapping br0",
        "get-aa-mapping br1",
    ],
    "zones and capabilities": [
        "add-zone-tp netdev zone=1 icmp_first=1 icmp_reply=2",
        (
            "-- --id=@d create Datapath datapath_version=1 capabilities:recirc=true "
            "-- set Open_vSwitch . datapaths:netdev=@d"
        ),
        "list-dp-cap netdev",
        "list-dp-cap system",
        "add-zone-tp netdev zone=1 icmp_first=1 icmp_reply=2",
        "add-zone-tp netdev zone=2 icmp_first=1 icmp_reply=2",
        "add-zone-tp netdev zone=2 icmp_first=3",
        "--may-exist add-zone-tp netdev zone=2 icmp_first=3",
        "list-zone-tp netdev",
        "list-zone-tp system",
        "del-zone-tp netdev zone=1",
        "del-zone-tp netdev zone=1",
        "--if-exists del-zone-tp netdev zone=1",
        "list-zone-tp netdev",
    ],
    "everything back to a clean state": [
        "add-br br0 -- add-port br0 p1 -- set Interface p1 ingress_policing_rate=10 ingress_policing_burst=5",
        "set-controller br0 tcp:1.2.3.4 -- set-manager tcp:1.2.3.4 -- set-fail-mode br0 secure -- set-ssl a b c",
        "-- --id=@m create Mirror name=m0 -- set Bridge br0 mirrors=@m other_config={hwaddr=aa:bb,x=y} flood_vlans=1",
        "-- --id=@n create NetFlow 'targets=\"1.2.3.4:5\"' -- set Bridge br0 netflow=@n",
        "-- --id=@s create sFlow 'targets=\"1.2.3.4:5\"' -- set Bridge br0 sflow=@s",
        "-- --id=@b get Bridge br0 -- create Flow_Sample_Collector_Set id=1 bridge=@b",
        "set Port p1 other_config:a=b",
        "emer-reset",
        "show",
    ],
}


@pytest.fixture(scope="module", params=["ovsdb-server", "embedded server"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VsctlTwins]:
    folder: Path = tmp_path_factory.mktemp("v")
    both = VsctlTwins(folder, embedded=request.param == "embedded server")
    yield both
    both.close()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.rows("B7")
def test_both_say_and_do_the_same(twins: VsctlTwins, name: str) -> None:
    from_stock, from_ours = twins.transcripts(CASES[name])
    assert from_ours == from_stock
