"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from prefine import __version__
from prefine.serving.metrics import CountRequests
from prefine.serving.routes.about import about_router
from prefine.serving.routes.chat import chat_router
from prefine.serving.routes.completions import completions_router
from prefine.serving.routes.responses import responses_router
from prefine.serving.routes.score import score_router
from prefine.serving.routes.simple import simple_router
from prefine.serving.service import Service
from prefine.serving.sse import ClientGoneError
from prefine.web.guard import Guard
from prefine.web.handlers import install_handlers
from prefine.web.policy import AccessPolicy

_ROUTERS = (about_router, chat_router, completions_router, responses_router, score_router, simple_router)
# The chat page's files hold nothing that a key would keep; the page asks its user for the key.
OPEN_PATHS = ("/health", "/", "/page/")


def create_app(service: Service, policy: AccessPolicy, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application; it starts the service's threads when it starts, and ends them when it ends.

    Args:
        service: see Service.
        policy: who may talk to it; OPEN_PATHS need no key.
        routers: more routes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.dispatch = asyncio.get_running_loop().call_soon_threadsafe
        service.worker.start()
        # Models and libraries are half a million objects that stay. To look through them for garbage takes 0.2 s, in
        # which nobody is served.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
            await asyncio.to_thread(service.close)

    # The documentation pages would load their scripts from elsewhere.
    app = FastAPI(title="prefine", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    for make in _ROUTERS:
        app.include_router(make(service))
    for router in routers:
        app.include_router(router)
    install_handlers(app)
    app.add_exception_handler(ClientGoneError, _nobody_reads)
    app.add_middleware(Guard, policy=replace(policy, open_paths=OPEN_PATHS))
    app.add_middleware(CountRequests, metrics=service.metrics)
    return app


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
