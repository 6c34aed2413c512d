"""Sessions of people at a local page: a random id in a cookie that scripts and other sites cannot use.

A session begins where somebody has shown who they are (a personal link, a password), and names that person in every
later request. What is kept here is a hash of the id: whoever reads it cannot take a session over. A session ends as
soon as what opened it (that link, that password) does not let anybody in any more.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from prefine.runs.atomic import atomic_write
from prefine.web.errors import ApiError

LIFETIME_S = 7 * 86_400.0
MOST_SESSIONS = 10_000
TOKEN_HEADER = "x-csrf-token"  # noqa: S105 - a name


@dataclass(frozen=True, slots=True)
class WebSession:
    """One person in one browser.

    Attributes:
        name: of the person.
        visit: a random name of the session that may be stored with what the person does.
        form_token: what a page of this session sends with each change, as TOKEN_HEADER. Made from the cookie's id.
    """

    name: str
    visit: str
    form_token: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a session: nothing with which it could be taken over. It ends at the Unix time `ends`.

    `opened_by` is a hash of what opened it.
    """

    name: str
    visit: str
    ends: float
    opened_by: str


class Sessions:
    """All sessions of a server. Threads may use it at once.

    Args:
        path: where sessions are kept, so that a server that starts again still knows them; None: in memory only. A file
            that cannot be read is as good as none: people begin new sessions.
        clock: Unix time.
        lets_in: of a name and the `opened_by` that `begin` got, whether a session that this opened still holds.
    """

    def __init__(
        self,
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
        lets_in: Callable[[str, str], bool] = lambda name, opened_by: True,
    ) -> None:
        self._lets_in = lets_in
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions = {} if path is None else _read(path)

    def begin(self, name: str, request: Request, response: Response, opened_by: str = "") -> WebSession:
        """Begin a session of `name`; the response sets its cookie. The browser's earlier session ends.

        Args:
            opened_by: a hash of the link or the password, for `lets_in`.
        """
        identifier = secrets.token_urlsafe(32)
        kept = _Kept(name, secrets.token_hex(8), self._clock() + LIFETIME_S, opened_by)
        with self._lock:
            self._sessions.pop(_hashed(_cookie(request)), None)
            self._sessions[_hashed(identifier)] = kept
            self._forget()
            self._write()
        _set_cookie(request, response, identifier, int(LIFETIME_S))
        return WebSession(name, kept.visit, _form_token(identifier))

    def end(self, request: Request, response: Response) -> None:
        """End the request's session, if it has one, and remove its cookie."""
        with self._lock:
            if self._sessions.pop(_hashed(_cookie(request)), None) is not None:
                self._write()
        _set_cookie(request, response, "", 0)

    def of(self, request: Request) -> WebSession | None:
        """The session that a request belongs to; None if it has none, or one that has ended."""
        identifier = _cookie(request)
        with self._lock:
            kept = self._sessions.get(_hashed(identifier))
        if kept is None or kept.ends <= self._clock() or not self._lets_in(kept.name, kept.opened_by):
            return None
        return WebSession(kept.name, kept.visit, _form_token(identifier))

    def required(self, request: Request) -> WebSession:
        """The session of a request that changes something.

        Raises:
            ApiError: 401: there is none; 403: it does not bring the session's token, as a page of another site could
                not.
        """
        session = self.of(request)
        if session is None:
            raise ApiError(
                401,
                "there is no session, or it has ended; open your personal link again, or log in",
                kind="authentication_error",
                code="no_session",
            )
        given = request.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), session.form_token.encode()):
            raise ApiError(
                403,
                "the request does not come from this session's page; load the page again",
                kind="permission_error",
                code="wrong_csrf_token",
            )
        return session

    def _forget(self) -> None:
        """Remove sessions that have ended; beyond MOST_SESSIONS the oldest."""
        now = self._clock()
        self._sessions = {key: session for key, session in self._sessions.items() if session.ends > now}
        while len(self._sessions) > MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _write(self) -> None:
        if self._path is None:
            return
        with atomic_write(self._path) as temporary:
            kept = {key: asdict(session) for key, session in self._sessions.items()}
            temporary.write_text(json.dumps(kept), encoding="utf-8")
        self._path.chmod(0o600)  # it holds names; a file that was just renamed has the mode of any new one


def _read(path: Path) -> dict[str, _Kept]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): _Kept(**session | {"ends": float(session["ends"])}) for key, session in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _hashed(identifier: str) -> str:
    return hashlib.sha256(identifier.encode("utf-8", "surrogateescape")).hexdigest()


def _form_token(identifier: str) -> str:
    return _hashed(f"form {identifier}")


def _cookie_name(request: Request) -> str:
    """Cookies do not tell ports apart: two servers of one machine would take each other's."""
    _, port = request.scope.get("server") or ("", 0)
    return f"prefine-session-{port}"


def _cookie(request: Request) -> str:
    return request.cookies.get(_cookie_name(request), "")


def _set_cookie(request: Request, response: Response, value: str, max_age_s: int) -> None:
    response.set_cookie(
        _cookie_name(request),
        value,
        max_age=max_age_s,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
