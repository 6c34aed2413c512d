"""A person before the annotation page, as a script: reads the screen and sends what the page's script would send."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any, Self

import httpx

from prefine.web.sessions import TOKEN_HEADER

_ANSWER = re.compile(
    r'<section class="answer" data-id="([^"]+)".*?<div class="text" data-markdown>(.*?)</div></div>', re.DOTALL
)


@dataclass(frozen=True)
class Screen:
    """A task as the screen shows it.

    Attributes:
        token: the lease.
        answers: id -> text, in the order shown.
    """

    token: str
    answers: dict[str, str]


class HttpAnnotator:
    """An annotator with a session of their own at a running page.

    Args:
        link: a personal link; None: `enter` begins the session.
    """

    def __init__(self, address: str, link: str | None = None) -> None:
        self.address = address
        self._http = httpx.Client(base_url=address, timeout=60, headers={"origin": address})
        self._form_token = ""
        if link is not None:
            self._post("/api/link", {"token": link.partition("#")[2]}).raise_for_status()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._http.close()

    def enter(self, name: str) -> None:
        """Begin a session with a name."""
        self._post("/api/enter", {"name": name}).raise_for_status()

    def screen(self) -> Screen | None:
        """The task that is shown now; None: nothing is left to judge."""
        text = self._http.get("/").raise_for_status().text
        self._form_token = re.findall(r'name="form-token" content="([^"]*)"', text)[0]
        token = re.search(r'data-token="([^"]+)"', text)
        if token is None:
            assert 'id="again"' in text, text[:2000]
            return None
        return Screen(token[1], {name: html.unescape(said) for name, said in _ANSWER.findall(text)})

    def vote(self, token: str, key: str, choice: str) -> httpx.Response:
        """Send a vote; what the server answers."""
        return self._post("/api/vote", {"token": token, "key": key, "choice": choice, "seconds": 5.0})

    def undo(self) -> httpx.Response:
        """Take the latest vote back."""
        return self._post("/api/undo", {})

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._http.post(path, json=body, headers={TOKEN_HEADER: self._form_token})
