"""What stands before every route: checks of host, origin, key and body, and headers of every response.

Plain ASGI: Starlette's BaseHTTPMiddleware hides a client's leaving from the routes behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefine.web.errors import JSON_TYPE, ApiError, internal_error, place_of
from prefine.web.policy import AccessPolicy

log = logging.getLogger("prefine")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Pages load only what this server sends, no script or style stands in them, and no other page may frame them.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class _ClientLeftError(Exception):
    """The client closed its connection before its body had arrived."""


class Guard:
    """ASGI middleware that lets through what the policy allows, and answers everything else itself.

    A body is read whole before the route is called: one that is too large is refused from its length or as soon as it
    exceeds the limit, and a client that sends half of one does not wait in a route.
    """

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        response = _Response(send, self._policy.write_timeout_s)
        try:
            self._require_allowed(scope)
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), response.send)
        except ApiError as error:
            await error.response()(scope, receive, response.send)
        except (_ClientLeftError, OSError):
            return  # nobody reads what would be said
        except Exception as error:  # noqa: BLE001 - the last resort: a fault of the route's
            log.error("%s %s failed: %s", scope["method"], scope["path"][:200], place_of(error))
            if not response.started:
                await internal_error().response()(scope, receive, response.send)

    def _require_allowed(self, scope: Scope) -> None:
        headers, policy = Headers(scope=scope), self._policy
        host = headers.get("host")
        if len(headers.getlist("host")) > 1 or not policy.allows_host(host):
            raise ApiError(
                403,
                f"the Host header is {(host or '')[:100]!r}, and this server is not known by that name; "
                "use its address, or start it with --allow-host NAME",
                kind="permission_error",
                code="host_not_allowed",
            )
        if policy.needs_key(scope["path"]) and not policy.accepts_key(headers.get("authorization")):
            raise ApiError(
                401,
                "no API key, or a wrong one; send the header Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] in SAFE_METHODS:
            return
        if not policy.allows_origin(origin := headers.get("origin"), host):
            raise ApiError(
                403,
                f"a page of {(origin or '')[:100]!r} may not use this server; only its own pages may",
                kind="permission_error",
                code="origin_not_allowed",
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if _has_body(headers) and kind != JSON_TYPE:
            raise ApiError(
                415,
                f"the body's Content-Type is {kind[:100]!r}; send JSON, with Content-Type: {JSON_TYPE}",
                code="unsupported_media_type",
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = Headers(scope=scope).get("content-length", "0")
        # A server that speaks HTTP has checked that it is a number.
        if int(declared) > self._policy.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._policy.body_timeout_s):
                return await self._whole_body(receive)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self._policy.body_timeout_s:g} s",
                kind="timeout_error",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None

    async def _whole_body(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            part = message.get("body", b"")
            size += len(part)
            if size > self._policy.max_body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._policy.max_body_bytes:,} bytes; send less",
            code="request_too_large",
            headers={"Connection": "close"},  # the rest of it is not read
        )


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, then whatever comes after it: the client's leaving."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


class _Response:
    """A response with the security headers, to a client that has to read it.

    Attributes:
        started: whether its status has been sent.
    """

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self.started = False

    async def send(self, message: Message) -> None:
        """See ASGI.

        Raises:
            ConnectionResetError: the client did not read for so long.
        """
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            raise ConnectionResetError("the client does not read its response") from None
