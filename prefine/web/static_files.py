"""The files that a local page loads: its own and those that all pages share, under /page/."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from prefine.web.errors import ApiError

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# A browser keeps a file, and asks each time whether it has changed.
_CACHE_CONTROL = "no-cache"


class _File(NamedTuple):
    content: bytes
    kind: str
    tag: str


class StaticFiles:
    """The files in the folders `static` of a package and of prefine.web.

    They are read once. Names are those of the files, so that none leads to another folder.

    Args:
        package: the page's own, as in "prefine.serving.page".
    """

    def __init__(self, package: str) -> None:
        self._files = {
            entry.name: _read(entry.read_bytes(), _TYPES[suffix])
            for one in ("prefine.web", package)
            for entry in (files(one) / "static").iterdir()
            if (suffix := entry.name[entry.name.rfind(".") :]) in _TYPES
        }

    def response(self, name: str, request: Request) -> Response:
        """A file, or 304 where the browser has it.

        Raises:
            ApiError: there is no such file.
        """
        if name not in self._files:
            raise ApiError(404, f"there is no /page/{name[:100]}; the page is at /", kind="not_found_error")
        content, kind, tag = self._files[name]
        headers = {"etag": tag, "cache-control": _CACHE_CONTROL}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)


def _read(content: bytes, kind: str) -> _File:
    return _File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
