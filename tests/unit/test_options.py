from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovsvhost.errors import ConfigError
from ovsvhost.options import (
    CLIENT,
    SERVER,
    PortOptions,
    check_mtu,
    check_socket_path,
    parse,
    socket_directory,
    tx_steering,
)

RUN = Path("/run/x")


def client(**options: str) -> PortOptions:
    return parse("v0", CLIENT, {key.replace("_", "-"): value for key, value in options.items()}, None)


def test_the_path_and_not_the_name_decides_a_client_ports_socket() -> None:
    assert client(vhost_server_path="/s/elsewhere").socket == "/s/elsewhere"


def test_a_client_port_without_a_path_has_no_socket_yet() -> None:
    assert client() == PortOptions(None)


def test_a_server_ports_socket_is_called_like_the_port() -> None:
    assert parse("v0", SERVER, {}, RUN).socket == "/run/x/v0"


def test_a_path_on_a_server_port_is_refused_aloud_and_the_port_works() -> None:
    meant = parse("v0", SERVER, {"vhost-server-path": "/s/v0"}, RUN)
    assert meant.socket == "/run/x/v0"
    assert "vhost-server-path is not in force" in meant.complaints[0]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "", ".", ".."])
def test_a_name_that_cannot_be_a_files_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of its socket"):
        parse(name, SERVER, {}, RUN)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("tmp/v0", "is relative: give an absolute path"),
        ("", "is relative"),
        ("/" + "x" * 107, "has 108 bytes"),
        ("/" + "ä" * 54, "has 109 bytes"),
        ("/s/a\0b", "NUL"),
        ("/s/\udcff", "not UTF-8"),
    ],
)
def test_a_path_that_cannot_be_a_sockets_is_refused_with_the_reason(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        client(vhost_server_path=path)
    assert str(caught.value).isprintable()


@given(st.text())
def test_every_text_is_a_sockets_path_or_refused(path: str) -> None:
    try:
        assert len(check_socket_path(path).encode()) <= 107
    except ConfigError as error:
        assert "socket path" in str(error)  # noqa: PT017 - hypothesis gives both kinds


def test_107_bytes_are_served() -> None:
    path = "/" + "x" * 106
    assert client(vhost_server_path=path).socket == path


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tx-retries-max", "33"),
        ("tx-retries-max", "-1"),
        ("tx-retries-max", "many"),
        ("backpressure-us", "100001"),
        ("backpressure-us", "1ms"),
        ("backpressure-us", "²"),
        ("allow-file-memory", "yes"),
    ],
)
def test_a_value_out_of_range_leaves_the_default_and_is_said(option: str, value: str) -> None:
    meant = parse("v0", CLIENT, {option: value}, None)
    assert (meant.tx_retries_max, meant.backpressure_us, meant.allow_file_memory) == (8, 0, False)
    assert f"options:{option}='{value}' is not in force" in meant.complaints[0]


def test_options_in_range_are_in_force() -> None:
    meant = client(tx_retries_max="0", backpressure_us="100000", allow_file_memory="true")
    assert (meant.tx_retries_max, meant.backpressure_us, meant.allow_file_memory) == (0, 100_000, True)
    assert meant.complaints == ()


@pytest.mark.parametrize(
    ("asked", "meant"), [({}, "hash"), ({"tx-steering": "hash"}, "hash"), ({"tx-steering": "thread"}, "thread")]
)
def test_tx_steering_is_by_flow_unless_by_thread(asked: dict[str, str], meant: str) -> None:
    assert tx_steering("v0", asked) == (meant, ())


@given(st.text().filter(lambda text: text not in {"hash", "thread"}))
def test_a_steering_that_is_none_is_said_and_flows_steer(text: str) -> None:
    steering, (complaint,) = tx_steering("v0", {"tx-steering": text})
    assert steering == "hash"
    assert f"other_config:tx-steering={text!r} of interface 'v0' is not in force" in complaint


def test_tx_steering_among_the_options_names_its_place() -> None:
    assert "it belongs to the interface's other_config" in client(tx_steering="thread").complaints[0]


@pytest.mark.rows("A18")
@pytest.mark.parametrize("mtu", [-1, 0, 67, 9703, 65_536, 2**63])
def test_an_mtu_out_of_range_is_refused_in_ovs_words(mtu: int) -> None:
    with pytest.raises(ConfigError, match=f"^v0: unsupported MTU {mtu}: give 68..9702$"):
        check_mtu("v0", mtu)


@pytest.mark.rows("A18")
def test_the_borders_of_the_mtu_are_served() -> None:
    check_mtu("v0", 68)
    check_mtu("v0", 9702)


def test_socket_rights_of_a_server_port() -> None:
    meant = parse("v0", SERVER, {"socket-mode": "0660", "socket-owner": "root", "socket-group": "0"}, RUN)
    assert (meant.socket_mode, meant.socket_owner, meant.socket_group, meant.complaints) == (0o660, 0, 0, ())


@pytest.mark.parametrize(
    "bad",
    [{"socket-mode": "rw"}, {"socket-mode": "1777"}, {"socket-owner": "no-such-user"}, {"socket-group": "no such"}],
)
def test_socket_rights_that_cannot_be_are_said_and_the_tight_ones_stay(bad: dict[str, str]) -> None:
    meant = parse("v0", SERVER, bad, RUN)
    assert (meant.socket_mode, meant.socket_owner, meant.socket_group) == (0o600, -1, -1)
    assert len(meant.complaints) == 1


def test_a_client_port_says_that_the_vmm_makes_its_socket() -> None:
    assert "the VMM creates the socket" in client(socket_mode="0660").complaints[0]


def test_an_unknown_option_is_named() -> None:
    assert client(vhost_server_pth="/x").complaints == (
        "options:vhost-server-pth is unknown: remove it or correct its name",
    )


@pytest.mark.rows("A19")
def test_zero_copy_is_a_client_ports_option_and_a_server_port_says_so() -> None:
    assert client(dq_zero_copy="true").dq_zero_copy
    assert client(dq_zero_copy="true").complaints == ()
    assert not client(dq_zero_copy="false").dq_zero_copy
    assert "give true or false" in client(dq_zero_copy="yes").complaints[0]
    server = parse("v0", SERVER, {"dq-zero-copy": "true"}, RUN)
    assert not server.dq_zero_copy
    assert "it is for client ports, set type=dpdkvhostuserclient" in server.complaints[0]
    assert parse("v0", SERVER, {"dq-zero-copy": "false"}, RUN).complaints == ()


def test_vhost_sock_dir_is_a_directory_under_the_run_directory() -> None:
    assert socket_directory(RUN, None) == RUN
    assert socket_directory(RUN, "sub/dir") == RUN / "sub/dir"
    assert socket_directory(RUN, "/sub") == RUN / "sub"


def test_vhost_sock_dir_with_dots_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"may not hold '\.\.'"):
        socket_directory(RUN, "../x")
