"""The annotation page as an ASGI application."""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from prefine import __version__
from prefine.annotation.page.access import Entrance
from prefine.annotation.page.bodies import LinkBody, NameBody, PauseBody, TaskBody, VoteBody
from prefine.annotation.page.differences import differences
from prefine.annotation.page.screens import Screens
from prefine.annotation.project import Project
from prefine.annotation.votes import VoteError
from prefine.errors import CheckpointError, DataError
from prefine.web.errors import ApiError, json_response
from prefine.web.guard import Guard
from prefine.web.handlers import install_handlers, refused_request
from prefine.web.json_body import JsonRoute
from prefine.web.policy import AccessPolicy
from prefine.web.sessions import Sessions
from prefine.web.static_files import StaticFiles

log = logging.getLogger("prefine")


def create_app(
    project: Project, policy: AccessPolicy, password: str | None = None, sessions_path: Path | None = None
) -> FastAPI:
    """The application.

    Args:
        project: to be judged; the caller closes it.
        policy: see prefine.web.policy.session_policy, which makes sure that there is a password where one is needed.
        password: asked of people who come without a personal link; None: they only give a name.
        sessions_path: see Sessions.
    """
    app = FastAPI(title="prefine annotate", version=__version__, docs_url=None, redoc_url=None)
    entrance = Entrance(project, password)
    sessions = Sessions(sessions_path, lets_in=entrance.lets_in)
    app.include_router(_pages(project, sessions, password is not None))
    app.include_router(_entering(entrance, sessions))
    app.include_router(_judging(project, sessions))
    install_handlers(app)
    for kind in (DataError, CheckpointError):
        app.add_exception_handler(kind, _unavailable)
    app.add_exception_handler(VoteError, _refused_vote)
    app.add_middleware(Guard, policy=policy)
    return app


# The routes are not async where they wait for the disk: each then runs in a thread of its own.


def _pages(project: Project, sessions: Sessions, asks_password: bool) -> APIRouter:
    router = APIRouter()
    screens, static = Screens(), StaticFiles("prefine.annotation.page")

    @router.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        """The task of whoever asks."""
        session = sessions.of(request)
        if session is None:
            return HTMLResponse(screens.entrance(project.settings, asks_password))
        try:
            task = project.next_task(session.name)
        except DataError as error:
            if error.field != "name":
                raise
            # The session is of another project that was here before.
            sessions.end(request, response := HTMLResponse(screens.entrance(project.settings, asks_password)))
            return response
        if task is None:
            return HTMLResponse(screens.rest(project, session))
        return HTMLResponse(screens.task(project.settings, session, task))

    @router.get("/link", include_in_schema=False)
    def link() -> Response:
        """Where personal links lead."""
        return HTMLResponse(screens.link(project.settings))

    @router.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str, request: Request) -> Response:
        """The files that the page loads."""
        return static.response(name, request)

    return router


def _entering(entrance: Entrance, sessions: Sessions) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.post("/link")
    def by_link(body: LinkBody, request: Request) -> Response:
        """Begin the session of a personal link's owner."""
        name, opened_by = entrance.by_link(body.token)
        sessions.begin(name, request, response := json_response({}), opened_by)
        return response

    @router.post("/enter")
    def by_name(body: NameBody, request: Request) -> Response:
        """Begin a session with a name, and the password if there is one."""
        name, opened_by = entrance.by_name(" ".join(body.name.split()), body.password, _address(request))
        sessions.begin(name, request, response := json_response({}), opened_by)
        return response

    @router.post("/leave")
    def leave(request: Request) -> Response:
        """End the session."""
        sessions.required(request)
        sessions.end(request, response := json_response({}))
        return response

    return router


def _judging(project: Project, sessions: Sessions) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.post("/vote")
    def vote(body: VoteBody, request: Request) -> Response:
        """Write a vote; it is on the disk when this answers. Sent again with the same key, it counts once."""
        session = sessions.required(request)
        return json_response({"number": project.vote(session.name, body.token, body.ballot(session.visit))})

    @router.post("/undo")
    def undo(request: Request) -> Response:
        """Take the latest vote back. `ballot` is what it said of `answers`, to be shown again; null: there was none."""
        vote = project.undo(sessions.required(request).name)
        if vote is None:
            return json_response({"ballot": None})
        said = vote.ballot
        fields = ("choice", "ranking", "text", "text_of", "strength", "note", "criteria", "seconds")
        return json_response({"ballot": {name: getattr(said, name) for name in fields}, "answers": vote.shown})

    @router.post("/pause")
    def pause(body: PauseBody, request: Request) -> Response:
        """Pause, or go on."""
        project.pause(sessions.required(request).name, body.paused)
        return json_response({})

    @router.post("/differences")
    def compared(body: TaskBody, request: Request) -> Response:
        """The first two answers of the open task in parts, in the order shown; see `differences`."""
        shown = project.shown(sessions.required(request).name, body.token)
        if len(shown) < 2:
            raise ApiError(
                409, "this task is not open any more, or has no two answers; load the page again", code="no_task"
            )
        return json_response({"parts": differences(shown[0].text, shown[1].text)})

    return router


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def _unavailable(request: Request, error: Exception) -> Response:
    """503: a full disk, a damaged file. With a field it is about what the client sent.

    What happened goes to the log only: a path says which models are compared, and anybody may ask.
    """
    if not isinstance(error, DataError | CheckpointError):
        raise error
    if error.field is not None:
        return refused_request(error).response()
    log.error("%s", error.lines[0])
    message = "the project cannot be used now; whoever opened this page finds the reason in its terminal"
    return ApiError(503, message, kind="server_error", code="project_unavailable").response()


async def _refused_vote(request: Request, error: Exception) -> Response:
    if not isinstance(error, VoteError):
        raise error
    return ApiError(409, error.lines[0], param=error.field, code="vote_refused").response()
