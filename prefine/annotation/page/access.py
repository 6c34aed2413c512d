"""How a person comes to have a session: a personal link, a password, or a name at this machine."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cached_property

from prefine.annotation.project import Project, hash_of_token
from prefine.web.errors import ApiError
from prefine.web.throttle import Throttle


def link_path(token: str) -> str:
    """The path of a personal link. A browser sends nothing after the # to a server, so that no log has the token."""
    return f"/link#{token}"


_LINK = "link "
_SALT = b"prefine annotate"  # of a hash that stands in the file of sessions, beside the project
_ROUNDS = 100_000


@dataclass(frozen=True)
class Entrance:
    """Lets people in.

    Attributes:
        project: has the annotators.
        password: asked for with a name; None: a name is enough, for a server that only this machine reaches.
        throttle: of wrong passwords. Links need none: nobody guesses 192 random bits.
    """

    project: Project
    password: str | None = field(default=None, repr=False)
    throttle: Throttle = field(default_factory=Throttle, repr=False)

    def by_link(self, token: str) -> tuple[str, str]:
        """The annotator whose personal link has this token, and what opened the session, for `lets_in`.

        Raises:
            ApiError: 401: nobody's has.
        """
        token_hash = hash_of_token(token)
        name = self.project.by_token(token_hash)
        if name is None:
            raise _refused("this personal link is not valid, or a newer one has replaced it; ask for a new one")
        return name, _LINK + token_hash.hex()

    def by_name(self, name: str, password: str, address: str) -> tuple[str, str]:
        """The annotator of a name, made if there is none, and what opened the session, for `lets_in`.

        Raises:
            ApiError: 401: the password is wrong; 429: too many attempts.
            PrefineError: the name is not allowed.
        """
        if self.password is not None:
            self.throttle.begin(address)
            if not hmac.compare_digest(_digest(password), _digest(self.password)):
                raise _refused("the password is wrong")
            self.throttle.succeeded(address)
        self.project.join(name)
        return name, self._by_password

    def lets_in(self, name: str, opened_by: str) -> bool:
        """Whether a session holds: its link was not replaced, and the password was not changed, set or removed."""
        if opened_by.startswith(_LINK):
            return self.project.by_token(bytes.fromhex(opened_by.removeprefix(_LINK))) == name
        return opened_by == self._by_password

    @cached_property
    def _by_password(self) -> str:
        if self.password is None:
            return "name"
        given = self.password.encode("utf-8", "surrogatepass")
        return "password " + hashlib.pbkdf2_hmac("sha256", given, _SALT, _ROUNDS).hex()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _refused(message: str) -> ApiError:
    return ApiError(401, message, kind="authentication_error", code="not_let_in")
