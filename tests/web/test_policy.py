"""Who may talk to a server: hosts, origins and keys."""

from __future__ import annotations

import pytest

from prefine.web.policy import AccessError, AccessPolicy, access_policy, is_loopback, session_policy


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "[::1]")),
        *(
            (name, False)
            for name in ("0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.evil.com", "localhost.", "")
        ),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    "header",
    [
        "evil.com",
        "evil.com:8000",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "",
        None,
        "local host",
        "a@localhost",
        "localhost:8000:1",
        "localhost/",
        "192.168.1.5:8000",
    ],
)
def test_a_loopback_server_is_known_by_loopback_names_only(header: str | None) -> None:
    assert not access_policy("127.0.0.1", None).allows_host(header)


@pytest.mark.parametrize("header", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_loopback_names_are_allowed_with_any_port(header: str) -> None:
    assert access_policy("127.0.0.1", None).allows_host(header)


def test_a_server_for_others_is_known_by_addresses_and_by_the_names_that_it_was_given() -> None:
    policy = access_policy("0.0.0.0", "secret-key", other_names=["GPU.lan"])
    assert all(policy.allows_host(name) for name in ("10.0.0.7:8000", "gpu.lan", "localhost", "[fd00::1]:80"))
    assert not any(policy.allows_host(name) for name in ("evil.com", "gpu.lan.evil.com"))


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1:8000", True),
        *(
            (name, False)
            for name in ("http://127.0.0.1:3000", "http://evil.com", "null", "", "127.0.0.1:8000", "file://")
        ),
    ],
)
def test_only_the_servers_own_pages_may_change_something(origin: str | None, allowed: bool) -> None:
    assert access_policy("127.0.0.1", None).allows_origin(origin, "127.0.0.1:8000") == allowed


def test_other_machines_need_a_key() -> None:
    with pytest.raises(AccessError, match="PREFINE_API_KEY") as refused:
        access_policy("0.0.0.0", None)
    assert refused.value.field == "--host"
    assert access_policy("0.0.0.0", "k" * 20).api_key == "k" * 20


@pytest.mark.parametrize("key", ["", "two words", "ключ", "tab\tkey"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(AccessError, match="API key"):
        access_policy("127.0.0.1", key)


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("Bearer right-key", True),
        ("bearer  right-key ", True),
        *(
            (wrong, False)
            for wrong in (
                None,
                "",
                "Bearer",
                "Bearer ",
                "Bearer right",
                "Bearer right-key2",
                "Basic right-key",
                "right-key",
                "Bearer \udcff",
            )
        ),
    ],
)
def test_the_key_is_compared_whole(header: str | None, accepted: bool) -> None:
    assert access_policy("127.0.0.1", "right-key").accepts_key(header) == accepted


def test_without_a_key_no_header_is_accepted_as_one() -> None:
    assert not AccessPolicy("127.0.0.1").accepts_key("Bearer ")


def test_open_paths_are_exact_unless_they_end_with_a_slash() -> None:
    policy = access_policy("127.0.0.1", "right-key", open_paths=("/health", "/", "/page/"))
    assert not any(map(policy.needs_key, ("/health", "/", "/page/app.js")))
    assert all(map(policy.needs_key, ("/healthy", "/health/", "/v1/models", "/page", "/pages/x", "//", "")))


def test_the_key_is_not_in_the_policys_text() -> None:
    assert "right-key" not in repr(access_policy("127.0.0.1", "right-key"))


def test_pages_with_sessions_need_a_password_where_others_reach_them() -> None:
    for host in ("127.0.0.1", "localhost"):
        assert session_policy(host, None).api_key is None
        assert session_policy(host, "short").host == host
    assert session_policy("0.0.0.0", "long enough", other_names=["Mill"]).other_names == {"mill"}
    for password, told in ((None, "there is no password"), ("seven77", "has 7 characters, and needs at least 8")):
        with pytest.raises(AccessError, match=told):
            session_policy("0.0.0.0", password)
    with pytest.raises(AccessError, match="has 0 characters, and needs at least 1"):
        session_policy("127.0.0.1", "")
