"""The address that is given to people. What needs a served model is in tests/serving/test_server.py."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from prefine.web.policy import session_policy
from prefine.web.server import address_for_others, address_of, listening_socket

ALL = "0.0.0.0"


def test_a_link_names_this_machine_as_others_do() -> None:
    with listening_socket(ALL, 0) as sock:
        port = sock.getsockname()[1]
        assert address_for_others(sock, ["judge.example", "second.example"]) == f"http://judge.example:{port}"
        found = address_for_others(sock)
        assert found != address_of(sock) and found.endswith(f":{port}")
        policy = session_policy(ALL, "long enough")
        assert policy.allows_host(found.removeprefix("http://"))


def test_without_a_network_a_link_has_the_machines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError

    with listening_socket(ALL, 0) as sock:
        monkeypatch.setattr("prefine.web.server.socket.socket.connect", refused)
        assert address_for_others(sock) == f"http://{socket.gethostname()}:{sock.getsockname()[1]}"


def test_a_loopback_address_stays() -> None:
    with listening_socket("127.0.0.1", 0) as sock:
        assert address_for_others(sock, ["judge.example"]) == address_of(sock)
