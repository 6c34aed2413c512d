"""The chat page at /: static files, plain JavaScript modules, nothing from elsewhere, nothing to build.

The page asks the server as any other client does, with the API key if there is one; these files hold no secret and
need no key. The conversation is kept in the browser's tab.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from prefine.web.errors import ApiError

_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """GET / and GET /page/NAME; names are those of the files, so that none leads to another folder."""
    router = APIRouter()
    static = {
        entry.name: (entry.read_bytes(), _TYPES[suffix])
        for entry in (files("prefine.serving.page") / "static").iterdir()
        if (suffix := entry.name[entry.name.rfind(".") :]) in _TYPES
    }

    def response(name: str) -> Response:
        if name not in static:
            raise ApiError(404, f"there is no /page/{name[:100]}; the chat page is at /", kind="not_found_error")
        content, kind = static[name]
        return Response(content, media_type=kind)

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return response(_INDEX)

    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return response(name)

    return router
