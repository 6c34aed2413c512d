"""Human votes as arena JSONL, the form of FastChat: read strictly, matched with answers, and written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefine.comparisons.result import AnswerRow, Winner
from prefine.errors import DataError
from prefine.json_reading import JsonError, parse_json
from prefine.paths import model_name
from prefine.runs.atomic import atomic_write, json_bytes

ArenaWinner = Literal["model_a", "model_b", "tie", "tie (bothbad)"]

_LONGEST_LINE_BYTES = 8 * 1024 * 1024
_REMEDY = "Write a vote as FastChat does: docs/evaluation.md has an example."


class ArenaTurn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    role: str
    content: str


class ArenaVote(BaseModel):
    """A vote on two models' answers. Further fields of other programs are allowed.

    Attributes:
        question_id: of the prompt: the id in answers.jsonl.
        winner: "tie (bothbad)" is a tie.
        judge: who voted; "" if unknown.
        conversation_a, conversation_b: the prompt and the answer, which is the last turn.
        turn: number of the user's turns. anony: whether the models' names were hidden. tstamp: Unix time.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)

    question_id: str | int
    model_a: str
    model_b: str
    winner: ArenaWinner
    judge: str = ""
    conversation_a: tuple[ArenaTurn, ...] = Field(strict=False)
    conversation_b: tuple[ArenaTurn, ...] = Field(strict=False)
    turn: int = 1
    anony: bool = True
    language: str = "unknown"
    tstamp: float = 0.0

    @field_validator("conversation_a", "conversation_b", mode="after")
    @classmethod
    def _ends_with_an_answer(cls, turns: tuple[ArenaTurn, ...]) -> tuple[ArenaTurn, ...]:
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise ValueError("is not a prompt with an assistant's answer as the last turn")
        return turns

    @model_validator(mode="after")
    def _compares(self) -> ArenaVote:
        if self.model_a == self.model_b:
            raise ValueError(f"model_a and model_b are both {self.model_a!r:.60}")
        asked = [
            [turn.content for turn in talk if turn.role == "user"]
            for talk in (self.conversation_a, self.conversation_b)
        ]
        if asked[0] != asked[1]:
            raise ValueError("conversation_a and conversation_b do not ask the same")
        return self


@dataclass(frozen=True, slots=True)
class RefusedVote:
    """A line that is no vote.

    Attributes:
        place: file and line.
        reason: with the field.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def read_votes(path: Path) -> tuple[list[ArenaVote], list[RefusedVote]]:
    """The votes of a file, and the lines that are none. Blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or holds no vote.
    """
    votes: list[ArenaVote] = []
    refused: list[RefusedVote] = []
    try:
        for number, line in _lines(path):
            found = _vote_of(line)
            if isinstance(found, ArenaVote):
                votes.append(found)
            else:
                refused.append(RefusedVote(f"{path}, line {number}", found))
    except (OSError, ValueError) as error:  # ValueError: the name holds NUL
        raise DataError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", "Check its name and permissions."
        ) from None
    if not votes:
        raise DataError(str(refused[0]) if refused else f"{path}: holds no vote", _REMEDY)
    return votes, refused


def write_votes(path: Path, votes: Iterable[ArenaVote]) -> None:
    """Write votes, one a line, with FastChat's fields in its order."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for vote in votes:
            file.write(json_bytes(vote.model_dump()))


@dataclass(frozen=True, slots=True)
class CountedVotes:
    """Votes matched with answers.

    Attributes:
        winners: of each row; None without votes. By majority; as many votes for each side are a tie.
        used: number of votes.
        left_out: why others were not used, with their number.
    """

    winners: list[Winner | None]
    used: int
    left_out: dict[str, int]


def counted(votes: Sequence[ArenaVote], rows: Sequence[AnswerRow], candidate: str, baseline: str) -> CountedVotes:
    """What people voted on each row.

    Models may be named by the last part of their path, dpo for runs/dpo, and paths may be typed differently.
    """
    sides = _sides(candidate, baseline)
    places = {row.id: place for place, row in enumerate(rows)}
    left_out: Counter[str] = Counter()
    about: list[ArenaVote] = []
    for vote in votes:
        place = places.get(str(vote.question_id))
        named = (sides.get(model_name(vote.model_a)), sides.get(model_name(vote.model_b)))
        if place is None:
            left_out["question_id is no id of the answers"] += 1
        elif set(named) != {"candidate", "baseline"}:
            left_out[f"the models are not {candidate} and {baseline}"] += 1
        elif not _asks(vote, rows[place]):
            left_out["the prompt is not the one compared"] += 1
        elif not _is_about(vote, rows[place], candidate_is_a=named[0] == "candidate"):
            left_out["the answers are not the ones compared"] += 1
        else:
            about.append(vote)
    used = _latest(about)  # only of these, as a later vote on something else replaces none
    if earlier := len(about) - len(used):
        left_out["the same judge voted again later"] = earlier
    balance: dict[int, int] = {}
    for vote in used:
        place = places[str(vote.question_id)]
        for_a = {"model_a": 1, "model_b": -1}.get(vote.winner, 0)
        balance[place] = balance.get(place, 0) + (for_a if sides[model_name(vote.model_a)] == "candidate" else -for_a)
    winners: list[Winner | None] = [_by_majority(balance.get(place)) for place in range(len(rows))]
    return CountedVotes(winners, len(used), dict(left_out))


