"""How a person comes to have a session: a personal link, a password, or a name at this machine."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from prefine.annotation.project import Project
from prefine.web.errors import ApiError
from prefine.web.throttle import Throttle


def link_path(token: str) -> str:
    """The path of a personal link. A browser sends nothing after the # to a server, so that no log has the token."""
    return f"/link#{token}"


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

    def by_link(self, token: str) -> str:
        """The annotator whose personal link has this token.

        Raises:
            ApiError: 401: nobody's has.
        """
        name = self.project.by_token(token)
        if name is None:
            raise _refused("this personal link is not valid, or a newer one has replaced it; ask for a new one")
        return name

    def by_name(self, name: str, password: str, address: str) -> str:
        """The annotator of a name, made if there is none.

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
        return name


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _refused(message: str) -> ApiError:
    return ApiError(401, message, kind="authentication_error", code="not_let_in")
