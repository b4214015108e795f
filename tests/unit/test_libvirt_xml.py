"""libvirt's XML for a port: what each side must agree on, and that nothing in a name breaks it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.libvirt import comment, interface, memory_backing
from ovsvhost.qemu import Nic

MAC = "52:54:00:00:00:01"


def read(nic: Nic) -> ET.Element:
    return ET.fromstring(interface(nic))  # noqa: S314 - our own words


def source(nic: Nic) -> ET.Element:
    found = read(nic).find("source")
    assert found is not None
    return found


@pytest.mark.rows("A11")
def test_libvirt_connects_to_the_socket_of_a_server_port_and_comes_back() -> None:
    nic = Nic(socket="/run/x/v0", type="dpdkvhostuser", mac=MAC, reconnect_s=2)
    assert source(nic).attrib == {"type": "unix", "path": "/run/x/v0", "mode": "client"}
    reconnect = source(nic).find("reconnect")
    assert reconnect is not None
    assert reconnect.attrib == {"enabled": "yes", "timeout": "2"}


@pytest.mark.rows("A11")
def test_libvirts_qemu_makes_the_socket_of_a_client_port() -> None:
    nic = Nic(socket="/s/v0", type="dpdkvhostuserclient", mac=MAC)
    assert source(nic).attrib == {"type": "unix", "path": "/s/v0", "mode": "server"}
    assert source(nic).find("reconnect") is None


@pytest.mark.rows("A10", "A11")
@pytest.mark.parametrize(("queues", "attributes"), [(1, {}), (2, {"queues": "2"})])
def test_queues_and_mergeable_buffers_stand_in_the_driver(queues: int, attributes: dict[str, str]) -> None:
    driver = read(Nic(socket="/s/v0", type="dpdkvhostuser", mac=MAC, queues=queues)).find("driver")
    assert driver is not None
    assert driver.attrib == attributes
    host = driver.find("host")
    assert host is not None
    assert host.attrib == {"mrg_rxbuf": "on"}


def test_queue_count_that_vhost_user_cannot_carry_is_refused_in_xml_too() -> None:
    with pytest.raises(ConfigError, match=r"1\.\.128"):
        interface(Nic(socket="/s/v0", type="dpdkvhostuser", mac=MAC, queues=129))


@pytest.mark.rows("A9", "A11")
@pytest.mark.parametrize(("hugepages", "kind"), [(False, "source"), (True, "hugepages")])
def test_memory_is_shared_whatever_backs_it(hugepages: bool, kind: str) -> None:
    backing = ET.fromstring(memory_backing(hugepages=hugepages))  # noqa: S314 - our own words
    assert [child.tag for child in backing] == [kind, "access"]
    assert backing[1].attrib == {"mode": "shared"}


@pytest.mark.rows("A9", "A19")
def test_memory_that_a_device_is_shown_is_all_there_in_xml_too() -> None:
    for prealloc in (False, True):
        allocation = ET.fromstring(memory_backing(prealloc=prealloc)).find("allocation")  # noqa: S314 - our own words
        assert (allocation is not None and allocation.get("mode") == "immediate") is prealloc


@pytest.mark.parametrize("path", ["/s/'quoted'", '/s/"twice"', "/s/<&>", "/s/ä--"])
def test_path_comes_back_as_it_was(path: str) -> None:
    assert source(Nic(socket=path, type="dpdkvhostuserclient", mac=MAC)).get("path") == path


@given(st.text(alphabet="-a<&> \n"))
def test_comment_ends_where_it_ends(text: str) -> None:
    document = comment(text) + interface(Nic(socket="/s/v0", type="dpdkvhostuser", mac=MAC))
    assert ET.fromstring(document).tag == "interface"  # noqa: S314 - our own words
