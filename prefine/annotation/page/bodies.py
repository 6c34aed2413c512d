"""What the page's script sends."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from prefine.annotation.records import Ballot
from prefine.annotation.votes import MAX_NOTE_CHARACTERS, MAX_TEXT_CHARACTERS

_MOST_ANSWERS = 4
_DAY_S = 86_400.0
# A character that can be seen, and no control characters.
_NAME = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"

Name = Annotated[str, Field(min_length=1, max_length=200)]
_Group = Annotated[list[Name], Field(max_length=_MOST_ANSWERS)]
Token = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class LinkBody(_Body):
    """The token of a personal link."""

    token: Token


class NameBody(_Body):
    """A person who comes in without a link."""

    name: Annotated[str, Field(max_length=60, pattern=_NAME)]
    password: Annotated[str, Field(max_length=1_000)] = ""


class PauseBody(_Body):
    """Whether to pause."""

    paused: bool


class TaskBody(_Body):
    """The token of the task that is shown."""

    token: Token


class VoteBody(_Body):
    """A ballot with the token of its task; see Ballot."""

    token: Token
    key: Annotated[Token, Field(min_length=8, max_length=100)]
    choice: Name
    ranking: Annotated[list[_Group], Field(max_length=_MOST_ANSWERS)] = Field(default_factory=list)
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)] | None = None
    text_of: Name | None = None
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARACTERS)] = ""
    criteria: Annotated[dict[Name, Name], Field(max_length=50)] = Field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0, le=_DAY_S, strict=False)] = 0.0

    def ballot(self, session: str) -> Ballot:
        """The ballot, of a visit named `session`."""
        said = self.model_dump(exclude={"token", "ranking"})
        return Ballot(**said, ranking=tuple(tuple(group) for group in self.ranking), session=session)
