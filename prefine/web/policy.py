"""Who may talk to a local server: on this machine anyone, from elsewhere whoever has the API key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from prefine.errors import PrefineError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
API_KEY_VARIABLE = "PREFINE_API_KEY"
PASSWORD_VARIABLE = "PREFINE_PASSWORD"  # noqa: S105 - a name
SHORTEST_PASSWORD = 8
MAX_BODY_BYTES = 4 * 1024 * 1024
_HOST_HEADER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")


class AccessError(PrefineError):
    """A server that would be open to everyone, or an API key that no client can send."""


@dataclass(frozen=True)
class AccessPolicy:
    """What a server asks of every request.

    Attributes:
        host: the address that it listens on.
        api_key: asked for as `Authorization: Bearer KEY`; None: everyone may come in.
        other_names: further names that clients may call the host by.
        open_paths: paths that need no key; one that ends with a slash stands for all below it ("/" for itself alone).
        max_body_bytes: of a request.
        body_timeout_s: in which a request's body must have arrived.
        write_timeout_s: in which a client must take what is sent to it.
    """

    host: str
    api_key: str | None = field(default=None, repr=False)
    other_names: frozenset[str] = frozenset()
    open_paths: tuple[str, ...] = ("/health",)
    max_body_bytes: int = MAX_BODY_BYTES
    body_timeout_s: float = 30.0
    write_timeout_s: float = 60.0

    def allows_host(self, header: str | None) -> bool:
        """Whether a Host header names this server.

        A page on the web can make a browser talk to this machine under a name that its own DNS answers for (DNS
        rebinding); the browser then sends that name. A number is no name, so that any address will do where the server
        listens to more than this machine.
        """
        name = host_name(header or "")
        if name is None:
            return False
        if name in LOOPBACK_NAMES | self.other_names or name == self.host.strip("[]").lower():
            return True
        return not is_loopback(self.host) and (_is_address(name) or name == socket.gethostname().lower())

    def allows_origin(self, origin: str | None, host_header: str | None) -> bool:
        """Whether a page of this origin may change something: only one that this server itself has sent."""
        if origin is None:
            return True
        _, separator, origin_host = origin.partition("://")
        return bool(separator) and origin_host.lower() == (host_header or "").lower()

    def needs_key(self, path: str) -> bool:
        """Whether a request for this path must bring the key."""
        if self.api_key is None:
            return False
        return not any(
            path == one or (len(one) > 1 and one.endswith("/") and path.startswith(one)) for one in self.open_paths
        )

    def accepts_key(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds the key; takes as long for a wrong one as for the right one."""
        scheme, _, given = (authorization or "").partition(" ")
        expected = hashlib.sha256((self.api_key or "").encode()).digest()
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest(), expected)
        return same and scheme.lower() == "bearer" and self.api_key is not None


def access_policy(
    host: str, api_key: str | None, *, other_names: Iterable[str] = (), **settings: object
) -> AccessPolicy:
    """The policy of a server on `host`; settings are AccessPolicy's other attributes.

    Raises:
        AccessError: other machines can reach the host, and there is no API key; or the key is not one that a header can
            hold.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key and api_key):
        raise AccessError(
            "the API key is empty, or has a space or a character that is not ASCII",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            field="--api-key",
        )
    if api_key is None and not is_loopback(host):
        raise AccessError(
            f"{host!r} can be reached from other machines, and there is no API key",
            f"Set {API_KEY_VARIABLE} (or --api-key), or listen on 127.0.0.1.",
            field="--host",
        )
    names = frozenset(name.lower() for name in other_names)
    return AccessPolicy(host, api_key, names, **settings)  # type: ignore[arg-type]


def session_policy(host: str, password: str | None, *, other_names: Iterable[str] = ()) -> AccessPolicy:
    """The policy of a server whose pages have sessions (prefine.web.sessions) in place of an API key.

    Raises:
        AccessError: other machines can reach the host, and there is no password or a short one.
    """
    reachable = not is_loopback(host)
    if reachable and password is None:
        raise AccessError(
            f"{host!r} can be reached from other machines, and there is no password",
            f"Set {PASSWORD_VARIABLE}, or listen on 127.0.0.1.",
            field="--host",
        )
    if password is not None and (not password or (reachable and len(password) < SHORTEST_PASSWORD)):
        raise AccessError(
            f"the password has {len(password)} characters, and needs at least {SHORTEST_PASSWORD if reachable else 1}",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(12))'",
            field=PASSWORD_VARIABLE,
        )
    return AccessPolicy(host, None, frozenset(name.lower() for name in other_names))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str | None:
    """The name in a Host header, without its port and in lower case; None where the header is not one."""
    match = _HOST_HEADER.fullmatch(header)
    return None if match is None else match[1].strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
