"""Messages on columns that no layout reads, and how to map them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from prefine.data.reading.rows import printable
from prefine.data.records.layouts.shape import COMMON_COLUMNS, Shape
from prefine.data.records.layouts.table import SHAPES
from prefine.data.records.row_flags import VOTE_COLUMNS, plain_name
from prefine.data.records.turns import is_blank
from prefine.errors import DataError
from prefine.records import Completion, Demonstration, Preference, Prompt, Vote

_MOST_NAMED = 12


# Names in other datasets for the columns of the simplest layout of each kind.
_SYNONYMS = {
    "prompt": ("question", "query", "instruction", "input", "context", "request", "problem", "user", "post", "title"),
    "completion": ("response", "answer", "output", "reply", "solution", "target", "assistant", "generation", "summary"),
    "instruction": ("task",),
    "input": ("context",),
    "output": ("response", "answer", "completion", "target"),
    "chosen": ("preferred", "response_j", "chosen_response", "response_chosen", "better", "accepted", "winner", "best"),
    "rejected": ("response_k", "rejected_response", "response_rejected", "dispreferred", "worse", "loser", "worst"),
    "label": VOTE_COLUMNS,
    "response_1": ("response_a", "answer_a", "output_1", "completion_a", "a"),
    "response_2": ("response_b", "answer_b", "output_2", "completion_b", "b"),
    "preferred": ("preference", "choice", "winner", "label"),
}
# Layouts by their columns; the first with all columns found is proposed; "?" marks an optional column.
_PROPOSED: dict[type[BaseModel], tuple[tuple[str, ...], ...]] = {
    Preference: (("prompt", "chosen", "rejected"), ("prompt", "response_1", "response_2", "preferred")),
    Vote: (("prompt", "completion", "label"),),
    Demonstration: (("instruction", "input?", "output"), ("prompt", "completion")),
    Completion: (("prompt", "completion"),),
    Prompt: (("prompt",),),
}
_VERBS: dict[type[BaseModel], str] = {
    Preference: "preferences: prefine dpo, prefine orpo, prefine reward and prefine sft learn from them",
    Vote: "votes: prefine kto, prefine reward and prefine sft learn from them",
    Demonstration: "demonstrations: prefine sft learns from them",
    Prompt: "prompts: prefine ppo and prefine generate use them",
}


def kind_in(value: Mapping[str, Any]) -> type[BaseModel] | None:
    """The intended kind of a row: a row of an earlier kind can often be read as a later kind, too.

    A row that is only a prompt by its values may lack one of two answers, which its column names show.
    """
    found = next((kind for kind in _VERBS if any(shape.fits(value) for shape in SHAPES[kind])), None)
    if found not in (None, Prompt):
        return found
    lacking = (kind for kind in _VERBS if any(shape.lacks_a_value(value) for shape in SHAPES[kind]))
    return next(lacking, found)


def proposed_mapping(columns: Collection[str], kind: type[BaseModel]) -> str:
    """A data.columns for a file with these columns, with … for unknown ones."""
    attempts = [_attempt(columns, layout) for layout in _PROPOSED[kind]]
    best = min(attempts, key=lambda found: list(found.values()).count("…"))
    return "{" + ", ".join(f"{name}: {printable(column)}" for name, column in best.items() if name != column) + "}"


def proposed_columns(columns: Collection[str]) -> dict[str, str]:
    """prefine's name -> the column, for columns with names that other datasets use; empty if a name has none."""
    kind = _guessed(columns)
    attempts = [_attempt(columns, layout) for layout in _PROPOSED[kind]]
    best = next((found for found in attempts if "…" not in found.values()), {})
    return {name: column for name, column in best.items() if name != column}


def _attempt(columns: Collection[str], layout: tuple[str, ...]) -> dict[str, str]:
    plain = {plain_name(column): column for column in columns}
    found: dict[str, str] = {}
    for need in layout:
        name = need.removesuffix("?")
        candidates = (plain[each] for each in (name, *_SYNONYMS[name]) if each in plain)
        column = next((each for each in candidates if each not in found.values()), None)
        if column is not None or need == name:
            found[name] = column or "…"
    return found


def unknown_columns(
    source: str, columns: Sequence[str], kind: type[BaseModel] | None, like: object = None
) -> DataError:
    """The error for a file whose rows fit no layout of a kind, or of any kind if `kind` is None.

    Args:
        source: the file.
        columns: of its rows.
        like: a kind that its rows do fit.
    """
    what = "known format" if kind is None else f"format of a {kind.__name__.lower()}"
    problem = f"{source}: its columns ({listed(columns)}) fit no {what}"
    if like and like in _VERBS and like != kind:
        verbs = _VERBS[like]
        return DataError(f"{problem}; they are those of {verbs}", "Use one of these commands, or other data.")
    proposed = proposed_mapping(columns, kind or _guessed(columns))
    return DataError(
        problem,
        f"Map the columns: data.columns: {proposed} in a recipe, --column NAME=COLUMN on the command line; "
        "docs/data.md shows all formats.",
    )


def _guessed(columns: Collection[str]) -> type[BaseModel]:
    """The kind whose proposal is complete, else a demonstration."""
    kinds: tuple[type[BaseModel], ...] = (Preference, Vote, Demonstration)
    return next((kind for kind in kinds if "…" not in proposed_mapping(columns, kind)), Demonstration)


def listed(columns: Sequence[str]) -> str:
    found = ", ".join(printable(name[:40]) for name in columns[:_MOST_NAMED]) or "none"
    return found + (", …" if len(columns) > _MOST_NAMED else "")


# Names of answers, and of reasoning, in datasets; as `plain_name` writes them.
_ANSWER_LIKE = re.compile(
    r"(.+_)?(answer|response|completion|output|reply|chosen|rejected|summary|solution|reasoning|thinking|rationale)s?(_.+)?"
)
_ABOUT_ANSWERS = re.compile(r".*_(id|ids|model|models|run|name|type|source|lang|language|length|url|author)")


def answers_unread(value: Mapping[str, Any], kind: type[BaseModel], shape: Shape) -> list[str]:
    """Columns that look like answers by name and value but are not read by a shape of this kind.

    If only prompts are wanted, the answers of a layout are ignored on purpose.
    """
    found = [
        name
        for name, item in value.items()
        if _looks_like_answers(name) and isinstance(item, str | list | dict) and not is_blank(item)
    ]
    if found:
        read = shape.taken(value) | COMMON_COLUMNS
        found = [name for name in found if name not in read]
    return [] if found and kind is Prompt and kind_in(value) is not Prompt else found


@lru_cache(maxsize=1_000)
def _looks_like_answers(name: str) -> bool:
    plain = plain_name(name)
    return bool(_ANSWER_LIKE.fullmatch(plain)) and not _ABOUT_ANSWERS.fullmatch(plain)
