"""POST /v1/feedback: what people think of an answer. GET says what the server does with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from prefine.errors import DataError
from prefine.feedback.store import (
    EventKind,
    FeedbackRefusedError,
    FeedbackStore,
    NewEvent,
    NoTextsError,
    RepeatedKeyError,
    UnknownCompletionError,
)
from prefine.records import SaidText
from prefine.web.errors import ApiError, json_response
from prefine.web.json_body import JsonRoute

_LONGEST_CORRECTION = 256 * 1024
# An id or a key is printable ASCII, as the server and every client make them.
Name = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]
Choice = Annotated[int, Field(ge=0, le=1_000)]

_SAYS = ("thumb", "correction", "preferred_over", "regenerates")
_REFUSALS: dict[type[FeedbackRefusedError], tuple[int, str, str, str]] = {
    UnknownCompletionError: (404, "not_found_error", "completion_id", "completion_not_found"),
    RepeatedKeyError: (409, "invalid_request_error", "key", "key_used_before"),
    NoTextsError: (409, "invalid_request_error", "correction", "texts_not_stored"),
}


class FeedbackBody(BaseModel):
    """What a client says of one answer. Exactly one of thumb, correction, preferred_over and regenerates is set.

    Attributes:
        completion_id, choice: the answer.
        thumb: "withdrawn" takes the last one back.
        correction: the text that the answer should have been; the server must store texts.
        preferred_over: the id of another answer to the same conversation, which is worse.
        regenerates: the id of an earlier answer in the place of which this one was asked for.
        other_choice: of the other answer.
        key: sent again with the same key, an event is recorded once.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    completion_id: Name
    choice: Choice = 0
    thumb: Literal["up", "down", "withdrawn"] | None = None
    correction: Annotated[SaidText, Field(max_length=_LONGEST_CORRECTION)] | None = None
    preferred_over: Name | None = None
    regenerates: Name | None = None
    other_choice: Choice = 0
    key: Name | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> FeedbackBody:
        said = [name for name in _SAYS if getattr(self, name) is not None]
        if len(said) != 1:
            found = " and ".join(said) if said else "none of them"
            raise ValueError(f"needs exactly one of {', '.join(_SAYS)}; it has {found}")
        return self

    @property
    def event(self) -> NewEvent:
        """What the store records."""
        other = self.preferred_over or self.regenerates
        return NewEvent(
            self.completion_id,
            self._kind,
            choice=self.choice,
            text=self.correction,
            other_id=other,
            other_choice=self.other_choice,
            key=self.key or "",
        )

    @property
    def _kind(self) -> EventKind:
        if self.thumb is not None:
            return self.thumb
        if self.correction is not None:
            return "correction"
        return "preferred" if self.preferred_over is not None else "regenerated"


def feedback_router(store: FeedbackStore | None) -> APIRouter:
    """The routes; with no store feedback is off."""
    router = APIRouter(route_class=JsonRoute)

    # Not async: the store waits for the disk, and a route that is not runs in a thread of its own.
    @router.post("/v1/feedback")
    def record(body: FeedbackBody) -> Response:
        """Record one event; it is on the disk when this answers."""
        if store is None:
            raise ApiError(
                404,
                "this server takes no feedback; start it without --no-feedback",
                kind="not_found_error",
                code="feedback_off",
            )
        try:
            recorded = store.record(body.event)
        except FeedbackRefusedError as error:
            status, kind, param, code = _REFUSALS.get(
                type(error), (400, "invalid_request_error", "completion_id", "invalid_value")
            )
            raise ApiError(status, error.lines[0], kind=kind, param=param, code=code) from None
        except DataError as error:  # a full disk, a damaged file: nothing that the client did
            raise ApiError(503, error.lines[0], kind="server_error", code="feedback_unavailable") from None
        return json_response(
            {
                "object": "feedback.event",
                "number": recorded.number,
                "completion_id": body.completion_id,
                "repeated": recorded.repeated,
            }
        )

    @router.get("/v1/feedback")
    def about() -> Response:
        """Whether feedback is taken, and what is stored with it."""
        return json_response(_about(store))

    return router


def _about(store: FeedbackStore | None) -> dict[str, Any]:
    about: dict[str, Any] = {"object": "feedback.settings", "enabled": store is not None}
    if store is None:
        return {**about, "stores_texts": False, "redacts": False, "retention_days": None}
    settings = store.settings
    return {
        **about,
        "stores_texts": settings.store_texts,
        "redacts": settings.redact or bool(settings.patterns),
        "retention_days": settings.retention_days,
    }
