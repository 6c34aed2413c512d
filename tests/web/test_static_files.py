"""Files of a page and those that pages share; nothing else of the disk."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from prefine.web.errors import ApiError
from prefine.web.static_files import StaticFiles

STATIC = StaticFiles("prefine.annotation.page")


def request(tag: str = "") -> Request:
    headers = [(b"if-none-match", tag.encode())] if tag else []
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("task.js", "text/javascript"),
        ("markdown.js", "text/javascript"),
        ("foundation.css", "text/css"),
        ("icon.svg", "image/svg"),
    ],
)
def test_own_and_shared_files_have_their_type(name: str, kind: str) -> None:
    response = STATIC.response(name, request())
    assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
    assert response.headers["cache-control"] == "no-cache"
    again = STATIC.response(name, request(response.headers["etag"]))
    assert (again.status_code, again.body) == (304, b"")
    assert STATIC.response(name, request('"other"')).status_code == 200


@pytest.mark.parametrize("name", ["", "..", "../app.py", "app.py", "index.html", "/etc/passwd", "task.js/"])
def test_nothing_else_is_there(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        STATIC.response(name, request())
    assert caught.value.status == 404