def require_votable(rows: Iterable[AnswerRow], candidate: str, baseline: str) -> None:
    """Refuse what no vote can be written on.

    Raises:
        DataError: both models have one name, or a prompt has no turns.
    """
    if model_name(candidate) == model_name(baseline):
        raise DataError(
            f"both models are called {model_name(candidate)!r}, which no vote can tell apart",
            "Rename one of the files.",
        )
    for row in rows:
        if not row.prompt:
            raise DataError(f"row {row.id!r} has no prompt, without which no vote can be written", "Leave the row out.")


def votes_of(rows: Sequence[AnswerRow], judge: str, candidate: str, baseline: str) -> list[ArenaVote]:
    """A judge's verdicts as votes; the candidate is model A.

    Raises:
        DataError: see require_votable.
    """
    require_votable([row for row in rows if judge in row.verdicts], candidate, baseline)
    now = time.time()
    winners: dict[Winner, ArenaWinner] = {"candidate": "model_a", "baseline": "model_b", "tie": "tie"}
    return [
        ArenaVote(
            question_id=row.id,
            model_a=candidate,
            model_b=baseline,
            winner=winners[row.verdicts[judge]],
            judge=judge,
            conversation_a=_conversation(row, row.candidate.text),
            conversation_b=_conversation(row, row.baseline.text),
            turn=sum(turn.get("role") == "user" for turn in row.prompt),
            tstamp=now,
        )
        for row in rows
        if judge in row.verdicts
    ]


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number; None for one that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE_BYTES + 1):
            number += 1
            whole = len(line) <= _LONGEST_LINE_BYTES
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_LONGEST_LINE_BYTES)
            if whole and not line.strip():
                continue
            yield number, line if whole else None


def _vote_of(line: bytes | None) -> ArenaVote | str:
    """The vote of a line, or why it is none."""
    if line is None:
        return f"is longer than {_LONGEST_LINE_BYTES // 1024**2} MiB"
    try:
        return ArenaVote.model_validate(parse_json(line))
    except JsonError as error:
        return str(error)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        rule = first["msg"].removeprefix("Value error, ")
        return f"{field}: {rule}" if field else rule


def _sides(candidate: str, baseline: str) -> dict[str, Winner]:
    """Which side a model's name means."""
    names = [model_name(name) for name in (candidate, baseline)]
    short = [name.rpartition("/")[2] for name in names]
    sides: dict[str, Winner] = {} if short[0] == short[1] else {short[0]: "candidate", short[1]: "baseline"}
    return sides | {names[0]: "candidate", names[1]: "baseline"}


def _latest(votes: Sequence[ArenaVote]) -> list[ArenaVote]:
    """One vote of each judge on each prompt: the last one."""
    last: dict[Any, ArenaVote] = {}
    for place, vote in enumerate(sorted(votes, key=lambda each: each.tstamp)):
        last[(vote.judge, str(vote.question_id)) if vote.judge else place] = vote
    return list(last.values())


def _asks(vote: ArenaVote, row: AnswerRow) -> bool:
    """Whether the user's turns are the same. System turns are not compared: other programs leave them out."""
    asked = [_text(turn.get("content")) for turn in row.prompt if turn.get("role") == "user"]
    return [turn.content for turn in vote.conversation_a[:-1] if turn.role == "user"] == asked


def _is_about(vote: ArenaVote, row: AnswerRow, *, candidate_is_a: bool) -> bool:
    answers = (row.candidate.text, row.baseline.text) if candidate_is_a else (row.baseline.text, row.candidate.text)
    return (vote.conversation_a[-1].content, vote.conversation_b[-1].content) == answers


def _by_majority(balance: int | None) -> Winner | None:
    if balance is None:
        return None
    return "tie" if balance == 0 else "candidate" if balance > 0 else "baseline"


def _conversation(row: AnswerRow, answer: str) -> tuple[ArenaTurn, ...]:
    turns = [ArenaTurn(role=str(turn.get("role", "")), content=_text(turn.get("content"))) for turn in row.prompt]
    return (*turns, ArenaTurn(role="assistant", content=answer))


def _text(content: Any) -> str:
    """A turn's content; blocks are JSON, as FastChat's turns are texts."""
    return content if isinstance(content, str) else json_bytes(content).decode().rstrip("\n")
