"""What ``ovsvhost show`` says to people of a guest that moves."""

from __future__ import annotations

from typing import Any

import pytest

from ovsvhost.cli.show import lines


def shown(**status: str) -> list[str]:
    port: dict[str, Any] = {
        "name": "v0", "ofport": 1, "type": "dpdkvhostuserclient", "link_state": "up", "error": None, "statistics": {},
        "status": {"mode": "client", **{key.replace("_", "-"): value for key, value in status.items()}},
    }  # fmt: skip
    tree = {"system_id": "s", "version": "1", "pending_restart": [], "bridges": [{"name": "br0", "ports": [port]}]}
    return [line.strip() for line in lines(tree)][3:]


@pytest.mark.rows("B1")
def test_a_port_that_is_not_about_to_move_says_nothing_of_it() -> None:
    assert shown() == ["mode=client"]


@pytest.mark.rows("B1", "C7")
def test_a_guest_on_its_way_is_told_and_what_would_stop_it() -> None:
    said = shown(migration="logging", **{"stops-move-to-ovs-3.1": "HOST_USO"})
    assert said == [
        "mode=client",
        "its guest is on its way to another host: what is written to it is marked",
        "to Open vSwitch 3.1 it cannot move with: HOST_USO",
    ]


@pytest.mark.rows("B1", "A15")
def test_a_guest_that_comes_by_post_copy_is_told_with_its_pages() -> None:
    counts = {"postcopy_faults_served": "12", "postcopy_stall_ms": "34"}
    on = shown(postcopy="on", postcopy_pages_missing="7", **counts)
    assert on[1] == "its guest came by post-copy: 7 pages are missing yet; 12 were waited for, 34 ms in all"
    assert shown(postcopy="over", **counts)[1:] == [
        "its guest came by post-copy: all pages are here; 12 were waited for, 34 ms in all"
    ]
