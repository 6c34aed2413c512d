"""The chat page at /: static files, plain JavaScript modules, nothing from elsewhere, nothing to build.

The page asks the server as any other client does, with the API key if there is one; these files hold no secret and
need no key. The conversation is kept in the browser's tab.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from prefine.web.static_files import StaticFiles

_INDEX = "index.html"


def page_router() -> APIRouter:
    """GET / and GET /page/NAME."""
    router = APIRouter()
    static = StaticFiles("prefine.serving.page")

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return static.response(_INDEX, request)

    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str, request: Request) -> Response:
        return static.response(name, request)

    return router
